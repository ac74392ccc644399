"""Tells systemd about the state of this process (sd_notify(3))."""

from __future__ import annotations

import os
import socket


def notify(*states: str) -> None:
    """Send assignments such as READY=1 to NOTIFY_SOCKET; without one there is nobody to tell.

    Raises OSError where the socket is named but nobody listens: the unit would wait for READY=1 in vain.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto("\n".join(states).encode(), address)
