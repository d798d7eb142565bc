"""Measurements beside the library: each module is run from the root of the repository and writes JSON."""
