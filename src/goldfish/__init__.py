"""goldfish: a research template around the goldfish loss (arXiv 2406.10209).

`from goldfish import ...` is all that a user of PyTorch Lightning needs; torch is imported with the first name that is
asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goldfish.auditing.frames import audit as audit
    from goldfish.data.datamodule import InjectionDataModule as InjectionDataModule
    from goldfish.data.injection import Injection as Injection
    from goldfish.evaluation.frames import extract as extract
    from goldfish.evaluation.frames import membership as membership
    from goldfish.integrations import GoldfishCollator as GoldfishCollator
    from goldfish.losses.linear_loss import goldfish_loss as goldfish_loss
    from goldfish.masks import HashedMask as HashedMask
    from goldfish.masks import HashTableMask as HashTableMask
    from goldfish.masks import NoMask as NoMask
    from goldfish.masks import RandomMask as RandomMask
    from goldfish.masks import StaticMask as StaticMask
    from goldfish.masks import goldfish_mask as goldfish_mask
    from goldfish.models.llama import LlamaFromConfig as LlamaFromConfig
    from goldfish.training.module import GoldfishModule as GoldfishModule
    from goldfish.training.optimizers import AdamW as AdamW
    from goldfish.training.optimizers import Muon as Muon

__version__ = "0.1.0"
# Public name -> the module that defines it. A new name is a line here, and one above for type checkers.
_MODULES = {
    "GoldfishModule": "goldfish.training.module",
    "InjectionDataModule": "goldfish.data.datamodule",
    "Injection": "goldfish.data.injection",
    "LlamaFromConfig": "goldfish.models.llama",
    "AdamW": "goldfish.training.optimizers",
    "Muon": "goldfish.training.optimizers",
    "HashedMask": "goldfish.masks",
    "StaticMask": "goldfish.masks",
    "RandomMask": "goldfish.masks",
    "HashTableMask": "goldfish.masks",
    "NoMask": "goldfish.masks",
    "goldfish_mask": "goldfish.masks",
    "goldfish_loss": "goldfish.losses.linear_loss",
    "extract": "goldfish.evaluation.frames",
    "membership": "goldfish.evaluation.frames",
    "audit": "goldfish.auditing.frames",
    "GoldfishCollator": "goldfish.integrations",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for first: the command lines start without torch (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'goldfish' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return found


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
