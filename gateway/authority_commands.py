"""`wirelane-gateway authority list|new|use|drop` and `gateway revoke`: who signs certificates, and whose are refused.

An authority takes the place of another in three steps, none of which cuts anybody off: a new one that is trusted but
does not sign; it signs, once all nodes trust it; the old one goes, once all nodes have certificates of the new one.
Called by the command line.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from gateway.agents import Agents
from gateway.authority import new_authority
from gateway.credentials import with_agents
from gateway.errors import AgentUnreachable, Conflict
from gateway.model import Node, Standing
from gateway.progress import explain, printed_table
from gateway.store import Store, authorities, settings
from gateway.store import nodes as node_rows
from gateway.store.authorities import PIN_DIGITS
from gateway.store.transaction import Transaction

Options = argparse.Namespace

MOST_NAMED = 10  # nodes in one message


def add_parsers(commands: Any, add: Callable[..., argparse.ArgumentParser], on_store: Callable[..., Any]) -> None:
    group = commands.add_parser("authority", help="Who signs the certificates of gateways and nodes.")
    actions = group.add_subparsers(required=True, metavar="ACTION")
    add(actions, "list", on_store(authority_list), "List the authorities.")
    add(actions, "new", on_store(authority_new), "Make another one, which is trusted and does not sign yet.")
    command = add(actions, "use", on_store(authority_use), "Let an authority sign from now on.")
    _add_step(command)
    command = add(actions, "drop", on_store(authority_drop), "Trust an authority that does not sign no longer.")
    _add_step(command)
    group = commands.add_parser("gateway", help="Who may call agents.")
    actions = group.add_subparsers(required=True, metavar="ACTION")
    sentence = "Have agents refuse every certificate that a gateway has now; running gateways make new ones."
    add(actions, "revoke", on_store(gateway_revoke), sentence)


def _add_step(command: argparse.ArgumentParser) -> None:
    command.add_argument("pin", metavar="PIN", help="as in the list, or its beginning")
    command.add_argument(
        "--force", action="store_true", help="also if nodes are not ready: those need a new join token afterwards"
    )


async def authority_list(store: Store, options: Options) -> None:
    rows = await store.read(authorities.rows_of)
    printed_table(
        ("PIN", "CREATED", "STATE"),
        [
            (
                row.pin[:PIN_DIGITS],
                f"{datetime.fromtimestamp(row.created, UTC):%Y-%m-%d %H:%M}",
                "signs" if row.signs else "trusted",
            )
            for row in rows
        ],
    )


async def authority_new(store: Store, options: Options) -> None:
    now = datetime.now(UTC)
    made = new_authority(now)

    async def work(tx: Transaction) -> bool:
        is_first = await authorities.listed(tx) is None
        await authorities.add(tx, made, now, signs=is_first)
        return is_first

    is_first = await store.change(work)
    print(made.pin[:PIN_DIGITS], flush=True)
    explain(
        "it is the first one and signs" if is_first else "gateways and nodes trust it within a minute; then `use` it"
    )


async def authority_use(store: Store, options: Options) -> None:
    await _check_nodes(store, options, lambda it: any(pin.startswith(options.pin) for pin in it.authorities))
    await store.change(lambda tx: authorities.use(tx, options.pin))
    explain(
        "it signs from now on; nodes get certificates of it within a minute, and the other one is trusted until `drop`"
    )


async def authority_drop(store: Store, options: Options) -> None:
    await _check_nodes(store, options, lambda it: it.authority != "" and not it.authority.startswith(options.pin))
    await store.change(lambda tx: authorities.drop(tx, options.pin))
    explain("nobody trusts it any more; join tokens that name it let nobody in")


async def _check_nodes(store: Store, options: Options, is_ready: Callable[[Standing], bool]) -> None:
    """Every enrolled node says itself what it has. Raises Conflict."""
    nodes = [node for node in await store.read(node_rows.listed) if node.tls_name and not node.is_local]
    if options.force or not nodes:
        return

    async def ready(agents: Agents, node: Node) -> bool:
        try:
            standing = (await agents.status(node)).standing
        except AgentUnreachable:
            return False
        return standing is not None and is_ready(standing)

    found = await with_agents(store, lambda agents: asyncio.gather(*(ready(agents, node) for node in nodes)))
    behind = [node.name for node, is_there in zip(nodes, found, strict=True) if not is_there]
    if behind:
        more = f" and {len(behind) - MOST_NAMED} more" if len(behind) > MOST_NAMED else ""
        raise Conflict(
            f"{', '.join(behind[:MOST_NAMED])}{more}: away, or not that far yet; running gateways bring it to them "
            "within a minute. --force goes on without them"
        )


async def gateway_revoke(store: Store, options: Options) -> None:
    series = await store.change(settings.begin_series)
    explain(f"series {series} of the gateways' certificates begins: running gateways have one within seconds, and each")
    explain("agent refuses all earlier ones from the moment that one of them has called it")
