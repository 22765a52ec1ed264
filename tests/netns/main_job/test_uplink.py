"""The way to the internet moves: it is followed with classes and NAT, and the former uplink is left as it was."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.readings import Download, fetch, is_shaped, measured_rate, shaped_rate
from tests.lab.topology import INTERNET, UPLINK
from tests.netns.main_job.conftest import POSTGRESQL, MakeAccount
from tests.netns.main_job.picture import NODE

pytestmark = pytest.mark.skipif(
    POSTGRESQL, reason="in a fleet the gateway calls the node by the uplink that moves here"
)
OTHER = "eth1"
NEAR, FAR = "192.0.2.2", "192.0.2.1"
FOLLOW_SECONDS = 2.0  # issue 7


@pytest.fixture
def second_way(lab: Lab) -> Iterator[None]:
    """Another cable to the internet; the default route stays where it is, and comes back there."""
    before = lab.exec(NODE, "ip", "route", "show", "default").stdout.split()
    node, internet = lab.plan.nodes[0].namespace, lab.plan.internet.namespace
    cable = f"ip link add {OTHER} netns {node} type veth peer name to-n1-b netns {internet}"
    subprocess.run(cable.split(), check=True, timeout=10)
    try:
        lab.exec(NODE, "ip", "address", "add", f"{NEAR}/30", "dev", OTHER)
        lab.exec(NODE, "ip", "link", "set", OTHER, "up")
        lab.exec(INTERNET, "ip", "address", "add", f"{FAR}/30", "dev", "to-n1-b")
        lab.exec(INTERNET, "ip", "link", "set", "to-n1-b", "up")
        yield
    finally:
        lab.exec(NODE, "ip", "link", "del", OTHER)
        lab.exec(NODE, "ip", "route", "flush", "default")
        lab.exec(NODE, "ip", "route", "add", *before)


def shaped(lab: Lab, device: str) -> bool:
    return "qdisc htb 1: root" in lab.exec(NODE, "tc", "qdisc", "show", "dev", device).stdout


def moved(lab: Lab) -> bool:
    rules = lab.exec(NODE, "iptables-legacy-save").stdout
    return shaped(lab, OTHER) and not shaped(lab, UPLINK) and f"-o {OTHER} -j MASQUERADE" in rules


def kept(lab: Lab) -> list[str]:
    """Former uplinks by which clients are still answered."""
    routes = json.loads(lab.exec(NODE, "ip", "-json", "route", "show", "table", "all").stdout)
    return [route["dev"] for route in routes if route.get("table") == "default"]


@pytest.mark.parametrize("how", ["replace", "better", "router"])
def test_a_default_route_that_moves_is_followed_and_the_former_uplink_is_cleaned(
    lab: Lab, make_account: MakeAccount, second_way: None, how: str
) -> None:
    lab.connect("c1", make_account(b_download=20, b_upload=20)["name"])
    assert fetch(lab, "c1", "/ip")
    words = ["add", "default", "metric", "5"] if how == "better" else ["replace", "default"]
    if how == "router":  # which knows many other ways
        routes = "".join(f"route add 10.{i >> 8}.{i & 255}.0/24 via {FAR} metric 900\n" for i in range(10_000))
        node = lab.plan.nodes[0].namespace
        subprocess.run(["ip", "-n", node, "-batch", "-"], input=routes, check=True, text=True, timeout=60)
    if how == "better":  # beside the old one, which is made worse first
        old = lab.exec(NODE, "ip", "route", "show", "default").stdout.split()
        lab.exec(NODE, "ip", "route", "add", *old, "metric", "900")
        lab.exec(NODE, "ip", "route", "del", *old)
    lab.exec(NODE, "ip", "route", *words, "via", FAR, "dev", OTHER)
    wait_until(lambda: moved(lab), "the uplink", FOLLOW_SECONDS)
    assert fetch(lab, "c1", "/ip") == f"{NEAR}\n"  # the client still comes in by the other cable, and is answered there
    assert kept(lab) == ([] if how == "better" else [UPLINK])
    classes = lab.exec(NODE, "tc", "class", "show", "dev", OTHER).stdout
    assert "rate 20Mbit" in classes
    assert lab.exec(NODE, "tc", "class", "show", "dev", UPLINK).stdout == ""


def test_a_customer_keeps_the_internet_while_the_uplink_moves_away_and_back(
    lab: Lab, make_account: MakeAccount, second_way: None
) -> None:
    """His packets come in by the former uplink all the time: its router still leads here."""
    lab.connect("c1", make_account(b_download=20, b_upload=20)["name"])
    assert fetch(lab, "c1", "/ip")
    before = lab.exec(NODE, "ip", "route", "show", "default").stdout.split()
    lab.exec(NODE, "ip", "route", "replace", "default", "via", FAR, "dev", OTHER)
    assert outage(lab, f"{NEAR}\n") < FOLLOW_SECONDS
    wait_until(lambda: moved(lab), "the uplink", FOLLOW_SECONDS)
    for direction in ("upload", "download"):
        assert is_shaped(shaped_rate(lab, "c1", direction, 20), 20)
    lab.exec(NODE, "ip", "route", "flush", "table", "default")  # by somebody else
    wait_until(lambda: kept(lab) == [UPLINK], "the way back", FOLLOW_SECONDS)
    lab.kill_agent("n1")
    lab.start_agent("n1")
    assert kept(lab) == [UPLINK]
    assert fetch(lab, "c1", "/ip") == f"{NEAR}\n"
    lab.exec(NODE, "ip", "route", "replace", *before)
    assert outage(lab, f"{lab.plan.nodes[0].address.ip}\n") < FOLLOW_SECONDS
    wait_until(lambda: kept(lab) == [OTHER], "the way back by the other one", FOLLOW_SECONDS)


def test_a_narrow_uplink_makes_narrow_tunnels_and_tells_the_customer(lab: Lab, make_account: MakeAccount) -> None:
    """Full packets get through in both directions, and none in fragments: a cloud's network would drop these."""
    account = str(make_account()["name"])
    assert "MTU" not in lab.rest.get(f"account/{account}/config_text")
    lab.exec(NODE, "ip", "link", "set", UPLINK, "mtu", "1400")
    lab.exec(INTERNET, "ip", "link", "set", "to-n1", "mtu", "1400")
    try:
        wait_until(lambda: "MTU = 1320" in lab.rest.get(f"account/{account}/config_text"), "the text", 5.0)
        link = json.loads(lab.exec(NODE, "ip", "-json", "link", "show", "type", "tun").stdout)
        assert {one["mtu"] for one in link} == {1320}
        before = fragments(lab)
        lab.connect("c1", account)
        with Download(lab, "c1", "2M") as running:
            assert running.finished(10.0) == 2_000_000
        assert measured_rate(lab, "c1", "upload", 2) > 0
        assert fragments(lab) == before
    finally:
        lab.exec(NODE, "ip", "link", "set", UPLINK, "mtu", "1500")
        lab.exec(INTERNET, "ip", "link", "set", "to-n1", "mtu", "1500")
    wait_until(lambda: "MTU" not in lab.rest.get(f"account/{account}/config_text"), "the usual text", 5.0)


