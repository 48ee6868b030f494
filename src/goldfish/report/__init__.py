"""The report: turn finished runs and evaluations into tables, figures and one page."""
