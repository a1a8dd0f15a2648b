"""The rules of the house that a linter does not know: empty packages, a first line per file, short files."""

from __future__ import annotations

import ast
from pathlib import Path, PurePosixPath

from support.source_tree import PACKAGES, ROOT, module_files

LINES_MAX = 400
#: A file that must be longer says so in its docstring, with these words and a reason.
WHY_LONG = "long because"
#: A name like these says that nobody knew what the file is about.
NAMES_OF_ATTICS = frozenset({"util", "utils", "helper", "helpers", "manager", "misc", "common", "data"})


def docstring(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text())) or ""


def test_packages_start_empty() -> None:
    full = [
        m for m, file in module_files().items() if file.name == "__init__.py" and file.read_text().strip()
    ]
    assert full == []


def test_every_package_is_typed() -> None:
    assert [p for p, source_root in PACKAGES.items() if not (source_root / p / "py.typed").exists()] == []


def test_every_module_says_what_it_knows() -> None:
    silent = [m for m, file in module_files().items() if file.name != "__init__.py" and not docstring(file)]
    assert silent == []


def test_a_long_file_says_why() -> None:
    long = {
        module: lines
        for module, file in module_files().items()
        if (lines := len(file.read_text().splitlines())) > LINES_MAX
        and WHY_LONG not in docstring(file).lower()
    }
    assert not long, f"split them, or write '{WHY_LONG} …' into the docstring: {long}"


def test_no_file_is_an_attic() -> None:
    assert [m for m in module_files() if PurePosixPath(m).stem in NAMES_OF_ATTICS] == []


def test_tests_name_their_support_one_way() -> None:
    """`support.x` and `tests.support.x` would be two copies of one module."""
    spelling = "from " + "tests."
    users = [
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "tests").rglob("*.py")
        if any(line.lstrip().startswith(spelling) for line in file.read_text().splitlines())
    ]
    assert users == []


def test_test_folders_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []
