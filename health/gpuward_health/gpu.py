"""Which GPUs this machine has, by NVML; asked in a process of its own, as NVML can hang or crash its caller.

``python -m gpuward_health.gpu`` prints one JSON object; ``list_gpus`` runs that with a deadline.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import msgspec

from gpuward_health.samples import Gpu, GpuInventory

#: The asking process needs the loader's and Python's settings and nothing else: no tokens of ours.
_PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
)
#: After the kill of a process that did not answer: a process inside a stuck driver call may not die at all.
_BURIAL_S = 0.5


def list_gpus(timeout_s: float = 15.0) -> GpuInventory:
    """List the GPUs of this machine in PCI bus order; never raises and never takes longer than it may.

    Args:
        timeout_s: deadline of the answer in seconds; a sick GPU can make NVML wait for most of a minute.

    Returns:
        The inventory. ``driver`` is None on a machine without an NVIDIA driver, ``error`` is set when there
        is one that did not answer properly: the caller must not read that as "no GPU".
    """
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        # -P: a pynvml.py that happens to lie in the working directory is not ours.
        asking = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpuward_health.gpu"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        return GpuInventory(driver=None, error=f"the GPU listing could not be started: {error}")
    try:
        answer, complaints = asking.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        asking.kill()
        _bury(asking)
        return GpuInventory(
            driver=None,
            error=f"NVML did not answer in {timeout_s:g} s; a GPU or its driver is stuck: look at `dmesg` "
            "for Xid messages and at `nvidia-smi`",
        )
    except BaseException:  # we are asked to stop: nobody would end it, and it may hang for ever
        asking.kill()
        _bury(asking)
        raise
    if asking.returncode == 0:
        try:
            return msgspec.json.decode(answer, type=GpuInventory)
        except (msgspec.MsgspecError, ValueError):
            pass
    last_words = complaints.decode(errors="replace").strip().rpartition("\n")[2]
    return GpuInventory(
        driver=None,
        error=f"the GPU listing ended with {_exit_text(asking.returncode)} and no answer: "
        f"{last_words[:300] or 'it said nothing'}",
    )


def _bury(asking: subprocess.Popen[bytes]) -> None:
    try:
        asking.communicate(timeout=_BURIAL_S)
    except subprocess.TimeoutExpired:
        # In state D: it dies when the driver lets go of it. Nothing of ours may wait for that.
        for pipe in (asking.stdout, asking.stderr):
            if pipe is not None:
                pipe.close()
        asking.returncode = -signal.SIGKILL  # keeps Popen's finalizer from complaining about a live child


def _exit_text(returncode: int) -> str:
    if returncode < 0:
        return f"signal {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"


# ---------------------------------------------------------------- inside the asking process


def take_inventory() -> GpuInventory:
    """Ask NVML in this process; may hang or crash with the driver."""
    try:
        import pynvml as nvml
    except ImportError as error:
        return GpuInventory(driver=None, reason=f"the package nvidia-ml-py is not installed ({error})")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        text = f"NVML: {error}"
        if error.value in {nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED}:
            return GpuInventory(driver=None, reason=f"no NVIDIA driver ({text})")
        return GpuInventory(driver=None, error=text)
    try:
        return _ask(nvml)
    except nvml.NVMLError as error:
        return GpuInventory(driver=_known(nvml, nvml.nvmlSystemGetDriverVersion), error=f"NVML: {error}")
    finally:
        _known(nvml, nvml.nvmlShutdown)


def _ask(nvml: Any) -> GpuInventory:
    driver = _text(nvml.nvmlSystemGetDriverVersion())
    cuda = _known(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
    gpus: list[Gpu] = []
    lost: list[str] = []
    for number in range(nvml.nvmlDeviceGetCount()):
        try:
            gpus.append(_one(nvml, nvml.nvmlDeviceGetHandleByIndex(number)))
        except nvml.NVMLError as error:
            # One lost GPU (fallen off the bus) must not hide its neighbours.
            lost.append(f"GPU {number} of NVML's list does not answer ({error})")
    gpus.sort(key=lambda gpu: _bus_order(gpu.pci_bus_id))
    return GpuInventory(
        driver=driver,
        cuda_driver=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        gpus=tuple(msgspec.structs.replace(gpu, index=index) for index, gpu in enumerate(gpus)),
        reason="" if gpus else "the driver sees no GPU",
        error="; ".join(lost),
    )


def _one(nvml: Any, handle: Any) -> Gpu:
    memory = _known(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    mig = _known(nvml, nvml.nvmlDeviceGetMigMode, handle)  # (current, pending)
    mig_mode = None if mig is None else bool(mig[0])
    return Gpu(
        index=0,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_total_bytes=None if memory is None else int(memory.total),
        pci_bus_id=_text(nvml.nvmlDeviceGetPciInfo(handle).busId),
        mig_mode=mig_mode,
        mig_uuids=tuple(_mig_uuids(nvml, handle)) if mig_mode else (),
    )


def _mig_uuids(nvml: Any, handle: Any) -> list[str]:
    uuids = []
    for number in range(_known(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        instance = _known(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if instance is not None:
            uuids.append(_text(nvml.nvmlDeviceGetUUID(instance)))
    return uuids


def _known(nvml: Any, call: Any, *args: Any) -> Any:
    """Answer of a call, None when this driver or card cannot say: unknown, never bad."""
    try:
        return call(*args)
    except nvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    # Bindings before 11.5 return bytes.
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _bus_order(pci_bus_id: str) -> tuple[int, ...]:
    try:
        return tuple(int(part, 16) for part in pci_bus_id.replace(".", ":").split(":"))
    except ValueError:
        return (1 << 32,)


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(take_inventory()) + b"\n")
    sys.stdout.flush()
    # Not sys.exit: a driver that hangs in its library's destructors has answered already.
    os._exit(0)
