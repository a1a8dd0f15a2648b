"""`gpuward dev-queue` hands everything to the queue's own command line."""

from __future__ import annotations

import pytest

from gpuward_supervisor.cli import dev_queue
from gpuward_supervisor.cli.command import parser_of


@pytest.mark.slow
def test_help_is_the_queues_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dev_queue.run_words(["--help"])
    assert ended.value.code == 0
    assert "--presign" in capsys.readouterr().out


def test_options_reach_the_queue_through_the_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    options = parser_of(dev_queue.COMMAND).parse_args(["--", "--no-such-option"])
    assert options.words[-1] == "--no-such-option"
    with pytest.raises(SystemExit) as ended:
        dev_queue.COMMAND.run(options)
    assert ended.value.code == 2
    assert "--no-such-option" in capsys.readouterr().err
