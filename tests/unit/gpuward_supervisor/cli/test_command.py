"""A command's parser: help that teaches, errors that say what to do."""

from __future__ import annotations

import argparse

import pytest

from gpuward_supervisor.cli.command import Command, complain, parser_of


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--number", type=int)


COMMAND = Command(
    words=("one", "two"),
    summary="Do it.",
    examples="examples:\n  gpuward one two --number 3",
    add_options=_options,
    run=lambda options: int(options.number),
)


def test_help_shows_summary_options_and_examples_as_they_are_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser_of(COMMAND).parse_args(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: gpuward one two")
    assert "Do it." in text
    assert "examples:\n  gpuward one two --number 3" in text


@pytest.mark.parametrize("words", [["--number", "x"], ["--num", "3"], ["extra"]])
def test_a_wrong_word_ends_with_2_and_the_next_step(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser_of(COMMAND).parse_args(words)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gpuward one two: ")
    assert captured.err.endswith("; try `gpuward one two --help`\n")


def test_complaints_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    complain(["a", "b"])
    assert capsys.readouterr() == ("", "a\nb\n")
