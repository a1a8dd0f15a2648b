"""The resolved configuration: what an executor sees, and that nothing secret shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuward_ipc.startup import EngineKind, EngineSpec
from gpuward_ipc.types import ExecutorName
from gpuward_supervisor.config.node import ExecutorSetup, Pinning
from support.configuration import configured


@pytest.mark.parametrize(
    ("pinning", "gpus", "uuids", "visible"),
    [
        (Pinning.PINNED, (3, 1), ("GPU-3", "GPU-1"), "3,1"),
        (Pinning.PINNED, (), ("MIG-a",), "MIG-a"),
        (Pinning.NO_GPU, (), (), ""),
        (Pinning.UNPINNED, (), (), None),
    ],
)
def test_visible_devices(
    pinning: Pinning, gpus: tuple[int, ...], uuids: tuple[str, ...], visible: str | None
) -> None:
    setup = ExecutorSetup(
        name=ExecutorName("a"),
        pinning=pinning,
        gpus=gpus,
        uuids=uuids,
        engine=EngineSpec(kind=EngineKind.VLLM),
    )
    assert setup.visible_devices == visible


def test_secrets_are_collected_and_never_shown(tmp_path: Path) -> None:
    config = configured(tmp_path, environ={"CASOLA_API_TOKEN": "hunter2-queue", "HF_TOKEN": "hf_hunter2"})
    assert {secret.reveal() for secret in config.secrets()} == {"hunter2-queue", "hf_hunter2"}
    assert "hunter2" not in repr(config)


def test_a_node_without_secrets_has_none(tmp_path: Path) -> None:
    assert configured(tmp_path).secrets() == ()
