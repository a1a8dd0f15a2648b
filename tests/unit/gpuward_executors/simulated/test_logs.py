"""The shape of log lines."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from gpuward_executors.simulated.logs import STDERR, log, write_line

STAMP = r"\d\d-\d\d \d\d:\d\d:\d\d"


def test_a_record_looks_like_vllms(capfd: pytest.CaptureFixture[str]) -> None:
    log("APIServer", "INFO", "launcher.py:46", "hello")
    expected = rf"\(APIServer pid={os.getpid()}\) INFO {STAMP} \[launcher\.py:46\] hello\n"
    assert re.fullmatch(expected, capfd.readouterr().out)


def test_each_line_of_a_text_is_a_record(capfd: pytest.CaptureFixture[str]) -> None:
    log("EngineCore", "ERROR", "core.py:1", "one\ntwo", STDERR)
    lines = capfd.readouterr().err.splitlines()
    assert [line.rpartition("] ")[2] for line in lines] == ["one", "two"]
    assert all(line.startswith("(EngineCore pid=") for line in lines)


def test_a_closed_output_is_no_reason_to_fail() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        write_line("nobody reads this", writer)
    finally:
        os.close(writer)


def test_a_process_shows_the_name_it_was_given() -> None:
    code = "from gpuward_executors.simulated.logs import set_process_name as s; s('SIM::Longer-than-15')"
    code += "; print(open('/proc/self/comm').read().strip())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "SIM::Longer-tha"
