"""What is read ahead comes in order, is bounded in bytes, and ends with the block that uses it."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from clair_cli.formats.ahead import Ahead
from clair_cli.formats.deadline import check_time, deadline

SIZE = 10


class Source:
    """Gives 0, 1, 2 ... and knows how many it has begun, and which thread has closed it."""

    def __init__(self, count: int, error: BaseException | None = None) -> None:
        self.count, self.error = count, error
        self.begun, self.ended = 0, ""

    def items(self) -> Generator[int, None, None]:
        try:
            for number in range(self.count):
                self.begun = number + 1
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.ended = threading.current_thread().name


def still(source: Source) -> int:
    """How many items are begun once nothing happens any more."""
    before = -1
    while before != source.begun:
        before = source.begun
        time.sleep(0.05)
    return before


def ahead(source: Source, room: int = 3 * SIZE) -> Ahead[int]:
    return Ahead(source.items(), lambda _: SIZE, room)


def test_items_come_in_order_from_a_thread_that_ends_with_the_block() -> None:
    source = Source(50)
    with ahead(source) as items:
        assert list(items) == list(range(50))
        assert list(items) == []
    assert source.ended == "reading ahead"
    assert "reading ahead" not in {t.name for t in threading.enumerate()}


@pytest.mark.parametrize("room", [0, 1, SIZE, 3 * SIZE, 3 * SIZE + 1])
def test_no_more_waits_than_there_is_room_for_and_one_item(room: int) -> None:
    source = Source(50)
    with ahead(source, room) as items:
        most = max(-(-room // SIZE), 1)
        assert still(source) == most
        assert next(items) == 0
        assert still(source) == most + 1


def test_an_error_comes_where_its_item_would_have() -> None:
    source = Source(2, KeyError("x"))
    with ahead(source) as items:
        still(source)
        assert [next(items), next(items)] == [0, 1]
        with pytest.raises(KeyError):
            next(items)


def test_who_leaves_the_block_does_not_wait_for_the_rest() -> None:
    source = Source(50)
    with pytest.raises(ZeroDivisionError), ahead(source) as items:
        next(items) / 0
    assert source.begun <= 5
    assert source.ended == "reading ahead"  # closed in the thread that ran it


def test_a_read_under_way_is_called_off() -> None:
    """Also within a deadline of its own, which every client has."""

    def endless() -> Generator[int, None, None]:
        yield 0
        with deadline(60):
            while True:
                time.sleep(0.01)
                check_time()

    began = time.monotonic()
    with Ahead(endless(), lambda _: SIZE, 100) as items:
        assert next(items) == 0
    assert time.monotonic() - began < 10
