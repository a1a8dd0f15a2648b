"""Names of faults, their arguments, and whose turn an armed one is."""

from __future__ import annotations

import pytest

from gpuward_executors.simulated.faults import (
    ArmedFault,
    Fault,
    FaultKind,
    FaultPlan,
    parse_armed_fault,
    parse_fault,
)


@pytest.mark.parametrize("kind", sorted(set(FaultKind) - {FaultKind.BIG}))
def test_every_kind_is_known_by_its_name(kind: FaultKind) -> None:
    assert parse_fault(kind.value) == Fault(kind)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("slow:2.5", Fault(FaultKind.SLOW, "2.5")),
        ("big:1000", Fault(FaultKind.BIG, "1000")),
        ("garbage:cut", Fault(FaultKind.GARBAGE, "cut")),
    ],
)
def test_arguments_are_kept(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    "text", ["", "nope", "big", "big:0", "big:x", "slow:0", "slow:-1", "slow:inf", "garbage:x", "segv:5"]
)
def test_a_malformed_fault_is_named_with_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected") as caught:
        parse_fault(text)
    assert repr(text) in str(caught.value)


def test_slowness_has_a_default_and_others_have_none() -> None:
    assert parse_fault("slow").slow_factor == 10.0
    assert parse_fault("slow:3").slow_factor == 3.0
    assert parse_fault("segv").slow_factor == 1.0


@pytest.mark.parametrize(
    ("text", "armed"),
    [
        ("segv", ArmedFault(Fault(FaultKind.SEGV), after_requests=0)),
        ("segv:20", ArmedFault(Fault(FaultKind.SEGV), after_requests=20)),
        ("oom:start", ArmedFault(Fault(FaultKind.OOM), at_start=True)),
        ("hang:1.5s", ArmedFault(Fault(FaultKind.HANG), after_s=1.5)),
        ("slow:5", ArmedFault(Fault(FaultKind.SLOW, "5"), after_requests=0)),
        ("slow:5:7", ArmedFault(Fault(FaultKind.SLOW, "5"), after_requests=7)),
        ("big:100:2", ArmedFault(Fault(FaultKind.BIG, "100"), after_requests=2)),
    ],
)
def test_moments(text: str, armed: ArmedFault) -> None:
    assert parse_armed_fault(text) == armed


@pytest.mark.parametrize("text", ["segv:x", "drop:start", "drop:2s", "segv:1:2", "slow:2:start", "segv:-1s"])
def test_impossible_moments_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected"):
        parse_armed_fault(text)


def test_an_armed_fault_meets_one_request_only() -> None:
    plan = FaultPlan([parse_armed_fault("drop:2")])
    assert [plan.next_request() for _ in range(5)] == [None, None, Fault(FaultKind.DROP), None, None]


def test_two_faults_for_one_request_meet_two_in_turn() -> None:
    plan = FaultPlan()
    plan.arm(Fault(FaultKind.DROP), 1)
    plan.arm(Fault(FaultKind.ERROR500), 1)
    met = [plan.next_request() for _ in range(4)]
    assert met == [None, Fault(FaultKind.DROP), Fault(FaultKind.ERROR500), None]


def test_faults_of_other_moments_meet_no_request() -> None:
    plan = FaultPlan([parse_armed_fault("segv:start"), parse_armed_fault("kill:1s")])
    assert plan.next_request() is None
