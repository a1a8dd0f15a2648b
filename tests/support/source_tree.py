"""Where the packages lie: the modules of the repository, for the tests that check its structure."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: Package name -> its source root.
PACKAGES = {
    "gpuward_supervisor": ROOT / "supervisor",
    "gpuward_devqueue": ROOT / "supervisor",
    "gpuward_executors": ROOT / "executors",
    "gpuward_ipc": ROOT / "ipc",
    "gpuward_health": ROOT / "health",
}


def module_files() -> dict[str, Path]:
    """Every module of the five packages: path in its source root (`gpuward_ipc/codec.py`) -> file."""
    return {
        file.relative_to(source_root).as_posix(): file
        for package, source_root in PACKAGES.items()
        for file in sorted((source_root / package).rglob("*.py"))
        if "__pycache__" not in file.parts
    }
