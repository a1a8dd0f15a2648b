from __future__ import annotations

from gpuward_executors import errors
from gpuward_executors.errors import ExecutorError


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    assert errors.__doc__ is not None
    drawn = {line.split()[1] for line in errors.__doc__.splitlines() if line.startswith(("├──", "└──"))}
    assert drawn == {kind.__name__ for kind in ExecutorError.__subclasses__()}
