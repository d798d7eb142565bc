"""Whose data is whose, and what processes tell each other."""

import tasks
from crew import agreed, crew
from hypothesis import given
from hypothesis import strategies as st

from fas import distributed as ranks
from fas.errors import FASError


def test_processes_get_the_rows_of_all_in_their_order():
    gathered, value, said, size = agreed(crew(3, tasks.collectives))
    # The first has no row at all.
    assert gathered == [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]
    assert (value, said, size) == ([0.0], 7, 3)


def test_parts_are_dealt_out_without_rest_and_in_order():
    for parts in (1, 7):
        shares = crew(3, tasks.shares, parts)
        assert [part for share in shares for part in share] == list(range(parts))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(0, 1000))
def test_one_process_has_everything(parts):
    assert ranks.share(parts) == range(parts) and ranks.place() == (0, 1)


def test_data_of_another_process_must_be_the_same():
    assert crew(2, tasks.compare, True) == [None, None]
    for answer in crew(3, tasks.compare, False):
        assert isinstance(answer, FASError) and "numbers: process 1 has other ones than process 0" in str(answer)
