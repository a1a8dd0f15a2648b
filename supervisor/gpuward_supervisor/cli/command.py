"""What one command of the command line is: its words, its options, and the function that does it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import msgspec

#: Exit codes, the same for every command.
OK, FAILED, REFUSED = 0, 1, 2


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One command."""

    #: One or two words.
    words: tuple[str, ...]
    summary: str
    #: What a person may want to type, and why.
    examples: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]

    @property
    def name(self) -> str:
        """As it is typed."""
        return " ".join(self.words)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors end with what to do next."""

    def error(self, message: str) -> None:  # type: ignore[override]  # it does not return either
        """Say what is wrong, and exit with 2."""
        self.exit(REFUSED, f"{self.prog}: {message}; try `{self.prog} --help`\n")


def parser_of(command: Command) -> Parser:
    """The parser of a command's own options."""
    parser = Parser(
        prog=f"gpuward {command.name}",
        description=command.summary,
        epilog=command.examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_options(parser)
    return parser


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="TOML file; default: the one that GPUWARD_CONFIG names, or the environment alone",
    )


def complain(lines: Sequence[str]) -> None:
    """Write lines to standard error."""
    print("\n".join(lines), file=sys.stderr)
