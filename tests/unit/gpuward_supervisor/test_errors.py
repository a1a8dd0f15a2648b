"""Errors end the program with the documented exit codes, and a refusal lists every problem."""

from __future__ import annotations

from gpuward_supervisor.config.problems import Problem
from gpuward_supervisor.errors import ConfigInvalid, GpusUnknown, GpuwardError


def test_a_refused_configuration_lists_every_problem() -> None:
    error = ConfigInvalid([Problem("a.toml", "x", "1", "expected 2"), Problem("", "y", "", "is missing")])
    assert str(error) == "a.toml: x = 1: expected 2\ny: is missing"
    assert len(error.problems) == 2


def test_exit_codes() -> None:
    assert ConfigInvalid([]).exit_code == 2
    assert GpusUnknown("stuck").exit_code == 1
    assert GpuwardError("x").exit_code == 1
