"""The command line of this project's simulated engine: the interpreter that runs the executor."""

from __future__ import annotations

import sys

import msgspec

from gpuward_executors.engines.vllm import serve_arguments
from gpuward_ipc.startup import EngineSpec


def argv(spec: EngineSpec) -> list[str]:
    """VLLM's command line, understood by ``gpuward_executors.simulated``."""
    if not spec.model:
        spec = msgspec.structs.replace(spec, model="simulated")
    return [sys.executable, "-m", "gpuward_executors.simulated", *serve_arguments(spec)]
