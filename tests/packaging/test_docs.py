"""The pages agree with the repository: links lead somewhere, targets and variables are named."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from support.source_tree import ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")],
)
_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")

#: Variables that the reference worker reads; a container that ran it must start unchanged.
REFERENCE_VARIABLES = """
CASOLA_WS_URL CASOLA_CONFIG_ID CASOLA_INSTANCE_ID CONTAINER_ID RUNPOD_POD_ID CASOLA_QUEUE_ID CASOLA_CAPACITY
CASOLA_API_TOKEN CASOLA_API_URL CASOLA_HEARTBEAT_INTERVAL CASOLA_LOGS_URL CASOLA_LOG_FLUSH_INTERVAL
CASOLA_METRICS_URL CASOLA_MAX_JOBS CASOLA_LEASE_SECONDS CASOLA_RENEW_LEASE_AFTER CASOLA_SHUTDOWN_GRACE_PERIOD
CASOLA_BACKPRESSURE_CHECK_INTERVAL CASOLA_BACKPRESSURE_PAUSE_THRESHOLD CASOLA_BACKPRESSURE_RESUME_THRESHOLD
CASOLA_EXPECTED_GPU_NAME CASOLA_EXPECTED_VRAM_GB VLLM_MODEL VLLM_SERVED_MODEL_NAME VLLM_HOST VLLM_PORT
VLLM_STARTUP_TIMEOUT VLLM_EXTRA_ARGS VLLM_SERVE_COMMAND HF_TOKEN
""".split()

TARGETS = {"help", "setup", "demo", "test", "check", "sim", "chaos", "bench"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    targets = [t for t in _LINK.findall(page.read_text()) if "://" not in t and not t.startswith("mailto:")]
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_the_readme_names_every_variable_of_the_reference_worker() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in REFERENCE_VARIABLES if f"`{name}`" not in readme] == []


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text()
    assert [file.name for file in sorted(folder.glob("0*.md")) if f"({file.name})" not in index] == []


def test_make_alone_lists_every_target() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True, timeout=30).stdout
    assert {line.split()[1] for line in listed.splitlines() if line.startswith("  make ")} >= TARGETS


def test_the_changelog_has_a_place_for_what_is_new() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
