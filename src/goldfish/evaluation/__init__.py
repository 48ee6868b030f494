"""Evaluation: what a model memorized, and what it is still good for."""
