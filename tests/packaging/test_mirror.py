"""Tests mirror modules: `x/y.py` is tested by `tests/unit/x/test_y.py`; nothing else lies there."""

from __future__ import annotations

from pathlib import PurePosixPath

from support.source_tree import ROOT, module_files

UNIT = ROOT / "tests" / "unit"

#: Modules without a test file of their own, each with the reason.
EXEMPT: dict[str, str] = {
    "gpuward_supervisor/core/commands.py": "declarations only; every test of the core compares them",
    "gpuward_supervisor/core/events.py": "declarations only; every test of the core feeds them",
    "gpuward_supervisor/core/policy.py": "declarations only; every test of the core is given one",
    "gpuward_ipc/messages.py": "declarations only; test_codec.py sends each there and back",
    "gpuward_ipc/types.py": "names for ids only",
    "gpuward_ipc/errors.py": "declarations only",
}


def modules_that_want_a_test() -> set[str]:
    return {path for path in module_files() if PurePosixPath(path).name not in {"__init__.py", "__main__.py"}}


def expected_test(module: str) -> str:
    path = PurePosixPath(module)
    return (path.parent / f"test_{path.name}").as_posix()


def unit_tests() -> set[str]:
    return {file.relative_to(UNIT).as_posix() for file in UNIT.rglob("test_*.py")}


def test_every_module_has_its_test_file() -> None:
    have = unit_tests()
    missing = sorted(
        f"{module}: write tests/unit/{expected_test(module)}"
        for module in modules_that_want_a_test() - EXEMPT.keys()
        if expected_test(module) not in have
    )
    assert not missing, "\n" + "\n".join(missing)


def test_every_unit_test_file_belongs_to_a_module() -> None:
    belongs = {expected_test(module) for module in modules_that_want_a_test()}
    assert sorted(unit_tests() - belongs) == []


def test_nothing_but_tests_lies_among_the_unit_tests() -> None:
    strays = [
        file.relative_to(ROOT).as_posix()
        for file in UNIT.rglob("*.py")
        if not file.name.startswith("test_") and file.name != "conftest.py"
    ]
    assert strays == [], "move shared code to tests/support"


def test_every_exemption_is_still_needed() -> None:
    modules = modules_that_want_a_test()
    have = unit_tests()
    stale = [module for module in EXEMPT if module not in modules or expected_test(module) in have]
    assert stale == []
