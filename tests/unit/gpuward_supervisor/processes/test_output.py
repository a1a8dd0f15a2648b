from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from gpuward_supervisor.processes import output
from gpuward_supervisor.processes.output import LINE_MAX_BYTES, TAIL_BYTES, TAIL_LINES, OutputReader


class Pipe:
    def __init__(self) -> None:
        read_fd, self.write_fd = os.pipe()
        os.set_blocking(read_fd, False)
        self.reader = OutputReader(read_fd, now_s=0.0)

    def say(self, data: bytes, now_s: float = 0.0) -> list[str]:
        os.write(self.write_fd, data)
        return self.reader.read(now_s)

    def hang_up(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.hang_up()
    pipe.reader.close()


def test_lines_come_once_they_are_complete(pipe: Pipe) -> None:
    assert pipe.say(b"one\ntw") == ["one"]
    assert pipe.say(b"o\n\nthree") == ["two"]
    assert pipe.reader.read(0.0) == []
    pipe.hang_up()
    assert pipe.reader.finish(0.0) == ["three"]
    assert pipe.reader.tail == ["one", "two", "three"]
    assert pipe.reader.ended


def test_nothing_to_read_is_no_end(pipe: Pipe) -> None:
    assert pipe.reader.read(0.0) == []
    assert not pipe.reader.ended


def test_end_of_file_is_noticed_without_losing_the_last_lines(pipe: Pipe) -> None:
    os.write(pipe.write_fd, b"last\nwords")
    pipe.hang_up()
    assert pipe.reader.read(0.0) == ["last"]
    assert pipe.reader.ended
    assert pipe.reader.finish(0.0) == ["words"]


def test_an_endless_line_is_cut_and_the_next_one_is_whole(pipe: Pipe) -> None:
    first = pipe.say(b"x" * (LINE_MAX_BYTES + 1))
    assert first == ["x" * LINE_MAX_BYTES + " … (line cut)"]
    assert pipe.say(b"y" * 50_000) == []
    assert pipe.say(b"z\nnext\n") == ["next"]


def test_a_long_complete_line_is_cut(pipe: Pipe) -> None:
    (line,) = pipe.say(b"x" * 20_000 + b"\n")
    assert line == "x" * LINE_MAX_BYTES + " … (line cut)"


def test_of_a_progress_bar_the_last_state_is_kept(pipe: Pipe) -> None:
    assert pipe.say(b"\r 10%\r 20%") == []
    assert pipe.say(b"\r 30%" * 3000) == []  # far more than a line may have
    assert pipe.say(b"\r100%\r\n") == ["100%"]


def test_bytes_that_are_no_text_do_not_hurt(pipe: Pipe) -> None:
    assert pipe.say(b"caf\xe9 \xff\n") == ["caf\ufffd \ufffd"]


def test_one_turn_reads_a_bounded_amount(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "TURN_BYTES", 10)
    os.write(pipe.write_fd, b"0123456\n" * 3)
    assert pipe.reader.read(0.0, limit_bytes=10) == ["0123456"]
    assert pipe.reader.read(0.0, limit_bytes=10) == ["0123456"]


def test_a_flood_is_thinned_out_and_counted_but_its_end_is_kept_as_evidence(pipe: Pipe) -> None:
    lines = []
    for block in range(100):
        lines += pipe.say(b"".join(b"line %d\n" % number for number in range(block * 100, block * 100 + 100)))
    assert lines == [f"line {number}" for number in range(5000)]
    assert pipe.reader.tail[-1] == "line 9999"
    assert pipe.say(b"later\n", now_s=1.0) == ["… (5000 lines left out: more than 2000 per second)", "later"]
    for _ in range(25):
        pipe.say(b"again\n" * 100, now_s=1.0)
    assert pipe.reader.finish(1.0) == ["… (501 lines left out: more than 2000 per second)"]


def test_the_tail_is_bounded_in_lines_and_in_bytes(pipe: Pipe) -> None:
    for number in range(300):
        pipe.say(b"%d\n" % number)
    assert pipe.reader.tail == [str(number) for number in range(300 - TAIL_LINES, 300)]
    for _ in range(20):
        pipe.say(b"x" * 8000 + b"\n")
    assert sum(map(len, pipe.reader.tail)) <= TAIL_BYTES
    assert len(pipe.reader.tail) == TAIL_BYTES // 8000


def test_an_orphan_that_goes_on_writing_cannot_hold_up_the_end(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "FINISH_BYTES", 100)
    os.write(pipe.write_fd, b"0123456789\n" * 50)
    assert len(pipe.reader.finish(0.0)) <= 11  # and returns although the writer lives
