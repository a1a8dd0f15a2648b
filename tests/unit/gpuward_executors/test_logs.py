from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gpuward_executors.logs import BUFFER_MAX_BYTES, Logs


def lines_in(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


def test_lines_are_json_and_carry_their_source(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    logs = Logs(fd)
    logs.log("warning", "executor.x", {"n": 1, "text": "two\nlines"})
    logs.relay("error", 'it "broke"')
    os.close(fd)
    own, relayed = lines_in(path.read_bytes())
    assert own.pop("ts").endswith("+00:00")
    assert own == {
        "source": "executor",
        "level": "warning",
        "event": "executor.x",
        "n": 1,
        "text": "two\nlines",
    }
    assert relayed == {"source": "engine", "level": "error", "line": 'it "broke"'}


@pytest.mark.parametrize(("lowest", "written"), [("debug", 4), ("info", 3), ("error", 1), ("nonsense", 3)])
def test_lines_below_the_level_are_left_out(tmp_path: Path, lowest: str, written: int) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    logs = Logs(fd, lowest)
    for level in ("debug", "info", "warning", "error"):
        logs.log(level, "x")
    os.close(fd)
    assert len(lines_in(path.read_bytes())) == written


def test_a_slow_reader_gets_everything_later_and_in_order() -> None:
    async def run() -> list[dict[str, Any]]:
        reading, writing = os.pipe()
        logs = Logs(writing, loop=asyncio.get_running_loop())
        count = 5000  # more than a pipe holds, less than the buffer
        for number in range(count):
            logs.relay("info", f"{number} " + "x" * 80)
        taken = bytearray()
        while taken.count(b"\n") < count:
            taken += await asyncio.to_thread(os.read, reading, 65536)
        os.close(reading)
        assert logs.dropped == 0
        logs.flush()
        os.close(writing)
        return lines_in(bytes(taken))

    assert [int(line["line"].split()[0]) for line in asyncio.run(run())] == list(range(5000))


def test_without_a_reader_lines_are_dropped_and_counted_and_nothing_blocks() -> None:
    async def run() -> int:
        loop = asyncio.get_running_loop()
        reading, writing = os.pipe()
        logs = Logs(writing, loop=loop)
        for _ in range(2 * BUFFER_MAX_BYTES // 1000):
            logs.relay("info", "x" * 1000)
        os.close(reading)
        logs.flush()  # the reader is gone: what waits is dropped, not an error
        logs.relay("info", "x")
        os.close(writing)
        return logs.dropped

    assert asyncio.run(run()) > 100


def test_without_a_loop_a_full_pipe_drops() -> None:
    reading, writing = os.pipe()
    logs = Logs(writing)
    for _ in range(100):
        logs.relay("info", "x" * 4000)
    assert logs.dropped > 0
    os.close(reading)
    os.close(writing)


def test_a_file_that_is_no_pipe_stays_as_it_is(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    Logs(fd)
    assert os.get_blocking(fd)
    os.close(fd)
