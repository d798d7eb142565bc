"""Named recipes of conversion, one file each."""
