from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from gpuward_executors.engines.output import CUT, LINE_MAX_BYTES, LINES_KEPT, EngineOutput


def lines_of(write: Callable[[int], None]) -> list[str]:
    """Lines that a reader takes of what is written until the end of the pipe."""

    async def run() -> list[str]:
        loop = asyncio.get_running_loop()
        reading, writing = os.pipe()
        lines: list[str] = []
        output = EngineOutput(loop, reading, lines.append)
        await asyncio.to_thread(write, writing)
        os.close(writing)
        output.drain()
        assert list(output.last) == lines[-LINES_KEPT:]
        return lines

    return asyncio.run(run())


def written(*pieces: bytes) -> list[str]:
    def write(fd: int) -> None:
        for piece in pieces:
            os.write(fd, piece)

    return lines_of(write)


def test_lines_come_whole_however_they_were_written() -> None:
    assert written(b"one\ntw", b"o\nthr", b"ee") == ["one", "two", "three"]


def test_empty_lines_and_carriage_returns_are_dropped() -> None:
    assert written(b"\n\na\r\n\nb\n") == ["a", "b"]


def test_bytes_that_are_no_text_do_not_stop_the_reader() -> None:
    assert written(b"\xff\xfe\nok\n") == ["\ufffd\ufffd", "ok"]


def test_an_overlong_line_is_cut_and_the_next_is_whole() -> None:
    first, second = written(b"x" * (LINE_MAX_BYTES + 1), b"y" * 10_000, b"\nnext\n")
    assert first.endswith("x" + CUT)
    assert len(first.encode()) <= LINE_MAX_BYTES
    assert second == "next"


def test_only_the_last_lines_are_kept() -> None:
    lines = written(b"".join(b"%d\n" % number for number in range(LINES_KEPT + 50)))
    assert len(lines) == LINES_KEPT + 50


def test_more_than_a_pipe_holds_is_read_while_it_is_written() -> None:
    def write(fd: int) -> None:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(b"0123456789\n" * 30_000)

    assert len(lines_of(write)) == 30_000


def test_a_pipe_that_somebody_else_holds_open_is_not_waited_for() -> None:
    async def run() -> list[str]:
        reading, writing = os.pipe()
        lines: list[str] = []
        output = EngineOutput(asyncio.get_running_loop(), reading, lines.append)
        os.write(writing, b"last words")
        output.drain()
        output.close()
        output.close()
        os.close(writing)
        return lines

    assert asyncio.run(run()) == ["last words"]
