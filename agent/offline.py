"""What the command line can tell without the running agent: the plan of a resync, and the doctor's findings.

Reads only; beside a running agent too.
"""

from __future__ import annotations

from typing import Any

from agent.config import Config
from agent.errors import AgentError, KernelError, StoreError
from agent.kernel.interfaces import uplink
from agent.kernel.link import choose_mode
from agent.kernel.probe import Finding, probe
from agent.store import open_store
from agent.usage import Usage
from agent.wiring import LinuxKernel
from agent.writer import Writer


def read_plan(config: Config) -> list[str]:
    """One line for each kernel object that a resync would add, change or remove. Raises AgentError."""
    if not config.state.exists():
        raise StoreError(f"{config.state} does not exist: the agent has not run here yet")
    store = open_store(config.state)
    try:
        desired = store.load()
        if desired is None:
            raise AgentError("the gateway has not asked for anything yet; a resync would leave the kernel as it is")
        kernel = LinuxKernel(choose_mode(config.wireguard), config.uplink)
        diffs = Writer(kernel, Usage(store, lambda: 0.0)).plan(desired)
    finally:
        store.close()
    lines = []
    for part, diff in diffs.items():
        for verb, values in (("add", diff.add), ("change", diff.change), ("remove", diff.remove)):
            lines += [f"{verb:6}  {part:10}  {_object(value)}" for value in values.values()]
    return lines


def _object(value: Any) -> str:
    return repr(value)  # secrets have a blank repr


def diagnose(config: Config) -> tuple[list[Finding], list[str], bool]:
    """The findings, what is chosen and why, and whether the agent can work here."""
    findings = list(probe())
    choices, able = [], True
    try:
        mode = choose_mode(config.wireguard)
        choices.append(f"WireGuard: {mode} (wireguard = {config.wireguard!r})")
    except KernelError as error:
        choices.append(f"WireGuard: {error}")
        able = False
    try:
        choices.append(f"uplink: {uplink(config.uplink)} (uplink = {config.uplink!r})")
    except KernelError as error:
        choices.append(f"uplink: {error}")
        able = False
    choices.append("marks: iptables (legacy tables; the only backend so far)")
    missing = [finding.name for finding in findings if finding.needed and not finding.works]
    if missing:
        choices.append(f"this host cannot run the agent yet; missing: {', '.join(missing)}")
        able = False
    return findings, choices, able
