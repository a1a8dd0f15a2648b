"""Errors of an executor, by who can act.

ExecutorError
├── StartInvalid    the start file or environment is wrong: exit code 2, nothing was started
├── JobRefused      the job is at fault: its caller gets the text, no other try is made
└── EngineFailed    the engine is at fault: the job may succeed elsewhere
"""

from __future__ import annotations


class ExecutorError(Exception):
    """Something in an executor went wrong."""


class StartInvalid(ExecutorError):
    """The executor cannot start with what it was given."""


class JobRefused(ExecutorError):
    """A job cannot be done because of what it asks; the text goes to its caller."""


class EngineFailed(ExecutorError):
    """An engine did not do a job that it should have been able to do."""
