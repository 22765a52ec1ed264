"""The agent as a process: it is scraped where agent.toml says, and nowhere else."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.netns.conftest import enter

PORT = 9586
DEADLINE = 60.0


def command(namespace: str, folder: Path, settings: str) -> list[str]:
    config = folder / "agent.toml"
    config.write_text(f'state = "{folder}/agent.db"\nlisten = "unix:{folder}/agent.sock"\n{settings}')
    python = [sys.executable, "-m", "agent", "--config", str(config), "run"]
    return ["ip", "netns", "exec", namespace, *python]


@contextmanager
def agent(namespace: str, folder: Path, settings: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command(namespace, folder, settings), stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + DEADLINE
            while not (folder / "agent.sock").exists():
                assert process.poll() is None and time.monotonic() < deadline, "the agent did not start"
                time.sleep(0.1)
            yield process
        finally:
            process.kill()


def scraped() -> set[str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            with opener.open(f"http://127.0.0.1:{PORT}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def listening() -> int:
    """Sockets that listen on TCP, in this namespace."""
    tables = (Path(f"/proc/thread-self/net/{name}").read_text() for name in ("tcp", "tcp6"))
    return sum(line.split()[3] == "0A" for table in tables for line in table.splitlines()[1:])


@pytest.fixture
def inside(namespace: str) -> Iterator[Callable[..., Any]]:
    with enter(namespace) as run:
        yield run


def test_it_is_scraped_where_its_configuration_says(namespace: str, inside: Callable[..., Any], tmp_path: Path) -> None:
    with agent(namespace, tmp_path, f'metrics = "127.0.0.1:{PORT}"\n') as process:
        names = inside(scraped)
        assert {"wirelane_agent_info", "wirelane_agent_counted_bytes_total", "process_open_fds"} <= names
        assert inside(listening) == 1
        idle = inside(socket.create_connection, ("127.0.0.1", PORT))  # holds its stop up for nobody
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        idle.close()


def test_without_an_address_nothing_listens(namespace: str, inside: Callable[..., Any], tmp_path: Path) -> None:
    with agent(namespace, tmp_path, ""):
        assert inside(listening) == 0


def test_a_port_in_use_is_one_clear_line(namespace: str, inside: Callable[..., Any], tmp_path: Path) -> None:
    other = inside(socket.create_server, ("127.0.0.1", PORT))
    with other:
        line = command(namespace, tmp_path, f'metrics = "127.0.0.1:{PORT}"\n')
        done = subprocess.run(line, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"wirelane-agent: metrics: 127.0.0.1:{PORT}: Address already in use"
