"""The demo's callers: on a slow machine a queue has no free slot for a while, and nobody is lost by that."""

from __future__ import annotations

import email.message
import importlib.util
import io
import types
import urllib.error
from pathlib import Path

import pytest

from support.source_tree import ROOT


@pytest.fixture
def demo() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("gpuward_demo", ROOT / "examples" / "demo" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Clock:
    """The parts of ``time`` that the demo uses; sleeping moves it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class BusyQueue:
    """An opener of URLs behind which every slot is taken until a moment."""

    def __init__(self, clock: Clock, until_s: float) -> None:
        self.clock = clock
        self.until_s = until_s

    def open(self, _request: object, timeout: float) -> io.BytesIO:
        assert timeout > 0
        if self.clock.now_s < self.until_s:
            busy = io.BytesIO(b'{"detail":"No worker available"}')
            raise urllib.error.HTTPError("http://queue", 503, "busy", email.message.Message(), busy)
        return io.BytesIO(b'{"data": [{"embedding": [1.0, 2.0]}]}')


def _embed(
    demo: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, busy_until_s: float
) -> str:
    clock = Clock()
    queue = BusyQueue(clock, busy_until_s)
    monkeypatch.setattr(demo, "time", clock)
    monkeypatch.setattr(demo.urllib.request, "build_opener", lambda *_: queue)
    return str(demo.Demo(tmp_path, []).embed(1))


def test_a_caller_waits_for_a_slot_while_an_engine_is_away(
    demo: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert _embed(demo, monkeypatch, tmp_path, busy_until_s=20.0) == "ok"


def test_a_queue_that_never_has_a_slot_is_told_of_in_the_end(
    demo: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = _embed(demo, monkeypatch, tmp_path, busy_until_s=1e9)
    assert "HTTP 503" in answer


def test_a_long_account_of_a_death_is_told_in_short(demo: types.ModuleType) -> None:
    assert demo.brief("the engine exited with code 0") == "the engine exited with code 0"
    assert len(demo.brief("word " * 500)) <= demo.DETAIL_CHARS + 2
