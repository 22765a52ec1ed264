"""IKEv2 on a box with all its accounts: logins, many at once, edits, memory; beside a connection for each account."""

from __future__ import annotations

import base64
import json
import ssl
import time

from bench.asked import Asked
from bench.box import NODE, Box, opened
from bench.ikev2_peers import Clients, Rival, User, folder_of
from bench.measure import median, memory_bytes, percentile, sizes
from bench.table import Bar, Cell, Result, Table
from tests.lab.errors import LabError
from tests.lab.ikev2 import turn_on
from tests.netns.ikev2_box import credentials

QUESTION = "Logins by IKEv2 with all accounts present"
CLIENT, GROUND = "c1", "c2"  # where clients are; where the rival works
LOGINS, AT_ONCE, EDITS = 50, 300, 50
LEAST = 2 * (LOGINS + AT_ONCE)  # accounts: half of them log in, the other half is edited
MIB = 1 << 20
COLUMNS = ("accounts", "login p50, ms", "login p99, ms", f"{AT_ONCE} at once, s", "of them in")
EDIT_COLUMNS = ("accounts", "nobody in: edit p50, ms", f"{AT_ONCE} in: edit p50, ms", "p99, ms")
MEMORY_COLUMNS = (
    "accounts",
    "charon, MiB",
    "FreeRADIUS, MiB",
    f"charon with {AT_ONCE} in, MiB",
    "FreeRADIUS, MiB then",
)
RIVAL_COLUMNS = ("accounts", "loaded, s", "login p50, ms", "charon, MiB")


def run(asked: Asked) -> Result:
    result = Result("ikev2", QUESTION, asked.accounts)
    if asked.accounts < LEAST:
        raise LabError(f"--accounts: {LEAST} at least")
    with opened(asked, asked.backends[-1]) as box:
        turn_on(box.lab)
        for server in box.servers:
            box.lab.rest.put(f"wireguard/{server}", ikev2="1")
        _measure(box, result)
    result.notes.append(
        f"Login: from the first packet until the tunnel is up, {LOGINS} one after the other, by one client process at "
        f"one address, both ends on this machine. At once: {AT_ONCE} accounts behind that address. Edit: a call that "
        "sets another password, answered when the account's session by the old one is over. A connection for each "
        "account: a secret, a pool and a connection each, in a charon of its own, without RADIUS."
    )
    return result


def _measure(box: Box, result: Result) -> None:
    logins: list[list[Cell]] = []
    edits: list[list[Cell]] = []
    memory: list[list[Cell]] = []
    rival: list[list[Cell]] = []
    for count in (count for count in sizes(box.asked.accounts) if count >= LEAST):
        box.fill(count)
        users = _users(box)
        shown = json.loads(box.lab.rest.get(f"account/{_name(0)}/ikev2_profile"))["remote"]
        authority = ssl.DER_cert_to_PEM_cert(base64.b64decode(shown["cert"]))
        idle = _memory(box)
        with Clients(box.lab, CLIENT) as clients:
            clients.know(users, shown["addr"], shown["id"], authority)
            times = _logins(clients, users)
            quiet = _edits(box, "quiet")
            seconds, there = clients.logins_at_once([user.username for user in users[LOGINS:]])
            busy = _memory(box)
            loud = _edits(box, "loud")
            clients.leave()
        logins.append([count, median(times) * 1e3, percentile(times, 0.99) * 1e3, seconds, there])
        edits.append([count, median(quiet) * 1e3, median(loud) * 1e3, percentile(loud, 0.99) * 1e3])
        memory.append([count, *idle, *busy])
        rival.append(_rival(box, count))
        box.asked.say(f"{count:,}: {logins[-1]} {edits[-1]} {memory[-1]} {rival[-1]}")
    result.tables += [
        Table("Logins", COLUMNS, logins),
        Table("Another password", EDIT_COLUMNS, edits),
        Table("Memory", MEMORY_COLUMNS, memory),
        Table("A connection for each account", RIVAL_COLUMNS, rival),
    ]
    full = box.asked.is_full_size
    result.bars += [
        Bar("a login, p50", float(str(logins[-1][1])), 60.0, "ms", judged=full),
        Bar(f"{AT_ONCE} logins at once", float(str(logins[-1][3])), 15.0, "s", judged=full),
        Bar("another password, p50", float(str(edits[-1][1])), 100.0, "ms", judged=full),
        Bar("charon and FreeRADIUS", sum(float(str(cell)) for cell in memory[-1][3:5]), 250.0, "MiB", judged=full),
    ]


def _name(number: int) -> str:
    return f"a{number:05}"


def _users(box: Box) -> list[User]:
    """Some to log in one after the other, and behind them those that come at once; evenly over all accounts."""
    count = LOGINS + AT_ONCE
    numbers = [index * (box.accounts // 2) // count * 2 for index in range(count)]
    found = [box.lab.rest.get(f"account/{_name(number)}") for number in numbers]
    return [User(one["username"], one["password"], one["allowed_IPs"].removesuffix("/32")) for one in found]


def _logins(clients: Clients, users: list[User]) -> list[float]:
    times = [clients.login(user.username) for user in users[:LOGINS]]
    clients.leave()
    return times


def _edits(box: Box, word: str) -> list[float]:
    """Seconds of each call. Of accounts that nobody logs in by: only then is it the same edit each time."""
    times = []
    for number in range(EDITS):
        name = _name(number * (box.accounts // 2) // EDITS * 2 + 1)
        began = time.monotonic()
        answer = box.lab.rest.call("PUT", f"account/{name}", {"password": f"{word} {box.accounts} {number}"})
        times.append(time.monotonic() - began)
        if answer.error or answer.pending:
            raise LabError(f"{name}: {answer.msg}, pending {answer.pending!r}")
    return times


def _memory(box: Box) -> tuple[float, float]:
    """MiB of charon and of FreeRADIUS."""
    running = json.loads((folder_of(box.lab, NODE) / "running.json").read_text())
    charon, radius = (memory_bytes(running[name][0]) / MIB for name in ("charon", "freeradius"))
    return charon, radius


def _rival(box: Box, count: int) -> list[Cell]:
    shown = credentials()
    users = [User(f"user_{n:05}", f"secret {n}", f"10.{64 + (n >> 16)}.{n >> 8 & 255}.{n & 255}") for n in range(count)]
    server = str(box.lab.host(GROUND).address.ip)
    some = [users[index * count // LOGINS] for index in range(LOGINS)]
    with Rival(box.lab, GROUND) as rival, Clients(box.lab, CLIENT) as clients:
        loaded = rival.serve(users, shown)
        clients.know(some, server, shown.identity, shown.authority)
        times = _logins(clients, some)
        return [count, loaded, median(times) * 1e3, memory_bytes(rival.pid) / MIB]
