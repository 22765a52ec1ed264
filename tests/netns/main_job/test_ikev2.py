"""A customer's day by IKEv2: a profile from the API and a password, and what was sold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.errors import LabError
from tests.lab.ikev2 import Ikev2Client, turn_on
from tests.lab.lab import Lab
from tests.lab.readings import Download, counters_at_rest, fetch, is_shaped, measured_rate, shaped_rate, usage
from tests.lab.services import agent_folder, python
from tests.netns.main_job.conftest import Account, MakeAccount

SOLD = {"b_download": 20, "b_upload": 10}
BACK_SECONDS = 10.0


@pytest.fixture(scope="module")
def ikev2(lab: Lab) -> Iterator[None]:
    turn_on(lab)
    yield
    lab.rest.delete("ikev2/delete_ca_rsa")


@pytest.fixture
def account(lab: Lab, ikev2: None, server: str, make_account: MakeAccount) -> Account:
    lab.rest.put(f"wireguard/{server}", ikev2="1")
    return make_account(**SOLD)


def client(lab: Lab, account: Account, host: str = "c1", password: str = "") -> Ikev2Client:
    profile = lab.rest.get(f"account/{account['name']}/ikev2_profile")
    return Ikev2Client(lab, host, profile, password or account["password"])


def online(lab: Lab) -> list[str]:
    return [one["name"] for one in lab.rest.get("ikev2/online")]


def passes(lab: Lab, host: str = "c1") -> bool:
    """Through the tunnel: without it a client has a way of its own."""
    return (fetch(lab, host, "/ip", seconds=2.0) or "").strip() == str(lab.host("n1").address.ip)


def until(what: Any, seconds: float = BACK_SECONDS) -> float:
    """Seconds until it is true."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, f"not true within {seconds} s"
        time.sleep(0.1)
    return time.monotonic() - began


def test_a_profile_and_a_password_connect_at_the_speed_that_was_sold(lab: Lab, account: Account) -> None:
    with client(lab, account):
        assert passes(lab)
        (found,) = lab.rest.get("ikev2/online")
        assert found["name"] == account["name"] and found["endpoint"] == str(lab.host("c1").address.ip)
        assert is_shaped(shaped_rate(lab, "c1", "download", 20), 20)
        assert is_shaped(shaped_rate(lab, "c1", "upload", 10), 10)
        assert lab.rest.get("system/status")["nodes"][0]["warnings"] == [], "its own route is nobody's intrusion"
        counted = counters_at_rest(lab.rest, account["name"])
        assert usage(lab.rest, account["name"]) == (counted.download_bytes, counted.upload_bytes)
        assert counted.download_bytes > 10_000_000 < counted.upload_bytes * 2
        info = lab.rest.get("ikev2/info")
        assert info["strongswan"] and int(info["pid_charon"]) > 0
    until(lambda: online(lab) == [])


def test_switched_off_means_out_and_refused(lab: Lab, account: Account) -> None:
    name = account["name"]
    with client(lab, account), Download(lab, "c1", "1G"):
        time.sleep(0.5)
        lab.rest.put(f"account/{name}", status="disable")
        assert online(lab) == [] and not passes(lab)
    with pytest.raises(LabError, match="refused"), client(lab, account):
        pass
    lab.rest.put(f"account/{name}", status="enable", password="another 1")
    with pytest.raises(LabError, match="refused"), client(lab, account):
        pass
    with client(lab, account, password="another 1"):
        assert passes(lab)
        lab.rest.put(f"account/{name}", password="another 2")
        assert online(lab) == []


