"""goldfish: a research template around the goldfish loss (arXiv 2406.10209).

Two functions serve any training loop: `goldfish_mask` (which tokens keep their loss) and `goldfish_loss`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goldfish.losses.linear_loss import goldfish_loss
    from goldfish.masks import goldfish_mask

__version__ = "0.1.0"
__all__ = ["goldfish_loss", "goldfish_mask"]


def __getattr__(name: str) -> Any:
    """Import torch only when one of the two is asked for: the command lines start without it."""
    if name == "goldfish_mask":
        from goldfish.masks import goldfish_mask

        return goldfish_mask
    if name == "goldfish_loss":
        from goldfish.losses.linear_loss import goldfish_loss

        return goldfish_loss
    raise AttributeError(f"module 'goldfish' has no attribute {name!r}")
