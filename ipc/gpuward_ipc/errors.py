"""Errors of the executor link.

IpcError
├── MalformedMessage    bytes that are not a message of the link
└── BackPressure        the peer's queue is full: our own credit is wrong, or the peer is stuck
"""

from __future__ import annotations


class IpcError(Exception):
    """Something on the executor link went wrong."""


class MalformedMessage(IpcError):
    """Bytes arrived that are not a message of the link."""


class BackPressure(IpcError):
    """A message could not be queued because the peer does not read."""
