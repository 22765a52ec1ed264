"""Command line of the gateway: serve, migrate, key add|list|revoke, account import|export, check,
authority list|new|use|drop, gateway revoke, node add|token|edit|drain|undrain|list|remove|resync,
server list|move.

Exit status: 0 well; 1 something is wrong (and said on standard error); 2 the command line or configuration is.
Changes made here reach a running gateway by themselves: it looks into the database every few seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import pwd
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from gateway import authority_commands, bulk_commands, node_commands, server_commands, usage_commands
from gateway.config import DEFAULT_PATH, Config, advice, as_toml, load_config
from gateway.errors import ConfigError, GatewayError, OutputLost
from gateway.keys import Keys
from gateway.progress import explain, plain, printed_table
from gateway.store import Store

Options = argparse.Namespace


# -- the commands -----------------------------------------------------------------------------------------------------


def serve(config: Config, options: Options) -> int:
    import uvloop

    from gateway import wiring

    wiring.start_logging(config.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(wiring.serve(config))
    return 0


def migrate(config: Config, options: Options) -> int:
    from gateway.wiring import copy_database, prepare_database

    if options.source is None:
        asyncio.run(prepare_database(config))
        return 0
    counts = asyncio.run(copy_database(config, options.source))
    explain("copied: " + ", ".join(f"{count} {table}" for table, count in counts.items() if count))
    explain("start the gateway with this database, and never again with the other one: put that aside as a backup")
    return 0


def check(config: Config, options: Options) -> int:
    from gateway.wiring import check_files, check_port, set_by_api

    check_files(config)
    check_port(config)
    print(as_toml(config))
    for sentence in advice(config):
        explain(f"wirelane-gateway: warning: {sentence}")
    try:
        for sentence in asyncio.run(set_by_api(config)):
            explain(f"wirelane-gateway: {sentence}")
    except GatewayError as error:
        explain(f"wirelane-gateway: warning: whether the API set something is not known: {error}")
    return 0


async def key_add(store: Store, options: Options) -> None:
    secret = await Keys(store).add(options.name, options.ip)
    print(secret.reveal(), flush=True)
    explain(f"key {options.name}: the line above is the access hash, shown only this once; send it as the cookie")
    explain(f"access_hash. It works for calls from {', '.join(options.ip)}.")


async def key_list(store: Store, options: Options) -> None:
    keys = await Keys(store).list()
    printed_table(
        ("NAME", "NETWORKS", "CREATED"),
        [(key.name, ",".join(key.networks), f"{key.created:%Y-%m-%d %H:%M}") for key in keys],
    )


async def key_revoke(store: Store, options: Options) -> None:
    await Keys(store).revoke(options.name)
    explain(f"key {options.name} is revoked; running gateways refuse it within seconds")


# -- the command line -------------------------------------------------------------------------------------------------


def _on_store(work: Callable[[Store, Options], Awaitable[int | None]]) -> Callable[[Config, Options], int]:
    """`work` answers the exit status; None = 0."""

    async def run(config: Config, options: Options) -> int:
        from gateway.wiring import opened_store

        options.public_url = config.public_url
        async with opened_store(config) as store:
            return await work(store, options) or 0

    def call(config: Config, options: Options) -> int:
        return asyncio.run(run(config, options))

    return call


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(plain(message))


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="wirelane-gateway", description="REST API, database, and sync with the agents."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('wirelane')}")
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"default {DEFAULT_PATH}, which may be absent")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        to: argparse._SubParsersAction[argparse.ArgumentParser],
        name: str,
        call: Callable[[Config, Options], int],
        sentence: str,
    ) -> argparse.ArgumentParser:
        command = to.add_parser(name, help=sentence, description=sentence)
        command.set_defaults(call=call)
        return command

    add(commands, "serve", serve, "Run the gateway until it is told to stop.")
    add(commands, "migrate", migrate, "Make the database, or bring its schema up to this version.").add_argument(
        "--from", dest="source", metavar="URL", help="copy everything of this database into the new, empty one"
    )
    add(commands, "check", check, "Print the configuration in force, or every mistake in it.")
    keys = commands.add_parser("key", help="Who may call the API.").add_subparsers(required=True, metavar="ACTION")
    command = add(keys, "add", _on_store(key_add), "Make an access key; prints its hash, once.")
    command.add_argument("name", metavar="NAME")
    command.add_argument("--ip", action="append", required=True, metavar="CIDR", help="from where; may be repeated")
    add(keys, "list", _on_store(key_list), "List the access keys.")
    add(keys, "revoke", _on_store(key_revoke), "Revoke an access key.").add_argument("name", metavar="NAME")
    authority_commands.add_parsers(commands, add, _on_store)
    node_commands.add_parsers(commands, add, _on_store)
    server_commands.add_parsers(commands, add, _on_store)
    usage_commands.add_usage(commands).set_defaults(call=_on_store(usage_commands.show_usage))
    accounts = commands.add_parser("account", help="Accounts by the thousand.")
    bulk_commands.add_commands(accounts.add_subparsers(required=True, metavar="ACTION"))
    return parser


def _become_owner(config: Config) -> None:
    """Root takes the place of the user whom the gateway's folder belongs to, so that no file in it becomes root's."""
    folder = (config.sqlite_file or Path(config.key_file)).parent
    if os.geteuid() != 0 or not folder.is_dir():
        return
    owner = folder.stat()
    if owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
        _forget_root(owner.st_uid)


def _forget_root(uid: int) -> None:
    """PostgreSQL's client looks for certificates in HOME and takes the user's name from the environment."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:  # a number without a name
        os.environ["HOME"] = "/nonexistent"
        return
    os.environ.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s")
    try:
        config = load_config(options.config)
        if prepare := getattr(options, "prepare", None):
            prepare(options)
        _become_owner(config)
        status = int(options.call(config, options))
        sys.stdout.flush()
        return status
    except ConfigError as error:
        for problem in error.problems:
            explain(f"wirelane-gateway: {problem}")
        return 2
    except (OutputLost, BrokenPipeError) as error:
        if isinstance(error, OutputLost) and not error.silent:
            explain(f"wirelane-gateway: {error}")
        # What is left in the buffer would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except GatewayError as error:
        explain(f"wirelane-gateway: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
