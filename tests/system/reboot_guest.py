"""What happens around a reboot: one boot of the VM sells an account, the next one has nothing but the agent's file.

    python tests/system/reboot_guest.py FACTS.json FOLDER first|second

The account has both families, a limit, and a TCP and a UDP port of the node that lead to it; a rule forbids a port of
the web. FOLDER outlives the VM: the first boot leaves the agent's file there as a power loss would, and the second
begins with it, with no gateway to ask. Network, agent and measures are those of guest.py. Called by test_reboot.py.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import socket
import sys
from ipaddress import IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from gateway.model import Snapshot
from tests.netns.conftest import enter
from tests.system import guest
from tests.system.guest import NODE, SETTLE_MS, Story, inside, measured, run

NODE_ADDRESS, ACCOUNT, ACCOUNT_IPV6 = "198.51.100.2", "10.77.0.2", "fd77::2"
WEB_IPV6 = "2001:db8:100::1"
WEB_PORT, TO_WEB, GAME_PORT, TO_GAME = 8080, 80, 25565, 7777
FORBIDDEN = 5299  # a port of the web that answers, but not to accounts
KEY = "client.key"
SECONDS = 60.0

NETWORK = f"""
ip -n internet address add {WEB_IPV6}/64 dev to-node nodad
ip -n node address add 2001:db8:100::2/64 dev {guest.UPLINK} nodad
ip -n node route add default via {WEB_IPV6}
"""


def listener(kind: int, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(SECONDS)
    made.bind((address, port))
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made


def connects(address: str, port: int, seconds: float = SECONDS) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as one:
        one.settimeout(seconds)
        try:
            one.connect((address, port))
        except OSError:
            return False
    return True


def led(internet: Any, client: Any) -> dict[str, bool]:
    """What a stranger in the internet finds at the node's ports."""
    found = {}
    with client(listener, socket.SOCK_STREAM, ACCOUNT, TO_WEB):
        found["tcp"] = internet(connects, NODE_ADDRESS, WEB_PORT)
    with client(listener, socket.SOCK_DGRAM, ACCOUNT, TO_GAME) as game, internet(socket.socket, 2, 2) as stranger:
        stranger.settimeout(SECONDS)
        stranger.sendto(b"hello", (NODE_ADDRESS, GAME_PORT))
        try:
            game.sendto(b"welcome", game.recvfrom(100)[1])
            found["udp"] = stranger.recvfrom(100) == (b"welcome", (NODE_ADDRESS, GAME_PORT))
        except TimeoutError:
            found["udp"] = False
    return found


class Reboot(Story):
    def __init__(self, facts: dict[str, Any], folder: Path) -> None:
        super().__init__(facts)
        self.folder = folder
        rule = ("web", False, "0.0.0.0/0", f"{guest.WEB}/32", "tcp", 0, FORBIDDEN)
        self.server = dataclasses.replace(
            self.server, address_ipv6=IPv6Interface("fd77::1/64"), nat_ipv6=True, filter=(rule,)
        )
        self.account = dataclasses.replace(
            self.account, address_ipv6=IPv6Address(ACCOUNT_IPV6),
            ports=(("tcp", WEB_PORT, TO_WEB), ("udp", GAME_PORT, TO_GAME)),
        )  # fmt: skip
        for line in NETWORK.strip().splitlines():
            run(*line.split())

    def connect(self, server_public: str) -> None:
        guest.connect_client(self.client_private, server_public)
        run("ip", "-n", "client", "address", "add", f"{ACCOUNT_IPV6}/128", "dev", guest.CLIENT_LINK, "nodad")
        run("ip", "-6", "-n", "client", "route", "replace", "default", "dev", guest.CLIENT_LINK)
        peer = ["peer", server_public, "allowed-ips", "0.0.0.0/0,::/0"]
        run(*inside("client", "wg", "set", guest.CLIENT_LINK, *peer))

    def look(self) -> None:
        """From the customer's side, and from a stranger's."""
        self.facts["reached"] = guest.can_reach_the_web()
        with enter("internet") as internet, enter("client") as client:
            web = [internet(listener, socket.SOCK_STREAM, at, FORBIDDEN) for at in (str(guest.WEB), WEB_IPV6)]
            try:
                self.facts["reached_by_ipv6"] = client(connects, WEB_IPV6, FORBIDDEN)
                self.facts["forbidden"] = not client(connects, str(guest.WEB), FORBIDDEN, 5.0)
            finally:
                for one in web:
                    one.close()
            self.facts["led"] = led(internet, client)
        self.facts["download"] = measured("--reverse")

    async def counted(self) -> int:
        _, _, totals = await self.agents.totals(NODE, "", 0, (self.account.id,), fresh=True)
        return sum(total.download for total in totals)


class First(Reboot):
    async def tell(self) -> None:
        self.agent.start()
        await guest.answer(lambda: self.agents.status(NODE), lambda status: status.needs_snapshot)
        applied = await self.agents.snapshot(NODE, Snapshot(1, (self.server,), (self.account,), "UTC"), SETTLE_MS)
        await guest.answer(lambda: self.agents.status(NODE), lambda status: status.applied_revision == 1)
        self.facts["epoch"] = applied.epoch
        self.connect(self.server_public)
        self.look()
        self.facts["counted"] = await self.counted()
        self.agent.stop(signal.SIGKILL)
        for path in guest.WORK.glob("agent.db*"):
            shutil.copy(path, self.folder)
        keys = {"private": self.client_private, "server": self.server_public}
        (self.folder / KEY).write_text(json.dumps(keys))


class Second(Reboot):
    async def tell(self) -> None:
        for path in self.folder.glob("agent.db*"):
            shutil.copy(path, guest.WORK)
        keys = json.loads((self.folder / KEY).read_text())
        self.client_private = keys["private"]
        self.facts["rules_before"] = run(*inside("node", "nft", "list", "ruleset"))
        self.agent.start()
        status = await guest.answer(lambda: self.agents.status(NODE), lambda status: status.applied_revision == 1)
        self.facts["epoch"], self.facts["failures"] = status.epoch, [str(one) for one in status.failures]
        self.connect(keys["server"])
        self.look()
        self.facts["counted"] = await self.counted()


STORIES = {"first": First, "second": Second}


if __name__ == "__main__":
    guest.main(Path(sys.argv[1]), lambda facts: STORIES[sys.argv[3]](facts, Path(sys.argv[2])))
