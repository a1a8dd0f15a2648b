"""The listing process is real; the NVML under it is simulated by a module named ``pynvml`` on PYTHONPATH."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from gpuward_health import gpu
from gpuward_health.samples import GpuInventory

#: A simulated NVML: two H200 that the driver lists against PCI order, the second one in MIG mode; calls that
#: a card does not support raise as the real binding does.
FAKE_NVML = """
import os, signal, time
NVML_ERROR_LIBRARY_NOT_FOUND = 12
NVML_ERROR_DRIVER_NOT_LOADED = 9
class NVMLError(Exception):
    def __init__(self, value): self.value = value
    def __str__(self): return TEXTS[self.value]
TEXTS = {3: "Not Supported", 9: "Driver Not Loaded", 15: "GPU is lost", 999: "Unknown Error"}
class Memory:
    total = 150754820096
class Pci:
    def __init__(self, bus): self.busId = bus
MODE = os.environ.get("HOME", "")
def nvmlInit():
    if "hang" in MODE: time.sleep(600)
    if "crash" in MODE: os.kill(os.getpid(), signal.SIGSEGV)
    if "unloaded" in MODE: raise NVMLError(9)
    if "sick" in MODE: raise NVMLError(999)
    if "garbage" in MODE: print("{", flush=True)
def nvmlShutdown(): pass
def nvmlSystemGetDriverVersion(): return "580.65.06"
def nvmlSystemGetCudaDriverVersion_v2(): return 13000
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(i):
    if "lost" in MODE and i == 0: raise NVMLError(15)
    return i
def nvmlDeviceGetUUID(h): return "MIG-x" if h == "mig" else (b"GPU-late" if h == 0 else "GPU-early")
def nvmlDeviceGetName(h): return "NVIDIA H200"
def nvmlDeviceGetMemoryInfo(h):
    if h == 1: raise NVMLError(3)
    return Memory()
def nvmlDeviceGetPciInfo(h): return Pci("00000000:9B:00.0" if h == 0 else "00000000:17:00.0")
def nvmlDeviceGetMigMode(h):
    if h == 0: raise NVMLError(3)
    return [1, 1]
def nvmlDeviceGetMaxMigDeviceCount(h): return 2
def nvmlDeviceGetMigDeviceHandleByIndex(h, i):
    if i == 1: raise NVMLError(3)
    return "mig"
"""


pytestmark = pytest.mark.slow  # each test starts an interpreter


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pynvml.py").write_text(FAKE_NVML)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HOME", "/ok")  # one of the few variables that reach the listing: names the scenario
    return tmp_path


def test_gpus_are_numbered_in_pci_bus_order_with_unknown_fields_unknown(nvml: Path) -> None:
    inventory = gpu.list_gpus()
    assert (inventory.driver, inventory.cuda_driver, inventory.error) == ("580.65.06", "13.0", "")
    first, second = inventory.gpus
    assert (first.index, first.uuid, first.memory_total_bytes, first.mig_mode, first.mig_uuids) == (
        0, "GPU-early", None, True, ("MIG-x",),
    )  # fmt: skip
    assert (second.index, second.uuid, second.memory_total_bytes, second.mig_mode, second.mig_uuids) == (
        1, "GPU-late", 150_754_820_096, None, (),
    )  # fmt: skip


def test_a_lost_gpu_does_not_hide_its_neighbour(nvml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/lost")
    inventory = gpu.list_gpus()
    assert [card.uuid for card in inventory.gpus] == ["GPU-early"]
    assert "GPU is lost" in inventory.error


def test_a_hung_nvml_is_an_error_after_the_deadline_and_leaves_no_process(
    nvml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/hang")
    had = set(psutil.Process().children())
    before_s = time.monotonic()
    inventory = gpu.list_gpus(timeout_s=1.0)
    assert time.monotonic() - before_s < 60  # the simulated driver would answer after 600 s
    assert inventory.error.startswith("NVML did not answer in 1 s")
    assert set(psutil.Process().children()) <= had  # reaped: not even a zombie is left


def test_a_stop_in_the_middle_leaves_no_process(nvml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(BaseException):
        pass

    communicate = subprocess.Popen.communicate

    def interrupted(asking: subprocess.Popen[bytes], timeout: float | None = None) -> tuple[bytes, bytes]:
        if asking.poll() is None and timeout == 60.0:
            raise Stopped  # as a signal's handler does
        return communicate(asking, timeout=timeout)

    monkeypatch.setenv("HOME", "/hang")
    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    had = set(psutil.Process().children())
    with pytest.raises(Stopped):
        gpu.list_gpus(timeout_s=60.0)
    assert set(psutil.Process().children()) <= had


def test_a_crash_inside_nvml_does_not_reach_us(nvml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/crash")
    assert "signal SIGSEGV" in gpu.list_gpus().error


def test_a_sick_driver_is_an_error_and_a_missing_one_is_not(
    nvml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/sick")
    assert gpu.list_gpus() == GpuInventory(driver=None, error="NVML: Unknown Error")
    monkeypatch.setenv("HOME", "/unloaded")
    assert gpu.list_gpus() == GpuInventory(driver=None, reason="no NVIDIA driver (NVML: Driver Not Loaded)")


def test_an_answer_that_is_no_json_is_an_error(nvml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/garbage")
    assert "no answer" in gpu.list_gpus().error


def test_the_real_binding_on_this_machine_gives_gpus_or_a_reason() -> None:
    inventory = gpu.list_gpus(timeout_s=60)
    if inventory.driver is None:
        assert "no NVIDIA driver" in inventory.reason
        assert inventory.gpus == ()
    else:
        assert [card.index for card in inventory.gpus] == list(range(len(inventory.gpus)))


def test_tokens_do_not_reach_the_listing(nvml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nvml / "pynvml.py").write_text("import os\nraise ImportError(sorted(os.environ))\n")
    monkeypatch.setenv("CASOLA_API_TOKEN", "canary")
    inventory = gpu.list_gpus()
    assert "PYTHONPATH" in inventory.reason
    assert "CASOLA_API_TOKEN" not in inventory.reason


def test_a_missing_interpreter_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.sys, "executable", "/nonexistent/python")
    assert "could not be started" in gpu.list_gpus().error
