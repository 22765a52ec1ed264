"""net.ipv4.ip_forward: whether this host passes packets on at all.

Owns the one switch; never switches it off. Called by `forwarding` and `nft_forwarding`.
"""

from __future__ import annotations

from pathlib import Path

from agent.errors import KernelError

IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")  # /proc/sys/net shows the namespace of the thread that opens it


def is_on() -> bool:
    try:
        return IP_FORWARD.read_text().strip() != "0"
    except OSError as error:
        raise KernelError(f"cannot read {IP_FORWARD}: {error.strerror}") from error


def switch_on() -> None:
    if is_on():  # then it need not be writable
        return
    try:
        IP_FORWARD.write_text("1")
    except OSError as error:
        raise KernelError(f"cannot set net.ipv4.ip_forward=1: {error.strerror}; set it with sysctl") from error
