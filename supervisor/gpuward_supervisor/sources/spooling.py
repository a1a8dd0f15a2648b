"""Bodies piece by piece: written as they arrive, first to memory, then to a file; read from their file."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from gpuward_ipc.types import INLINE_BODY_MAX_BYTES
from gpuward_supervisor.bodies import SpoolFile
from gpuward_supervisor.core.events import BodyId
from gpuward_supervisor.sources.base import BodyStore

_CHUNK_BYTES = 256 * 1024


class SpoolFailed(Exception):
    """A body could not be written to the spool: the disk is full, read-only or broken."""


class Landing:
    """One body on its way in. Ends by ``keep`` or ``discard``; both may be called after a failure."""

    def __init__(self, bodies: BodyStore) -> None:
        self._bodies = bodies
        self._memory = bytearray()
        self._path: Path | None = None
        self._file = -1
        self.size_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes.

        Raises:
            SpoolFailed: they cannot be written.
        """
        self.size_bytes += len(data)
        if self._path is None and self.size_bytes <= INLINE_BODY_MAX_BYTES:
            self._memory += data
            return
        try:
            if self._path is None:
                path = self._bodies.new_spool_path()
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                self._path = path
                self._write_all(self._memory)
                self._memory = bytearray()
            self._write_all(data)
        except OSError as error:
            raise SpoolFailed(f"the spool cannot be written: {error.strerror or error}") from error

    def content(self) -> bytes | int:
        """What has arrived: the bytes, or the descriptor of the file that holds them."""
        return bytes(self._memory) if self._path is None else self._file

    def keep(self) -> BodyId:
        """Hand the body over to the store."""
        if self._path is None:
            return self._bodies.put(bytes(self._memory))
        os.close(self._file)
        path, self._path, self._file = self._path, None, -1
        return self._bodies.put_file(path, self.size_bytes)

    def discard(self) -> None:
        """Forget the body and remove its file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()
            self._path = None
        self._memory = bytearray()
        self.size_bytes = 0

    def _write_all(self, data: bytes | bytearray | memoryview) -> None:
        with memoryview(data) as whole:
            done = 0
            while done < len(whole):
                with whole[done:] as rest:
                    done += os.write(self._file, rest)


class FileChunks:
    """The pieces of a kept file, in order; open from the start, so that forgetting the body does no harm."""

    def __init__(self, kept: SpoolFile) -> None:
        """Open it.

        Raises:
            OSError: it cannot be opened, or has not the size it was kept with.
        """
        self._file = kept.path.open("rb", buffering=0)
        found_bytes = os.fstat(self._file.fileno()).st_size
        if found_bytes != kept.size_bytes:
            self._file.close()
            raise OSError(f"{kept.path.name} has {found_bytes} bytes: expected {kept.size_bytes}")

    def __iter__(self) -> FileChunks:
        return self

    def __next__(self) -> bytes:
        if piece := self._file.read(_CHUNK_BYTES):
            return piece
        raise StopIteration

    def close(self) -> None:
        """Close the file; pieces may be left."""
        self._file.close()
