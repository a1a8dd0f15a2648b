"""The connection's settings, from [source.casola] and the names that a container is given."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from gpuward_supervisor.config.findings import Findings
from gpuward_supervisor.config.schema import ConfigFile
from gpuward_supervisor.secrets import Secret
from gpuward_supervisor.sources.base import CasolaSettings, TransferSettings

_URL = ("source", "casola", "url")
_CONFIG_ID = ("source", "casola", "config_id")
_SCHEMES = {"http": "ws", "https": "wss"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def casola_settings(
    config: ConfigFile, token: Secret, environ: Mapping[str, str], findings: Findings
) -> CasolaSettings:
    """Make them.

    Args:
        config: the file's content, with the environment over it.
        token: bearer token; empty for none.
        environ: for the ids that make up the default worker id.
        findings: gets problems.
    """
    table = config.source.casola
    if table.url is None:
        _refuse_missing(_URL, "CASOLA_WS_URL", "wss://queue.example", findings)
    else:
        _check_url(table.url, findings)
    if table.config_id is None:
        _refuse_missing(_CONFIG_ID, "CASOLA_CONFIG_ID", "my-model", findings)
    return CasolaSettings(
        url=table.url or "",
        config_id=table.config_id or "",
        worker_id=table.worker_id or config.node.name or default_worker_id(environ),
        token=token,
        inbound_max_bytes=config.limits.inbound_max_bytes,
        transfers=TransferSettings(max_bytes=config.limits.transfer_max_bytes),
    )


def default_worker_id(environ: Mapping[str, str]) -> str:
    """The id of a worker that was given none, as the reference worker makes it."""
    if pod := environ.get("RUNPOD_POD_ID", "").strip():
        return f"runpod-{pod}"
    return f"vast-{environ.get('CONTAINER_ID', '').strip() or os.getpid()}"


def _refuse_missing(path: tuple[str, str, str], variable: str, example: str, findings: Findings) -> None:
    if not findings.refused(path):
        findings.refuse(
            path, None, "is required, and missing", f'write {path[-1]} = "{example}", or set {variable}'
        )


def _check_url(url: str, findings: Findings) -> None:
    try:
        parts = urlsplit(url)
        port_is_sound = parts.port is None or parts.port > 0
    except ValueError as error:
        findings.refuse(_URL, url, f"is not a URL: {error}")
        return
    if parts.scheme in _SCHEMES:
        findings.refuse(
            _URL, url, "expected a WebSocket URL", f"write {_SCHEMES[parts.scheme]}:// for {parts.scheme}://"
        )
    elif parts.scheme not in {"ws", "wss"} or not parts.hostname or not port_is_sound:
        findings.refuse(_URL, url, "expected ws:// or wss:// and a host, as wss://queue.example")
    elif parts.username is not None or parts.password is not None:
        findings.refuse(
            _URL,
            url,
            "expected a URL without user and password",
            "use a token: CASOLA_API_TOKEN, or token_file",
        )
    elif parts.query or parts.fragment or _CONTROL.search(url) or " " in url:
        findings.refuse(
            _URL, url, "expected a URL without query, fragment and white space: `/ws` is appended to it"
        )
    elif parts.path.rstrip("/").endswith("/ws"):
        findings.warn(
            f"{findings.name_of(_URL)} ends with /ws, and /ws is appended to it: leave it out, unless "
            "the queue really listens at /ws/ws"
        )
