"""How a lab was meant to be (lab.json in its folder), and which processes are its. Called by lab.py."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab import hosts, registry
from tests.lab.errors import LabError
from tests.lab.hosts import NAMESPACES
from tests.lab.processes import Process, Records, end, inside, marked

DOWN_SECONDS = 120.0  # the kernel takes half a minute for the classes of 30,000 accounts


@dataclass(frozen=True, slots=True)
class Record:
    """How the lab was meant to be; lab.json in its folder."""

    name: str
    nodes: int
    clients: int
    port: int  # the gateways' and the database's follow it
    gateways: int = 1
    postgresql: bool = False
    ipv6: bool = False
    user: str = ""  # whom the gateways run as
    access_hash: str = ""
    complete: bool = False  # `up` came to its end


def read_record(name: str) -> Record | None:
    try:
        return Record(**json.loads((registry.folder(name) / "lab.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_record(record: Record) -> Record:
    state = registry.folder(record.name)
    state.mkdir(mode=0o710, exist_ok=True)
    scratch = state / ".lab.json"
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(record), file)
    scratch.replace(state / "lab.json")
    return record


def end_processes(name: str, state: Path) -> None:
    """Kill until a look around finds none: a process may start another while we look."""
    until = time.monotonic() + DOWN_SECONDS

    def targets() -> set[Process]:
        namespaces = [NAMESPACES / found for found in hosts.existing(name)]
        return {*Records(state / "processes").all(), *marked(name), *inside(namespaces)}

    while found := targets():
        left = end(found, signal.SIGKILL, max(0.5, until - time.monotonic()))
        if time.monotonic() > until:
            raise LabError(f"processes that do not end: {', '.join(str(item.pid) for item in left or found)}")
