"""The main job, told as a story with numbers: `scripts/demo`. Every line that claims something says ok or FAILED.

Stands on the lab and the public REST API only; knows nothing of how agent and gateway are made.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from tests.lab.errors import ApiError, LabError
from tests.lab.fleet_demo import NODES, FleetDemo
from tests.lab.ikev2 import Ikev2Client, turn_on
from tests.lab.lab import Lab
from tests.lab.readings import (
    GOODPUT,
    WEB,
    WEB_IPV6,
    Direction,
    Download,
    came,
    came_by_ipv6,
    counters_at_rest,
    fetch,
    is_shaped,
    mangle_counters,
    received,
    shaped_rate,
    usage,
)
from tests.lab.story import Story

CLIENT, OTHER_CLIENT = "c1", "c2"
NODE = "n1"
SOLD = {"download": 20, "upload": 10}  # Mbit/s
SOLD_LATER = {"download": 40, "upload": 30}
RATE_SECONDS = 6.0
DIRECTIONS: tuple[Direction, ...] = ("download", "upload")


class Demo:
    def __init__(self, lab: Lab, story: Story) -> None:
        self._lab = lab
        self._rest = lab.rest
        self._story = story
        self._account = ""

    def run(self) -> None:
        chapters: tuple[Callable[[], None], ...] = (
            self._create,
            self._connect,
            self._shaped,
            self._counted,
            self._rate_changed,
            self._agent_killed,
            self._disabled,
            self._enabled,
            self._both_families,
            self._ikev2,
            self._deleted,
        )
        for chapter in chapters:
            chapter()

    def _create(self) -> None:
        self._story.chapter("A server and an account, by two REST calls")
        server = self._rest.post("wireguard")
        self._story.step(
            bool(server["public_key"]),
            f"POST /wireguard: {server['name']} on {NODE}, interface {server['interface_name']}, "
            f"network {server['address']}, port {server['listen_port']}",
        )
        account = self._rest.post(
            "account", wg_name=server["name"], b_download=SOLD["download"], b_upload=SOLD["upload"]
        )
        self._account = account["name"]
        self._story.step(
            (account["b_download"], account["b_upload"]) == (str(SOLD["download"]), str(SOLD["upload"])),
            f"POST /account: {self._account}, address {account['allowed_IPs']}, mark {account['mangle']}, "
            f"sold {SOLD['download']} Mbit/s down and {SOLD['upload']} up",
        )

    def _connect(self) -> None:
        self._story.chapter(f"A client ({CLIENT}) connects with the configuration it got, and nothing else")
        began = time.monotonic()
        config = self._lab.connect(CLIENT, self._account)
        self._story.step(True, f"handshake with {config.endpoint} after {time.monotonic() - began:.1f} s")
        seen = (fetch(self._lab, CLIENT, "/ip") or "nothing").strip()
        public = str(self._lab.host(NODE).address.ip)
        self._story.step(seen == public, f"a web server on the internet sees it as {seen} (the VPN box is {public})")

    def _shaped(self) -> None:
        self._story.chapter("Its speed is what was sold")
        for direction in DIRECTIONS:
            self._measure(direction, SOLD[direction])

    def _measure(self, direction: Direction, sold: int) -> None:
        rate = shaped_rate(self._lab, CLIENT, direction, sold)
        self._story.step(
            is_shaped(rate, sold),
            f"{direction}: measured {rate:.2f} Mbit/s, sold {sold} "
            f"({rate / sold:.1%}; {GOODPUT:.0%} is right: the rest is TCP and IP headers)",
        )

    def _counted(self) -> None:
        self._story.chapter("Every byte is counted once")
        before = counters_at_rest(self._rest, self._account)
        statistics = usage(self._rest, self._account)
        after = mangle_counters(self._rest, self._account)
        self._story.tell(f"mangle counters: {after.download_bytes:,} bytes down, {after.upload_bytes:,} up")
        self._story.tell(f"statistics:      {statistics[0]:,} bytes down, {statistics[1]:,} up")
        held = before == after and statistics == (after.download_bytes, after.upload_bytes)
        self._story.step(held and min(statistics) > 0, "the month's statistics equal the counters, to the byte")

    def _rate_changed(self) -> None:
        later = SOLD_LATER
        self._story.chapter(f"The rate changes on the live session: {later['download']} down, {later['upload']} up")
        handshake = self._lab.handshake(CLIENT)
        with Download(self._lab, CLIENT, "15M") as running:
            time.sleep(1.0)
            self._rest.put(f"account/{self._account}", b_download=str(later["download"]), b_upload=str(later["upload"]))
            received = running.finished(30.0)
        self._story.step(received == 15_000_000, f"a download that was running went on: {received:,} bytes, complete")
        for direction in DIRECTIONS:
            self._measure(direction, later[direction])
        self._story.step(self._lab.handshake(CLIENT) == handshake, "no reconnect: the same handshake as before")

    def _agent_killed(self) -> None:
        self._story.chapter("The agent is killed (SIGKILL) and started again under a download")
        before = mangle_counters(self._rest, self._account)
        with Download(self._lab, CLIENT, "25M") as running:
            time.sleep(1.0)
            self._lab.kill_agent(NODE)
            self._story.tell("killed; the VPN box runs without its agent")
            time.sleep(1.5)
            began = time.monotonic()
            self._lab.start_agent(NODE)
            self._story.tell(f"started; it answered after {time.monotonic() - began:.1f} s")
            received = running.finished(60.0)
        self._story.step(received == 25_000_000, f"the download went on: {received:,} bytes, complete")
        after = mangle_counters(self._rest, self._account)
        grown = after.download_bytes - before.download_bytes
        self._story.step(
            after.covers(before) and grown > received, f"no counter fell: {grown:,} bytes down were counted meanwhile"
        )
        self._counted()

    def _disabled(self) -> None:
        self._story.chapter("Switched off under a download")
        with Download(self._lab, CLIENT, "1G"):
            time.sleep(1.5)
            began = time.monotonic()
            self._rest.put(f"account/{self._account}", status="disable")
            taken = time.monotonic() - began
            time.sleep(0.1)  # what the VPN box sent before has reached the client by then
            first = received(self._lab, CLIENT)
            reachable = fetch(self._lab, CLIENT, "/ip", seconds=2.0)
            last = received(self._lab, CLIENT)
        self._story.step(
            first == last > 0, f"the call answered after {taken * 1000:.0f} ms; {last - first} bytes came through since"
        )
        self._story.step(reachable is None, "the client reaches nothing")

    def _enabled(self) -> None:
        self._story.chapter("Switched on again")
        self._rest.put(f"account/{self._account}", status="enable")
        began = time.monotonic()
        while (seen := fetch(self._lab, CLIENT, "/ip")) is None and time.monotonic() - began < 40.0:
            time.sleep(0.2)
        self._story.step(
            seen is not None,
            f"the client, untouched, is back after {time.monotonic() - began:.1f} s (its next handshake)",
        )

    def _both_families(self) -> None:
        self._story.chapter("IPv6 in the tunnel: a second address, and the same limit")
        server = self._rest.get(f"account/{self._account}")["wg_name"]
        self._rest.put(f"wireguard/{server}", ipv6="1", nat_ipv6="1")
        address = self._lab.connect(CLIENT, self._account).addresses[-1]
        seen, node = (fetch(self._lab, CLIENT, "/ip", web=WEB_IPV6) or "nothing").strip(), self._lab.host(NODE)
        public = str(node.ipv6.ip) if node.ipv6 else ""
        self._story.step(seen == public, f"it has {address} too; by IPv6 a web server sees it as {seen}")
        sold = SOLD_LATER["download"]
        with Download(self._lab, CLIENT, "1G"), Download(self._lab, CLIENT, "1G", WEB_IPV6):
            time.sleep(1.0)
            began, before, ipv6 = time.monotonic(), came(self._lab, CLIENT), came_by_ipv6(self._lab, CLIENT)
            time.sleep(RATE_SECONDS)
            rate = (came(self._lab, CLIENT) - before) * 8 / 1e6 / (time.monotonic() - began)
            share = (came_by_ipv6(self._lab, CLIENT) - ipv6) * 8 / 1e6 / RATE_SECONDS
        self._story.step(
            sold * 0.9 < rate < sold * 1.02 and share > 0,
            f"a download by each at once: {rate:.2f} Mbit/s with headers ({share:.2f} by IPv6), sold {sold}",
        )
        self._counted()

    def _ikev2(self) -> None:
        self._story.chapter("The same account by IKEv2, with its profile and its password, and nothing else")
        self._lab.disconnect(CLIENT)
        turn_on(self._lab, NODE)
        account = self._rest.get(f"account/{self._account}")
        self._rest.put(f"wireguard/{account['wg_name']}", ikev2="1")
        profile = self._rest.get(f"account/{self._account}/ikev2_profile")
        began = time.monotonic()
        with Ikev2Client(self._lab, CLIENT, profile, account["password"]):
            self._story.step(True, f"logged in after {time.monotonic() - began:.1f} s")
            seen, public = (fetch(self._lab, CLIENT, "/ip") or "nothing").strip(), str(self._lab.host(NODE).address.ip)
            self._story.step(seen == public, f"a web server on the internet sees it as {seen}")
            for direction in DIRECTIONS:
                self._measure(direction, SOLD_LATER[direction])
            self._counted()
            self._rest.put(f"account/{self._account}", status="disable")
            seen = (fetch(self._lab, CLIENT, "/ip", seconds=2.0) or "nothing").strip()
            gone = seen != public and self._rest.get("ikev2/online") == []
            self._story.step(gone, "disabled: its session is gone when the call answers")
        self._rest.put(f"account/{self._account}", status="enable")
        self._lab.connect(CLIENT, self._account)
        for direction in DIRECTIONS:
            self._measure(direction, SOLD_LATER[direction])
        with Ikev2Client(self._lab, OTHER_CLIENT, profile, account["password"]), Download(self._lab, CLIENT, "1G"):
            rate = shaped_rate(self._lab, OTHER_CLIENT, "download", SOLD_LATER["download"])
            self._story.step(
                is_shaped(rate, SOLD_LATER["download"]),
                f"by WireGuard and IKEv2 at once: {rate:.2f} Mbit/s together, sold {SOLD_LATER['download']}",
            )

    def _deleted(self) -> None:
        self._story.chapter("Deleted")
        self._rest.delete(f"account/{self._account}")
        self._story.step(fetch(self._lab, CLIENT, "/ip", seconds=2.0) is None, "the client reaches nothing")
        try:
            answer = str(self._rest.get(f"account/{self._account}"))
        except ApiError as gone:
            answer = gone.text
        self._story.step(answer == "Account not found", f"GET /account/{self._account}: {answer}")
        self._lab.disconnect(CLIENT)


def _tell_of_fleet(name: str, story: Story) -> None:
    """In a lab of its own, which is taken down in any case."""
    story.chapter("A fleet: two nodes, two gateways, one PostgreSQL, a client")
    Lab.down(name)
    try:
        FleetDemo(Lab.up(name, nodes=len(NODES), clients=1, gateways=2, postgresql=True, say=story.tell), story).run()
    except LabError as failed:
        story.step(False, str(failed))
    finally:
        Lab.down(name)


def _go_on(lab: Lab, name: str) -> None:
    described = lab.describe()
    root, cookie = f"{described['url']}/api/v1", f"access_hash={described['access_hash']}"
    server = next(iter(lab.rest.get("wireguard")), "Default_1")
    print(
        f"""
