"""Settings of an interface below /proc/sys/net: read, and written where they differ. Knows none by name; which ones are
ours to write is the callers' business, ip_forward and ipv6_forward.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from agent.errors import KernelError

NET = Path("/proc/sys/net")  # it shows the namespace of the thread that opens it

Family = Literal["ipv4", "ipv6"]


def conf(family: Family) -> Path:
    """The folder with one of each interface, and `all` and `default`."""
    return NET / family / "conf"


def read(family: Family, device: str, name: str) -> str:
    """ "" = there is no such interface, or it has not this family."""
    path = conf(family) / device / name
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise KernelError(f"cannot read {path}: {error.strerror}") from error


def write(family: Family, device: str, name: str, value: str) -> None:
    """Where it stands so already, it need not be writable."""
    try:
        if read(family, device, name) not in ("", value):
            (conf(family) / device / name).write_text(value)
    except FileNotFoundError:
        return  # the interface has gone
    except OSError as error:
        setting = f"net.{family}.conf.{device}.{name}"
        raise KernelError(f"cannot set {setting}={value}: {error.strerror}; set it with sysctl") from error
