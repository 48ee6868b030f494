"""Decoding that keeps memorized text from coming out."""

from goldfish.decoding.memfree import MemFree, NgramFilter, Refuse

__all__ = ["MemFree", "NgramFilter", "Refuse"]
