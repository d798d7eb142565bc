"""Text from models and files on a terminal: what would steer it is shown, not obeyed."""

from __future__ import annotations

import re

# Control characters but tab and line feed, those of the second block, marks that turn the direction of writing, and
# halves of characters that no encoding has.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text with control characters written out as Python writes them."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
