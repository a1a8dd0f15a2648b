from __future__ import annotations

import pytest

from gpuward_executors.engines.phases import level_of, phase_of, telling_lines

PREFIX = "(EngineCore pid=7) INFO 11-22 18:00:00 [gpu_model_runner.py:2007] "


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        (PREFIX + "Starting to load model tiny...", "loading weights"),
        (PREFIX + "torch.compile takes 5.2 s in total", "compiling"),
        (PREFIX + "Capturing CUDA graphs: 100%", "capturing CUDA graphs"),
        ("INFO:     Application startup complete.", "answering"),
        ("something else", None),
    ],
)
def test_lines_of_a_start_name_its_phase(line: str, phase: str | None) -> None:
    assert phase_of(line) == phase


@pytest.mark.parametrize(
    ("line", "level"),
    [
        (PREFIX + "x", "info"),
        ("(APIServer pid=1) ERROR 11-22 [a.py:1] x", "error"),
        ("WARNING:  low", "warning"),
        ("CRITICAL x", "error"),
        ("Traceback (most recent call last):", "info"),
        ("x" * 100 + " ERROR late", "info"),
    ],
)
def test_lines_carry_their_level_near_their_start(line: str, level: str) -> None:
    assert level_of(line) == level


def test_the_first_and_the_last_line_about_an_error_tell_the_story() -> None:
    lines = ["loading", "RuntimeError: root cause", "Error in between", "ValueError: outermost", "bye", ""]
    assert telling_lines(lines) == "RuntimeError: root cause … ValueError: outermost"


def test_the_first_exception_is_told_between_them() -> None:
    lines = ["ERROR a fatal error.", "ERROR torch.OutOfMemoryError: CUDA out of memory", "ERROR in stream"]
    assert telling_lines(lines) == " … ".join(lines)


def test_one_line_about_an_error_is_told_once() -> None:
    assert telling_lines(["a", "Segmentation fault", "b"]) == "Segmentation fault"


def test_without_an_error_the_last_line_is_told_and_silence_is_silence() -> None:
    assert telling_lines(["a", "last", "  "]) == "last"
    assert telling_lines([]) == ""


def test_long_lines_are_cut() -> None:
    assert len(telling_lines(["error " + "x" * 9000])) == 300
