"""Runs on disk: the run directory and the report made of many."""
