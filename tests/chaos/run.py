"""``make chaos``: the whole campaign, with a table of what was done and what came of it."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.campaign import Plan, run_campaign


def main() -> int:
    """Run it; 0 when every promise held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--executors", type=int, default=4)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="repeats the same blows")
    parser.add_argument("--token-s", type=float, default=0.01, help="simulated time per token (default 0.01)")
    options = parser.parse_args()
    plan = Plan(
        jobs=options.jobs,
        executors=options.executors,
        slots=options.slots,
        seed=options.seed,
        token_s=options.token_s,
        blow_every_s=(1.0, 4.0),
        blows_min=10,
        patience_s=1800.0,
    )
    with tempfile.TemporaryDirectory(prefix="gpuward-chaos-") as folder:
        report = run_campaign(plan, Path(folder), lambda line: print(line, file=sys.stderr, flush=True))
    for name, value in msgspec.structs.asdict(report).items():
        print(f"{name:16} {value}")
    problems = report.problems()
    print("\n".join(f"BROKEN: {problem}" for problem in problems) or "every promise held")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
