"""A one-way mailbox between two threads of the supervisor: typed objects in, an event fd to poll on.

The threads share one process, so the frozen structs are handed over as they are: no encoding, no copy.
An event fd (not a ZeroMQ inproc pair) wakes the reader, because a wake-up then costs one system call, and
none at all while the reader is known to be awake.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Unbounded queue with a pollable file descriptor; any thread posts, one thread takes."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._signalled = False
        self._closed = False

    def fileno(self) -> int:
        """File descriptor that polls readable while something is in the box."""
        return self._fd

    def post(self, item: T) -> None:
        """Put an item in; wakes the reader if it may be asleep. Never blocks."""
        self._items.append(item)
        if not self._signalled and not self._closed:
            # Two posters may both signal: harmless. A reader clears the flag before it takes,
            # so an item that is posted after the flag was seen set is always taken by that reader.
            self._signalled = True
            os.eventfd_write(self._fd, 1)

    def post_all(self, items: Iterable[T]) -> None:
        """Put several items in, in order, with one wake-up at most. Never blocks."""
        self._items.extend(items)
        if self._items and not self._signalled and not self._closed:
            self._signalled = True
            os.eventfd_write(self._fd, 1)

    def take(self, limit: int = 1_000_000) -> list[T]:
        """Take what is there, oldest first, at most ``limit`` items; empty when there is nothing."""
        # Read even when the flag is down: a poster that was overtaken between raising the flag and
        # writing would otherwise leave the descriptor readable for ever.
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        self._signalled = False
        items = self._items
        taken: list[T] = []
        while items and len(taken) < limit:
            taken.append(items.popleft())
        if items and not self._signalled:
            self._signalled = True
            os.eventfd_write(self._fd, 1)
        return taken

    def __len__(self) -> int:
        return len(self._items)

    def close(self) -> None:
        """Close the file descriptor; later posts are kept but wake nobody."""
        if not self._closed:
            self._closed = True
            os.close(self._fd)
