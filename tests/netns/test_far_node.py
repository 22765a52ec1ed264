"""An agent on another host, over links that are cut, healed and slow."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from tests.fakes.certificates import an_authority, an_identity, credentials, written

GATEWAY, AGENT, PORT = "192.0.2.1", "192.0.2.2", 7443
DEADLINE = 60


@dataclass(frozen=True)
class Far:
    gateway: str  # namespaces
    agent: str
    folder: Path

    def cut(self) -> None:
        for chain in ("INPUT", "OUTPUT"):
            _run("ip", "netns", "exec", self.agent, "iptables", "-w", "-A", chain, "-j", "DROP")

    def heal(self) -> None:
        _run("ip", "netns", "exec", self.agent, "iptables", "-w", "-F")

    def slow(self, rate: str) -> None:
        """Both ways, with a queue of 3 s."""
        for namespace in (self.gateway, self.agent):
            _run("tc", "-n", namespace, *f"qdisc add dev far root tbf rate {rate} burst 4kb latency 3s".split())

    @contextmanager
    def program(self, namespace: str, *arguments: str) -> Iterator[Callable[[float], dict[str, Any]]]:
        """Gives what reads the next line of JSON within so many seconds."""
        command = ["ip", "netns", "exec", namespace, sys.executable, "-m", *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            lines: queue.Queue[str] = queue.Queue()
            assert process.stdout is not None
            reader = threading.Thread(target=_put, args=(process.stdout, lines))
            reader.start()
            try:
                yield lambda seconds: _parsed(lines.get(timeout=seconds))
            finally:
                process.kill()
                reader.join(DEADLINE)


def _put(out: IO[str], lines: queue.Queue[str]) -> None:
    for line in out:
        lines.put(line)


def _parsed(line: str) -> dict[str, Any]:
    return dict(json.loads(line)) if line.startswith("{") else {"what": line.strip()}


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=DEADLINE)


@pytest.fixture
def far(make_namespace: Callable[[], str], tmp_path: Path) -> Iterator[Far]:
    it = Far(make_namespace(), make_namespace(), tmp_path)
    _run("ip", "-n", it.gateway, *f"link add far type veth peer name far netns {it.agent}".split())
    for namespace, address in ((it.gateway, GATEWAY), (it.agent, AGENT)):
        _run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", "far")
        _run("ip", "-n", namespace, "link", "set", "far", "up")
    authority = an_authority()
    own = credentials(authority)
    (tmp_path / "certificate").write_bytes(own.certificate)
    (tmp_path / "authorities").write_bytes(own.authorities)
    (tmp_path / "key").write_text(own.key.reveal())
    written(tmp_path / "identity", an_identity(authority))
    with it.program(it.agent, "tests.fakes.agent_core", f"0.0.0.0:{PORT}", str(tmp_path)) as line:
        assert line(DEADLINE) == {"what": "listening"}
        yield it


@pytest.mark.parametrize("seconds", [1, 9])
def test_a_cut_is_noticed_in_three_seconds_and_its_end_in_one(far: Far, seconds: float) -> None:
    """`seconds`: how long it goes on after it was noticed."""
    with far.program(far.gateway, "tests.netns.far_gateway", "watch", str(far.folder), f"{AGENT}:{PORT}") as line:
        while line(DEADLINE)["what"] != "there":
            pass
        time.sleep(1)
        cut = time.monotonic()
        far.cut()
        noticed = line(10)
        assert noticed["what"] == "away"
        time.sleep(seconds)
        far.heal()
        healed = time.monotonic()
        back = line(10)
        assert back["what"] == "there"
        print(f"noticed {noticed['at'] - cut:.2f} s, back {back['at'] - healed:.2f} s")
        assert noticed["at"] - cut < 3.5
        assert back["at"] - healed < 1.5


def test_a_slow_link_carries_a_snapshot_and_is_not_called_away(far: Far) -> None:
    far.slow("256kbit")
    arguments = ("load", str(far.folder), f"{AGENT}:{PORT}", "3000")
    with far.program(far.gateway, "tests.netns.far_gateway", *arguments) as line:
        assert line(DEADLINE)["what"] == "sending"
        began = time.monotonic()
        said = [line(DEADLINE)]
        while said[-1]["what"] not in ("sent", "lost"):
            said.append(line(DEADLINE))
    print(*said, sep="\n")
    assert [one for one in said if one["what"] == "away"] == []
    assert said[-1]["what"] == "sent" and said[-1]["outcome"] == "applied"
    assert said[-1]["at"] - began > 5 and len(said) > 2
