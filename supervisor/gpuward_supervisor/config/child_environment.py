"""The environment of an executor and its engine: the supervisor's own, less what is not theirs to know."""

from __future__ import annotations

from collections.abc import Mapping

from gpuward_ipc.startup import EngineKind
from gpuward_supervisor.config.node import ExecutorSetup, NodeConfig, Pinning
from gpuward_supervisor.secrets import is_secret_name

#: The queue and the supervisor are no business of an engine's; tokens and URLs least of all.
_OURS = ("CASOLA_", "GPUWARD_")
#: They configure the worker, not vLLM, which warns of VLLM_ variables it does not know. With VLLM_API_KEY
#: it would refuse the executor's own requests.
_WORKERS = frozenset({
    "VLLM_MODEL", "VLLM_SERVED_MODEL_NAME", "VLLM_HOST", "VLLM_PORT", "VLLM_STARTUP_TIMEOUT",
    "VLLM_EXTRA_ARGS", "VLLM_SERVE_COMMAND", "VLLM_API_KEY", "HF_TOKEN_FILE",
})  # fmt: skip
#: Engines of these kinds load models, and get what it takes to download them.
_LOADS_MODELS = frozenset({EngineKind.VLLM, EngineKind.COMMAND})


def executor_environment(
    config: NodeConfig, executor: ExecutorSetup, environ: Mapping[str, str]
) -> dict[str, str]:
    """Environment of an executor; whoever spawns an incarnation adds link, tags and TMPDIR.

    Args:
        config: the node.
        executor: one of its executors.
        environ: the supervisor's own environment.
    """
    loads_models = executor.engine.kind in _LOADS_MODELS
    made = {
        name: value
        for name, value in environ.items()
        if not name.startswith(_OURS) and name not in _WORKERS and (loads_models or not is_secret_name(name))
    }
    if loads_models and config.hf_token:
        made["HF_TOKEN"] = config.hf_token.reveal()
    if executor.engine.kind is EngineKind.VLLM and executor.ports > 1:
        # vLLM looks for free ports of its own from here upwards: each engine in its executor's block.
        made["VLLM_PORT"] = str(executor.engine.port + 1)
    made |= executor.environment
    if executor.pinning is not Pinning.UNPINNED:
        made["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    visible = executor.visible_devices
    if visible is not None:
        made["CUDA_VISIBLE_DEVICES"] = visible
    return made
