"""The command line of the lab: `scripts/lab`. Only JSON, and what `exec` runs, goes to stdout."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence

from tests.lab.errors import LabError, NoHandshake
from tests.lab.lab import Lab

EXIT_FAILED = 1
EXIT_NO_HANDSHAKE = 3


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(lab: Lab) -> None:
    print(json.dumps(lab.describe(), indent=2), flush=True)


def _up(asked: argparse.Namespace) -> int:
    postgresql = asked.database == "postgresql"
    size = asked.name, asked.nodes, asked.clients
    _print(Lab.up(*size, gateways=asked.gateways, postgresql=postgresql, ipv6=asked.ipv6, say=_say))
    return 0


def _status(asked: argparse.Namespace) -> int:
    _print(Lab.open(asked.name))
    return 0


def _down(asked: argparse.Namespace) -> int:
    _say(f"lab {asked.name!r}: removed" if Lab.down(asked.name) else f"lab {asked.name!r}: there is none")
    return 0


def _exec(asked: argparse.Namespace) -> int:
    """Becomes the command, so that signals, terminal and exit status are its own."""
    if not asked.command:
        raise LabError("exec: no command; write `exec HOST -- COMMAND`")
    # nsenter leaves us in /; go back to where the caller stands, which is the same folder in every lab host.
    go_back = ["/bin/sh", "-c", 'cd "$0" 2>/dev/null; exec "$@"', os.getcwd()]
    whole = Lab.open(asked.name).command(asked.host, *go_back, *asked.command)
    os.execvp(whole[0], whole)


def _service(asked: argparse.Namespace) -> int:
    """start|stop|kill of a part: the methods of Lab are called so."""
    lab = Lab.open(asked.name)
    known = {
        "agent": [node.name for node in lab.plan.nodes],
        "gateway": [gateway.name for gateway in lab.gateways],
        "database": [],
    }[asked.part]
    act = getattr(lab, f"{asked.verb}_{asked.part}")
    if asked.which is None and (asked.part == "database" or known == ["g1"]):
        act()
    elif asked.part == "database":
        raise LabError("there is one database: name none")
    elif asked.which is None:
        raise LabError(f"which {asked.part}? {', '.join(known)}")
    else:
        act(asked.which)
    return 0


def _cut(asked: argparse.Namespace) -> int:
    Lab.open(asked.name).cut(asked.host)
    return 0


def _heal(asked: argparse.Namespace) -> int:
    Lab.open(asked.name).heal(*asked.hosts)
    return 0


def _slow(asked: argparse.Namespace) -> int:
    Lab.open(asked.name).slow(asked.node, asked.rate)
    return 0


def _connect(asked: argparse.Namespace) -> int:
    lab = Lab.open(asked.name)
    try:
        config = lab.connect(asked.client, asked.account)
    except NoHandshake as silent:
        _say(f"lab: {silent}")
        return EXIT_NO_HANDSHAKE
    _say(f"{asked.client} is connected as {asked.account}: {config.addresses[0]}, server {config.endpoint}")
    return 0


def _disconnect(asked: argparse.Namespace) -> int:
    done = Lab.open(asked.name).disconnect(asked.client)
    _say(f"{asked.client}: disconnected" if done else f"{asked.client}: was not connected")
    return 0


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="scripts/lab", description="A small internet on one machine.")
    verbs = root.add_subparsers(required=True, metavar="COMMAND")

    def verb(name: str, act: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.add_argument("--name", default="wl", help="which lab (default: wl)")
        added.set_defaults(act=act, verb=name)
        return added

    up = verb("up", _up, "build a lab; print it as one JSON object when all of it answers")
    up.add_argument("--nodes", type=int, default=1, help="VPN boxes n1, n2, ... (default: 1)")
    up.add_argument("--clients", type=int, default=2, help="client hosts c1, c2, ... (default: 2)")
    up.add_argument("--gateways", type=int, default=1, help="gateways g1, g2, ... (default: 1)")
    up.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite", help="(default: sqlite)")
    up.add_argument("--ipv6", action="store_true", help="give every host an IPv6 address too")
    up.epilog = "More than one node or gateway, or PostgreSQL, make a fleet: gateways and database are hosts too."
    verb("status", _status, "print the JSON object again")
    verb("down", _down, "remove everything, also after a crash")
    run = verb("exec", _exec, "run a command in a host")
    run.add_argument("host", help="the name of a node, client or gateway, or internet, or db")
    run.epilog = "The command follows after --, with its own options."
    for name, text in (
        ("stop", "SIGTERM, and wait until it is gone"),
        ("kill", "SIGKILL"),
        ("start", "start it; returns when it answers"),
    ):
        service = verb(name, _service, text)
        service.add_argument("part", choices=("agent", "gateway", "database"))
        service.add_argument("which", nargs="?", metavar="NAME", help="of the node whose agent, or of the gateway")
    cut = verb("cut", _cut, "drop all packets between a node and the gateways, or a gateway and everybody, both ways")
    cut.add_argument("host", metavar="NODE|GATEWAY")
    heal = verb("heal", _heal, "undo cut and slow, of all or of these")
    heal.add_argument("hosts", nargs="*", metavar="NODE|GATEWAY")
    slow = verb("slow", _slow, "hold the uplink of a node or gateway to a rate, both ways")
    slow.add_argument("node", metavar="NODE|GATEWAY")
    slow.add_argument("rate", metavar="RATE", help="as tc(8) writes it: 256kbit")
    connect = verb(
        "connect", _connect, f"connect a client as an account (exit status {EXIT_NO_HANDSHAKE}: no handshake)"
    )
    connect.add_argument("client")
    connect.add_argument("account")
    verb("disconnect", _disconnect, "take a client's tunnel down").add_argument("client")
    return root


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if words[:1] == ["exec"] and "--" in words else len(words)
    asked = parser().parse_args(words[:cut])  # so that options may stand before and after HOST
    asked.command = words[cut + 1 :] or getattr(asked, "command", [])
    try:
        return int(asked.act(asked))
    except (LabError, ValueError) as failed:
        _say(f"lab: {failed}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 130
