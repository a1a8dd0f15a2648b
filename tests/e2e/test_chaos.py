"""A short chaos campaign; ``make chaos`` runs the long one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.campaign import Plan, run_campaign

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]


def test_random_kills_lose_nothing_and_disturb_nobody_else(tmp_path: Path) -> None:
    plan = Plan(
        jobs=int(os.environ.get("GPUWARD_CHAOS_JOBS", "1000")),
        blow_every_s=(0.5, 1.0),
        blows_min=5,
        seed=11,
        token_s=0.02,
    )
    report = run_campaign(plan, tmp_path)
    assert report.problems() == [], report
