"""Which UDP ports of this host are taken."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def udp_ports() -> frozenset[int]:
    """Those of the network namespace of the calling thread, whatever address they are bound to.

    Asking is the only way that disturbs nobody: to try a port by binding it would refuse it to its owner meanwhile.
    """
    ports: set[int] = set()
    for table in ("udp", "udp6"):
        with suppress(FileNotFoundError):  # no IPv6 here
            for line in Path("/proc/thread-self/net", table).read_text().splitlines()[1:]:
                ports.add(int(line.split(maxsplit=2)[1].rpartition(":")[2], 16))
    return frozenset(ports)
