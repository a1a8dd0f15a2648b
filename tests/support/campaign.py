"""A chaos campaign: many jobs through a live node while engines and executors are killed at random.

The evidence is the queue's own ledger (who was answered, how often, under which fence) and the node's log
(who died, what was retried and because of whose death).
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.records import JobId, Status
from gpuward_devqueue.thread import DevQueueThread
from support.node import Node

#: What may be done to an executor's tree, and to which of its processes.
BLOWS = (
    ("engine core", signal.SIGKILL),
    ("engine core", signal.SIGSEGV),
    ("engine api", signal.SIGKILL),
    ("engine api", signal.SIGSEGV),
    ("executor", signal.SIGKILL),
    ("executor", signal.SIGSEGV),
)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One campaign."""

    jobs: int = 400
    executors: int = 4
    slots: int = 8
    #: Pause between two blows, drawn evenly from this range, in seconds.
    blow_every_s: tuple[float, float] = (1.0, 3.0)
    #: At least this many blows, even when the jobs are done sooner: more jobs are sent until then.
    blows_min: int = 4
    seed: int = 1
    token_s: float = 0.01
    #: Bound of the whole campaign in seconds.
    patience_s: float = 300.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a campaign."""

    seed: int
    asked: int
    completed: int
    failed: int
    lost: int
    answered_twice: int
    wrong_answers: int
    #: Blows by kind.
    blows: dict[str, int]
    deaths: int
    retried: int
    #: Retried jobs whose executor had not died: there must be none.
    disturbed: int
    seconds: float
    exit_code: int
    #: Processes that were left after the stop.
    survivors: tuple[str, ...]
    first_errors: tuple[str, ...]

    def problems(self) -> list[str]:
        """Every broken promise, in words; empty when all held."""
        broken = []
        if self.lost:
            broken.append(f"{self.lost} jobs were never answered")
        if self.failed:
            broken.append(f"{self.failed} jobs failed: {self.first_errors}")
        if self.answered_twice:
            broken.append(f"{self.answered_twice} jobs were answered more than once")
        if self.wrong_answers:
            broken.append(f"{self.wrong_answers} jobs got another job's answer")
        if self.disturbed:
            broken.append(f"{self.disturbed} jobs were disturbed on executors that had not died")
        if not self.deaths:
            broken.append("nothing died: the campaign proves nothing")
        if self.exit_code != 0:
            broken.append(f"the node's exit code was {self.exit_code}")
        if self.survivors:
            broken.append(f"left behind: {self.survivors}")
        return broken


def run_campaign(plan: Plan, folder: Path, say: Callable[[str], None] = lambda _: None) -> Report:
    """Run it.

    Args:
        plan: what to do.
        folder: private folder for the node.
        say: told a line of progress now and then.
    """
    started = time.monotonic()
    # Random kills alone must not use up a job's tries or an executor's restarts: both are tested elsewhere.
    extra = """
