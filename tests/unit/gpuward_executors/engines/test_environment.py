from __future__ import annotations

import stat
from pathlib import Path

from gpuward_executors.engines.environment import engine_environment, make_temporary
from gpuward_ipc.endpoints import ENV_CONFIG, ENV_EXECUTOR, ENV_LINK, ENV_NODE


def test_an_engine_gets_the_executors_environment_and_its_own_temporary_directory() -> None:
    made = engine_environment({"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "TMPDIR": "/tmp"}, Path("/w/tmp"))
    assert made == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "TMPDIR": "/w/tmp",
        "PYTHONUNBUFFERED": "1",
    }


def test_of_our_own_variables_only_the_tags_are_passed_on() -> None:
    ours = {
        ENV_EXECUTOR: "gpu0.1",
        ENV_NODE: "n",
        ENV_LINK: "ipc:///x",
        ENV_CONFIG: "/x",
        "GPUWARD_OTHER": "1",
    }
    made = engine_environment(ours, Path("/w/tmp"))
    assert {name: value for name, value in made.items() if name.startswith("GPUWARD_")} == {
        ENV_EXECUTOR: "gpu0.1",
        ENV_NODE: "n",
    }


def test_the_servers_port_is_not_taken_for_vllms_internal_ports() -> None:
    assert "VLLM_PORT" not in engine_environment({"VLLM_PORT": "8000"}, Path("/t"))


def test_the_temporary_directory_is_the_owners_alone_and_may_exist(tmp_path: Path) -> None:
    first = make_temporary(tmp_path / "w")
    assert first == make_temporary(tmp_path / "w") == tmp_path / "w" / "tmp"
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
