from __future__ import annotations

import sys

from gpuward_executors.engines.simulated import argv
from gpuward_ipc.startup import EngineKind, EngineSpec


def test_the_simulated_engine_runs_in_this_interpreter_with_vllms_arguments() -> None:
    spec = EngineSpec(kind=EngineKind.SIMULATED, port=9, extra_args=("--token-s", "0.1"))
    expected = "-m gpuward_executors.simulated serve simulated --host 127.0.0.1 --port 9"
    expected += " --served-model-name default --token-s 0.1"
    assert argv(spec) == [sys.executable, *expected.split()]
