"""What was seen of the hardware at one moment: plain frozen data, no reading of it."""

from __future__ import annotations

import msgspec


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One physical GPU."""

    #: Position in PCI bus order: what ``CUDA_VISIBLE_DEVICES`` means under ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
    index: int
    #: ``GPU-…``, stable over restarts and over the loss of a neighbour.
    uuid: str
    name: str
    #: None when the driver does not say (unified memory, old drivers).
    memory_total_bytes: int | None
    #: ``00000000:17:00.0``.
    pci_bus_id: str
    #: None on hardware without MIG.
    mig_mode: bool | None = None
    #: ``MIG-…`` of the instances of a GPU in MIG mode.
    mig_uuids: tuple[str, ...] = ()


class GpuInventory(msgspec.Struct, frozen=True, kw_only=True):
    """The GPUs of this machine, or why there is no list of them."""

    #: NVIDIA driver version; None when there is no driver (or no answer from it, see ``error``).
    driver: str | None
    #: Highest CUDA version of the driver, for example ``13.0``; None when unknown.
    cuda_driver: str | None = None
    gpus: tuple[Gpu, ...] = ()
    #: Why ``driver`` is None or ``gpus`` is empty, when that is a plain fact of this machine.
    reason: str = ""
    #: Not empty: there is a driver but its answer is missing or incomplete. Not the same as "no GPU".
    error: str = ""
