"""One simulated engine for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.simulated_engine import SimulatedEngine


@pytest.fixture(scope="session")
def engine() -> Iterator[SimulatedEngine]:
    flags = ["--allow-faults", "--max-model-len", "512", "--max-num-seqs", "2", "--token-s", "0.002"]
    with SimulatedEngine(*flags, "--served-model-name", "default", "alias") as running:
        yield running
