"""``gpuward dev-queue``: the development queue, whose own command line takes all further words."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from gpuward_supervisor.cli.command import Command


def _all_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs=argparse.REMAINDER)


def _run(options: argparse.Namespace) -> int:
    return run_words(options.words)


def run_words(words: Sequence[str]) -> int:
    """Hand the words after ``dev-queue`` to the queue's own command line; returns its exit code."""
    from gpuward_devqueue.cli import main

    return main(words)


COMMAND = Command(
    words=("dev-queue",),
    summary="Run a queue on this machine, to try a worker against.",
    examples="",
    add_options=_all_words,
    run=_run,
)
