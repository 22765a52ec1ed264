"""The marks move from one backend to the other under a download: it goes on, marked, shaped and counted to the byte."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab
from tests.lab.readings import Download, counters_at_rest, fetch, mangle_counters, usage
from tests.netns.main_job.conftest import MakeAccount
from tests.netns.main_job.picture import NODE


def choose(lab: Lab, backend: str) -> None:
    """What an operator does: a line in agent.toml, and a restart."""
    lab.stop_agent(NODE)
    file = lab.state / NODE / "agent.toml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith("marks.backend")]
    file.write_text("\n".join([*lines, f'marks.backend = "{backend}"', ""]))
    lab.start_agent(NODE)


@pytest.fixture
def moving(lab: Lab) -> Iterator[None]:
    yield
    choose(lab, "iptables")


class Witness:
    """Rules of an administrator's, behind ours, that count what reaches an account: with its mark, and with another."""

    def __init__(self, lab: Lab, address: str, mark: str) -> None:
        self.lab, self.address, self.mark = lab, address, mark

    def __enter__(self) -> Witness:
        self.nft("add table ip witness")
        self.nft("add chain ip witness leaving { type filter hook postrouting priority 300; }")
        for which in (self.mark, f"!= {self.mark}"):
            self.nft(f"add rule ip witness leaving ip daddr {self.address} meta mark {which} counter")
        return self

    def __exit__(self, *_: object) -> None:
        """The lab is everybody's: other tests compare what is not ours byte for byte."""
        self.nft("delete table ip witness")

    def nft(self, line: str) -> str:
        return self.lab.exec(NODE, "nft", line).stdout

    def chains(self) -> str:
        return self.lab.exec(NODE, "iptables-legacy", "-w", "-t", "mangle", "-S").stdout

    def counted(self) -> tuple[int, int]:
        """Bytes with the right mark, and without."""
        marked, unmarked = re.findall(r"counter packets \d+ bytes (\d+)", self.nft("list chain ip witness leaving"))
        return int(marked), int(unmarked)


def test_a_move_and_the_way_back_lose_no_packet_and_no_byte(lab: Lab, make_account: MakeAccount, moving: None) -> None:
    account = make_account(b_download=20, b_upload=20)
    for _ in range(3):
        make_account()
    name, address = account["name"], account["allowed_IPs"]
    lab.connect("c1", name)
    before = usage(lab.rest, name)[0]
    handshake = lab.handshake("c1")
    with Witness(lab, address, account["mangle"]) as witness, Download(lab, "c1", "24M") as running:
        for backend in ("nftables", "iptables"):
            time.sleep(2.0)
            seen = mangle_counters(lab.rest, name).download_bytes
            choose(lab, backend)
            assert mangle_counters(lab.rest, name).download_bytes > seen // 2
            assert ("WL_MARK" in witness.chains()) == (backend == "iptables")
            assert ("table ip wirelane" in witness.nft("list tables").splitlines()) == (backend == "nftables")
        assert running.finished(40.0) == 24_000_000
        time.sleep(0.5)  # for the last packets of the connection
        marked, unmarked = witness.counted()
        assert unmarked == 0 and marked > 24_000_000
        assert usage(lab.rest, name)[0] - before == marked
    assert lab.handshake("c1") == handshake


def test_everything_works_alike_by_nftables(lab: Lab, server: str, make_account: MakeAccount, moving: None) -> None:
    choose(lab, "nftables")
    account = make_account(b_download=8, b_upload=8)["name"]
    lab.connect("c1", account)
    with Download(lab, "c1", "3M") as running:
        began = time.monotonic()
        assert running.finished(30.0) == 3_000_000
        assert time.monotonic() - began > 2.4  # 3 MB at 8 Mbit/s take 3 s
    counted = counters_at_rest(lab.rest, account)
    assert usage(lab.rest, account) == (counted.download_bytes, counted.upload_bytes)
    assert 3_000_000 < counted.download_bytes < 3_600_000
    lab.exec(NODE, "nft", "flush", "ruleset")
    lab.rest.put(f"account/{account}", b_download=9)
    deadline = time.monotonic() + 10.0
    while fetch(lab, "c1", "/ip", seconds=1.0) is None:
        assert time.monotonic() < deadline, "a flushed ruleset was not repaired"
    lab.rest.put(f"account/{account}", status="disable")
    assert fetch(lab, "c1", "/ip", seconds=2.0) is None
    assert usage(lab.rest, account)[0] >= counted.download_bytes
