from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gpuward_supervisor.bodies import Bodies
from gpuward_supervisor.sources.base import CasolaSettings, SourceState
from gpuward_supervisor.sources.registry import build_source


def test_casola_settings_make_a_source_that_has_not_started(tmp_path: Path) -> None:
    settings = CasolaSettings(url="ws://127.0.0.1:1", config_id="c", worker_id="w")
    source = build_source(settings, Bodies(tmp_path), lambda event: None)
    snapshot = source.snapshot()
    assert (snapshot.source, snapshot.state, snapshot.connection) == ("casola", SourceState.WAITING, 0)


def test_importing_the_registry_does_not_import_a_sources_library() -> None:
    program = "import sys, gpuward_supervisor.sources.registry; sys.exit('websocket' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
