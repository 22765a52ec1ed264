"""What nftables can do on this host, found out by doing it, for the probe.

Owns tables of its own in a scratch network namespace, one for each trial, gone at its end. Real packets on the loopback
go through them; the last trial asks the doors themselves whether they read back what they wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from agent.errors import KernelError
from agent.kernel.nftables import nft, readout, ruleset
from agent.kernel.nftables.bounded import Bounded
from agent.kernel.nftables.forwarding import NftForwardings
from agent.kernel.nftables.marks import TOWARDS, NftablesMarks
from agent.kernel.nftables.ruleset import Chain, Writing
from agent.kernel.trials.loopback import ADDRESS, DATAGRAM, MARK, connect, packets_in_class, send, talk
from agent.objects import Counters, Diff, Forwarding, Mark, Scope

TABLE = "wirelane_trial"
_write = Writing(TABLE)
_OUTPUT = Chain("filter", "output", -149)


def _through(chain: Chain, rule: str, traffic: Callable[[], object]) -> tuple[int, int]:
    """Runs `traffic` past one rule; the packets it met, and the bytes by its element in the map towards 127.0.0.1."""
    commands = [_write.add_table(), _write.add_set(TOWARDS), _write.add_chain("trial", chain)]
    commands += _write.elements("add", TOWARDS.name, [f"127.0.0.1 counter packets 5 bytes 7 : {MARK}"])
    nft.apply([*commands, f"add rule {ruleset.FAMILY} {TABLE} trial {rule}"])
    try:
        traffic()
        table = ruleset.find(nft.listing(TABLE), TABLE)
        _, _, octets = readout.read(TABLE, TOWARDS.name)[bytes([127, 0, 0, 1])]
    finally:
        nft.apply([_write.delete_table()])
    return _counted(table.rules["trial"][0] if table else []), octets - 7


def _counted(rule: list[Any]) -> int:
    return sum(piece["counter"]["packets"] for piece in rule if isinstance(piece.get("counter"), dict))


def _try_map() -> str:
    rule = f"ip protocol udp meta mark set ip daddr map @{TOWARDS.name} counter"
    packets, octets = _through(_OUTPUT, rule, lambda: send(3))
    if (packets, octets) != (3, 3 * DATAGRAM):
        raise KernelError(f"of 3 packets of {DATAGRAM} bytes {packets} and {octets} bytes were counted")
    return "packets were marked and counted by a map"


def _try_marked_class() -> str:
    before = packets_in_class()
    _through(_OUTPUT, f"ip protocol udp meta mark set ip daddr map @{TOWARDS.name}", lambda: send(3))
    found = packets_in_class() - before
    if found != 3:
        raise KernelError(f"of 3 packets marked by a map {found} went into their class")
    return "packets marked by a map went into their class"


def _try_conntrack() -> str:
    packets, _ = _through(
        Chain("filter", "input", 0), "ip protocol udp ct state established,related counter accept", talk
    )
    if packets != 1:
        raise KernelError(f"of a question and its answer {packets} packets were taken for answers")
    return "an answer was told from a question"


def _try_mss() -> str:
    rule = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu counter"
    packets, _ = _through(_OUTPUT, rule, connect)
    if packets < 1:
        raise KernelError("the rule met no SYN of a connection")
    return "the SYN of a connection went through it"


def _try_snat() -> str:
    return _translated("127.0.0.5", "snat to 127.0.0.9", "127.0.0.9")


def _try_masquerade() -> str:
    return _translated("127.0.0.6", "masquerade", ADDRESS)


def _translated(source: str, target: str, wanted: str) -> str:
    seen: list[str] = []
    rule = f"ip saddr {source} {target}"
    _through(Chain("nat", "postrouting", 100), rule, lambda: seen.append(talk(source)))
    if seen != [wanted]:
        raise KernelError(f"a packet from {source} should have come from {wanted} and came from {seen[0]}")
    return "the source address was translated"


def _try_doors() -> str:
    """Other releases of libnftables may list rules in other words."""
    scope, address = Scope(frozenset(), ""), IPv4Address("192.0.2.9")
    mark = Mark(address, MARK, counters=Counters(1, 2, 3, 4))
    one = Forwarding("wlx", IPv4Interface("192.0.2.1/24"), "up", 9, False, IPv4Address("203.0.113.1"))
    two = Forwarding("wly", IPv4Interface("198.51.100.1/24"), "up", 10, True, None)
    marks, forwardings = NftablesMarks(), Bounded(NftForwardings(), 4000)
    marks.apply(Diff(add={address: mark}))
    forwardings.apply(Diff(add={"wlx": one, "wly": two}))
    found, rules = marks.read(scope), forwardings.read(scope)
    marks.clear()
    forwardings.apply(Diff(remove=rules))
    if found != {address: mark} or found[address].counters != mark.counters or rules != {"wlx": one, "wly": two}:
        raise KernelError("what was written is listed in other words: this libnftables is not known yet")
    return "what was written read back equal"


TRIALS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("nftables map with counters", _try_map),
    ("nftables map to class", _try_marked_class),
    ("nftables conntrack", _try_conntrack),
    ("nftables MSS clamp", _try_mss),
    ("nftables SNAT", _try_snat),
    ("nftables masquerade", _try_masquerade),
    ("nftables reads back", _try_doors),
)
