"""Pure modules import nothing that can tell the time, touch the machine or wait.

The import contracts in pyproject.toml follow chains of imports; this check reads the files themselves, so
that it also covers a pure module that no contract names yet.
"""

from __future__ import annotations

import ast
from pathlib import PurePosixPath

import pytest

from support.source_tree import module_files

IMPURE = frozenset(
    "asyncio time os socket subprocess threading psutil pynvml structlog websocket zmq".split()
    + "multiprocessing signal select selectors queue random aiohttp sqlite3 concurrent logging".split()
)
#: A seeded generator may live in a state; the module-level functions of `random` may not be called.
ALLOWED: dict[str, frozenset[str]] = {"random": frozenset({"Random"})}


def is_pure(module: str) -> bool:
    path = PurePosixPath(module)
    return (
        "core" in path.parts
        or path.stem.endswith("_protocol")
        or module in {"gpuward_ipc/types.py", "gpuward_ipc/messages.py"}
    )


def impure_imports(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found += [name for name in names if name.partition(".")[0] in IMPURE]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            top = node.module.partition(".")[0]
            imported = {alias.name for alias in node.names}
            if top in IMPURE and not imported <= ALLOWED.get(top, frozenset()):
                found.append(node.module)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "__import__":
            found.append("__import__")
    return found


def test_pure_modules_import_nothing_impure() -> None:
    broken = {
        module: found
        for module, file in module_files().items()
        if is_pure(module) and (found := impure_imports(file.read_text()))
    }
    assert broken == {}


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import os.path",
        "from time import monotonic",
        "from random import choice",
        "def late():\n    import socket",
        "__import__('zmq')",
    ],
)
def test_an_impure_import_is_seen_in_every_form(source: str) -> None:
    assert impure_imports(source) != []


@pytest.mark.parametrize(
    "source", ["import msgspec", "from random import Random", "from gpuward_ipc import types"]
)
def test_a_pure_import_is_let_through(source: str) -> None:
    assert impure_imports(source) == []
