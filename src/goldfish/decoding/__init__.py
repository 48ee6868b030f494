"""Defences at decoding time, which prevent the decoding of memorized text."""

from goldfish.decoding.defence import Defence, Rows
from goldfish.decoding.memfree import MemFree, NgramFilter, Refuse

__all__ = ["Defence", "MemFree", "NgramFilter", "Refuse", "Rows"]
