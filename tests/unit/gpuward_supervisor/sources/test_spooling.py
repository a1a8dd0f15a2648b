from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gpuward_ipc.types import INLINE_BODY_MAX_BYTES
from gpuward_supervisor.bodies import Bodies, SpoolFile
from gpuward_supervisor.sources.spooling import FileChunks, Landing, SpoolFailed


@pytest.fixture
def bodies(tmp_path: Path) -> Bodies:
    return Bodies(tmp_path / "spool")


def files(bodies: Bodies) -> list[Path]:
    return list(bodies.spool_dir.iterdir())


def test_a_small_body_stays_in_memory(bodies: Bodies) -> None:
    landing = Landing(bodies)
    landing.write(b"x" * INLINE_BODY_MAX_BYTES)
    assert landing.content() == b"x" * INLINE_BODY_MAX_BYTES
    assert bodies.get(landing.keep()) == b"x" * INLINE_BODY_MAX_BYTES
    assert files(bodies) == []


def test_a_body_that_grows_moves_into_a_private_file(bodies: Bodies) -> None:
    landing = Landing(bodies)
    landing.write(b"a" * INLINE_BODY_MAX_BYTES)
    landing.write(memoryview(b"bc"))
    assert isinstance(landing.content(), int)
    kept = bodies.get(landing.keep())
    assert isinstance(kept, SpoolFile)
    assert kept.size_bytes == landing.size_bytes == INLINE_BODY_MAX_BYTES + 2
    assert kept.path.read_bytes() == b"a" * INLINE_BODY_MAX_BYTES + b"bc"
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600


def test_discarding_removes_the_file_and_allows_a_new_start(bodies: Bodies) -> None:
    landing = Landing(bodies)
    landing.write(b"x" * (INLINE_BODY_MAX_BYTES + 1))
    landing.discard()
    assert files(bodies) == []
    landing.write(b"again")
    assert bodies.get(landing.keep()) == b"again"
    landing.discard()
    assert len(bodies) == 1


def test_a_full_disk_is_a_failure_of_its_own_kind(bodies: Bodies, monkeypatch: pytest.MonkeyPatch) -> None:
    # The one device that is full wherever the tests run.
    monkeypatch.setattr(bodies, "new_spool_path", lambda: bodies.spool_dir / "missing" / "file")
    landing = Landing(bodies)
    with pytest.raises(SpoolFailed, match="No such file"):
        landing.write(b"x" * (INLINE_BODY_MAX_BYTES + 1))
    landing.discard()
    assert files(bodies) == []


def test_a_kept_file_is_read_in_pieces_even_when_it_is_forgotten(bodies: Bodies) -> None:
    data = bytes(range(256)) * 4000
    path = bodies.new_spool_path()
    path.write_bytes(data)
    body = bodies.put_file(path, len(data))
    kept = bodies.get(body)
    assert isinstance(kept, SpoolFile)
    chunks = FileChunks(kept)
    bodies.forget(body)
    assert files(bodies) == []
    pieces = list(chunks)
    assert len(pieces) > 1
    assert b"".join(pieces) == data
    chunks.close()


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"abc")
    with pytest.raises(OSError, match="has 3 bytes: expected 4"):
        FileChunks(SpoolFile(path, 4))
