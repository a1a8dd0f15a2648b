"""What can go wrong before and around the loop, split by who can act; the core has events instead.

GpuwardError                exit code 1
├── ConfigInvalid           exit code 2: whoever wrote the configuration; it lists every problem at once
├── GpusUnknown             exit code 1: there is an NVIDIA driver, but it does not answer properly
└── JournalError            exit code 1, in ``journal``: a report could not be made durable
    ├── JournalLocked           another supervisor lives on the same state directory
    └── JournalFromTheFuture    a newer version wrote the database
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from gpuward_supervisor.config.problems import Problem


class GpuwardError(Exception):
    """The supervisor cannot start or go on; the text is one that a person can act on."""

    #: Exit code of the program when nobody catches the error.
    exit_code: ClassVar[int] = 1


class ConfigInvalid(GpuwardError):
    """The configuration was refused."""

    exit_code: ClassVar[int] = 2

    def __init__(self, problems: Sequence[Problem], warnings: Sequence[str] = ()) -> None:
        """Keep every problem, in the order in which they shall be read.

        Args:
            problems: why it was refused.
            warnings: what was found besides, as sentences; a slip among them is often the reason.
        """
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)
        super().__init__("\n".join(problem.text() for problem in self.problems))


class GpusUnknown(GpuwardError):
    """The GPUs of this machine could not be listed although there is a driver."""
