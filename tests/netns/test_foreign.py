"""Firewalls of the host beside ours: what is said of them, held against what real packets do, by both backends."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.kernel.iptables.forwarding import Forwardings
from agent.kernel.nftables import foreign
from agent.kernel.nftables.forwarding import NftForwardings
from agent.objects import Diff
from tests.netns.conftest import enter
from tests.netns.crossing import ALICE, CAROL, DEADLINE, INTERNET, Crossing, build, ip, nft
from tests.netns.test_reach import DOORS, WANTED

LINKS = ("wl0", "wl1")


class Box:
    def __init__(self, crossing: Crossing, call: Callable[..., Any], door: Forwardings | NftForwardings) -> None:
        self.crossing, self.call = crossing, call
        call(door.apply, Diff(add=WANTED))

    def load(self, text: str) -> None:
        command = ["ip", "netns", "exec", self.crossing.router, "nft", "-f", "-"]
        subprocess.run(command, input=text, check=True, text=True, timeout=DEADLINE)

    def iptables(self, arguments: str) -> None:
        command = ["ip", "netns", "exec", self.crossing.router, "iptables-nft", *arguments.split()]
        subprocess.run(command, check=True, timeout=DEADLINE)

    def warnings(self) -> tuple[str, ...]:
        ruleset = self.call(foreign.read)
        return foreign.warnings(ruleset, WANTED.values())

    def forwards(self) -> bool:
        """Out, and the answer back, for an account of each server."""
        return all(self._answered(client) for client in (ALICE, CAROL))

    def _answered(self, client: str) -> bool:
        asking, asked = self.crossing.tcp(client), self.crossing.tcp(INTERNET, 443)
        with asking, asked:
            asked.listen()
            asking.settimeout(0.4)
            try:
                asking.connect((INTERNET, 443))
            except OSError:
                return False
            return True

    def opens(self) -> bool:
        return self.crossing.passes(INTERNET, "192.0.2.1", 51820)


@pytest.fixture(params=["iptables", "nftables"])
def box(make_namespace: Callable[[], str], request: pytest.FixtureRequest) -> Iterator[Box]:
    crossing = build(make_namespace)
    ip(crossing.router, "address", "add", "192.0.2.77/32", "dev", "up0")
    with enter(crossing.router) as call:
        yield Box(crossing, call, DOORS[request.param]())
    crossing.close()


TABLE = """table {family} wall {{
  {before}
  chain through {{ type filter hook forward priority 0; policy {policy}; {rules}
  }}
}}
"""
KNOWN = "ct state vmap { established : accept, related : accept, invalid : drop };"


@pytest.mark.parametrize("family", ["ip", "inet"])
@pytest.mark.parametrize(
    ("passes", "policy", "rules"),
    [
        (True, "accept", ""),
        (False, "drop", ""),
        (False, "accept", "counter; reject with icmp type admin-prohibited;"),
        (False, "drop", KNOWN),
        (False, "drop", 'iifname "eth7" accept; ct state established,related accept; ip saddr 10.9.0.0/16 accept;'),
        (False, "drop", 'iifname { "wl0", "wl1" } accept;'),  # out, but not back
        (False, "drop", 'iifname "wl0" accept; ct state established accept;'),  # one server of two
        (True, "drop", f'{KNOWN} iifname "wl*" oifname "up0" accept;'),
        (True, "drop", "ct state established,related accept; ip saddr { 10.66.0.0/24, 10.67.0.0-10.67.0.200 } accept;"),
        (True, "drop", f"{KNOWN} meta l4proto {{ tcp, udp }} th dport {{ 53, 400-500 }} accept;"),
        (False, "drop", f"{KNOWN} tcp dport 22 accept; udp dport 443 accept; ip protocol icmp accept;"),
        (False, "accept", f'{KNOWN} iifname "wl*" ip daddr != 10.0.0.0/8 drop;'),
        (True, "accept", f'{KNOWN} iifname "wl*" ip daddr 10.0.0.0/8 drop;'),
        (True, "drop", f"{KNOWN} ct status dnat accept; ct direction original accept;"),
        (False, "drop", f"{KNOWN} ct status dnat accept;"),
    ],
)
def test_what_drops_by_nftables_is_told_exactly_when_it_does(
    box: Box, family: str, passes: bool, policy: str, rules: str
) -> None:
    if family == "inet" and "icmp type" in rules:
        rules = rules.replace("icmp type", "icmpx type")
    box.load(TABLE.format(family=family, before="", policy=policy, rules=rules))
    assert box.forwards() is passes
    told = box.warnings()
    assert bool(told) is not passes, told
    if told:
        (line,) = told
        assert f"chain through of nftables table {family} wall (hook forward, policy {policy})" in line


def test_the_cure_that_is_told_cures(box: Box) -> None:
    box.load(TABLE.format(family="inet", before="", policy="drop", rules=""))
    box.load("add chain inet wall inp { type filter hook input priority 0; policy drop; }")
    assert not box.forwards() and not box.opens()
    told = box.warnings()
    assert len(told) == 2
    for line in told:
        for command in line.split("Cure: ")[1].split("; "):
            nft(box.crossing.router, command.removeprefix("nft ").replace('"', ""))
    assert box.forwards() and box.opens()
    assert box.warnings() == ()


def test_jumps_are_followed(box: Box) -> None:
    box.load(
        """table inet firewalld {
          chain filter_FORWARD {
            type filter hook forward priority 10; policy accept;
            ct state { established, related } accept
            ct status dnat accept
            iifname "lo" accept
            jump policies
            ct state invalid drop
            reject with icmpx type admin-prohibited
          }
          chain policies {
            iifname "up0" oifname "up0" jump inside
            return
          }
          chain inside {
            accept
          }
        }
        """
    )
    assert not box.forwards()
    (line,) = box.warnings()
    assert "firewall-cmd --permanent --zone=trusted --add-interface=wl0; firewall-cmd --reload" in line
    box.load('insert rule inet firewalld policies iifname { "wl0", "wl1" } goto inside')
    assert box.forwards() and box.warnings() == ()


@pytest.mark.skipif(shutil.which("iptables-nft") is None, reason="needs iptables-nft")
def test_docker_and_ufw_are_understood_in_their_own_words(box: Box) -> None:
    for rule in (
        "-N DOCKER-USER",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
        "-A DOCKER-USER -j RETURN",
        "-P FORWARD DROP",
    ):
        box.iptables(rule)
    assert not box.forwards()
    (line,) = box.warnings()
    for link in LINKS:
        assert f"iptables -I DOCKER-USER -i {link} -o up0 -j ACCEPT" in line
    for command in line.split("Cure: ")[1].split("; "):
        box.iptables(command.removeprefix("iptables "))
    assert box.forwards() and box.warnings() == ()
    box.iptables("-F FORWARD")
    for rule in (
        "-N ufw-before-forward",
        "-N ufw-user-forward",
        "-A FORWARD -j ufw-before-forward",
        "-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT",
        "-A ufw-before-forward -j ufw-user-forward",
    ):
        box.iptables(rule)
    assert not box.forwards()
    (line,) = box.warnings()
    assert "ufw route allow in on wl0 out on up0" in line
    for link in LINKS:
        box.iptables(f"-A ufw-user-forward -i {link} -o up0 -j ACCEPT")
    assert box.forwards() and box.warnings() == ()


def test_a_table_that_sleeps_is_not_told_and_hides_no_other(box: Box) -> None:
    box.load(TABLE.format(family="inet", before="flags dormant;", policy="drop", rules=""))
    assert box.forwards() and box.warnings() == ()
    box.load("add table ip other\nadd chain ip other f { type filter hook forward priority 5; policy drop; }\n")
    assert not box.forwards()
    assert ["table ip other" in line for line in box.warnings()] == [True]
