"""The GPUs that this process may use: the machine's, less those that its own environment hides."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gpuward_health.samples import Gpu, GpuInventory


class VisibleGpus(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to share out, in the order in which it is shared out."""

    gpus: tuple[Gpu, ...]
    #: MIG devices that ``CUDA_VISIBLE_DEVICES`` names.
    mig_uuids: tuple[str, ...] = ()
    #: What limits the list, as ``CUDA_VISIBLE_DEVICES=0,1``; empty when nothing does.
    limited_by: str = ""
    #: Why it is empty, or what is odd about it; empty when nothing is.
    remark: str = ""

    def text(self) -> str:
        """The indices, for a message."""
        return ", ".join(str(gpu.index) for gpu in self.gpus) or "none"


def visible_gpus(inventory: GpuInventory, environ: Mapping[str, str]) -> VisibleGpus:
    """Apply ``CUDA_VISIBLE_DEVICES`` of the supervisor's own environment.

    ``NVIDIA_VISIBLE_DEVICES`` is not looked at: the container runtime has applied it before we start, its
    numbers are the host's, and device plugins set it to ``void`` while they hand GPUs over another way.
    """
    limit = environ.get("CUDA_VISIBLE_DEVICES")
    if limit is None:
        return VisibleGpus(gpus=inventory.gpus, remark="" if inventory.gpus else _why_none(inventory))
    chosen: list[Gpu] = []
    mig: list[str] = []
    names = [name.strip() for name in limit.split(",")]
    for name in names:
        if name.startswith("MIG-"):
            mig.append(name)
            continue
        gpu = find(name, inventory.gpus)
        if gpu is None:
            break  # CUDA stops at the first entry that it does not know, and so must we
        if gpu not in chosen:
            chosen.append(gpu)
    limited_by = f"CUDA_VISIBLE_DEVICES={limit}"
    if not chosen and not mig:
        return VisibleGpus(
            gpus=(), limited_by=limited_by, remark=f"{limited_by} hides every GPU of this machine"
        )
    return VisibleGpus(
        gpus=tuple(chosen),
        mig_uuids=tuple(mig),
        limited_by=limited_by,
        remark=_doubtful_order(inventory, names, environ),
    )


def find(name: str, gpus: tuple[Gpu, ...]) -> Gpu | None:
    """The GPU that an index, a UUID or the beginning of one means; None when none or several do."""
    if name.isascii() and name.isdigit():
        return next((gpu for gpu in gpus if gpu.index == int(name)), None)
    if not name.startswith("GPU-"):
        return None
    found = [gpu for gpu in gpus if gpu.uuid.casefold().startswith(name.casefold())]
    return found[0] if len(found) == 1 else None


def _doubtful_order(inventory: GpuInventory, names: list[str], environ: Mapping[str, str]) -> str:
    numbered = any(name.isdigit() for name in names)
    mixed = len({gpu.name for gpu in inventory.gpus}) > 1
    if numbered and mixed and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        return (
            "the numbers in CUDA_VISIBLE_DEVICES are taken in PCI bus order, but the GPUs here differ "
            "and CUDA's own default order is by speed: set CUDA_DEVICE_ORDER=PCI_BUS_ID, or use UUIDs"
        )
    return ""


def _why_none(inventory: GpuInventory) -> str:
    return inventory.reason or (
        "the NVIDIA driver lists no GPU" if inventory.driver else "there is no NVIDIA driver"
    )
