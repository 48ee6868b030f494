"""Unlearn questions and answers (TOFU, arXiv 2401.06121) or injected documents: data, objectives and metrics."""