def test_one_account_by_both_tunnels_never_gets_more_than_was_sold(lab: Lab, account: Account) -> None:
    lab.connect("c1", account["name"])
    assert is_shaped(shaped_rate(lab, "c1", "download", 20), 20)
    # What comes for the address goes where its owner is by IKEv2: the peer gets nothing meanwhile.
    with client(lab, account, "c2"), Download(lab, "c1", "1G"):
        assert is_shaped(shaped_rate(lab, "c2", "download", 20), 20)
        assert measured_rate(lab, "c2", "upload", 5) <= 10
    until(lambda: fetch(lab, "c1", "/ip") is not None)
    assert is_shaped(shaped_rate(lab, "c1", "download", 20), 20), "by WireGuard again"
    counted = counters_at_rest(lab.rest, account["name"])
    assert usage(lab.rest, account["name"]) == (counted.download_bytes, counted.upload_bytes)


def test_a_restart_of_the_agent_drops_no_session(lab: Lab, account: Account) -> None:
    with client(lab, account):
        with Download(lab, "c1", "15M") as running:
            time.sleep(1.0)
            lab.kill_agent("n1")
            time.sleep(1.0)
            lab.start_agent("n1")
            assert running.finished(60.0) == 15_000_000
        assert online(lab) == [account["name"]]


@pytest.mark.parametrize("program", ["charon", "freeradius"])
def test_a_program_that_is_killed_is_back_in_seconds_and_shaped(lab: Lab, account: Account, program: str) -> None:
    with client(lab, account):
        running = json.loads((agent_folder(lab.host("n1"), lab.state) / "ikev2" / "running.json").read_text())
        # The gateway asks its agents every few seconds.
        until(lambda: lab.rest.get("ikev2/info")["pid_charon"] == str(running["charon"][0]))
        pid = running[program][0]
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)

    def logs_in() -> bool:
        try:
            with client(lab, account):
                return passes(lab)
        except LabError:
            return False

    assert until(logs_in, 20.0) < 15
    with client(lab, account):
        assert is_shaped(shaped_rate(lab, "c1", "download", 20), 20)


LISTEN = "import socket,sys,time; s=socket.create_server(('0.0.0.0', 8099)); time.sleep(60)"
CALL = "import socket,sys; socket.create_connection((sys.argv[1], 8099), 1.5)"


@pytest.fixture
def listening(lab: Lab) -> Iterator[None]:
    """On the node and on the second client, on every address."""
    started = [subprocess.Popen(lab.command(host, *python("-c", LISTEN))) for host in ("n1", "c2")]
    time.sleep(0.5)
    yield
    for one in started:
        one.kill()
        one.wait()


def reaches(lab: Lab, host: str, address: str) -> bool:
    return lab.exec(host, *python("-c", CALL, address), check=False).returncode == 0


def test_who_comes_in_by_ikev2_reaches_neither_the_box_nor_others(
    lab: Lab, ikev2: None, server: str, make_account: MakeAccount, listening: None
) -> None:
    found = lab.rest.put(f"wireguard/{server}", ikev2="1")
    other = lab.rest.post("wireguard", ikev2="1", internal_traffic="1")
    one, two = make_account(**SOLD), make_account(**SOLD)
    stranger = lab.rest.post("account", wg_name=other["name"], **SOLD)
    try:
        with client(lab, one):
            assert passes(lab)
            assert not reaches(lab, "c1", found["address"].partition("/")[0]), "the box is closed"
            for who, why in ((two, "isolated from its neighbour"), (stranger, "and from another server's")):
                with client(lab, who, "c2"):
                    assert passes(lab, "c2")
                    assert not reaches(lab, "c1", who["allowed_IPs"]), why
            lab.rest.put(f"wireguard/{server}", internal_traffic="1")
            with client(lab, two, "c2"):
                assert reaches(lab, "c1", two["allowed_IPs"]), "until somebody lets them"
            with client(lab, stranger, "c2"):
                assert not reaches(lab, "c1", stranger["allowed_IPs"]), "within one server only"
            lab.connect("c2", two["name"])
            assert reaches(lab, "c1", two["allowed_IPs"]), "also across the two kinds of tunnel"
    finally:
        lab.rest.delete(f"account/{stranger['name']}")
        lab.rest.delete(f"wireguard/{other['name']}")
