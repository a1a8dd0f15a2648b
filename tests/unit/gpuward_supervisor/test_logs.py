"""Log lines: their form, their bounds, and what never appears in them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from gpuward_supervisor.config.schema import LogFormat, LogLevel
from gpuward_supervisor.logs import LogLines, colours_wanted, configure
from gpuward_supervisor.secrets import Secret

AT_S = 1_795_370_000.25


@pytest.fixture
def restored_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def lines_of(**options: Any) -> LogLines:
    return LogLines(node="n1", clock=lambda: AT_S, **options)


def parsed(line: bytes) -> dict[str, Any]:
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def test_a_json_line_begins_with_time_level_event_and_node() -> None:
    line = lines_of().line("info", "executor.ready", {"executor": "gpu0", "slots": 4})
    assert list(parsed(line).items()) == [
        ("ts", "2026-11-22T17:53:20.250Z"),
        ("level", "info"),
        ("event", "executor.ready"),
        ("node", "n1"),
        ("executor", "gpu0"),
        ("slots", 4),
    ]


def test_a_fact_cannot_take_the_place_of_the_first_keys() -> None:
    assert parsed(lines_of().line("info", "x", {"level": "fatal", "ts": 1}))["level"] == "info"
    assert parsed(lines_of().line("info", "x", {"level": "fatal"}))["level_"] == "fatal"


def test_long_values_are_cut_and_say_so() -> None:
    found = parsed(lines_of().line("info", "x", {"text": "a" * 5000, "list": ["b" * 5000]}))
    assert found["text"].startswith("a" * 2048 + "…")
    assert "5000" in found["text"]
    assert len(found["list"]) < 2100


def test_of_a_traceback_the_end_is_kept() -> None:
    found = parsed(lines_of().line("error", "x", {"exception": "a" * 9000 + "ValueError: here"}))
    assert found["exception"].endswith("ValueError: here")
    assert len(found["exception"]) < 8300


@pytest.mark.parametrize("pretty", [False, True])
def test_control_characters_and_turned_text_are_escaped(pretty: bool) -> None:
    evil = "a\x1b[2Jb\x9bc\u202ed\u2028e\x7ff\r\n"
    line = lines_of(pretty=pretty).line("info", f"ev{evil}", {"text": evil, f"k{evil}": 1})
    assert line.count(b"\n") == 1
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2028" for c in line.decode()[:-1])


@pytest.mark.parametrize("pretty", [False, True])
@pytest.mark.parametrize("secret", ["hunter2hunter2", 'quo"te\\d'])
def test_values_of_secrets_are_taken_out_wherever_they_are(pretty: bool, secret: str) -> None:
    lines = lines_of(pretty=pretty, secrets=[Secret(secret)])
    line = lines.line(
        "info",
        f"at {secret}",
        {"header": f"Bearer {secret}", "nested": {"a": [secret]}, "error": ValueError(secret)},
    ).decode()
    assert secret not in line
    assert json.dumps(secret)[1:-1] not in line
    assert "***" in line


def test_a_cut_leaves_no_half_of_a_secret() -> None:
    lines = lines_of(secrets=[Secret("hunter2hunter2")])
    assert b"hunter2" not in lines.line("info", "x", {"text": "a" * 2040 + "hunter2hunter2" + "b" * 50})


def test_a_secret_of_a_few_letters_does_not_blank_the_log() -> None:
    assert b"abcabc" in lines_of(secrets=[Secret("abc")]).line("info", "x", {"text": "abcabc"})


@pytest.mark.parametrize(
    "value", [2**80, "half \ud800 pair", Secret("hunter2"), Path("/x"), {1: object()}, {"a"}]
)
def test_nothing_that_is_logged_can_break_the_log(value: object) -> None:
    for pretty in (False, True):
        line = lines_of(pretty=pretty).line("info", "x", {"value": value})
        assert line.endswith(b"\n")
        assert b"hunter2" not in line


def test_a_pretty_line_reads_from_time_to_facts() -> None:
    line = (
        lines_of(pretty=True)
        .line("warning", "executor.exited", {"executor": "gpu0", "text": "two words"})
        .decode()
    )
    assert line.endswith('warning executor.exited executor=gpu0 text="two words"\n')


def test_colours_only_when_asked_for() -> None:
    assert b"\x1b" not in lines_of(pretty=True).line("error", "x", {"a": 1})
    assert b"\x1b[31m" in lines_of(pretty=True, colours=True).line("error", "x", {"a": 1})


def test_the_environment_can_switch_colours_off() -> None:
    assert colours_wanted({"TERM": "xterm"})
    assert not colours_wanted({"TERM": "xterm", "NO_COLOR": "1"})
    assert not colours_wanted({"TERM": "dumb"})


def test_lines_of_several_threads_stay_whole() -> None:
    reading, writing = os.pipe()
    lines = lines_of(fd=writing)
    texts = ["x" * 1500 + str(number) for number in range(4)]

    def write(text: str) -> None:
        for _ in range(50):
            lines.write("info", "thread", {"text": text})

    received: list[bytes] = []

    def read() -> None:
        while block := os.read(reading, 65536):
            received.append(block)

    reader = threading.Thread(target=read)
    reader.start()
    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    os.close(writing)
    reader.join()
    os.close(reading)
    found = [json.loads(line)["text"] for line in b"".join(received).splitlines()]
    assert sorted(found) == sorted(texts * 50)


def test_a_reader_that_has_gone_costs_lines_and_nothing_else() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    lines = lines_of(fd=writing)
    lines.write("info", "x", {})
    assert lines.lost == 1
    os.close(writing)


def test_a_full_pipe_that_does_not_block_costs_lines_and_nothing_else() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    lines = lines_of(fd=writing)
    while lines.lost == 0:
        lines.write("info", "x", {"text": "a" * 2000})
    os.close(reading)
    os.close(writing)


def logged(level: LogLevel, form: LogFormat, tmp_path: Path) -> list[str]:
    with (tmp_path / "log").open("wb") as file:
        configure(node="n1", level=level, form=form, secrets=[Secret("hunter2hunter2")], fd=file.fileno())
        log = structlog.get_logger("gpuward").bind(source="casola")
        log.debug("low")
        log.info("middle", key="hunter2hunter2")
        log.log(40, "high", executor="gpu0")
        try:
            raise ValueError("bad hunter2hunter2")
        except ValueError:
            log.exception("failed")
    return (tmp_path / "log").read_text().splitlines()


@pytest.mark.usefixtures("restored_structlog")
def test_structlog_writes_these_lines(tmp_path: Path) -> None:
    found = [json.loads(line) for line in logged(LogLevel.INFO, LogFormat.AUTO, tmp_path)]
    assert [(line["level"], line["event"], line["source"]) for line in found] == [
        ("info", "middle", "casola"),
        ("error", "high", "casola"),
        ("error", "failed", "casola"),
    ]
    assert found[0]["key"] == "***"
    assert found[2]["exception"].endswith("ValueError: bad ***\n")


@pytest.mark.usefixtures("restored_structlog")
def test_the_level_is_kept(tmp_path: Path) -> None:
    assert len(logged(LogLevel.DEBUG, LogFormat.JSON, tmp_path)) == 4
    assert len(logged(LogLevel.ERROR, LogFormat.JSON, tmp_path)) == 2


@pytest.mark.usefixtures("restored_structlog")
def test_pretty_shows_the_traceback_below(tmp_path: Path) -> None:
    text = "\n".join(logged(LogLevel.ERROR, LogFormat.PRETTY, tmp_path))
    assert "error   failed source=casola\n    Traceback" in text
    assert "hunter2" not in text


@pytest.mark.usefixtures("restored_structlog")
def test_auto_is_pretty_on_a_terminal() -> None:
    master, terminal = os.openpty()
    configure(node="n1", level=LogLevel.INFO, form=LogFormat.AUTO, fd=terminal)
    structlog.get_logger("gpuward").info("hello")
    assert not os.read(master, 1000).startswith(b"{")
    os.close(master)
    os.close(terminal)
