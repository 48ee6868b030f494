"""Defences at decoding time: they keep memorized text from being decoded."""

from goldfish.decoding.defence import Defence, Rows
from goldfish.decoding.memfree import MemFree, NgramFilter, Refuse

__all__ = ["Defence", "MemFree", "NgramFilter", "Refuse", "Rows"]
