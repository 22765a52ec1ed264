"""The lab as a fleet: two nodes, two gateways and PostgreSQL, and the trouble that it can make."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.cluster import why_missing
from tests.lab import database
from tests.lab.errors import ApiError, LabError
from tests.lab.hosts import NAMESPACES, existing
from tests.lab.lab import Lab
from tests.lab.processes import inside, marked, wait_until
from tests.lab.topology import topology
from tests.netns.test_lab import cli, traces

TIMED_OUT = 124  # timeout(1)
NAME = f"tf{os.getpid()}"
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(bool(why_missing()), reason=why_missing() or "-"),
]


@pytest.fixture(scope="module")
def described() -> Iterator[dict[str, Any]]:
    """A lab made by the command line; what it printed."""
    try:
        made = cli(
            "up", "--name", NAME, "--nodes", "2", "--clients", "1", "--gateways", "2", "--database", "postgresql"
        )
        assert made.returncode == 0, made.stderr
        yield json.loads(made.stdout)
    finally:
        Lab.down(NAME)


@pytest.fixture
def lab(described: dict[str, Any]) -> Lab:
    return Lab.open(NAME)


def reaches(lab: Lab, host: str, other: str) -> bool:
    """A closed port refuses at once; who is cut off hears nothing."""
    knock = f"exec 3<>/dev/tcp/{lab.host(other).address.ip}/9"
    return lab.exec(host, "timeout", "1", "bash", "-c", knock, check=False).returncode != TIMED_OUT


def fails(lab: Lab, gateway: str) -> bool:
    try:
        lab.rest_of(gateway).get("account")
    except LabError:
        return True
    return False


def test_sqlite_refuses_a_second_gateway() -> None:
    with pytest.raises(ValueError, match="--database postgresql"):
        topology("wl", 1, 1, gateways=2)
    assert topology("wl", 1, 1).gateways == ()


def test_one_access_key_opens_every_gateway_and_the_database_s_url_is_true(lab: Lab, described: dict[str, Any]) -> None:
    assert [one["name"] for one in described["gateways"]] == ["g1", "g2"]
    assert described["gateways"][0]["url"] == described["url"]
    assert described["gateways"][0]["pid"] == described["gateway_pid"]
    server = lab.rest_of("g1").post("wireguard")["name"]
    assert list(lab.rest_of("g2").get("wireguard")) == [server]
    for one in described["gateways"]:
        assert Path(f"/proc/{one['pid']}").is_dir() and Path(one["config"]).is_file()
    url = described["database"]["url"]
    counted = subprocess.run(
        ["psql", url, "-Atc", "select count(*) from servers"], capture_output=True, text=True, timeout=10, check=True
    )
    assert counted.stdout.strip() == "1"
    lab.rest.delete(f"wireguard/{server}")


def test_agents_are_enrolled_and_called_at_their_address(lab: Lab, described: dict[str, Any]) -> None:
    listed = {line.split()[0]: line.split()[1] for line in lab.gateway_cli("node", "list").splitlines()[1:]}
    assert listed == {node["name"]: node["address"] for node in described["nodes"]}
    for node in described["nodes"]:
        host, _, port = node["address"].partition(":")
        hello = ["openssl", "s_client", "-connect", node["address"], "-alpn", "h2", "-showcerts"]
        shown = lab.exec("g2", *hello, check=False).stdout
        assert host == node["public_ip"] and port == "7443"
        assert "TLSv1.3" in shown and f"CN = {node['name']}" in shown


def test_a_cut_node_gets_its_changes_when_it_heals(lab: Lab) -> None:
    server = lab.rest.post("wireguard", node="n1")["name"]
    lab.cut("n1")
    answer = lab.rest_of("g2").call("POST", "account", {"wg_name": server, "name": "late"})
    assert (answer.error, answer.pending) == ("", "n1")
    assert lab.exec("n1", "wg", "show", "all", "peers").stdout == ""
    lab.heal("n1")
    wait_until(lambda: answer.msg["public_key"] in lab.exec("n1", "wg", "show", "all", "peers").stdout, "late", 5.0)
    lab.rest.delete("account/late")
    lab.rest.delete(f"wireguard/{server}")


def test_one_gateway_dies_and_the_other_serves(lab: Lab, described: dict[str, Any]) -> None:
    assert "g1, g2" in cli("kill", "--name", NAME, "gateway").stderr
    assert cli("kill", "--name", NAME, "gateway", "g1").returncode == 0
    assert (lab.gateway_pid("g1"), lab.gateway_pid("g2")) == (None, described["gateways"][1]["pid"])
    assert fails(lab, "g1") and not fails(lab, "g2")
    assert cli("start", "--name", NAME, "gateway", "g1").returncode == 0
    assert not fails(lab, "g1")


def test_the_database_dies_as_by_a_power_cut_and_what_was_acknowledged_stays(lab: Lab) -> None:
    server = lab.rest.post("wireguard")["name"]
    lab.rest.post("account", wg_name=server, name="kept")
    assert cli("kill", "--name", NAME, "database").returncode == 0
    assert not any(database.is_postgres(one) for one in inside([NAMESPACES / f"{NAME}-db"]))
    with pytest.raises(ApiError):
        lab.rest.post("account", wg_name=server, name="lost")
    assert cli("start", "--name", NAME, "database").returncode == 0
    wait_until(lambda: not fails(lab, "g1") and not fails(lab, "g2"), "both gateways with their database", 10.0)
    assert [account["name"] for account in lab.rest_of("g2").get("account")] == ["kept"]
    lab.rest.delete("account/kept")
    lab.rest.delete(f"wireguard/{server}")


def test_a_cut_drops_packets_both_ways_until_it_heals(lab: Lab) -> None:
    assert cli("cut", "--name", NAME, "n1").returncode == 0
    pairs = [("g1", "n1"), ("n1", "g2"), ("c1", "n1"), ("g1", "n2"), ("g1", "db")]
    assert [reaches(lab, *pair) for pair in pairs] == [False, False, True, True, True], "the node's customers stay"
    lab.cut("g1")
    assert [reaches(lab, *pair) for pair in (("g1", "n2"), ("db", "g1"), ("g2", "n2"))] == [False, False, True]
    assert cli("heal", "--name", NAME, "n1").returncode == 0
    assert [reaches(lab, *pair) for pair in (("g2", "n1"), ("g1", "n1"))] == [True, False]
    assert cli("heal", "--name", NAME).returncode == 0
    assert all(reaches(lab, *pair) for pair in pairs)
    assert "only nodes and gateways" in cli("cut", "--name", NAME, "c1").stderr


def test_a_slow_link_is_slow_both_ways_until_it_heals(lab: Lab) -> None:
    web = "http://203.0.113.1"
    down = ["curl", "-s", "-o", "/dev/null", f"{web}/bytes/100k"]
    up = ["curl", "-s", "-T", "-", "-o", "/dev/null", f"{web}/x"]

    def seconds(command: list[str]) -> float:
        began = time.monotonic()
        lab.exec("n1", *command, stdin="x" * 100_000)
        return time.monotonic() - began

    assert cli("slow", "--name", NAME, "n1", "256kbit").returncode == 0
    # 100 kB are 800 kbit, of which a bucket of 16 kB may pass at once.
    assert 2.0 < seconds(down) < 10.0 and 2.0 < seconds(up) < 10.0
    lab.heal("n1")
    assert seconds(down) < 2.0 and seconds(up) < 2.0


def test_down_after_kill_9_of_everything_leaves_nothing() -> None:
    name = f"{NAME}k"
    try:
        Lab.up(name, clients=0, postgresql=True)
        killed = {*marked(name), *inside(NAMESPACES / found for found in existing(name))}
        assert any(database.is_postgres(one) for one in killed)
        for victim in killed:
            with contextlib.suppress(ProcessLookupError):  # PostgreSQL's own, when their postmaster is gone
                os.kill(victim.pid, signal.SIGKILL)
    finally:
        assert Lab.down(name)
    assert traces(name) == []
    wait_until(lambda: not any(victim.alive for victim in killed), "the end of what was killed", 5.0)
