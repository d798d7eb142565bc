"""Modules that stand in a converted network."""
