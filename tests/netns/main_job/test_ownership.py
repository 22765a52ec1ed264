"""Whatever somebody writes on our links: who is switched off is off, and nobody passes without marks and classes."""

from __future__ import annotations

import subprocess
import time
from ipaddress import ip_interface

import pytest

from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.readings import fetch
from tests.netns.main_job.conftest import RESYNC_SECONDS, MakeAccount
from tests.netns.main_job.picture import NODE, found, wanted

RIGHT_SECONDS = 2 * RESYNC_SECONDS + 3.0


def ip(lab: Lab, *words: str) -> None:
    lab.exec(NODE, "ip", "link", *words)


def peers(lab: Lab, key: str) -> bool:
    return key in lab.exec(NODE, "wg", "show", "all", "peers").stdout


def no_peer_without_marks(lab: Lab, account: dict[str, str]) -> bool:
    """What must hold at every moment: no peer, or its two rules are there."""
    if not peers(lab, account["public_key"]):
        return True
    rules = lab.exec(NODE, "iptables-legacy-save", "-t", "mangle").stdout
    return rules.count(f"{account['allowed_IPs']}/32") == 2 or not peers(lab, account["public_key"])


@pytest.mark.parametrize("restart", [False, True], ids=["running", "after a restart"])
@pytest.mark.parametrize("alias", ["customers fra1", "", "wirelan:e"])
def test_another_alias_costs_no_control(lab: Lab, make_account: MakeAccount, alias: str, restart: bool) -> None:
    account, other = make_account(b_download=20), make_account(b_download=20)
    interface = lab.rest.get(f"wireguard/{account['wg_name']}")["interface_name"]
    lab.connect("c1", account["name"])
    ip(lab, "set", interface, "alias", alias)
    if restart:
        lab.stop_agent(NODE)
        lab.start_agent(NODE)
    assert lab.rest.put(f"account/{account['name']}", status="disable")["status"] == "disable"
    assert not peers(lab, account["public_key"]), "before the call answered"
    assert fetch(lab, "c1", "/ip", seconds=2.0) is None
    assert lab.rest.put(f"account/{other['name']}", b_download=7)["b_download"] == "7"
    time.sleep(RESYNC_SECONDS + 1)
    assert found(lab) == wanted(lab), "a full comparison changes nothing of that"
    lab.rest.put(f"account/{account['name']}", status="enable")
    wait_until(lambda: fetch(lab, "c1", "/ip", seconds=2.0) is not None, "back again", 40.0)


def test_a_renamed_link_lets_nobody_loose(lab: Lab, make_account: MakeAccount) -> None:
    account = make_account(b_download=20)
    interface = lab.rest.get(f"wireguard/{account['wg_name']}")["interface_name"]
    lab.connect("c1", account["name"])
    ip(lab, "set", interface, "alias", "mine")
    ip(lab, "set", interface, "down")
    ip(lab, "set", interface, "name", "wgmine")
    ip(lab, "set", "wgmine", "up")
    lab.rest.put(f"account/{account['name']}", status="disable")
    for _ in range(20):
        assert no_peer_without_marks(lab, account)
        time.sleep(0.1)
    wait_until(lambda: not peers(lab, account["public_key"]), "its peer is gone", RIGHT_SECONDS)
    wait_until(lambda: found(lab) == wanted(lab), "all is right again", RIGHT_SECONDS)


def test_a_stranger_s_link_of_our_name_is_left_alone(lab: Lab, make_account: MakeAccount) -> None:
    account = make_account(b_download=20)
    interface = lab.rest.get(f"wireguard/{account['wg_name']}")["interface_name"]
    lab.stop_agent(NODE)
    ip(lab, "delete", interface)
    ip(lab, "add", interface, "type", "veth", "peer", "name", "stranger0")
    lab.start_agent(NODE)
    status = subprocess.run(
        lab.agent_command(NODE, "status"), capture_output=True, text=True, timeout=60, check=False
    ).stdout
    assert f"interface {interface} exists and is not ours" in status
    assert "veth" in lab.exec(NODE, "ip", "-details", "link", "show", interface).stdout
    ip(lab, "delete", interface)
    wait_until(lambda: found(lab) == wanted(lab), "ours is made when the stranger is gone", RIGHT_SECONDS)


def test_a_route_that_somebody_removes_is_back_at_once(lab: Lab, make_account: MakeAccount) -> None:
    account = make_account(b_download=20)
    server = lab.rest.get(f"wireguard/{account['wg_name']}")
    lab.connect("c1", account["name"])
    network = str(ip_interface(server["address"]).network)
    for _ in range(3):
        lab.exec(NODE, "ip", "route", "del", network, "dev", server["interface_name"])
        wait_until(lambda: network in lab.exec(NODE, "ip", "route").stdout, "told, not found by a resync", 2.0)
        assert fetch(lab, "c1", "/ip", seconds=3.0) is not None
    assert found(lab) == wanted(lab)
