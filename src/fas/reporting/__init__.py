"""The report: one page about one converted model, and its figures as files."""
