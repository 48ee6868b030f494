"""Runs on disk: the run directory, the processes that fill it, and the locks between them."""
