"""Which backend does which task."""

from __future__ import annotations

from collections.abc import Mapping

from gpuward_executors.backends.base import Backend, ImmediateBackend
from gpuward_executors.errors import JobRefused

AnyBackend = Backend | ImmediateBackend


class Registry:
    """The backends of one executor."""

    def __init__(self, by_task: Mapping[str, AnyBackend], fallback: AnyBackend | None = None) -> None:
        """Take them.

        Args:
            by_task: task name -> backend; the empty name is the task of payloads that name none.
            fallback: does every other task; without it they are refused.
        """
        self._by_task = dict(by_task)
        self._fallback = fallback

    def choose(self, task: str, config_id: str) -> AnyBackend:
        """Backend of a task.

        Raises:
            JobRefused: no backend does it.
        """
        backend = self._by_task.get(task, self._fallback)
        if backend is None:
            raise JobRefused(f"Unsupported task: '{task[:200]}' (config_id={config_id})")
        return backend
