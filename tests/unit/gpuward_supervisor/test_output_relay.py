"""Lines of executors and engines in the node's log: whole, of the right level, bounded, never believed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from gpuward_ipc.types import ExecutorName, Incarnation
from gpuward_supervisor.output_relay import BURST_S, LINES_PER_S, OutputRelay
from gpuward_supervisor.processes.base import OutputLine
from support.clock import Clock

GPU0 = ExecutorName("gpu0")
GPU1 = ExecutorName("gpu1")
TWO = Incarnation(2)
WHO = {"executor": "gpu0", "incarnation": 2}
#: Lines that pass at once, before any is dropped.
BURST = int(LINES_PER_S * BURST_S)


class Relayed:
    """A relay into a log that is kept."""

    def __init__(self, log: list[Any]) -> None:
        self.clock = Clock()
        self.relay = OutputRelay(structlog.get_logger("gpuward"), self.clock)
        self.log = log

    def print(self, text: str, executor: ExecutorName = GPU0) -> None:
        self.relay.relay(OutputLine(executor, TWO, text))

    def told(self, line: dict[str, Any] | str) -> dict[str, Any]:
        """The one line that a printed line becomes."""
        self.log.clear()
        self.print(line if isinstance(line, str) else json.dumps(line))
        assert len(self.log) == 1
        return dict(self.log[0])

    def use_up(self, executor: ExecutorName = GPU0) -> None:
        """Print until the next line would be dropped."""
        for _ in range(BURST):
            self.print("noise", executor)
        self.log.clear()


@pytest.fixture
def relayed() -> Iterator[Relayed]:
    with capture_logs() as logs:
        yield Relayed(logs)


# ---------------------------------------------------------------- what a line becomes


def test_an_executors_own_line_keeps_its_event_level_and_facts(relayed: Relayed) -> None:
    assert relayed.told(
        {
            "ts": "2026-01-01T00:00:00.000+00:00",
            "source": "executor",
            "level": "warning",
            "event": "engine.slow",
            "waited_s": 12.5,
            "probe": {"status": 503},
        }
    ) == {"event": "engine.slow", "log_level": "warning", **WHO, "waited_s": 12.5, "probe": {"status": 503}}


def test_an_engines_line_is_a_line_of_output(relayed: Relayed) -> None:
    assert relayed.told({"source": "engine", "level": "error", "line": "CUDA error: out of memory"}) == {
        "event": "engine.output",
        "log_level": "error",
        **WHO,
        "line": "CUDA error: out of memory",
    }


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
@pytest.mark.parametrize("source", ["executor", "engine"])
def test_levels_are_kept(relayed: Relayed, source: str, level: str) -> None:
    line = {"source": source, "level": level, "event": "x", "line": "y"}
    assert relayed.told(line)["log_level"] == level


@pytest.mark.parametrize("level", [None, "critical", "WARNING", "", 40, ["error"], {"error": 1}])
def test_an_unknown_level_is_info(relayed: Relayed, level: object) -> None:
    line = {"source": "executor", "level": level, "event": "x"}
    assert relayed.told(line)["log_level"] == "info"


@pytest.mark.parametrize(
    "text",
    [
        "Traceback (most recent call last):",
        "",
        "{",
        '{"source":"executor","event":',
        '["source","executor"]',
        "{'source': 'executor'}",
        "{}",
        '{"source":"executor"}',
        '{"source":"executor","event":7}',
        '{"source":"engine","line":7}',
        '{"source":"engine"}',
        '{"level":"info","line":7,"message":"a library with a JSON log of its own"}',
        '{"level":"info","line":"7","message":"a library with a JSON log of its own"}',
        '{"event":"executor.ready","message":"no source, no event"}',
        '{"source":"executor","event":"\\ud800"}',
        "{" * 5000,
        '{"a":' * 5000,
        '{"n":1e999999}',
        "… (12 lines left out)",
    ],
    ids=lambda text: text[:30],
)
def test_whatever_else_is_printed_is_shown_as_it_came(relayed: Relayed, text: str) -> None:
    assert relayed.told(text) == {"event": "engine.output", "log_level": "info", **WHO, "line": text}


@pytest.mark.parametrize("key", ["ts", "source", "level", "line", "executor", "incarnation", "node"])
def test_a_line_cannot_speak_for_somebody_else(relayed: Relayed, key: str) -> None:
    line = {"source": "executor", "event": "x", "level": "info"}
    told = relayed.told(line | {key: line.get(key, "forged")})
    assert told == {"event": "x", "log_level": "info", **WHO}


@pytest.mark.parametrize("key", ["self", "method_name", "args", "kw", "event_kw", "exc_info", "stack_info"])
def test_no_key_of_a_line_can_make_the_log_fail(relayed: Relayed, key: str) -> None:
    told = relayed.told({"source": "executor", "event": "x", key: "value", "more": 1})
    assert (told["event"], told["executor"], told["more"]) == ("x", "gpu0", 1)


def test_percent_signs_are_no_placeholders(relayed: Relayed) -> None:
    assert relayed.told({"source": "executor", "event": "100%s"})["event"] == "100%s"


# ---------------------------------------------------------------- how many


def test_what_is_beyond_the_budget_is_dropped_and_counted(relayed: Relayed) -> None:
    relayed.use_up()
    for _ in range(7):
        relayed.print("dropped")
    assert relayed.log == []
    relayed.clock.pass_s(1.0)
    relayed.print("heard")
    assert [dict(line) for line in relayed.log] == [
        {"event": "output.dropped", "log_level": "warning", **WHO, "lines": 7},
        {"event": "engine.output", "log_level": "info", **WHO, "line": "heard"},
    ]


def test_the_whole_burst_passes(relayed: Relayed) -> None:
    for number in range(BURST):
        relayed.print(str(number))
    assert [line["line"] for line in relayed.log] == [str(number) for number in range(BURST)]


def test_the_budget_comes_back_with_time_and_not_beyond_the_burst(relayed: Relayed) -> None:
    relayed.use_up()
    relayed.clock.pass_s(0.5)
    for _ in range(LINES_PER_S):
        relayed.print("x")
    assert len(relayed.log) == LINES_PER_S // 2
    relayed.clock.pass_s(1000.0 * BURST_S)
    relayed.log.clear()
    for _ in range(BURST + 5):
        relayed.print("x")
    assert [line["event"] for line in relayed.log].count("engine.output") == BURST


@pytest.mark.parametrize(
    "line",
    [
        {"source": "executor", "level": "error", "event": "executor.loop_error"},
        {"source": "engine", "level": "error", "line": "CUDA error"},
    ],
)
def test_errors_always_pass_and_are_not_counted_as_dropped(relayed: Relayed, line: dict[str, str]) -> None:
    relayed.use_up()
    for _ in range(3):
        relayed.print(json.dumps(line))
    assert [told["log_level"] for told in relayed.log] == ["error"] * 3
    relayed.print("dropped")
    relayed.log.clear()
    relayed.print(json.dumps(line))
    assert [told["event"] for told in relayed.log] == ["output.dropped", line.get("event", "engine.output")]
    assert relayed.log[0]["lines"] == 1


def test_each_executor_has_a_budget_of_its_own(relayed: Relayed) -> None:
    relayed.use_up()
    relayed.print("dropped")
    relayed.print("heard", GPU1)
    assert [(line["executor"], line["line"]) for line in relayed.log] == [("gpu1", "heard")]


def test_what_was_dropped_last_is_told_at_the_end_of_the_incarnation(relayed: Relayed) -> None:
    """The last lines before a death are the ones that are looked for."""
    relayed.use_up()
    relayed.print("dropped")
    relayed.print("dropped")
    for _ in range(2):
        relayed.relay.finish(GPU0, TWO)
        relayed.relay.finish(GPU1, TWO)
    assert [dict(line) for line in relayed.log] == [
        {"event": "output.dropped", "log_level": "warning", **WHO, "lines": 2}
    ]


def test_a_new_incarnation_gets_no_new_budget(relayed: Relayed) -> None:
    """A crash loop fills the log no faster than a noisy engine does."""
    relayed.use_up()
    relayed.relay.finish(GPU0, TWO)
    relayed.relay.relay(OutputLine(GPU0, Incarnation(3), "dropped"))
    assert relayed.log == []
