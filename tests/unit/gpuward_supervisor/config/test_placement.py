"""The machine's GPUs are cut into places, one per executor."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuward_health.samples import GpuInventory
from gpuward_ipc.startup import EngineKind
from gpuward_supervisor.config.findings import Findings
from gpuward_supervisor.config.node import Pinning
from gpuward_supervisor.config.placement import Place, Placing
from gpuward_supervisor.config.schema import ExecutorsTable
from gpuward_supervisor.config.visible_gpus import VisibleGpus, visible_gpus
from support.configuration import configured, gpu, machine, problems


def place(
    table: ExecutorsTable, inventory: GpuInventory, wanted: int = 1, *, chosen: bool = False
) -> list[Place]:
    findings = Findings("")
    placing = Placing(lambda: visible_gpus(inventory, {}), findings)
    places = placing.automatic(table, EngineKind.VLLM, wanted, chosen=chosen)
    assert findings.problems == []
    return places


def groups(places: list[Place]) -> list[tuple[int, ...]]:
    return [tuple(found.index for found in one.gpus) for one in places]


@pytest.mark.parametrize(
    ("table", "wanted", "expected"),
    [
        (ExecutorsTable(), 1, [(0,), (1,), (2,), (3,)]),
        (ExecutorsTable(), 2, [(0, 1), (2, 3)]),
        (ExecutorsTable(gpus_per_executor=4), 2, [(0, 1, 2, 3)]),
        (ExecutorsTable(gpus=2), 1, [(0,), (1,)]),
        (ExecutorsTable(gpus=2), 2, [(0, 1)]),
        (ExecutorsTable(gpus=(3, "GPU-1")), 1, [(3,), (1,)]),
        (ExecutorsTable(gpus=(3, 2, 1, 0)), 2, [(3, 2), (1, 0)]),
        (ExecutorsTable(gpus=((0, 1, 2), (3,))), 1, [(0, 1, 2), (3,)]),
    ],
)
def test_every_form_of_gpus(table: ExecutorsTable, wanted: int, expected: list[tuple[int, ...]]) -> None:
    places = place(table, machine(4), wanted, chosen=True)
    assert groups(places) == expected
    assert {one.pinning for one in places} == {Pinning.PINNED}


def test_executors_without_gpus_do_not_ask_the_machine() -> None:
    def never() -> VisibleGpus:
        raise AssertionError("the machine was asked")

    placing = Placing(never, Findings(""))
    for table in (ExecutorsTable(gpus="none", count=3), ExecutorsTable(count=3)):
        places = placing.automatic(table, EngineKind.VLLM, 1, chosen=False)
        assert [one.pinning for one in places] == [Pinning.NO_GPU] * 3


def test_without_a_driver_one_executor_runs_unpinned(tmp_path: Path) -> None:
    config = configured(tmp_path, gpus=0)
    assert [(e.name, e.pinning, e.gpus) for e in config.executors] == [("exec0", Pinning.UNPINNED, ())]
    assert config.warnings == ("no NVIDIA driver: one executor runs, not pinned to any GPU",)


def test_gpus_that_do_not_fill_a_group_stay_unused_unless_somebody_wrote_gpus(tmp_path: Path) -> None:
    environ = {"VLLM_EXTRA_ARGS": "-tp 2"}
    config = configured(tmp_path, environ=environ, gpus=3)
    assert [executor.gpus for executor in config.executors] == [(0, 1)]
    assert config.warnings == ("GPU 2 stays unused: executors take 2 GPUs each",)
    (problem,) = problems(tmp_path, environ=environ | {"GPUWARD_GPUS": "each"}, gpus=3)
    assert problem.startswith(
        "environment: GPUWARD_GPUS: 3 GPU(s) (0, 1, 2) cannot be shared out to executors of 2 GPUs each; name"
    )


def test_a_group_larger_than_the_machine_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, environ={"VLLM_EXTRA_ARGS": "-tp 4"}, gpus=2)
    assert problem.startswith(
        "executors.gpus: 2 GPU(s) (0, 1) cannot be shared out to executors of 4 GPUs each"
    )


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("gpus = 5", "executors.gpus = 5: this machine shows 4 GPU(s); ask for fewer"),
        ("gpus = 0", "executors.gpus = 0: expected 1 GPU or more"),
        ("gpus = 3\nengine.extra_args = '-tp 2'", "executors.gpus = 3: expected a multiple of 2"),
        ("gpus = []", "executors.gpus = []: expected at least one GPU"),
        ("gpus = [[0], []]", "executors.gpus[1] = []: expected at least one GPU; leave the empty list out"),
        ("gpus = [0, [1]]", "executors.gpus = [0, [1]]: expected either GPUs or lists of GPUs, not both"),
        ("gpus = [7]", "executors.gpus = 7: there is no such GPU here; there are: 0 (GPU-0"),
        ('gpus = ["GPU-9"]', 'executors.gpus = "GPU-9": there is no such GPU here'),
        (
            'gpus = ["1"]',
            'executors.gpus = "1": expected an index or a UUID that begins with GPU- or MIG-; write 1 with',
        ),
        ('gpus = ["H200"]', 'executors.gpus = "H200": expected an index or a UUID'),
        ("gpus = [0, 1, 0]", "executors.gpus: GPU 0 is named for two executors, gpu0 and gpu0-0"),
        ("gpus = [[0, 0]]", "executors.gpus[0]: GPU 0 is named twice for executor gpu0-0"),
        ("gpus = [[0, 1], [1, 2]]", "executors.gpus[1]: GPU 1 is named for two executors, gpu0-1 and gpu1-2"),
        (
            "gpus = [0, 1, 2]\nengine.extra_args = '-tp 2'",
            "executors.gpus = [0, 1, 2]: 3 GPUs cannot be shared out",
        ),
        ("gpus = [[0]]\nengine.extra_args = '-tp 2'", "executors.gpus[0] = [0]: its engine asks for 2 GPUs"),
        ("gpus = [0]\ncount = 2", 'executors.count = 2: expected only with gpus = "none"'),
        ('gpus = "each"\ncount = 2', 'executors.count = 2: expected only with gpus = "none"'),
        (
            "gpus_per_executor = 1\nengine.extra_args = '-tp 2'",
            "executors.gpus_per_executor = 1: the engine asks for 2 GPUs by its arguments",
        ),
    ],
)
def test_gpus_that_cannot_be_shared_out_are_refused(tmp_path: Path, toml: str, problem: str) -> None:
    found = problems(tmp_path, f"[executors]\n{toml}", gpus=4)
    assert len(found) == 1
    assert found[0].startswith(f"node.toml: {problem}")


def test_a_gpu_that_the_environment_hides_is_not_there(tmp_path: Path) -> None:
    (problem,) = problems(
        tmp_path, "[executors]\ngpus = [0]", environ={"CUDA_VISIBLE_DEVICES": "2,3"}, gpus=4
    )
    assert "there is no such GPU here; there are: 2 (GPU-2" in problem
    assert problem.endswith("CUDA_VISIBLE_DEVICES=2,3")


def test_what_the_environment_leaves_keeps_its_place_on_the_machine(tmp_path: Path) -> None:
    config = configured(tmp_path, environ={"CUDA_VISIBLE_DEVICES": "3,1"}, gpus=4)
    assert [(e.name, e.visible_devices) for e in config.executors] == [("gpu3", "3"), ("gpu1", "1")]


MIG = GpuInventory(driver="580", gpus=(gpu(0, mig=("MIG-aa", "MIG-bb")), gpu(1)))


def test_vllm_cannot_take_a_mig_device(tmp_path: Path) -> None:
    for environ in ({"GPUWARD_GPUS": "MIG-aa,1"}, {"CUDA_VISIBLE_DEVICES": "MIG-aa"}):
        found = problems(tmp_path, environ=environ, gpus=MIG)
        assert len(found) == 1
        assert "vLLM reads the entries of CUDA_VISIBLE_DEVICES as numbers" in found[0]


def test_another_engine_gets_its_mig_device_by_uuid(tmp_path: Path) -> None:
    toml = '[executors]\ngpus = ["MIG-aa", "MIG-bb"]\n[executors.engine]\nkind = "command"\ncommand = "serve"'
    config = configured(tmp_path, toml, gpus=MIG)
    assert [(e.name, e.visible_devices, e.gpus) for e in config.executors] == [
        ("mig0", "MIG-aa", ()),
        ("mig1", "MIG-bb", ()),
    ]


@pytest.mark.parametrize(
    ("gpus", "problem"),
    [
        ('["MIG-zz"]', "there is no such MIG device here; there are: MIG-aa, MIG-bb"),
        ('[["MIG-aa", 1]]', "a MIG device cannot be joined with others"),
        ('["MIG-aa", "MIG-aa"]', "MIG-aa is named for two executors, mig0 and mig1"),
    ],
)
def test_mig_devices_that_cannot_be_given_are_refused(tmp_path: Path, gpus: str, problem: str) -> None:
    toml = f'[executors]\ngpus = {gpus}\n[executors.engine]\nkind = "command"\ncommand = "serve"'
    found = problems(tmp_path, toml, gpus=MIG)
    assert len(found) == 1
    assert problem in found[0]


def test_a_gpu_in_mig_mode_is_warned_of(tmp_path: Path) -> None:
    assert configured(tmp_path, gpus=MIG).warnings == (
        "GPU 0 is in MIG mode: by its index CUDA shows its first MIG device only",
    )


@pytest.mark.parametrize("gpus", ["[[0, 1, 2], [3]]", "[0, 1, 2]\ngpus_per_executor = 3"])
def test_gpus_that_the_engine_of_their_executor_does_not_use_are_pointed_out(
    tmp_path: Path, gpus: str
) -> None:
    config = configured(tmp_path, f"[executors]\ngpus = {gpus}\nengine.extra_args = '-tp 1'", gpus=4)
    (warning,) = config.warnings
    assert warning.startswith("GPUs 0, 1, 2 belong to one executor, whose engine uses 1 by its arguments")
    assert warning.endswith("--tensor-parallel-size 3 takes all")
    command = "engine = { kind = 'command', command = ['serve'] }"
    assert configured(tmp_path, f"[executors]\ngpus = {gpus}\n{command}", gpus=4).warnings == ()
