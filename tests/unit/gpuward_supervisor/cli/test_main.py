"""The command line finds what was meant, and says so where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from gpuward_supervisor.cli.main import COMMANDS, main


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_and_the_exit_codes(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    text = capsys.readouterr().out
    assert [command.name for command in COMMANDS if f"  {command.name} " not in text] == []
    assert "exit codes:" in text


def test_no_command_shows_the_help_and_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: gpuward" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--version"], ["-V"], ["version"]])
def test_the_version_is_the_packages(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out == f"gpuward {version('gpuward')}\n"


@pytest.mark.parametrize("name", ["run", "check", "config schema"])
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["help", *name.split()])
    assert ended.value.code == 0
    assert f"usage: gpuward {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["rnu"], "there is no command `rnu`; did you mean `gpuward run`?"),
        (["chekc", "--json"], "there is no command `chekc`; did you mean `gpuward check`?"),
        (["devqueue"], "there is no command `devqueue`; did you mean `gpuward dev-queue`?"),
        (["config"], "there is no command `config`; did you mean `gpuward config schema`?"),
        (["config", "shcema"], "there is no command `config shcema`; did you mean `gpuward config schema`?"),
        (
            ["x\x1b[2J"],
            "there is no command `x\\x1b[2J`; there are: run, check, config schema, dev-queue; try",
        ),
        (["--config", "x"], "there is no command `--config`; "),
    ],
)
def test_an_unknown_command_is_answered_with_the_likely_one(
    words: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"gpuward: {answer}")


def test_the_queues_help_is_reached(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["dev-queue", "--help"])
    assert "usage: gpuward dev-queue" in capsys.readouterr().out


@pytest.mark.slow
def test_a_reader_that_stops_reading_gets_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "gpuward_supervisor", "config", "schema"],
            stdout=out,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.slow
def test_refusing_a_configuration_needs_no_heavy_module() -> None:
    """A start that fails is fast, and one that succeeds carries nothing it does not use."""
    program = (
        "import sys; from gpuward_supervisor.cli.main import main; assert main(['check']) == 2; "
        "heavy = {'asyncio', 'structlog', 'zmq', 'websocket', 'aiohttp', 'sqlite3', 'ssl'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "[]\n"
