"""A configuration made in one line: a machine with so many GPUs, a file's text, an environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gpuward_health.samples import Gpu, GpuInventory
from gpuward_supervisor.config.load import load
from gpuward_supervisor.config.node import NodeConfig
from gpuward_supervisor.errors import ConfigInvalid

#: What a reference container is always given.
REQUIRED = {"CASOLA_WS_URL": "wss://queue.example", "CASOLA_CONFIG_ID": "my-model"}


def machine(gpus: int, *, name: str = "NVIDIA H200") -> GpuInventory:
    """A machine with so many equal GPUs; with none, one without a driver."""
    if gpus == 0:
        return GpuInventory(driver=None, reason="no NVIDIA driver")
    return GpuInventory(driver="580.65", gpus=tuple(gpu(index, name=name) for index in range(gpus)))


def gpu(index: int, *, name: str = "NVIDIA H200", mig: tuple[str, ...] = ()) -> Gpu:
    """One GPU, with a UUID that begins with its index."""
    return Gpu(
        index=index,
        uuid=f"GPU-{index}0000000-aaaa-bbbb-cccc-000000000000",
        name=name,
        memory_total_bytes=141 << 30,
        pci_bus_id=f"00000000:{index:02x}:00.0",
        mig_mode=bool(mig),
        mig_uuids=mig,
    )


def configured(
    folder: Path,
    toml: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    gpus: GpuInventory | int = 0,
    required: bool = True,
) -> NodeConfig:
    """Load a configuration whose folders lie in ``folder``.

    Args:
        folder: private folder of the test.
        toml: text of the file; None for no file.
        environ: the environment.
        gpus: the machine, or its number of GPUs.
        required: put what every configuration needs into the environment.
    """
    path = None
    if toml is not None:
        path = folder / "node.toml"
        path.write_text(toml)
    folders = {"GPUWARD_STATE_DIR": str(folder / "state"), "GPUWARD_RUNTIME_DIR": str(folder / "run")}
    found = machine(gpus) if isinstance(gpus, int) else gpus
    return load(path, {**(REQUIRED if required else {}), **folders, **(environ or {})}, lambda: found)


def problems(
    folder: Path,
    toml: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    gpus: GpuInventory | int = 0,
    required: bool = True,
) -> list[str]:
    """The lines with which such a configuration is refused, less the folder; none when it is sound."""
    try:
        configured(folder, toml, environ=environ, gpus=gpus, required=required)
    except ConfigInvalid as error:
        return [problem.text().replace(f"{folder}/", "") for problem in error.problems]
    return []
