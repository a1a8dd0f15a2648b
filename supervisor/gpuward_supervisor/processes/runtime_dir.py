"""The runtime folder: sockets and the executors' folders of one life of the supervisor, and nothing else."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from gpuward_supervisor.processes import sweep
from gpuward_supervisor.processes.guardian import MARKER, reads


def prepare(path: Path, tag: str) -> None:
    """Make the folder private, empty and marked as ours.

    What an earlier supervisor left in a folder with its mark is removed; the caller holds the lock of the
    state directory, so nobody lives in there. A folder with other content is never touched: it is somebody's.

    Args:
        path: the folder; made if it is missing.
        tag: the tag of this life of the supervisor.

    Raises:
        OSError: it cannot be made, belongs to another user, or holds what is not ours.
    """
    _make_own(path)
    if (path / MARKER).exists():
        _empty(path)
    strangers = sorted(os.listdir(path))
    if strangers:
        raise OSError(
            f"runtime directory {path} holds files that are not ours ({', '.join(strangers[:3])}); "
            "set node.runtime_dir to an empty or a new folder"
        )
    path.chmod(0o700)
    (path / MARKER).write_text(tag, encoding="utf-8")


def restore(path: Path, tag: str) -> bool:
    """Make again what somebody deleted while we live (a cleaner of /tmp, say); True when that was needed.

    Args:
        path: the folder, as it was prepared.
        tag: the tag of this life of the supervisor.

    Raises:
        OSError: it cannot be made, or somebody else's is in its place.
    """
    if (path / MARKER).exists():
        return False
    _make_own(path)
    path.chmod(0o700)
    (path / MARKER).write_text(tag, encoding="utf-8")
    return True


def _make_own(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise OSError(
            f"runtime directory {path} must be a folder of user {os.geteuid()}, it is "
            f"{'a folder' if stat.S_ISDIR(status.st_mode) else 'none'} of user {status.st_uid}; "
            "set node.runtime_dir to another place"
        )


def remove(path: Path, tag: str) -> None:
    """Remove the folder if its mark names this life; a parent that forbids it keeps it, empty."""
    if reads(str(path / MARKER)) == tag:
        _empty(path)
        with suppress(OSError):
            path.rmdir()


def _empty(path: Path) -> None:
    # The mark last: without it nobody would dare to remove what is left after a crash in between.
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name == MARKER):
        if entry.is_dir(follow_symlinks=False):
            for _ in sweep.remove_tree(entry.path):
                pass
        else:
            with suppress(OSError):
                os.unlink(entry.path)
