"""What every test run has in common: a clean environment, and no way off this machine."""

from __future__ import annotations

import ipaddress
import os
import sys
from typing import Any

#: The machine's own settings must not decide a test: proxies, and the variables that configure a worker.
_FOREIGN_PREFIXES = ("CASOLA_", "VLLM_")
_FOREIGN_NAMES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY", "WSS_PROXY"})

for _name in list(os.environ):
    if _name.startswith(_FOREIGN_PREFIXES) or _name.upper() in _FOREIGN_NAMES:
        del os.environ[_name]


def _is_local(address: object) -> bool:
    if not isinstance(address, tuple):  # a Unix socket
        return True
    host = str(address[0])
    if host in {"", "localhost"}:
        return True
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a name other than localhost would have to be looked up
        return False
    return ip.is_loopback or ip.is_unspecified


def _refuse_to_leave(event: str, args: tuple[Any, ...]) -> None:
    if event in {"socket.connect", "socket.sendto"} and not _is_local(args[1]):
        raise RuntimeError(
            f"a test tried to reach {args[1]!r}: expected loopback only; start the peer in the test itself"
        )


# An audit hook sees every connection of this process, whichever library makes it.
sys.addaudithook(_refuse_to_leave)
