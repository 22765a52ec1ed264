"""`wirelane-gateway node add|token|edit|drain|undrain|list|remove|resync`: the hosts with an agent.
Called by the command line.

`list` and `resync` ask the agents themselves: what a node holds is theirs to say, and no other process is needed to
hear it. Only tables and differences go to standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from gateway import host
from gateway.agents import Agents
from gateway.agents.codec import objects_of
from gateway.condition import Condition, Report
from gateway.credentials import with_agents
from gateway.enrolment import Enrolment
from gateway.errors import AgentUnreachable, ConfigError
from gateway.live import HeldObject
from gateway.model import Node
from gateway.progress import explain, plain, printed_table
from gateway.store import Store, changes
from gateway.store import nodes as rows
from gateway.target import UNIX

Options = argparse.Namespace

MOST_MINUTES = 7 * 24 * 60
DIFFERENT = 2  # exit status of --show-difference
REVISIONS = ("REVISION", "ACKNOWLEDGED", "APPLIED", "PENDING")
TITLES = (
    "NAME",
    "TARGET",
    *REVISIONS,
    "FAILED",
    "DRIFT",
    "CLOCK",
    "CERTIFICATE",
    "VERSION",
    "EPOCH",
    "ENDPOINT",
    "STATE",
)


def add_parsers(commands: Any, add: Callable[..., argparse.ArgumentParser], on_store: Callable[..., Any]) -> None:
    nodes = commands.add_parser("node", help="The hosts with an agent.").add_subparsers(required=True, metavar="ACTION")
    command = add(nodes, "add", on_store(node_add), "Add a node.")
    command.add_argument("name", metavar="NAME")
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("target", nargs="?", metavar="TARGET", help="an agent on this host: unix:/path/to/agent.sock")
    where.add_argument(
        "--address", metavar="HOST:PORT", help="an agent on another host; prints a join token for it, once"
    )
    command.add_argument("--endpoint", default="", metavar="ADDRESS", help="where clients reach it")
    _add_token_options(command)
    command = add(nodes, "token", on_store(node_token), "Make a join token, to enrol a node (again); prints it, once.")
    command.add_argument("name", metavar="NAME")
    _add_token_options(command)
    command = add(nodes, "edit", on_store(node_edit), "Change where a node is reached.")
    command.add_argument("name", metavar="NAME")
    command.add_argument("--target", metavar="TARGET", help="where its agent listens: unix:/path/to/agent.sock")
    command.add_argument("--endpoint", metavar="ADDRESS", help='where clients reach it; "" clears')
    command = add(nodes, "drain", on_store(node_drain), "Put no new servers on a node; what it has stays.")
    command.add_argument("name", metavar="NAME")
    command = add(nodes, "undrain", on_store(node_undrain), "Let a node take new servers again.")
    command.add_argument("name", metavar="NAME")
    add(nodes, "list", on_store(node_list), "List the nodes, and how each does.")
    command = add(nodes, "remove", on_store(node_remove), "Forget a node that has no servers.")
    command.add_argument("name", metavar="NAME")
    command = add(nodes, "resync", on_store(node_resync), "Say that the database is right about a node, or look first.")
    command.add_argument("name", metavar="NAME")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--show-difference",
        action="store_true",
        help="what differs between node and database, a line each; changes nothing; exit status 2 if anything does",
    )
    which.add_argument(
        "--from-database",
        action="store_true",
        help="the database is right: the node gets all of it, and loses the rest",
    )


def _add_token_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--minutes", type=_minutes, default=60, metavar="N", help="how long the join token can be used; default 60"
    )
    command.add_argument("--gateway", metavar="URL", help="of a gateway, for the host to ask; default public_url")


def _minutes(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= MOST_MINUTES:
        raise argparse.ArgumentTypeError(f"{text!r} must be within 1-{MOST_MINUTES}")
    return int(text)


async def node_add(store: Store, options: Options) -> None:
    name, target = options.name, options.address or options.target
    if target.startswith(UNIX) == bool(options.address):
        raise ConfigError(
            [f"node add: {target!r}: TARGET is a socket of this host, --address another host's HOST:PORT"]
        )
    on = "" if options.address else host.identity()
    await store.change(lambda tx: rows.add(tx, name, target, options.endpoint, on))
    if options.address:
        explain(f"node {name} is added, and called once it is enrolled")
        await _print_token(store, options)
    else:
        explain(f"node {name} is added; running gateways call it within seconds")


async def node_token(store: Store, options: Options) -> None:
    await _print_token(store, options)


async def _print_token(store: Store, options: Options) -> None:
    url = options.public_url if options.gateway is None else options.gateway
    token = await Enrolment(store).new_token(options.name, options.minutes * 60, url)
    print(token.reveal(), flush=True)
    explain(
        f"The line above is a join token, shown only this once and good for {options.minutes} minutes. On that host:"
    )
    asking = "" if url else " --gateway URL"
    explain(f"`wirelane-agent enrol --token-file -{asking}`, and paste it.")
    if not url:
        explain("URL: where that host reaches this gateway, such as http://192.0.2.1:8080.")


async def node_edit(store: Store, options: Options) -> None:
    on = host.identity() if (options.target or "").startswith(UNIX) else ""
    await store.change(lambda tx: rows.edit(tx, options.name, options.target, options.endpoint, on))


async def node_drain(store: Store, options: Options) -> None:
    await store.change(lambda tx: rows.drain(tx, options.name, True))
    explain(f"node {options.name} takes no new servers; those that it has go on, and take accounts")


async def node_undrain(store: Store, options: Options) -> None:
    await store.change(lambda tx: rows.drain(tx, options.name, False))


async def node_list(store: Store, options: Options) -> None:
    nodes = await store.read(rows.listed)
    reports = await with_agents(store, lambda agents: asyncio.gather(*(_report(store, agents, node) for node in nodes)))
    now = time.time()
    printed_table(TITLES, [_columns(Condition(*each, now)) for each in zip(nodes, reports, strict=True)])


def _columns(one: Condition) -> tuple[str, ...]:
    node, status = one.node, one.report.status
    of_agent = ["-"] * 5
    if status is not None:
        ends = one.certificate_expires
        until = "-" if ends is None else f"{datetime.fromtimestamp(ends, UTC):%F}"
        clock = "-" if status.clock_offset is None else f"{status.clock_offset:+.1f}s"
        of_agent = [str(one.failed_accounts), str(status.drift_count), clock, until, status.version or "-"]
    revisions = (node.revision, node.acknowledged, status.applied_revision if status else "-", one.pending)
    state = f"{one.state}: {one.problem}" if one.problem else one.state
    where = (node.epoch or "-", node.endpoint or "-", state + (" (drained)" if node.drained else ""))
    return node.name, node.target, *map(str, revisions), *of_agent, *where


async def _report(store: Store, agents: Agents, node: Node) -> Report:
    try:
        status = await agents.status(node)
    except AgentUnreachable as error:
        return Report(away=str(error), cause=error.cause)
    compared = await store.read(lambda tx: changes.compared(tx, node.name, status.held))
    return Report(status, contested=compared.contested)


async def node_remove(store: Store, options: Options) -> None:
    await store.change(lambda tx: rows.remove(tx, options.name))
    explain(f"node {options.name} is forgotten here; its agent keeps what it holds")


async def node_resync(store: Store, options: Options) -> int:
    node = await store.read(lambda tx: rows.found(tx, options.name))
    if options.show_difference:
        held = await with_agents(store, lambda agents: agents.held(node))
        snapshot = await store.read(lambda tx: changes.snapshot(tx, node.name))
        return _show(held, tuple(objects_of(snapshot)))
    status = await with_agents(store, lambda agents: agents.status(node))
    await store.change(lambda tx: rows.resync(tx, node.name, status.held))
    explain(f"node {node.name} gets everything anew within seconds, without a drop on sessions that are right")
    return 0


def _show(held: Sequence[HeldObject], wanted: Sequence[HeldObject]) -> int:
    """A line for each object that differs, and the counts."""
    on_node, in_database = _by_key(held), _by_key(wanted)
    counts = {"only on the node": 0, "only in the database": 0, "different": 0}
    for key in sorted(on_node.keys() | in_database.keys()):
        here, there = on_node.get(key), in_database.get(key)
        if here is None or there is None:
            what, detail = ("only on the node", _told(here)) if here else ("only in the database", _told(there))
        elif here.fields != there.fields:
            what, detail = "different", _told(there) + ": " + ", ".join(_changes(here.fields, there.fields))
        else:
            continue
        counts[what] += 1
        print(plain(f"{what}: {detail}"))
    explain(f"the node holds {len(on_node)} servers and accounts, the database {len(in_database)}")
    explain(", ".join(f"{count} {what}" for what, count in counts.items()))
    return DIFFERENT if any(counts.values()) else 0


def _by_key(objects: Sequence[HeldObject]) -> dict[tuple[str, str], HeldObject]:
    return {(one.kind, one.key): one for one in objects}


def _told(one: HeldObject | None) -> str:
    assert one is not None
    return f"{one.kind} {one.name} {one.fields['address']}"


def _changes(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    return [
        f"{name} {here[name] or '-'} on the node, {there[name] or '-'} here"
        for name in there
        if here[name] != there[name]
    ]
