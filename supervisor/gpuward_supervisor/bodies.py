"""The bytes that the core must not see: payloads and results, kept under an id, in memory or as files.

Any thread may put and get; only the loop forgets. Files lie in one private spool folder and are removed
when their body is forgotten.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from gpuward_supervisor.core.events import BodyId


class SpoolFile(msgspec.Struct, frozen=True):
    """A body that lies in a file."""

    path: Path
    size_bytes: int


class Bodies:
    """All bodies that the node holds at the moment."""

    def __init__(self, spool_dir: Path) -> None:
        """Start empty.

        Args:
            spool_dir: private folder for bodies that are too large for memory; made if it is missing.
        """
        spool_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._spool_dir = spool_dir
        self._kept: dict[BodyId, bytes | SpoolFile] = {}
        # next() on a count is atomic under the interpreter lock: ids stay unique between threads.
        self._ids = itertools.count(1)
        self._names = itertools.count(1)

    def put(self, data: bytes) -> BodyId:
        """Keep bytes; returns their id."""
        body = BodyId(next(self._ids))
        self._kept[body] = data
        return body

    def put_file(self, path: Path, size_bytes: int) -> BodyId:
        """Keep a file, which becomes the store's own; returns its id."""
        body = BodyId(next(self._ids))
        self._kept[body] = SpoolFile(path, size_bytes)
        return body

    def new_spool_path(self) -> Path:
        """A file name in the spool folder that nothing else uses."""
        return self._spool_dir / f"{os.getpid()}-{next(self._names)}.json"

    def adopt_file(self, path: Path, size_bytes: int) -> BodyId:
        """Take over a file from another folder of the same file system.

        Raises:
            OSError: it is not there, is no regular file, or has another size than was said.
        """
        status = path.lstat()
        if not path.is_file() or path.is_symlink() or status.st_size != size_bytes:
            raise OSError(f"{path}: expected a regular file of {size_bytes} bytes, found {status.st_size}")
        target = self.new_spool_path()
        os.rename(path, target)
        return self.put_file(target, size_bytes)

    def link_file(self, path: Path, size_bytes: int) -> BodyId:
        """Keep a second name, or where that cannot be a copy, of a file that somebody else owns.

        Raises:
            OSError: it is not there, or cannot be copied.
        """
        target = self.new_spool_path()
        try:
            os.link(path, target)
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK}:
                raise
            shutil.copyfile(path, target)
        return self.put_file(target, size_bytes)

    def spill(self, body: BodyId) -> SpoolFile:
        """Move bytes that are kept in memory to a file, under the same id.

        Raises:
            OSError: the file cannot be written.
            KeyError: nothing is kept under this id.
        """
        kept = self._kept[body]
        if isinstance(kept, SpoolFile):
            return kept
        path = self.new_spool_path()
        path.write_bytes(kept)
        spilled = self._kept[body] = SpoolFile(path, len(kept))
        return spilled

    def get(self, body: BodyId) -> bytes | SpoolFile | None:
        """The bytes or the file kept under this id; None when it was forgotten."""
        return self._kept.get(body)

    def read(self, body: BodyId) -> bytes | None:
        """The bytes kept under this id, read from its file where it is one; None when it was forgotten.

        Raises:
            OSError: the file cannot be read.
        """
        kept = self._kept.get(body)
        if isinstance(kept, SpoolFile):
            return kept.path.read_bytes()
        return kept

    def forget(self, body: BodyId) -> None:
        """Free what is kept under this id; forgetting twice is harmless."""
        kept = self._kept.pop(body, None)
        if isinstance(kept, SpoolFile):
            with suppress(OSError):
                kept.path.unlink()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def spool_dir(self) -> Path:
        """The folder of the files."""
        return self._spool_dir
