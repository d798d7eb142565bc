"""Random and mutated inputs for the fuzz tests."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import strategies as st

_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)

json_values = st.recursive(
    _PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)

# What stands in place of a value: other types, names that lead elsewhere, numbers at the edge.
_STRANGE: list[Any] = [
    None,
    True,
    0,
    3,
    -1,
    10**30,
    1e308,
    "",
    "x",
    "../x",
    "/etc/passwd",
    "\x1b[31m",
    [],
    {},
    [3],
    {"a": 1},
]


@st.composite
def edited_json(draw: st.DrawFn, document: Any) -> Any:
    """Return a copy of a JSON document with one or two of its values exchanged or left out."""
    copied = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 2))):
        places = _places(copied)
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        if draw(st.integers(0, 3)) == 0:
            del holder[key]
        else:
            holder[key] = draw(st.sampled_from(_STRANGE))
    return copied


def _places(value: Any) -> list[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inner for place in [(value, key), *_places(item)]]


@st.composite
def edited_bytes(draw: st.DrawFn, content: bytes, reach: int | None = None) -> bytes:
    """Return bytes with up to three stretches exchanged, within the first ``reach``."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, min(reach or len(changed), len(changed)) - 1)))
        changed[at : at + draw(st.integers(0, 4))] = draw(
            st.binary(max_size=3) | st.sampled_from([b'"', b"[", b"9", b"}"])
        )
    return bytes(changed)


@st.composite
def edited_safetensors(draw: st.DrawFn, content: bytes) -> bytes:
    """Return a safetensors file whose header says something else, or is none."""
    length = struct.unpack("<Q", content[:8])[0]
    if draw(st.integers(0, 2)) == 0:
        return draw(edited_bytes(content, 8 + length) | st.integers(0, len(content)).map(lambda n: content[:n]))
    header = json.loads(content[8 : 8 + length])
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(header)))
        entry = header[name]
        if name == "__metadata__" or draw(st.integers(0, 4)) == 0:
            header[name] = draw(st.sampled_from([None, 3, {}, [], {"format": "tf"}, {"format": 3}]))
        elif isinstance(entry, dict):
            field = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
            header[name] = {**entry, field: draw(st.sampled_from(_HEADER[field]))}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


_HEADER: dict[str, list[Any]] = {
    "dtype": ["F16", "BF16", "I64", "BOOL", "F8_E4M3", "F99", 3],
    "shape": [[], [0], [-1], [1 << 62, 4], [3], "x", [[1]]],
    "data_offsets": [[0, 0], [5, 1], [0, 1 << 62], [-1, 3], [0], None],
}
