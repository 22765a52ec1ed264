"""Where the gateway listens, and whether it may: a port below 1024 is not everybody's. Called by gateway/wiring."""

from __future__ import annotations

import socket
import subprocess
from contextlib import suppress
from pathlib import Path

UNIT = "wirelane-gateway.service"
CAP_NET_BIND_SERVICE = 10  # linux/capability.h
SYSTEMCTL_SECONDS = 10


def bound_socket(address: str, port: int) -> socket.socket:
    """Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen(1024)
    except BaseException:
        listening.close()
        raise
    return listening


def may_listen(port: int) -> bool:
    """As the service: by the unit where systemd runs it, else by what this process may."""
    floor = 1024
    with suppress(OSError, ValueError):
        floor = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    return port >= floor or _is_capable() or _unit_is_capable()


def port_cure(port: int) -> str:
    """What to do where it may not."""
    return (
        f"the service may not listen on port {port}: put a proxy before it, or let everybody have it "
        f"(sysctl net.ipv4.ip_unprivileged_port_start={port}), or give it the right in a drop-in (systemctl edit "
        "wirelane-gateway: AmbientCapabilities=CAP_NET_BIND_SERVICE, CapabilityBoundingSet=CAP_NET_BIND_SERVICE, "
        "PrivateUsers=no)"
    )


def _is_capable() -> bool:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "CapEff":
                return bool(int(value, 16) >> CAP_NET_BIND_SERVICE & 1)
    return False


def _unit_is_capable() -> bool:
    if not Path("/run/systemd/system").is_dir():
        return False
    command = ["systemctl", "show", UNIT, "--property=AmbientCapabilities", "--property=PrivateUsers"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    # In a user namespace of its own the capability says nothing about the host's ports.
    return "cap_net_bind_service" in found.get("AmbientCapabilities", "").split() and found.get("PrivateUsers") == "no"
