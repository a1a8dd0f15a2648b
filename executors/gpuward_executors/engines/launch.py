"""Knows how to turn into an engine that dies with its parent: arm, check, limit, exec.

Run as a program, by path, by a bare interpreter: `python -I -S launch.py --parent-pid N -- COMMAND…`.
It imports as little as it can, since it stands in the way of every start. A program of its own in place of
`preexec_fn`, which runs Python between fork and exec, can deadlock in a process with threads, and turns the
cheap vfork into a slow fork.

The parent must spawn it from its main thread: the kernel sends the parent-death signal when the *thread* that
spawned ends.

Exit codes before the exec: 1 the parent is another one already, 2 usage, 126 the command cannot be run,
127 it was not found. Afterwards the exit code is the command's.
"""

from __future__ import annotations

# The C half of `signal`: the other half imports `enum`, and `typing` imports yet more.
import _signal  # type: ignore[import-not-found]
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_OOM_SCORE_ADJ_MAX = 1000
#: Added to the own score, so that the kernel takes an engine before its executor and its supervisor.
_OOM_SCORE_ADJ_STEP = 200


def main(arguments: list[str]) -> NoReturn:
    """Become the command.

    Args:
        arguments: The command line without the program's name.

    Raises:
        SystemExit: The command could not be started; see the exit codes above.
    """
    parent_pid, command = _parse(arguments)
    _die_with_parent()
    # The parent may have died before the signal was armed; then nobody would ever send it.
    if os.getppid() != parent_pid:
        _fail(
            1,
            f"parent is process {os.getppid()}, expected {parent_pid}, which died; not starting {command[0]}",
        )
    _forbid_core_files()
    _offer_to_oom_killer()
    _reset_signals()
    try:
        os.execvp(command[0], command)
    except FileNotFoundError:
        _fail(
            127, f"{command[0]}: not found (or its interpreter is missing); install it or give its full path"
        )
    except (OSError, ValueError) as error:
        _fail(126, f"{command[0]}: cannot be executed: {error}")


def _parse(arguments: list[str]) -> tuple[int, list[str]]:
    # argparse alone would double the time to the exec.
    shaped = arguments[:1] == ["--parent-pid"] and arguments[2:3] == ["--"] and len(arguments) > 3
    if shaped and arguments[1].isascii() and arguments[1].isdigit():
        return int(arguments[1]), arguments[3:]
    return _fail(
        2, f"expected `--parent-pid N -- COMMAND [ARGUMENT…]`, got {' '.join(arguments) or 'nothing'}"
    )


def _die_with_parent() -> None:
    try:
        # The C half of `ctypes`: all that one call needs, for half the time.
        import _ctypes

        # No name means the process itself, which the stub does not know.
        process = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
        prctl = _ctypes.dlsym(process, "prctl")
        result = _ctypes.call_function(prctl, (_PR_SET_PDEATHSIG, int(_signal.SIGKILL), 0, 0, 0))
    except (ImportError, AttributeError, OSError) as error:
        _fail(126, f"cannot arm the parent-death signal: {error}; expected a Python built with ctypes")
    if result != 0:
        _fail(126, f"prctl(PR_SET_PDEATHSIG) returned {result}, expected 0")


def _forbid_core_files() -> None:
    import resource

    # A dump of an engine is tens of gigabytes.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _offer_to_oom_killer() -> None:
    try:
        with open("/proc/self/oom_score_adj", "r+b", buffering=0) as score:
            raised = min(_OOM_SCORE_ADJ_MAX, int(score.read()) + _OOM_SCORE_ADJ_STEP)
            score.write(b"%d" % raised)
    except (OSError, ValueError):
        # Best effort: /proc may be read-only or missing.
        pass


def _reset_signals() -> None:
    # Ignored signals and the mask survive an exec: Python itself ignores SIGPIPE, a parent may block others.
    for number in _signal.valid_signals():
        try:
            _signal.signal(number, _signal.SIG_DFL)
        except (OSError, ValueError):
            # SIGKILL, SIGSTOP and those the C library keeps for itself.
            pass
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def _fail(code: int, text: str) -> NoReturn:
    os.write(2, f"launch: {text}\n".encode(errors="surrogateescape"))
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
