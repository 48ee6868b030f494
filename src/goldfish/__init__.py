"""goldfish: a research template around the goldfish loss (arXiv 2406.10209)."""

__version__ = "0.1.0"
