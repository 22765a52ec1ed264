"""A snapshot that is held back on the wire, and comes when a newer one is there. Called by run.py, once in every run.

Nothing is forged. Of one gateway's two connections to a node the one for long calls is cut for a while: its status is
answered, so the gateway sends a snapshot, and the kernel sends the same packets again and again. Meanwhile the other
gateway sends its own, and deletes accounts. Then the wire is whole, and the first one arrives: late, and with them.
"""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.fleet.movers import Mover
from tests.fleet.restore import paused
from tests.fleet.sellers import Market, Seller
from tests.fleet.verdicts import peers, settled
from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.rest import Answer

ACCOUNTS = 30
LARGE = 1500  # bytes: a snapshot of so many, and no other call
LONG_CALLS = 30  # so many tell one connection from the other
WAIT_SECONDS = 30.0
WATCH_SECONDS = 3.0  # longer than until the next look at a node, which would put it right
TABLE = "late"


def late_snapshot(market: Market, sellers: list[Seller], mover: Mover) -> str:
    """All must stand. What came of it."""
    with paused(sellers, mover):
        settled(market)
        text = _provoked(market)
        market.history.add("", f"-- {text}")
        return text


def _provoked(market: Market) -> str:
    lab, (first, second) = market.lab, [gateway.name for gateway in market.lab.gateways][:2]
    server = next(iter(market.servers))
    node = lab.rest.call("GET", f"wireguard/{server}").node
    names = [f"late-{number}" for number in range(ACCOUNTS)]
    with ThreadPoolExecutor(8) as threads:
        made = dict(zip(names, threads.map(lambda name: _made(lab, name, server), names), strict=True))
        port = _port_of_long_calls(lab, first, node)
        lab.stop_gateway(second)
        market.history.add("", f"-- what {first} sends to {node} from port {port} is held back")
        wire = Wire(lab, first, node, port)
        lab.gateway_cli("node", "resync", node, "--from-database", gateway=second)
        wait_until(lambda: wire.waiting > LARGE, f"{first} sends a snapshot to {node}", WAIT_SECONDS)
        lab.start_gateway(second)  # it sends one as well, as soon as the claim of the first is over
        wait_until(lambda: _is_well(lab, second, node), f"{second} has brought {node} into step", WAIT_SECONDS)
        gone = list(threads.map(lambda name: lab.rest_of(second).call("DELETE", f"account/{name}"), names))
    told = {name for name, answer in zip(names, gone, strict=True) if not answer.error and not answer.pending}
    if len(told) < ACCOUNTS:
        market.history.violated(0, "", f"{ACCOUNTS - len(told)} deletes on {node} are pending, and it is there")
    deleted = {made[name].msg["public_key"]: name for name in told}
    market.history.add("", f"-- what was held back may pass ({len(deleted)} accounts were deleted meanwhile)")
    held_back = wire.waiting
    wire.release()
    until, has_come = time.monotonic() + WAIT_SECONDS, False
    while time.monotonic() < until and not (back := peers(lab, node).keys() & deleted.keys()):
        if not has_come and wire.waiting == 0:
            until, has_come = time.monotonic() + WATCH_SECONDS, True
    if back:
        text = f"{node} lets it in again: a snapshot came late, and it was deleted before"
        market.history.violated(2, deleted[back.pop()], text)
    came = "late" if has_come else "not at all, the connection was given up"
    return f"a snapshot of {held_back} bytes came {came}; {len(deleted)} accounts had been deleted meanwhile"


def _made(lab: Lab, name: str, server: str) -> Answer:
    return lab.rest.call("POST", "account", {"name": name, "wg_name": server})


def _is_well(lab: Lab, gateway: str, node: str) -> bool:
    nodes = lab.rest_of(gateway).get("system/status")["nodes"]
    return any(one["name"] == node and one["status"] == "OK" for one in nodes)


@dataclass(frozen=True, slots=True)
class Connection:
    """`sent`: packets so far; `waiting`: bytes that the other end has not confirmed."""

    sent: int
    waiting: int


def _connections(lab: Lab, gateway: str, node: str) -> dict[str, Connection]:
    """Of a gateway to a node, by the gateway's port."""
    address = re.escape(str(lab.host(node).address.ip))
    line = re.compile(rf"^\d+\s+(\d+)\s+\S+:(\d+)\s+\S*{address}\]?:\d+ .*\bsegs_out:(\d+)", re.MULTILINE)
    listed = lab.exec(gateway, "ss", "-tniHO", "state", "established").stdout
    return {port: Connection(int(sent), int(waiting)) for waiting, port, sent in line.findall(listed)}


def _port_of_long_calls(lab: Lab, gateway: str, node: str) -> str:
    """The gateway's end of the connection on which much is sent while it makes long calls."""
    rest = lab.rest_of(gateway)
    rest.get("wireguard/online")  # there is one
    before = _connections(lab, gateway, node)
    for _ in range(LONG_CALLS):
        rest.get("wireguard/online")
    after = _connections(lab, gateway, node)
    return max(before.keys() & after.keys(), key=lambda port: after[port].sent - before[port].sent)


class Wire:
    """From a gateway's port to a node: packets are held back from birth on."""

    def __init__(self, lab: Lab, gateway: str, node: str, port: str) -> None:
        self._lab, self._gateway, self._node, self._port = lab, gateway, node, port
        ends = lab.host(gateway).address.ip, lab.host(node).address.ip
        rule = f"ip saddr {ends[0]} ip daddr {ends[1]} tcp sport {port} drop"
        chain = f"chain through {{\ntype filter hook forward priority 0\n{rule}\n}}"
        self._nft(f"table inet {TABLE} {{\n{chain}\n}}\n")

    def _nft(self, commands: str) -> None:
        self._lab.exec("internet", "nft", "-f", "-", stdin=commands)

    @property
    def waiting(self) -> int:
        """Bytes; -1: the connection was given up."""
        found = _connections(self._lab, self._gateway, self._node).get(self._port)
        return found.waiting if found else -1

    def release(self) -> None:
        self._nft(f"delete table inet {TABLE}\n")
