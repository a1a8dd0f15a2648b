"""Folders: chosen when nothing is said, refused when they cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuward_ipc.endpoints import SOCKET_PATH_MAX_BYTES, link_endpoint
from gpuward_supervisor.config import directories
from gpuward_supervisor.config.directories import absolute, runtime_dir, state_dir
from gpuward_supervisor.config.findings import Findings
from support.configuration import problems


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/a/b", "/a/b"),
        ("b", "/base/b"),
        ("../b", "/b"),
        ("~/b", "/home/me/b"),
        ("~", "/home/me"),
        ("~other/b", "/base/~other/b"),
    ],
)
def test_paths_are_made_absolute(text: str, path: str) -> None:
    assert absolute(text, Path("/base"), "/home/me") == Path(path)


def test_a_folder_that_can_be_made_is_taken(tmp_path: Path) -> None:
    findings = Findings("")
    assert state_dir(tmp_path / "a" / "b", {}, findings) == tmp_path / "a" / "b"
    assert findings.problems == []
    assert not (tmp_path / "a").exists()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environ = {
        "GPUWARD_STATE_DIR": str(tmp_path / "file" / "state"),
        "GPUWARD_RUNTIME_DIR": str(tmp_path / "file"),
    }
    assert problems(tmp_path, environ=environ) == [
        f"environment: {name}: expected a folder, but file is a file; name another folder"
        for name in ('GPUWARD_STATE_DIR = "file/state"', 'GPUWARD_RUNTIME_DIR = "file"')
    ]


def test_a_dangling_link_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (problem,) = problems(tmp_path, environ={"GPUWARD_STATE_DIR": str(tmp_path / "link")})
    assert "link is a file" in problem


def test_a_folder_of_somebody_elses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere, so a mode would not do for a test that runs as root.
    monkeypatch.setattr(directories.os, "access", lambda path, _mode: Path(path) != tmp_path)
    findings = Findings("")
    state_dir(tmp_path, {}, findings)
    runtime_dir(tmp_path / "a" / "b", tmp_path, {}, findings)
    said = [problem.expected for problem in findings.problems]
    assert said[0].startswith("it cannot be written by user ")
    assert said[1].startswith(f"it cannot be made: {tmp_path} cannot be written by user ")


def test_a_runtime_folder_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, environ={"GPUWARD_RUNTIME_DIR": str(tmp_path / ("x" * 120))})
    assert f"a unix socket takes at most {SOCKET_PATH_MAX_BYTES}" in problem


def test_nodes_with_different_state_get_different_runtime_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "_RUN", tmp_path)
    findings = Findings("")
    main = runtime_dir(None, Path("/var/lib/gpuward"), {}, findings)
    one = runtime_dir(None, Path("/srv/one"), {}, findings)
    two = runtime_dir(None, Path("/srv/two"), {}, findings)
    assert main == tmp_path / "gpuward"
    assert len({main, one, two}) == 3
    assert one == runtime_dir(None, Path("/srv/one"), {}, findings)
    assert findings.problems == []


def test_without_a_writable_run_the_session_or_tmp_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(directories, "_RUN", tmp_path / "file")
    findings = Findings("")
    session = runtime_dir(None, Path("/srv/one"), {"XDG_RUNTIME_DIR": str(tmp_path)}, findings)
    assert session.parent == tmp_path
    temporary = runtime_dir(None, Path("/srv/one"), {}, findings)
    assert temporary.parent == Path("/tmp")
    link_endpoint(temporary)


def test_without_a_writable_var_the_home_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(directories, "_STATE_DIR", tmp_path / "file" / "gpuward")
    findings = Findings("")
    assert state_dir(None, {"HOME": str(tmp_path)}, findings) == tmp_path / ".local/state/gpuward"
    assert state_dir(None, {"HOME": "/", "XDG_STATE_HOME": str(tmp_path)}, findings) == tmp_path / "gpuward"
    assert state_dir(None, {}, findings).parent == Path("/tmp")
    assert findings.problems == []
