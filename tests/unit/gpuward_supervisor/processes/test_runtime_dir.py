from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuward_supervisor.processes import runtime_dir


def test_a_new_folder_is_private_and_marked(tmp_path: Path) -> None:
    path = tmp_path / "run" / "gpuward"
    runtime_dir.prepare(path, "tag")
    assert path.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in path.iterdir()] == [".gpuward"]


def test_an_empty_folder_that_somebody_made_for_us_is_taken_and_closed_to_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    runtime_dir.prepare(tmp_path, "tag")
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_what_a_killed_supervisor_left_is_removed(tmp_path: Path) -> None:
    runtime_dir.prepare(tmp_path, "first life")
    (tmp_path / "gpu0.1" / "tmp").mkdir(parents=True)
    (tmp_path / "gpu0.1" / "tmp" / "file").touch()
    (tmp_path / "executors.sock").touch()
    runtime_dir.prepare(tmp_path, "second life")
    assert [file.name for file in tmp_path.iterdir()] == [".gpuward"]
    assert (tmp_path / ".gpuward").read_text() == "second life"


def test_a_folder_with_other_content_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        OSError, match=r"holds files that are not ours \(thesis\.tex\); set node\.runtime_dir"
    ):
        runtime_dir.prepare(tmp_path, "tag")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(OSError, match="must be a folder of user"):
        runtime_dir.prepare(tmp_path / "link", "tag")


@pytest.mark.skipif(os.geteuid() != 0, reason="LEFT OUT: only root can make a folder of another user")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(OSError, match="of user 12345"):
        runtime_dir.prepare(tmp_path, "tag")


def test_only_the_life_that_marked_it_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "run"
    runtime_dir.prepare(path, "tag")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (path / "link").symlink_to(outside)
    runtime_dir.remove(path, "another life")
    assert path.exists()
    runtime_dir.remove(path, "tag")
    assert not path.exists()
    assert (outside / "kept").exists()
    runtime_dir.remove(path, "tag")  # twice is harmless


def test_a_deleted_folder_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "run"
    runtime_dir.prepare(path, "tag")
    assert not runtime_dir.restore(path, "tag"), "nothing is missing"
    (path / ".gpuward").unlink()
    path.rmdir()
    assert runtime_dir.restore(path, "tag")
    assert path.stat().st_mode & 0o777 == 0o700
    runtime_dir.remove(path, "tag")
    assert not path.exists()


def test_a_mark_is_set_again_beside_what_is_left(tmp_path: Path) -> None:
    runtime_dir.prepare(tmp_path, "tag")
    (tmp_path / "gpu0.1").mkdir()
    (tmp_path / ".gpuward").unlink()
    assert runtime_dir.restore(tmp_path, "tag")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".gpuward", "gpu0.1"]


def test_a_link_that_took_the_place_of_a_deleted_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "run").symlink_to("target")
    with pytest.raises(OSError, match="must be a folder of user"):
        runtime_dir.restore(tmp_path / "run", "tag")
    assert list((tmp_path / "target").iterdir()) == []
