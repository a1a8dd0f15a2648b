from __future__ import annotations

import pytest

from gpuward_devqueue.errors import ConfigurationError
from gpuward_devqueue.misbehaviour import FOREVER, Fault, Misbehaviour, Script, misbehaviour, parse


def test_a_fault_strikes_as_often_as_told_and_then_never() -> None:
    script = Script()
    script.add(misbehaviour(Fault.REFUSE_PUT, times=2))
    struck = [script.take(Fault.REFUSE_PUT) is not None for _ in range(4)]
    assert struck == [True, True, False, False]
    assert script.due() == []


def test_skipped_occasions_pass_unharmed() -> None:
    script = Script()
    script.add(misbehaviour(Fault.CLOSE_MID_JOB, skip=2))
    assert [script.take(Fault.CLOSE_MID_JOB) is not None for _ in range(4)] == [False, False, True, False]


def test_zero_times_means_until_cleared() -> None:
    script = Script()
    script.add(misbehaviour(Fault.WITHHOLD_PONG, times=FOREVER))
    assert all(script.take(Fault.WITHHOLD_PONG) for _ in range(50))
    script.clear(Fault.WITHHOLD_PONG)
    assert script.take(Fault.WITHHOLD_PONG) is None


def test_faults_of_one_kind_strike_in_order_and_kinds_do_not_mix() -> None:
    script = Script()
    script.add(misbehaviour(Fault.CLOSE_MID_JOB, code=1011))
    script.add(misbehaviour(Fault.CLOSE_MID_JOB, code=1012))
    script.add(misbehaviour(Fault.ABORT_MID_JOB))
    codes = [strike.code for strike in (script.take(Fault.CLOSE_MID_JOB) for _ in range(3)) if strike]
    assert codes == [1011, 1012]
    assert [item.fault for item in script.due()] == [Fault.ABORT_MID_JOB]
    script.clear()
    assert script.due() == []


def test_what_is_due_shows_the_strikes_left() -> None:
    script = Script()
    script.add(misbehaviour(Fault.REFUSE_PUT, times=3, skip=1))
    script.take(Fault.REFUSE_PUT)
    script.take(Fault.REFUSE_PUT)
    assert script.due() == [misbehaviour(Fault.REFUSE_PUT, times=2, skip=0)]


def test_each_kind_has_sensible_defaults() -> None:
    assert misbehaviour("refuse-upgrade").status == 401
    assert misbehaviour("refuse-payload").status == 404
    assert misbehaviour("close-mid-job").code == 1011
    assert misbehaviour("oversized-job").size_bytes == 2 * 1024 * 1024


def test_the_command_line_form_is_read() -> None:
    assert parse("withhold-pong") == misbehaviour(Fault.WITHHOLD_PONG)
    assert parse("close-mid-job=2,code=1012,delay_s=0.5") == Misbehaviour(
        fault=Fault.CLOSE_MID_JOB, times=2, code=1012, delay_s=0.5
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("explode", "there are: close-mid-job"),
        ("close-mid-job=often", "field=number"),
        ("close-mid-job,code", "field=number"),
        ("close-mid-job,colour=3", "colour"),
        ("close-mid-job=-1", "times = -1"),
        ("close-mid-job,code=7", "code = 7"),
        ("refuse-put,status=200", "status = 200"),
        ("slow-frames,delay_s=-1", "delay_s"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_with_a_reason(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        parse(text)
