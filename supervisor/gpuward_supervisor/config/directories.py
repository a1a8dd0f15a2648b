"""Where a node keeps its files: chosen when nothing is said, checked when something is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from gpuward_ipc.endpoints import link_endpoint
from gpuward_supervisor.config.findings import Findings

_STATE_DIR = Path("/var/lib/gpuward")
_RUN = Path("/run")


def absolute(text: str, base: Path, home: str | None) -> Path:
    """A path as it was written, made absolute.

    Args:
        text: may begin with ``~``.
        base: what a relative path is relative to: the folder of the file it stands in.
        home: home directory; None when there is none.
    """
    if home and (text == "~" or text.startswith("~/")):
        text = home + text[1:]
    return Path(os.path.normpath(base / text))


def state_dir(given: Path | None, environ: Mapping[str, str], findings: Findings) -> Path:
    """The folder that survives a restart; a problem is noted when it cannot be made or written."""
    if given is not None:
        _check(given, ("node", "state_dir"), findings)
        return given
    if _makeable(_STATE_DIR):
        return _STATE_DIR
    if base := environ.get("XDG_STATE_HOME") or "":
        chosen = Path(base) / "gpuward"
    elif home := environ.get("HOME") or "":
        chosen = Path(home) / ".local/state/gpuward"
    else:
        chosen = Path(f"/tmp/gpuward-{os.geteuid()}-state")  # noqa: S108 - the journal makes it private, or refuses
    _check(chosen, ("node", "state_dir"), findings)
    return chosen


def runtime_dir(given: Path | None, state: Path, environ: Mapping[str, str], findings: Findings) -> Path:
    """The private folder of this run; nodes with different state directories get different ones."""
    chosen = given if given is not None else _default_runtime_dir(state, environ)
    try:
        link_endpoint(chosen)
    except ValueError as error:
        findings.refuse(("node", "runtime_dir"), str(chosen), str(error))
        return chosen
    _check(chosen, ("node", "runtime_dir"), findings)
    return chosen


def _default_runtime_dir(state: Path, environ: Mapping[str, str]) -> Path:
    mark = hashlib.blake2b(str(state).encode(), digest_size=4).hexdigest()
    own = _RUN / "gpuward" if state == _STATE_DIR else _RUN / f"gpuward-{mark}"
    if _makeable(own):
        return own
    session = environ.get("XDG_RUNTIME_DIR") or ""
    if session and _makeable(Path(session) / "gpuward"):
        return Path(session) / f"gpuward-{mark}"
    return Path(f"/tmp/gpuward-{os.geteuid()}-{mark}")  # noqa: S108 - made with mode 0700 and checked by its user


def _check(path: Path, key: tuple[str, str], findings: Findings) -> None:
    found = _nearest_existing(path)
    if not found.is_dir():
        findings.refuse(key, str(path), f"expected a folder, but {found} is a file", "name another folder")
    elif not os.access(found, os.W_OK | os.X_OK):
        what = "it cannot be written" if found == path else f"it cannot be made: {found} cannot be written"
        findings.refuse(key, str(path), f"{what} by user {os.geteuid()}", "name a folder of this user's")


def _makeable(path: Path) -> bool:
    found = _nearest_existing(path)
    return found.is_dir() and os.access(found, os.W_OK | os.X_OK)


def _nearest_existing(path: Path) -> Path:
    for candidate in (path, *path.parents):
        # lexists: a dangling link is in the way as a file is.
        if os.path.lexists(candidate):
            return candidate
    return Path("/")
