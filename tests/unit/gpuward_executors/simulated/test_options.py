"""The command line."""

from __future__ import annotations

import pytest

from gpuward_executors.simulated.faults import FaultKind
from gpuward_executors.simulated.options import TermBehaviour, parse_options


def test_a_command_line_of_vllm_is_understood() -> None:
    options = parse_options(
        "serve org/model --host 127.0.0.1 --port 8001 --served-model-name default --max-num-seqs 4".split()
    )
    assert options.model == "org/model"
    assert options.served_names == ("default",)
    assert (options.host, options.port, options.max_num_seqs) == ("127.0.0.1", 8001, 4)
    assert options.ignored == ()


def test_flags_without_a_meaning_are_kept_aside_with_their_values() -> None:
    options = parse_options("serve m --dtype float16 --enforce-eager --port 1 --max-logprobs=5".split())
    assert options.ignored == ("--dtype", "float16", "--enforce-eager", "--max-logprobs=5")
    assert (options.model, options.port) == ("m", 1)


def test_the_model_may_stand_in_a_flag() -> None:
    assert parse_options(["--model", "m"]).model == "m"
    assert parse_options(["serve", "--model", "m"]).served_names == ("m",)


def test_several_served_names() -> None:
    assert parse_options("serve m --served-model-name a b --port 1".split()).served_names == ("a", "b")


@pytest.mark.parametrize(
    ("flags", "workers"), [("", 0), ("-tp 1", 0), ("-tp 2", 2), ("-tp 2 --workers 1", 1)]
)
def test_each_gpu_of_several_has_a_worker(flags: str, workers: int) -> None:
    assert parse_options(f"serve m {flags}".split()).workers == workers


def test_faults_may_be_repeated() -> None:
    options = parse_options("serve m --fault segv:5 --fault oom:start".split())
    assert [armed.fault.kind for armed in options.faults] == [FaultKind.SEGV, FaultKind.OOM]


def test_a_busy_engine_ends_cleanly_unless_told_otherwise() -> None:
    assert parse_options(["serve", "m"]).term_behaviour is TermBehaviour.CLEAN
    assert parse_options("serve m --term-behaviour hang".split()).term_behaviour is TermBehaviour.HANG


@pytest.mark.parametrize(
    "line",
    [
        "",
        "serve",
        "serve m --port 99999",
        "serve m --port x",
        "serve m --token-s -1",
        "serve m --token-s inf",
        "serve m --max-num-seqs 0",
        "serve m --workers -1",
        "serve m --fault nope",
        "serve m --term-behaviour maybe",
    ],
)
def test_bad_values_end_with_usage_and_code_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options(line.split())
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err
