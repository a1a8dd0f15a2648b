"""The store of payloads and results."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from gpuward_supervisor.bodies import Bodies, SpoolFile
from gpuward_supervisor.core.events import BodyId


@pytest.fixture
def bodies(tmp_path: Path) -> Bodies:
    return Bodies(tmp_path / "spool")


def test_bytes_are_kept_until_forgotten(bodies: Bodies) -> None:
    body = bodies.put(b"{}")
    assert bodies.get(body) == bodies.read(body) == b"{}"
    bodies.forget(body)
    bodies.forget(body)
    assert bodies.get(body) is None
    assert bodies.read(body) is None
    assert len(bodies) == 0


def test_ids_differ(bodies: Bodies) -> None:
    assert bodies.put(b"a") != bodies.put(b"a")


def test_a_file_is_removed_with_its_body(bodies: Bodies) -> None:
    path = bodies.new_spool_path()
    path.write_bytes(b"[1]")
    body = bodies.put_file(path, 3)
    assert bodies.get(body) == SpoolFile(path, 3)
    assert bodies.read(body) == b"[1]"
    bodies.forget(body)
    assert not path.exists()


def test_an_adopted_file_moves_into_the_spool_folder(bodies: Bodies, tmp_path: Path) -> None:
    given = tmp_path / "result.json"
    given.write_bytes(b"[1]")
    body = bodies.adopt_file(given, 3)
    assert not given.exists()
    kept = bodies.get(body)
    assert isinstance(kept, SpoolFile) and kept.path.parent == bodies.spool_dir
    assert bodies.read(body) == b"[1]"


@pytest.mark.parametrize("kind", ["missing", "wrong size", "link", "folder"])
def test_what_is_not_the_promised_file_is_not_adopted(bodies: Bodies, tmp_path: Path, kind: str) -> None:
    given = tmp_path / "result.json"
    match kind:
        case "wrong size":
            given.write_bytes(b"1234")
        case "link":
            (tmp_path / "secret").write_bytes(b"123")
            given.symlink_to(tmp_path / "secret")
        case "folder":
            given.mkdir()
    with pytest.raises(OSError, match=r"result\.json"):
        bodies.adopt_file(given, 3)
    assert len(bodies) == 0


def test_a_link_of_the_very_size_that_was_said_is_refused(bodies: Bodies, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"123")
    given = tmp_path / "result.json"
    given.symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match=r"result\.json"):
        bodies.adopt_file(given, given.lstat().st_size)


def test_a_linked_file_outlives_its_body(bodies: Bodies, tmp_path: Path) -> None:
    owned = tmp_path / "owned.json"
    owned.write_bytes(b"[1]")
    body = bodies.link_file(owned, 3)
    assert bodies.read(body) == b"[1]"
    bodies.forget(body)
    assert owned.read_bytes() == b"[1]"


def test_where_no_link_can_be_made_the_file_is_copied(
    bodies: Bodies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned = tmp_path / "owned.json"
    owned.write_bytes(b"[1]")

    def another_file_system(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("os.link", another_file_system)
    assert bodies.read(bodies.link_file(owned, 3)) == b"[1]"


def test_nothing_is_kept_under_an_unknown_id(bodies: Bodies) -> None:
    assert bodies.get(BodyId(99)) is None


def test_spilled_bytes_keep_their_id_and_move_to_a_file(bodies: Bodies) -> None:
    body = bodies.put(b"[1]")
    spilled = bodies.spill(body)
    assert bodies.get(body) == spilled == bodies.spill(body)
    assert bodies.read(body) == b"[1]"
    bodies.forget(body)
    assert not spilled.path.exists()
