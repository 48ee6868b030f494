"""The report: finished runs and evaluations -> tables, figures, one page."""
