from __future__ import annotations

from gpuward_executors.engines.vllm import argv
from gpuward_ipc.startup import EngineKind, EngineSpec


def test_the_command_line_is_the_reference_workers() -> None:
    spec = EngineSpec(
        kind=EngineKind.VLLM,
        host="0.0.0.0",
        port=8123,
        model="org/model",
        served_model_name="name",
        serve_command="vllm-omni",
        extra_args=("--x", '{"a": 1}'),
    )
    expected = "vllm-omni serve org/model --host 0.0.0.0 --port 8123 --served-model-name name --x".split()
    assert argv(spec) == [*expected, '{"a": 1}']
