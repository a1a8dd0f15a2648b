from __future__ import annotations

import msgspec

from gpuward_health.samples import Gpu, GpuInventory


def test_inventory_survives_the_pipe_between_the_asking_process_and_us() -> None:
    inventory = GpuInventory(
        driver="580.65",
        cuda_driver="13.0",
        gpus=(
            Gpu(
                index=0,
                uuid="GPU-1",
                name="H200",
                memory_total_bytes=150_754_820_096,
                pci_bus_id="00000000:17:00.0",
                mig_mode=True,
                mig_uuids=("MIG-a", "MIG-b"),
            ),
        ),
    )
    assert msgspec.json.decode(msgspec.json.encode(inventory), type=GpuInventory) == inventory


def test_machine_without_driver_is_not_an_error() -> None:
    inventory = GpuInventory(driver=None, reason="no NVIDIA driver")
    assert (inventory.gpus, inventory.error) == ((), "")
