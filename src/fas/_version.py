"""The version of the library: its single source, read by the build."""

__version__ = "0.1.0"
