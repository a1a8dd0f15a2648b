"""``gpuward``: finds the command that was meant and calls it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from gpuward_supervisor.cli import check, config_schema, dev_queue, run
from gpuward_supervisor.cli.command import FAILED, OK, REFUSED, Command, complain, parser_of

#: Every command, in the order in which a newcomer needs them.
COMMANDS: tuple[Command, ...] = (run.COMMAND, check.COMMAND, config_schema.COMMAND, dev_queue.COMMAND)

_EPILOG = """\
a first try, without a GPU and in two terminals:
  gpuward dev-queue
  CASOLA_WS_URL=ws://127.0.0.1:8788 CASOLA_CONFIG_ID=default \\
    GPUWARD_ENGINE_KIND=simulated GPUWARD_EXECUTOR_COUNT=2 gpuward run

exit codes:
  0  done, or a stop that was asked for
  1  a failure
  2  a configuration or command line that was refused

environment: every setting has a variable or a key in a TOML file, see `gpuward config schema`"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: words after the program's name; None for those of this process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except BrokenPipeError:
        # The reader has seen enough, as in `gpuward check | head -1`: no complaint at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return 130


def _dispatch(words: list[str]) -> int:
    match words:
        case []:
            complain([help_text()])
            return REFUSED
        case ["-h" | "--help" | "help"]:
            print(help_text())
            return OK
        case ["help", *rest]:
            return _dispatch([*rest, "--help"])
        case ["-V" | "--version" | "version", *_]:
            print(f"gpuward {version()}")
            return OK
    for command in COMMANDS:
        length = len(command.words)
        if tuple(words[:length]) == command.words:
            if command is dev_queue.COMMAND:
                # Not through our parser: `--help` is the queue's own.
                return dev_queue.run_words(words[length:])
            return command.run(parser_of(command).parse_args(words[length:]))
    complain([f"gpuward: {_unknown(words)}"])
    return REFUSED


def help_text() -> str:
    """What ``gpuward --help`` says."""
    width = max(len(command.name) for command in COMMANDS)
    listed = "\n".join(f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS)
    return (
        "usage: gpuward COMMAND [OPTIONS]\n\n"
        "The worker of one machine with GPUs: jobs from a queue, one isolated executor per GPU.\n\n"
        f"commands:\n{listed}\n\n"
        "  -h, --help     this text; `gpuward COMMAND --help` says more\n"
        f"  -V, --version  the version\n\n{_EPILOG}"
    )


def version() -> str:
    """Version of the installed package."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("gpuward")
    except PackageNotFoundError:
        return "unknown (gpuward is not installed, only on the path)"


def _unknown(words: list[str]) -> str:
    from gpuward_supervisor.config.problems import nearest, one_line

    names = [command.name for command in COMMANDS]
    typed = one_line(" ".join(words[:2]) if words[0] == "config" else words[0])
    meant = nearest(typed, names)
    begun = [name for name in names if name.startswith(f"{words[0]} ")]
    if meant or begun:
        return f"there is no command `{typed}`; did you mean `gpuward {meant or begun[0]}`?"
    return f"there is no command `{typed}`; there are: {', '.join(names)}; try `gpuward --help`"


if __name__ == "__main__":
    sys.exit(main())
