"""Named recipes of conversion, one file each, and what they have in common."""

from fas.methods._rate_coded import RateCoded as RateCoded
