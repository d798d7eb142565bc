"""How thresholds are found: the walk through a model and the fit of one site."""
