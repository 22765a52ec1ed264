"""The host that this gateway runs on: what `GET /system/info` tells of it, and which one it is. Never a node's.

Reads /proc and files of /etc. Called by gateway/system, and by whatever has to do with a socket of this host.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import platform
import socket
from pathlib import Path

CPU_MODEL = ("model name", "Model", "Processor")  # in the spellings of x86, arm64 boards and others


def identity(machine_id: Path = Path("/etc/machine-id")) -> str:
    """Of the installation, the same after each boot; "" = it has none. Derived, as machine-id(5) asks for: the number
    itself is nobody else's business."""
    try:
        number = machine_id.read_text().strip()
    except OSError:
        return ""
    return hmac.digest(number.encode(), b"wirelane gateway", hashlib.sha256).hex()[:32] if number else ""


def described(time_zone: str, proc: Path = Path("/proc")) -> dict[str, str]:
    """v1's keys, all texts. Load: averages over 1, 5 and 15 minutes. Memory: bytes; `used` is what is not available."""
    memory = _memory((proc / "meminfo").read_text())
    total, free = memory["MemTotal"], memory["MemAvailable"]
    loads = (proc / "loadavg").read_text().split()[:3]
    return {
        "cpu_model": _cpu_model((proc / "cpuinfo").read_text()) or platform.machine(),
        "cpu_threads": str(os.cpu_count() or 1),
        **{f"cpu_used_load{minutes}": load for minutes, load in zip((1, 5, 15), loads, strict=True)},
        "hostname": socket.gethostname(),
        "memory_total": str(total),
        "memory_used": str(total - free),
        "memory_free": str(free),
        "memory_used_percent": f"{100 * (total - free) / total:.1f}",
        "os_architecture": platform.machine(),
        "os_name": _os_name(),
        "timezone": time_zone,
    }


def _memory(text: str) -> dict[str, int]:
    """Bytes, by the kernel's own names."""
    return {
        name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in text.splitlines())
    }


def _cpu_model(text: str) -> str:
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    return next((found[name] for name in CPU_MODEL if name in found), "")


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
