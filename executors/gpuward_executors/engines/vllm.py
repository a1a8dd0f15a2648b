"""The command line of a vLLM server, or of a program that takes the same one."""

from __future__ import annotations

from gpuward_ipc.startup import EngineSpec


def argv(spec: EngineSpec) -> list[str]:
    """``<serve_command> serve <model> --host … --port … --served-model-name … [extra arguments]``."""
    return [spec.serve_command, *serve_arguments(spec)]


def serve_arguments(spec: EngineSpec) -> list[str]:
    """Everything after the executable."""
    return [
        "serve",
        spec.model,
        "--host",
        spec.host,
        "--port",
        str(spec.port),
        "--served-model-name",
        spec.served_model_name,
        *spec.extra_args,
    ]
