"""What the supervisor's own CUDA_VISIBLE_DEVICES leaves to share out."""

from __future__ import annotations

import pytest

from gpuward_health.samples import GpuInventory
from gpuward_supervisor.config.visible_gpus import find, visible_gpus
from support.configuration import gpu, machine


def indices(environ: dict[str, str], inventory: GpuInventory | None = None) -> list[int]:
    return [found.index for found in visible_gpus(inventory or machine(4), environ).gpus]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("2,3", [2, 3]),
        ("3,1", [3, 1]),
        ("GPU-1, GPU-20", [1, 2]),
        ("0,7,1", [0]),
        ("1,1", [1]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("GPU-", []),
    ],
)
def test_the_limit_is_read_as_cuda_reads_it(limit: str, expected: list[int]) -> None:
    assert indices({"CUDA_VISIBLE_DEVICES": limit}) == expected


def test_without_a_limit_all_are_visible() -> None:
    assert indices({}) == [0, 1, 2, 3]


def test_the_container_runtimes_own_variable_is_not_applied_again() -> None:
    assert indices({"NVIDIA_VISIBLE_DEVICES": "void"}) == [0, 1, 2, 3]
    assert indices({"NVIDIA_VISIBLE_DEVICES": "6,7"}) == [0, 1, 2, 3]


def test_the_reason_for_none_is_told() -> None:
    assert visible_gpus(machine(0), {}).remark == "no NVIDIA driver"
    assert visible_gpus(GpuInventory(driver="580"), {}).remark == "the NVIDIA driver lists no GPU"
    hidden = visible_gpus(machine(2), {"CUDA_VISIBLE_DEVICES": ""})
    assert hidden.remark == "CUDA_VISIBLE_DEVICES= hides every GPU of this machine"


def test_mig_devices_of_the_limit_are_kept_as_they_are() -> None:
    visible = visible_gpus(machine(1), {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"})
    assert (visible.gpus, visible.mig_uuids, visible.remark) == ((), ("MIG-a", "MIG-b"), "")


def test_numbers_on_a_machine_with_different_gpus_are_doubtful_unless_their_order_is_set() -> None:
    mixed = GpuInventory(driver="580", gpus=(gpu(0), gpu(1, name="NVIDIA T4")))
    assert "by speed" in visible_gpus(mixed, {"CUDA_VISIBLE_DEVICES": "1"}).remark
    assert visible_gpus(mixed, {"CUDA_VISIBLE_DEVICES": "GPU-1"}).remark == ""
    ordered = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert visible_gpus(mixed, ordered).remark == ""
    assert visible_gpus(machine(2), {"CUDA_VISIBLE_DEVICES": "1"}).remark == ""


def test_a_beginning_that_several_share_means_none() -> None:
    gpus = machine(2).gpus
    assert find("GPU-", gpus) is None
    assert find("gpu-0", gpus) is None
    assert find("GPU-0", gpus) is gpus[0]
    assert find("²", gpus) is None
