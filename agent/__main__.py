"""Command line of the agent: run, check, plan, status, doctor, enrol, clear.

Exit status: 0 well; 1 something is wrong (and said on standard error); 2 the command line or configuration is, or, of
`plan`, something differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from agent.config import DEFAULT_PATH, Config, as_toml, load_config
from agent.errors import AgentError, ConfigError

DIFFERS = 2


def run(config: Config, options: argparse.Namespace) -> int:
    from agent.wiring import serve, set_up_logging

    set_up_logging(config.log_level)
    asyncio.run(serve(config))
    return 0


def check(config: Config, options: argparse.Namespace) -> int:
    print(as_toml(config))
    return 0


def plan(config: Config, options: argparse.Namespace) -> int:
    from agent.offline import read_plan

    found = read_plan(config)
    print(json.dumps(found.json(), indent=2) if options.json else "\n".join(map(_plain, found.lines())))
    return DIFFERS if found.steps else 0


def clear(config: Config, options: argparse.Namespace) -> int:
    from agent.offline import clear

    report = clear(config)
    for failure in report.failures.values():
        _complain(f"{failure.subject or 'node'}: {failure.reason}")
    print(f"{len(report.changes)} objects are gone from the kernel; `run` brings back what was asked for")
    return 1 if report.failures else 0


def status(config: Config, options: argparse.Namespace) -> int:
    from agent.rpc.client import read_status

    answer = read_status(config.listen)
    print(json.dumps(answer, indent=2) if options.json else _table(answer))
    return 1 if answer["problem"] or answer["failures"] else 0


def doctor(config: Config, options: argparse.Namespace) -> int:
    from agent.offline import diagnose

    findings, choices, able = diagnose(config)
    if options.json:
        print(json.dumps({"findings": [asdict(f) for f in findings], "choices": choices, "able": able}, indent=2))
        return 0 if able else 1
    width = max(len(f.name) for f in findings)
    for finding in findings:
        print(f"{'yes' if finding.works else 'no ':3}  {finding.name:{width}}  {_plain(finding.detail)}")
    print()
    for choice in choices:
        print(_plain(choice))
    return 0 if able else 1


def enrol(config: Config, options: argparse.Namespace) -> int:
    from agent.enrol import APART_SECONDS, apart
    from agent.joining import join

    found = join(options.token_file, options.gateway, config.identity, datetime.now(UTC))
    print(
        _plain(
            f"this host is node {found.identity.node} now, until {found.identity.expires:%Y-%m-%d}; it renews itself"
        )
    )
    if not config.listen_fleet:
        listen = f'listen_fleet = "0.0.0.0:{found.address.rpartition(":")[2]}"'
        print(_plain(f"next: {listen} in {options.config or DEFAULT_PATH}, then restart the agent"))
    print(_plain(f"gateways will call it at {found.address}"))  # scripts/setup reads the port here
    if abs(found.ahead) > APART_SECONDS:
        _complain(f"this host's clock is {apart(found.ahead)} the gateway's")
    return 0


def _table(answer: dict[str, object]) -> str:
    lists = ("failures", "warnings")
    rows = [(name, value) for name, value in answer.items() if name not in lists]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.replace('_', ' '):{width}}  {'-' if value in ('', None) else value}" for name, value in rows]
    failures = answer["failures"]
    assert isinstance(failures, list)
    lines.append(f"{'failures':{width}}  {len(failures)}")
    lines += [f"  {failure['subject']}: {failure['reason']}" for failure in failures]
    warnings = answer["warnings"]
    assert isinstance(warnings, list)
    lines.append(f"{'warnings':{width}}  {len(warnings)}")
    lines += [f"  {warning}" for warning in warnings]
    return "\n".join(map(_plain, lines))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(_plain(message))


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="wirelane-agent", description="Applies accounts to this node: WireGuard peers, marks, traffic classes."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('wirelane')}")
    parser.add_argument("--config", type=Path, help=f"default {DEFAULT_PATH}; if that is absent, the defaults")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, call: Callable[[Config, argparse.Namespace], int], sentence: str, json_too: bool = False
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=sentence, description=sentence)
        command.set_defaults(call=call)
        if json_too:
            command.add_argument("--json", action="store_true", help="print JSON")
        return command

    add("run", run, "Run the agent until it is told to stop.")
    add("check", check, "Print the configuration in force, or every error in it.")
    add("plan", plan, "Print what a resync would change; status 2 if anything. Changes nothing.", json_too=True)
    add("status", status, "Print how the running agent does.", json_too=True)
    add("doctor", doctor, "Try what this kernel and host can do, and say what is chosen and why.", json_too=True)
    joining = add(
        "enrol", enrol, "Make this host a node of a gateway on another host, with a join token of that gateway."
    )
    joining.add_argument(
        "--token-file", required=True, metavar="FILE", help="where the join token is; -: standard input"
    )
    joining.add_argument("--gateway", default="", metavar="URL", help="of a gateway, in place of the token's")
    add("clear", clear, "Take all tunnels, rules and classes out of the kernel. Not while the agent runs.")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.call(load_config(options.config), options))
    except ConfigError as error:
        for problem in error.problems:
            _complain(f"{problem}")
        return 2
    except AgentError as error:
        _complain(f"{error}")
        return 1
    except BaseExceptionGroup as group:
        expected, bugs = group.split(AgentError)
        if bugs:
            raise
        for line in _messages(expected):
            _complain(f"{line}")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        logging.shutdown()


def _complain(text: str) -> None:
    print(f"wirelane-agent: {_plain(text)}", file=sys.stderr)


def _plain(text: str) -> str:
    """Without anything that moves a terminal's cursor, whatever a path or an interface's name has in it."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _messages(group: BaseExceptionGroup[AgentError] | None) -> list[str]:
    if group is None:
        return []
    return [m for e in group.exceptions for m in (_messages(e) if isinstance(e, BaseExceptionGroup) else [str(e)])]


if __name__ == "__main__":
    sys.exit(main())