[dispatch]
attempts_max = 8
[restarts]
backoff_first_s = 0.2
backoff_max_s = 1.0
intensity = 100000
"""
    engine = f'kind = "simulated"\nextra_args = ["--token-s", "{plan.token_s}"]'
    config = DevQueueConfig(queue_transient=True, timeout_s=plan.patience_s, jobs_kept_max=1_000_000)
    with DevQueueThread(config) as queue:
        node = Node(
            folder, queue.ws_url, executors=plan.executors, slots=plan.slots, engine=engine, extra=extra
        )
        with node:
            node.wait_ready(plan.executors)
            blows = _Blows(node, plan)
            blows.start()
            ids = _send(queue, plan, blows, say)
            views = queue.wait_terminal(ids, plan.patience_s)
            blows.stop()
            exit_code = node.stop()
            survivors = tuple(node.survivors())
        counters = queue.counters()
        # No connection was cut, so nothing may have been sent again either.
        twice = counters.duplicates + counters.stale + counters.late + counters.wrong_fence
    statuses = Counter(view.status for view in views.values())
    wrong = sum(
        view.status is Status.COMPLETED
        and number % 10 != 9
        and f"job-{number:06d} ".encode() not in bytes(view.result or b"")
        for number, view in enumerate(views[job] for job in ids)
    )
    deaths, retried, disturbed = _deaths_and_retries(node.lines)
    return Report(
        seed=plan.seed,
        asked=len(ids),
        completed=statuses[Status.COMPLETED],
        failed=statuses[Status.FAILED],
        lost=len(ids) - statuses[Status.COMPLETED] - statuses[Status.FAILED],
        answered_twice=twice,
        wrong_answers=wrong,
        blows=dict(blows.struck),
        deaths=deaths,
        retried=retried,
        disturbed=disturbed,
        seconds=time.monotonic() - started,
        exit_code=exit_code,
        survivors=survivors,
        first_errors=tuple({str(v.error) for v in views.values() if v.status is Status.FAILED})[:3],
    )


def _deaths_and_retries(lines: list[dict[str, Any]]) -> tuple[int, int, int]:
    """Deaths, retries, and retries of jobs whose executor's incarnation did not die."""
    incarnation: dict[str, int] = {}
    died: set[tuple[str, int]] = set()
    retried: list[tuple[str, int]] = []
    for line in lines:
        match line["event"]:
            case "executor.spawned":
                incarnation[line["executor"]] = line["incarnation"]
            case "executor.died":
                died.add((line["executor"], line["incarnation"]))
            case "job.retried":
                retried.append((line["executor"], incarnation[line["executor"]]))
    return len(died), len(retried), sum(who not in died for who in retried)


def _send(queue: DevQueueThread, plan: Plan, blows: _Blows, say: Callable[[str], None]) -> list[JobId]:
    """Keep the node busy until all jobs are sent and enough blows have fallen; returns the jobs' ids."""
    ids: list[JobId] = []
    deadline = time.monotonic() + plan.patience_s
    batch = plan.executors * plan.slots * 8
    while len(ids) < plan.jobs or (blows.count() < plan.blows_min and time.monotonic() < deadline):
        numbers = range(
            len(ids), len(ids) + min(batch, max(1, plan.jobs - len(ids)) if len(ids) < plan.jobs else batch)
        )
        # Half of them stored, half of them with a caller that waits.
        for mode, chosen in (
            ("persisted", [n for n in numbers if n % 2 == 0]),
            ("transient", [n for n in numbers if n % 2]),
        ):
            made = queue.submit_many([_payload(n) for n in chosen], mode)
            ids.extend([JobId("")] * (max(numbers) + 1 - len(ids)))
            for number, job in zip(chosen, made, strict=True):
                ids[number] = job
        queue.wait_until(
            lambda broker: broker.pending() <= batch // 2,
            plan.patience_s,
            "the backlog to shrink",
        )
        say(f"{len(ids)} jobs sent, {blows.count()} blows")
    return ids


def _payload(number: int) -> dict[str, object]:
    if number % 10 == 9:
        text = f"job-{number:06d} embedding"
        return {"task": "openai/embeddings", "input": text, "user": text}
    return {
        "task": "openai/chat-completion",
        "messages": [{"role": "user", "content": f"job-{number:06d} please"}],
        "max_tokens": 1 + number % 12,
    }


class _Blows(threading.Thread):
    """Strikes a random process of a random executor now and then."""

    def __init__(self, node: Node, plan: Plan) -> None:
        super().__init__(name="blows", daemon=True)
        self._node = node
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._over = threading.Event()
        self.struck: Counter[str] = Counter()

    def count(self) -> int:
        """Blows so far."""
        return self.struck.total()

    def run(self) -> None:
        while not self._over.wait(self._random.uniform(*self._plan.blow_every_s)):
            what, sign = self._random.choice(BLOWS)
            pids = {
                "engine core": self._node.engine_core_pids,
                "engine api": self._node.engine_api_pids,
                "executor": self._node.executor_pids,
            }[what]()
            if not pids:
                continue
            name = self._random.choice(sorted(pids))
            with suppress(ProcessLookupError):
                os.kill(pids[name], sign)
                self.struck[f"{sign.name} {what}"] += 1

    def stop(self) -> None:
        """No more blows."""
        self._over.set()
        self.join()
