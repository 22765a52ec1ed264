"""What the command line can do without the running agent: the plan of a resync, the doctor's findings, and the end.

The plan and the findings only read, beside a running agent too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from cryptography import x509

from agent.config import Config
from agent.desired import Desired
from agent.errors import AgentError, IdentityError, KernelError, StoreError
from agent.identity import load, pin_of
from agent.kernel.linux import LinuxKernel, backend_doors, choose_mode, describe_ikev2, uplink
from agent.kernel.trials import BACKENDS, choose_backend, probe, refusal
from agent.kernel.trials.probe import Finding
from agent.plan import Plan, plan
from agent.report import Report
from agent.store import Store, only_agent, open_store
from agent.usage import Usage
from agent.wiring import linux
from agent.writer import Writer

PIN_DIGITS = 16  # as `wirelane-gateway authority list` shows them


def read_plan(config: Config) -> Plan:
    """What a resync would add, change or remove. Raises AgentError."""
    with _held(config) as (store, desired):
        if desired is None:
            raise AgentError("the gateway has not asked for anything yet; a resync would leave the kernel as it is")
        chosen = choose_backend(config.marks_backend)
        standing = [name for name, doors in backend_doors().items() if name != chosen and doors.marks.is_there()]
        kernel = _kernel(config, standing[0] if standing else chosen)
        diffs = Writer(kernel, Usage(store, lambda: 0.0)).plan(desired)
        return plan(desired, diffs, dict.fromkeys(standing, chosen))


def clear(config: Config) -> Report:
    """Takes everything of ours out of the kernel, counted to the last byte; what was asked for stays in the file.

    Raises AgentError: the agent runs, or Linux refuses something.
    """
    with only_agent(config.state), _held(config) as (store, desired):
        usage = Usage(store, time.time)
        zone = desired.time_zone if desired else "UTC"
        report = Report()
        for backend, doors in backend_doors().items():
            if backend == choose_backend(config.marks_backend) or doors.marks.is_there():
                kernel = _kernel(config, backend)
                report = Writer(kernel, usage).full(Desired(store.epoch, time_zone=zone))
        return report


def _kernel(config: Config, backend: str) -> LinuxKernel:
    mode = choose_mode(config.wireguard)
    return linux(config, mode, backend)


@contextmanager
def _held(config: Config) -> Iterator[tuple[Store, Desired | None]]:
    if not config.state.exists():
        raise StoreError(f"{config.state} does not exist: the agent has not run here yet")
    store = open_store(config.state)
    try:
        yield store, store.load()
    finally:
        store.close()


def diagnose(config: Config) -> tuple[list[Finding], list[str], bool]:
    """The findings, what is chosen and why, and whether the agent can work here."""
    findings = list(probe.probe())
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
    lines, suits = _backends(config, findings)
    beside, harmless = _beside(config)
    lines += beside
    lines.append(describe_ikev2(config.ikev2_esp, config.ikev2_folder))
    lines += known_as(config, datetime.now(UTC))
    missing = [f.name for f in findings if f.needed and not f.works and f.backend is None]
    if missing:
        lines.append(f"this host cannot run the agent yet; missing: {', '.join(missing)}")
    return findings, choices + lines, able and suits and harmless and not missing


def known_as(config: Config, now: datetime) -> list[str]:
    """Who this node is to gateways on other hosts: what its owner compares when one of the two refuses the other."""
    if not config.listen_fleet:
        return []
    try:
        identity = load(config.identity)
        if identity is None:
            return ["problem: listen_fleet is set, and this node is not enrolled: `wirelane-agent enrol`"]
        identity.check(now)
    except IdentityError as error:
        return [f"problem: {error}"]
    pins = ", ".join(pin_of(one)[:PIN_DIGITS] for one in x509.load_pem_x509_certificates(identity.authorities))
    return [
        f"to other hosts: node {identity.node}, {identity.name}, until {identity.expires:%Y-%m-%d}; trusts gateways of "
        f"the authority {pins}; by this host's clock it is {now:%Y-%m-%d %H:%M} UTC"
    ]


def _beside(config: Config) -> tuple[list[str], bool]:
    """What passes packets on here, and what firewalls of this host do to them; False = the node would be useless."""
    try:
        lines, problem = _kernel(config, choose_backend(config.marks_backend)).surroundings()
    except KernelError:  # said already
        return [], True
    return [*lines, *([f"problem: {problem}"] if problem else [])], not problem


# Of CPU, measured among 10,000; see docs/decisions/0006-nftables-beside-iptables.md
GIVES = {
    "iptables": "the specification's own way, shown by iptables-legacy; marks of a new account cost 30 ms among 10,000",
    "nftables": "works without legacy tables, shown by nft; marks of a new account cost 2 ms among any number",
}


def _backends(config: Config, findings: list[Finding]) -> tuple[list[str], bool]:
    """What marks, what the other way would give, and whether the chosen one has all it needs."""
    try:
        chosen = choose_backend(config.marks_backend)
    except KernelError as error:
        return [f"marks: {error}"], False
    whole = probe.complete(findings)
    lines = [f"marks: {chosen} (marks.backend = {config.marks_backend!r}): {GIVES[chosen]}"]
    for other in (backend for backend in BACKENDS if backend != chosen):
        lacks = refusal(other) or ("" if other in whole else "see what is missing above")
        verdict = f"would not work here: {lacks}" if lacks else f"would work too: {GIVES[other]}"
        lines.append(f"marks.backend = {other!r} {verdict}")
    if chosen in whole:
        return lines, True
    lacking = [f.name for f in findings if f.backend == chosen and f.needed and not f.works]
    hint = f"; marks.backend = {whole[0]!r} would do" if whole else ""
    return [*lines, f"this host cannot mark by {chosen}; missing: {', '.join(lacking)}{hint}"], False
