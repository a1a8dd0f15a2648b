"""How many GPUs an engine's arguments ask for."""

from __future__ import annotations

import shlex

import pytest

from gpuward_supervisor.config.parallelism import gpus_wanted


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("", 1),
        ("--max-model-len 8192", 1),
        ("--tensor-parallel-size 4", 4),
        ("--tensor-parallel-size=4", 4),
        ("--tensor_parallel_size 4", 4),
        ("-tp 4", 4),
        ("-tp=4", 4),
        ("-tp 2 -pp 2", 4),
        ("-tp 2 --data-parallel-size 3", 6),
        ("-dp 8 --data-parallel-size-local 2 -tp 2", 4),
        ("-tp 2 -tp 4", 4),
        ("--tensor-parallel-size-of-something 4", 1),
    ],
)
def test_parallel_sizes_multiply(arguments: str, wanted: int) -> None:
    assert gpus_wanted(shlex.split(arguments)) == wanted


@pytest.mark.parametrize(
    "arguments", ["-tp", "-tp two", "-tp 0", "--tensor-parallel-size=", "-tp -1", "-tp ²"]
)
def test_a_size_that_is_none_is_refused_by_name(arguments: str) -> None:
    with pytest.raises(ValueError, match=r"^(-tp|--tensor-parallel-size) needs a whole number of 1 or more"):
        gpus_wanted(shlex.split(arguments))
