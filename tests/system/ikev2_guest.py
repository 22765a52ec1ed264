"""What happens inside the VM: an account's life by IKEv2 with the ESP of Debian's own kernel. Judges nothing.

    python tests/system/ikev2_guest.py FACTS.json

The network, the agent and the measures are those of guest.py; the client is `charon-cmd`. Called by
test_ikev2_kernel.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from gateway.model import Patch, Responder, Secret, Snapshot
from tests.netns.ikev2_box import client, credentials, is_in
from tests.system import guest
from tests.system.guest import NODE, SETTLE_MS, Story, inside, measured, run, started

DEVICE, ADDRESS = "ipsec0", "10.77.0.2"
RUNNING = guest.WORK / "ikev2/running.json"
LOGIN_SECONDS = 120.0
# Only what comes by way of the node is let in: a client whose tunnel is gone would go there directly. And a web that
# never hears of a narrow path, as many do not: what is sent to an account has to fit without that.
# The client is behind a NAT, as phones are.
NAT = "198.51.100.3"
WEB_RULES = (
    "-A INPUT -s 203.0.113.0/24 -d 198.51.100.1 -j DROP",
    "-A INPUT -p icmp --icmp-type fragmentation-needed -j DROP",
    f"-t nat -A POSTROUTING -o to-node -s 203.0.113.2 -j SNAT --to-source {NAT}",
)


def until(good: Callable[[], Any], what: str, seconds: float = LOGIN_SECONDS) -> float:
    """Seconds that it took. Raises RuntimeError."""
    began = time.monotonic()
    while not good():
        if time.monotonic() - began > seconds:
            raise RuntimeError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - began


def states() -> list[str]:
    """The kernel's states of ESP, by their numbers."""
    lines = run(*inside("node", "ip", "xfrm", "state")).splitlines()
    return sorted(line.split()[3] for line in lines if line.strip().startswith("proto esp"))


def policies() -> int:
    return run(*inside("node", "ip", "xfrm", "policy")).count(ADDRESS)


def processes() -> dict[str, int]:
    if not RUNNING.exists():
        return {}
    return {name: numbers[0] for name, numbers in json.loads(RUNNING.read_text()).items()}


def alive(numbers: Iterable[int]) -> list[int]:
    return [number for number in numbers if Path(f"/proc/{number}").exists()]


def device_state() -> dict[str, Any]:
    """Of IKEv2, all that an agent could touch, without counters."""
    return {
        "index": [
            one["ifindex"] for one in json.loads(run("ip", "-j", "-n", "node", "link")) if one["ifname"] == DEVICE
        ],
        "classes": guest.classes(DEVICE),
        "qdiscs": guest.qdiscs(DEVICE),
        "filters": run(*inside("node", "tc", "filter", "show", "dev", DEVICE)),
        "routes": run("ip", "-n", "node", "route", "show", "dev", DEVICE),
        "states": states(),
        "processes": processes(),
    }


