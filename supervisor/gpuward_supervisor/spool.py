"""The body files of the journal: written once, never changed, removed when no record refers to them."""

from __future__ import annotations

import os
import secrets
import zlib
from contextlib import suppress
from pathlib import Path

_CHUNK_BYTES = 1024 * 1024


class Spool:
    """One private folder of body files.

    There are no temporary names: a record refers to a file only once it is complete, and files that no record
    refers to are removed at the next start. Nothing is flushed to the disk either; size and checksum tell a
    file that a power cut has damaged.
    """

    def __init__(self, folder: Path) -> None:
        """Name the folder; ``make`` makes it."""
        self._folder = folder

    def make(self) -> None:
        """Make the folder if it is missing.

        Raises:
            OSError: it cannot be made.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def keep_only(self, names: set[str]) -> None:
        """Remove every file but these.

        Raises:
            OSError: the folder cannot be read or written.
        """
        for entry in os.scandir(self._folder):
            if entry.name not in names and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)

    def path(self, name: str) -> Path:
        """Where the file of this name lies."""
        return self._folder / name

    def new_name(self) -> str:
        """A name that no file has."""
        return f"{secrets.token_hex(16)}.body"

    def write(self, name: str, body: bytes) -> tuple[int, int]:
        """Write a body; returns its size in bytes and its checksum.

        Raises:
            OSError: it cannot be written; part of the file may be there.
        """
        fd = self._new(name)
        try:
            _write_all(fd, body)
        finally:
            os.close(fd)
        return len(body), zlib.crc32(body)

    def take_over(self, name: str, source: Path) -> tuple[int, int]:
        """Give a body that lies elsewhere a second name here, or copy it from another file system.

        Returns:
            Its size in bytes and its checksum.

        Raises:
            OSError: it cannot be read or written; part of the file may be there.
        """
        copy: int | None = None
        try:
            os.link(source, self.path(name))
        except OSError:  # another file system, or one without links
            copy = self._new(name)
        size = crc = 0
        try:
            with source.open("rb", buffering=0) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    size += len(chunk)
                    crc = zlib.crc32(chunk, crc)
                    if copy is not None:
                        _write_all(copy, chunk)
        finally:
            if copy is not None:
                os.close(copy)
        return size, crc

    def is_whole(self, name: str, size: int, crc: int) -> bool:
        """Whether the file of this name still has this size and checksum."""
        found = found_crc = 0
        try:
            with self.path(name).open("rb", buffering=0) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    found += len(chunk)
                    found_crc = zlib.crc32(chunk, found_crc)
        except OSError:
            return False
        return (found, found_crc) == (size, crc)

    def remove(self, name: str) -> None:
        """Remove the file of this name; what cannot be removed now goes at the next start."""
        with suppress(OSError):
            self.path(name).unlink()

    def _new(self, name: str) -> int:
        return os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _write_all(fd: int, body: bytes) -> None:
    view = memoryview(body)
    while view:  # a write at the limit of the disk is short, only the next one fails
        view = view[os.write(fd, view) :]
