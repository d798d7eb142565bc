"""Converted models for other simulators and for hardware: block by block, with the traces to check them by."""