The lab is still up. Go on playing:

  curl -b {cookie} \\
       -d wg_name={server} -d name=me -d b_download=50 -d b_upload=50 {root}/account
  sudo scripts/lab connect --name {name} c1 me
  sudo scripts/lab exec --name {name} c1 -- curl -o /dev/null {WEB}/bytes/50M
  sudo scripts/lab down --name {name}
""",
        flush=True,
    )


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="The main job, on real packets.")
    parser.add_argument("--once", action="store_true", help="take the lab down; exit status 0 = every step held")
    parser.add_argument("--name", default="demo", help="of the lab (default: demo); one that is there is replaced")
    asked = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell may have handed us an ignored SIGINT
        signal.signal(number, _interrupt)
    story, leave = Story(), False
    try:
        if Lab.down(asked.name):
            story.tell(f"took down the lab {asked.name!r} of an earlier run")
        story.chapter("A small internet on this machine: a VPN box, two clients, a web server")
        lab = Lab.up(asked.name, ipv6=True, say=story.tell)
        leave = not asked.once
        try:
            Demo(lab, story).run()
        except LabError as failed:
            story.step(False, str(failed))
        _tell_of_fleet(f"{asked.name}-fleet", story)
        story.chapter("Every step held." if not story.failed else f"{len(story.failed)} step(s) FAILED.")
        if leave:
            _go_on(lab, asked.name)
        return 1 if story.failed else 0
    except (LabError, ValueError) as failed:
        print(f"demo: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        leave = False
        return 130
    finally:
        if not leave:
            Lab.down(asked.name)


if __name__ == "__main__":
    sys.exit(main())
