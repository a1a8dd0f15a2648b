"""The mailbox between two threads."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator

import pytest

from gpuward_supervisor.mailbox import Mailbox


@pytest.fixture
def box() -> Iterator[Mailbox[int]]:
    box: Mailbox[int] = Mailbox()
    yield box
    box.close()


def readable(box: Mailbox[int], timeout_ms: int = 0) -> bool:
    poll = select.poll()
    poll.register(box, select.POLLIN)
    return bool(poll.poll(timeout_ms))


def test_an_empty_box_is_silent(box: Mailbox[int]) -> None:
    assert not readable(box)
    assert box.take() == []


def test_items_come_out_in_order_and_the_box_falls_silent(box: Mailbox[int]) -> None:
    for number in range(5):
        box.post(number)
    assert readable(box)
    assert box.take() == [0, 1, 2, 3, 4]
    assert not readable(box)


def test_what_a_limit_leaves_behind_wakes_the_reader_again(box: Mailbox[int]) -> None:
    for number in range(5):
        box.post(number)
    assert box.take(limit=2) == [0, 1]
    assert readable(box)
    assert box.take() == [2, 3, 4]


def test_a_post_after_a_take_wakes_the_reader(box: Mailbox[int]) -> None:
    box.post(1)
    box.take()
    box.post(2)
    assert readable(box)


def test_nothing_is_lost_between_threads_and_no_wake_up_is_missed(box: Mailbox[int]) -> None:
    """Four posters against one reader that only takes when it was woken."""
    each = 5_000

    def post(start: int) -> None:
        for number in range(each):
            box.post(start + number)

    threads = [threading.Thread(target=post, args=(n * each,)) for n in range(4)]
    for thread in threads:
        thread.start()
    taken: list[int] = []
    while len(taken) < 4 * each:
        assert readable(box, 5000), f"slept through a post after {len(taken)} items"
        taken.extend(box.take())
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(4 * each))
    assert not readable(box) or box.take() == []


def test_a_closed_box_takes_posts_without_complaint() -> None:
    box: Mailbox[int] = Mailbox()
    box.close()
    box.close()
    box.post(1)
    assert len(box) == 1


def test_several_items_are_posted_with_one_wake_up(box: Mailbox[int]) -> None:
    box.post_all([1, 2, 3])
    assert readable(box)
    assert box.take() == [1, 2, 3]
    box.post_all([])
    assert not readable(box)