def fragments(lab: Lab) -> int:
    """IP packets that the node has cut, or put together."""
    lines = lab.exec(NODE, "cat", "/proc/net/snmp").stdout.splitlines()
    names, values = (line.split() for line in lines if line.startswith("Ip:"))
    found = dict(zip(names, values, strict=True))
    return int(found["FragCreates"]) + int(found["ReasmReqds"])


def test_the_way_back_goes_with_the_last_server(lab: Lab, second_way: None) -> None:
    name = str(lab.rest.post("wireguard")["name"])
    lab.exec(NODE, "ip", "route", "replace", "default", "via", FAR, "dev", OTHER)
    wait_until(lambda: kept(lab) == [UPLINK], "the way back", FOLLOW_SECONDS)
    lab.rest.delete(f"wireguard/{name}")
    wait_until(lambda: kept(lab) == [], "nothing of it", FOLLOW_SECONDS)


def outage(lab: Lab, source: str) -> float:
    """Seconds until the customer is on the internet from this address."""
    began = time.monotonic()
    wait_until(lambda: fetch(lab, "c1", "/ip", 1.0) == source, f"the internet from {source.strip()}", 10.0)
    return time.monotonic() - began


def test_a_root_qdisc_that_somebody_deletes_is_put_right_at_once(lab: Lab, make_account: MakeAccount) -> None:
    make_account(b_download=20, b_upload=20)
    lab.exec(NODE, "tc", "qdisc", "del", "dev", UPLINK, "root")
    wait_until(lambda: shaped(lab, UPLINK), "the root qdisc", FOLLOW_SECONDS)


def test_behind_somebody_else_s_root_nobody_passes_unlimited(lab: Lab, make_account: MakeAccount) -> None:
    lab.connect("c1", make_account(b_download=20, b_upload=20)["name"])
    assert fetch(lab, "c1", "/ip")
    try:
        lab.exec(NODE, "tc", "qdisc", "replace", "dev", UPLINK, "root", "pfifo")
        wait_until(lambda: "peer:" not in lab.exec(NODE, "wg", "show").stdout, "the account cut off", FOLLOW_SECONDS)
    finally:
        lab.exec(NODE, "tc", "qdisc", "del", "dev", UPLINK, "root")
    wait_until(lambda: "peer:" in lab.exec(NODE, "wg", "show").stdout, "the account let in", FOLLOW_SECONDS)
    assert shaped(lab, UPLINK)
    wait_until(lambda: bool(fetch(lab, "c1", "/ip", 1.0)), "the internet, after a new handshake", 40.0)