class Ikev2Story(Story):
    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(facts)
        shown = self.shown = credentials()
        responder = Responder(shown.certificate, Secret(shown.private_key.reveal()), shown.authority, shown.identity)
        self.server = dataclasses.replace(
            self.server, address=IPv4Interface("10.77.0.1/24"), ikev2=True, responder=responder
        )
        self.account = dataclasses.replace(self.account, password=Secret("secret"))
        self.clients = ExitStack()
        self.revision = 1

    async def tell(self) -> None:
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            self.create, self.shape, self.count, self.restart, self.disable, self.charon, self.freeradius, self.remove
        )  # fmt: skip
        for step in steps:
            begin = time.monotonic()
            await step()
            print(f"guest: {step.__name__} took {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)

    async def close(self) -> None:
        self.clients.close()
        await super().close()

    def connect(self) -> float:
        """Another client in the place of the last; seconds until it is in."""
        self.clients.close()
        folder = guest.WORK / f"client-{time.monotonic_ns()}"
        words = "client", folder, self.account.username, "secret", self.shown.authority, "198.51.100.2"
        says = self.clients.enter_context(client(*words, esp=""))
        return until(lambda: is_in(says), "the client is in")

    async def who(self) -> list[tuple[int, str, int]]:
        found = await self.agents.sessions(NODE)
        return [(one.account_id, one.endpoint, one.established) for one in found]

    async def create(self) -> None:
        self.agent.start()
        await guest.answer(lambda: self.agents.status(NODE), lambda status: status.needs_snapshot)
        applied = await self.agents.snapshot(NODE, Snapshot(1, (self.server,), (self.account,), "UTC"), SETTLE_MS)
        self.epoch = applied.epoch
        await self.settled()
        self.facts["responder"] = (await self.agents.status(NODE)).ikev2
        self.facts["device"] = json.loads(run("ip", "-j", "-d", "-n", "node", "link", "show", DEVICE))[0]["linkinfo"]
        run("ip", "-n", "internet", "address", "add", f"{NAT}/24", "dev", "to-node")
        for rule in WEB_RULES:
            run(*inside("internet", "iptables-legacy", *rule.split()))
        self.facts["reached_before_login"] = guest.can_reach_the_web()
        self.facts["login_seconds"] = self.connect()
        self.facts["reached"] = guest.can_reach_the_web()
        self.facts["who"] = await self.who()
        self.facts["states"] = len(states())
        self.facts["in_udp"] = run(*inside("node", "ip", "xfrm", "state")).count("encap type espinudp")

    async def settled(self) -> None:
        def done(status: Any) -> bool:
            return bool(status.applied_revision == status.revision == self.revision and not status.failures)

        await guest.answer(lambda: self.agents.status(NODE), done)

    async def restart(self) -> None:
        transfer = started(guest.iperf("--reverse", "--time", "900", "--interval", "4"))
        await asyncio.sleep(4)
        before, who = device_state(), await self.who()
        events: list[str] = []
        with guest.watching(events):
            self.agent.stop(signal.SIGTERM)
            self.agent.start()
            await self.settled()
        await asyncio.sleep(5)
        transfer.send_signal(signal.SIGINT)
        report = json.loads(transfer.communicate(timeout=guest.COMMAND_SECONDS)[0])
        self.facts["restart"] = {
            "before": before,
            "after": device_state(),
            "who": [who, await self.who()],
            "events": events,
            "drift": (await self.agents.status(NODE)).drift_count,
            "interval_bytes": [interval["sum"]["bytes"] for interval in report.get("intervals", [])],
            "transfer_end": report.get("error", ""),
        }

    async def patch(self, **what: Any) -> str:
        patch = Patch(self.epoch, self.revision, self.revision + 1, **what)
        applied = await self.agents.patch(NODE, patch, SETTLE_MS)
        self.revision += 1
        return str(applied.outcome)

    async def sent(self) -> int:
        """Packets that came from the account; what comes for it is counted on its way to nobody, too."""
        marks = (await self.agents.inspect(NODE, self.account.id)).marks
        return marks.upload_packets if marks else 0

    async def disable(self) -> None:
        off, on = (dataclasses.replace(self.account, enabled=value) for value in (False, True))
        outcome = await self.patch(put_accounts=(off,))
        left, sent = [states(), policies()], await self.sent()
        reached = guest.can_reach_the_web()
        self.facts["disabled"] = {
            "outcome": outcome,
            "left": left,
            "reached": reached,
            "passed": await self.sent() - sent,
            "who": await self.who(),
            "enabled": await self.patch(put_accounts=(on,)),
            "back_seconds": self.connect(),
            "reached_again": guest.can_reach_the_web(),
        }

    async def charon(self) -> None:
        self.facts["charon"] = await self.killed("charon")

    async def freeradius(self) -> None:
        self.facts["freeradius"] = await self.killed("freeradius")

    async def killed(self, name: str) -> dict[str, Any]:
        """A program dies in the middle of a transfer. The client that was in stays as it is, and another one comes."""
        transfer = started(guest.iperf("--reverse", "--time", "900", "--interval", "4"))
        await asyncio.sleep(4)
        before, had = processes(), states()
        began = time.monotonic()
        os.kill(before[name], signal.SIGKILL)

        def is_another() -> bool:
            now = processes()  # once: the file goes and comes meanwhile
            return now.keys() == before.keys() and now[name] != before[name]

        until(is_another, f"another {name}")
        ready = time.monotonic() - began
        stays = [number for number in states() if number in had]
        sent = await self.sent()
        reached = guest.can_reach_the_web()
        passed = await self.sent() - sent
        await guest.answer(
            lambda: self.agents.status(NODE), lambda status: bool(status.ikev2[0]) and not status.failures
        )
        transfer.kill()
        transfer.communicate(timeout=guest.COMMAND_SECONDS)
        return {
            "ready_seconds": ready,
            "stays": stays,
            "reached_by_the_old_session": reached,
            "passed_by_the_old_session": passed,
            "back_seconds": self.connect(),
            "reached_again": guest.can_reach_the_web(),
            "shaped": measured("--reverse"),
            "classes": guest.classes(DEVICE),
        }

    async def remove(self) -> None:
        plain = dataclasses.replace(self.server, ikev2=False, responder=None)
        numbers = processes().values()
        self.facts["removed"] = {
            "outcome": await self.patch(put_servers=(plain,)),
            "links": [one["ifname"] for one in json.loads(run("ip", "-j", "-n", "node", "link"))],
            "processes": alive(numbers),
            "folder": RUNNING.parent.exists(),
            "states": states(),
            "policies": policies(),
        }


if __name__ == "__main__":
    guest.main(Path(sys.argv[1]), Ikev2Story)
