"""The six promises, held against what is there when the troubles are over. Called by run.py.

Node and kernel are read with their own tools (wg, iptables, ip), not with the product's.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.fleet.history import History
from tests.fleet.model import Held, State, words
from tests.fleet.sellers import Market, Off, Seller
from tests.lab.errors import LabError
from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.rest import Rest

PROMISES = {
    0: "every call has an answer that a caller can use",
    1: "no acknowledged change is lost",
    2: "no deleted or disabled account passes a packet or is listed",
    3: "the kernel equals the database on every node",
    4: "statistics equal the bytes that were moved",
    5: "no address, mark, port or name is held twice",
    6: "memory and queues are bounded",
}
SETTLE_SECONDS = 60.0
MOST_GROWTH = 80 << 20  # bytes of a process between its first quiet moment and the end
MOST_FILES = 200
MOST_CONNECTIONS = 25  # to PostgreSQL, of each gateway
Accounts = dict[str, dict[str, str]]


def settled(market: Market) -> None:
    """Both gateways say that every node has everything."""
    lab = market.lab

    def in_step() -> bool:
        try:
            return all(lab.rest_of(g.name).get("system/status")["status"] == "OK" for g in lab.gateways)
        except LabError:
            return False

    try:
        wait_until(in_step, "all nodes in step", SETTLE_SECONDS)
    except LabError as late:
        said = {g.name: lab.rest_of(g.name).call("GET", "system/status").msg["status"] for g in lab.gateways}
        market.history.violated(3, "", f"{late}: {said}")


def judge(market: Market, sellers: list[Seller]) -> Accounts:
    """Promises 1, 2 (listed), 3 and 5."""
    lists = [accounts(market.lab.rest_of(gateway.name)) for gateway in market.lab.gateways]
    for other in lists[1:]:
        if other != lists[0]:
            market.history.violated(1, "", "the gateways list different accounts")
    possible = {name: states for seller in sellers for name, states in seller.possible.items()}
    _nothing_lost(market.history, lists[0], possible)
    _nothing_twice(market, lists[0])
    for node in market.lab.plan.nodes:
        _kernel_equals_database(market, node.name, lists[0])
    return lists[0]


def accounts(rest: Rest) -> Accounts:
    return {account["name"]: account for account in rest.get("account")}


def _nothing_lost(history: History, found: Accounts, possible: dict[str, frozenset[State]]) -> None:
    for name, states in possible.items():
        shown = _shown(found.get(name))
        if shown not in {_of(state) for state in states}:
            promise = 2 if None in states and len(states) == 1 else 1
            history.violated(promise, name, f"the list shows {shown or 'nothing'}, it may be only: {words(states)}")
    for name in found.keys() - possible.keys():
        history.violated(2, name, "is listed, and nobody made it")


def _shown(account: dict[str, str] | None) -> tuple[bool, int, int] | None:
    if account is None:
        return None
    return account["status"] == "enable", int(account["b_download"]), int(account["b_upload"])


def _of(state: State) -> tuple[bool, int, int] | None:
    return None if state is None else (state.enabled, state.download, state.upload)


def _nothing_twice(market: Market, found: Accounts) -> None:
    servers = market.lab.rest.get("wireguard")
    node_of = market.node_of
    keys = {
        "address": [account["allowed_IPs"] for account in found.values()],
        "username": [account["username"] for account in found.values()],
        "public key": [account["public_key"] for account in found.values()],
        "mark": [f"{account['mangle']} on {node_of[account['wg_name']]}" for account in found.values()],
        "port": [f"{server['listen_port']} on {node_of[name]}" for name, server in servers.items()],
        "network": [server["address"] for server in servers.values()],
    }
    for what, values in keys.items():
        for value, times in Counter(values).items():
            if times > 1:
                market.history.violated(5, "", f"{what} {value} is held {times} times")


def _kernel_equals_database(market: Market, node: str, found: Accounts) -> None:
    here = [account for account in found.values() if market.node_of[account["wg_name"]] == node]
    on = [account for account in here if account["status"] == "enable"]
    wanted = {account["public_key"]: f"{account['allowed_IPs']}/32" for account in on}
    for key, addresses in wanted.items() ^ peers(market.lab, node).items():
        name = next((account["name"] for account in found.values() if account["public_key"] == key), "")
        where = "only in the database" if wanted.get(key) == addresses else "only in the kernel"
        market.history.violated(3, name, f"peer {addresses} {where} of {node}")
    rules = market.lab.exec(node, "iptables-legacy-save", "-t", "mangle").stdout
    marked = Counter(re.findall(r"^-A WL_\S+ .*?-[sd] ([0-9.]+)/32 .*-j MARK", rules, re.MULTILINE))
    for account in on:
        if marked[account["allowed_IPs"]] != 2:
            times = marked[account["allowed_IPs"]]
            market.history.violated(3, account["name"], f"{times} mark rules on {node} instead of 2")
    for address in marked.keys() - {account["allowed_IPs"] for account in on}:
        market.history.violated(3, "", f"marks of {address} on {node}, which is nobody's")


def peers(lab: Lab, node: str) -> dict[str, str]:
    lines = [line.split("\t") for line in lab.exec(node, "wg", "show", "all", "dump").stdout.splitlines()]
    return {words[1]: words[4] for words in lines if len(words) == 9}


# -- packets ------------------------------------------------------------------------------------------------------


def off_was_off(history: History, name: str, windows: list[Off], echoed: dict[int, dict[str, Any]]) -> None:
    """Promise 2: nothing was sent and came while the account was off. (What a slow link held back may come later.)"""
    for window in windows:
        until = window.until or time.monotonic()
        times = echoed.get(window.life, {"times": []})["times"]
        late = [sent for sent, came in times if window.since < sent and came < until]
        if late:
            first, length = min(late) - window.since, until - window.since
            text = f"life {window.life} was off for {length:.1f} s, and {len(late)} packets sent meanwhile passed"
            history.violated(2, name, f"{text}, the first {first:.3f} s after the answer")


def statistics_are_true(
    history: History, rest: Rest, name: str, held: Held, sent: dict[str, int], echoed: dict[str, Any], floor: bool
) -> str:
    """Promise 4, of one account: arrived <= counted <= sent, each way. `floor`: the first of these, too."""
    down, up = counted(rest, name)
    bounds = (
        ("download", sent.get("received", 0), down, echoed.get("sent", 0)),
        ("upload", echoed.get("received", 0), up, sent.get("sent", 0)),
    )
    for way, least, shown, most in bounds:
        if shown > most or (floor and shown < least):
            text = f"life {held.life}: {way} is {shown}, but {least} bytes arrived of {most} that were sent"
            history.violated(4, name, text)
    return ", ".join(f"{way} {least} <= {shown} <= {most}" for way, least, shown, most in bounds)


def counted(rest: Rest, name: str) -> tuple[int, int]:
    """Of all months that a clock two days off may have booked them in."""
    now = datetime.now(UTC)
    months = {((now + timedelta(days=days)).year, (now + timedelta(days=days)).month) for days in (-3, 0, 3)}
    days = [day for year, month in months for day in rest.get(f"account/{name}/traffic_statistics/{year}/{month}")]
    return sum(day["traffic_download"] for day in days), sum(day["traffic_upload"] for day in days)


# -- memory -------------------------------------------------------------------------------------------------------


def sizes(lab: Lab) -> dict[str, tuple[int, int]]:
    """Part: (resident bytes, open files)."""
    pids = {f"gateway {g.name}": lab.gateway_pid(g.name) for g in lab.gateways}
    pids |= {f"agent {node.name}": lab.agent_pid(node.name) for node in lab.plan.nodes}
    found = {}
    for part, pid in pids.items():
        if pid is not None:
            status = Path(f"/proc/{pid}/status").read_text()
            resident = int(status.partition("VmRSS:")[2].split()[0]) << 10
            found[part] = (resident, len(list(Path(f"/proc/{pid}/fd").iterdir())))
    return found


def are_bounded(history: History, before: dict[str, tuple[int, int]], now: dict[str, tuple[int, int]]) -> None:
    for part, (resident, files) in now.items():
        if resident > before[part][0] + MOST_GROWTH:
            history.violated(6, "", f"{part} grew from {before[part][0] >> 20} to {resident >> 20} MB")
        if files > MOST_FILES:
            history.violated(6, "", f"{part} has {files} open files")
