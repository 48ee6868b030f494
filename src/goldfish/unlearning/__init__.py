"""Unlearning questions and answers (TOFU, arXiv 2401.06121): data, objectives, metrics, and the run of goldfish-unlearn."""
