"""The disk of a node is full: who is switched off is off all the same, on real packets; others are served."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.hosts import run
from tests.lab.lab import Lab
from tests.lab.readings import fetch
from tests.netns.main_job.picture import NODE

NAME = f"fd{os.getpid()}"
SECONDS = 30.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)])
    try:
        yield tmp_path
    finally:
        run(["umount", "-l", str(tmp_path)])


@pytest.fixture
def small(disk: Path) -> Iterator[Lab]:
    """A lab of its own, whose agent keeps its file on the small disk."""
    settings: dict[str, str | int] = {"state": str(disk / "agent.db"), "resync_seconds": 5, "sample_seconds": 1}
    made = Lab.up(NAME, nodes=1, clients=2, agent=settings)
    try:
        yield made
    finally:
        Lab.down(NAME)


def fill(disk: Path) -> None:
    with open(disk / "ballast", "ab", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def node_says(lab: Lab, text: str) -> dict[str, Any]:
    """The node in the gateway's status, as soon as its problem has this text; "" = it has none."""
    end = time.monotonic() + SECONDS
    while True:
        node: dict[str, Any] = lab.rest.get("system/status")["nodes"][0]
        if text in node["problem"] if text else not node["problem"]:
            return node
        assert time.monotonic() < end, node
        fetch(lab, "c2", "/ip", seconds=2.0)  # bytes to write down
        time.sleep(0.2)


def test_a_full_disk_keeps_nobody_in(small: Lab, disk: Path) -> None:
    lab = small
    server = str(lab.rest.post("wireguard")["name"])
    names = [str(lab.rest.post("account", wg_name=server)["name"]) for _ in range(2)]
    for client, name in zip(("c1", "c2"), names, strict=True):
        lab.connect(client, name)
        assert fetch(lab, client, "/ip", seconds=5.0)
    fill(disk)
    assert str(disk) in node_says(lab, "is full")["problem"]  # before anything is changed
    began = time.monotonic()
    lab.rest.put(f"account/{names[0]}", status="disable")
    while fetch(lab, "c1", "/ip", seconds=1.0) is not None:
        assert time.monotonic() - began < 5.0
    assert fetch(lab, "c2", "/ip", seconds=5.0)
    log = (lab.state / f"agent-{NODE}.log").read_text()
    assert log.count("sample missed") == 1, log
    (disk / "ballast").unlink()
    node_says(lab, "")
    assert fetch(lab, "c1", "/ip", seconds=2.0) is None and fetch(lab, "c2", "/ip", seconds=5.0)
