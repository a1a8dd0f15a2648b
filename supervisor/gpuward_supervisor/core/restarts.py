"""When a dead executor is started again, and when it is given up: backoff, restart intensity and period.

OTP's rule: more than ``restart_intensity`` deaths within ``restart_period_s`` seconds end the trying. Between
two starts lies a delay that doubles with each death in a row; a long time of being ready starts it afresh.
"""

from __future__ import annotations

from random import Random

from gpuward_supervisor.core.policy import Policy
from gpuward_supervisor.core.state import Executor


def record_death(executor: Executor, policy: Policy, rng: Random, now_s: float) -> bool:
    """Count a death and set the time of the next start, seen from now.

    Args:
        executor: the executor whose incarnation has ended unasked.
        policy: intensity, period and backoff.
        rng: jitter.
        now_s: time of the death.

    Returns:
        False when the intensity is exceeded: the executor must not be started again.
    """
    ready_at_s = executor.ready_at_s
    if ready_at_s is not None and now_s - ready_at_s >= policy.backoff_reset_s:
        executor.failures = 0
    executor.spawn_at_s = now_s + delay_s(executor.failures, policy, rng)
    executor.failures += 1
    deaths = executor.deaths
    deaths.append(now_s)
    while deaths[0] <= now_s - policy.restart_period_s:
        deaths.popleft()
    return len(deaths) <= policy.restart_intensity


def delay_s(failures: int, policy: Policy, rng: Random) -> float:
    """Delay before the next start, in seconds.

    Args:
        failures: deaths in a row before this one, 0 for a first one.
        policy: first and greatest delay, and the share of jitter that is added to both.
        rng: jitter.
    """
    # The exponent is bounded so that a float never overflows after weeks of dying.
    base_s = min(policy.backoff_first_s * 2.0 ** min(failures, 32), policy.backoff_max_s)
    return base_s * (1.0 + policy.backoff_jitter * rng.random())
