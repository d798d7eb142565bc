from __future__ import annotations

import pytest

from fas.words import bytes_of, size, span, value_of


@pytest.mark.parametrize(("text", "count"), [("2GiB", 2 << 30), ("512 MiB", 512 << 20), ("1.5KiB", 1536)])
def test_sizes_are_read(text: str, count: int) -> None:
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["2", "2GB", "-1MiB", "much", ""])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size such as 512MiB or 2GiB"):
        bytes_of(text)


def test_the_unit_fits() -> None:
    assert [size(count) for count in (0, 512, 2**20, 3 << 29)] == ["0.0 KiB", "0.5 KiB", "1.0 MiB", "1.5 GiB"]
    assert [span(seconds) for seconds in (0.4, 119, 120, 5400)] == ["0 s", "119 s", "2 min", "90 min"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("-0.5", -0.5), ("1e-3", 1e-3), ("true", True), ("false", False), ("(1, 2)", (1, 2)), ("much", "much")],
)
def test_values_are_what_they_are_written_as(text: str, value: object) -> None:
    assert value_of(text) == value and type(value_of(text)) is type(value)
