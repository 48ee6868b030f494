"""Measure what a model memorized, and its utility."""
