"""What this kernel and host can do, found out by doing it.

Owns the trials; touches nothing that anybody uses: all of them happen in a scratch network namespace, on its loopback.
They use the very code that shapes, marks and translates, send real packets and look where these went, because a kernel
may accept what it then ignores. Called by `wirelane-agent doctor`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from agent.errors import KernelError
from agent.kernel.host import conntrack, interfaces
from agent.kernel.host.interfaces import Interface
from agent.kernel.host.scratch import in_scratch_namespace
from agent.kernel.iptables import entries, tables, xtables
from agent.kernel.tc import shaper
from agent.kernel.trials import nftables as nft_trials
from agent.kernel.trials.backend import BACKENDS, Backend
from agent.kernel.trials.loopback import (
    ADDRESS,
    DATAGRAM,
    LOOPBACK,
    MARK,
    MINOR,
    PAYLOAD,
    WAIT_SECONDS,
    connect,
    open_socket,
    packets_in_class,
    send,
    talk,
)
from agent.objects import Class, Diff, Qdisc, Scope

DEADLINE = 20.0  # seconds for all trials together; they take about a tenth of a second
TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One trial. `needed`: without it the agent cannot work here at all, or, if it is of a `backend`, not with that."""

    name: str
    works: bool
    needed: bool
    detail: str
    backend: Backend | None = None


Capabilities = tuple[Finding, ...]


def complete(findings: Sequence[Finding]) -> tuple[Backend, ...]:
    """The backends that have everything they need."""
    lacking = {finding.backend for finding in findings if finding.needed and not finding.works}
    return tuple(backend for backend in BACKENDS if backend not in lacking)


def probe() -> Capabilities:
    """All trials. Raises KernelError where this process may not make a namespace (root may)."""
    return in_scratch_namespace(_try_all, DEADLINE)


def _try_all() -> Capabilities:
    interfaces.set_interface(_interface(LOOPBACK), state="up")
    interfaces.add_address(_interface(LOOPBACK), IPv4Interface(f"{ADDRESS}/32"))
    return tuple(_tried(*trial) for trial in TRIALS)


def _tried(name: str, needed: bool, trial: Callable[[], str], backend: Backend | None = None) -> Finding:
    try:
        return Finding(name, True, needed, trial(), backend)
    except (KernelError, OSError, subprocess.SubprocessError) as error:
        return Finding(name, False, needed, str(error), backend)


# -- WireGuard ----------------------------------------------------------------------------------------------------


def _try_wireguard() -> str:
    name = f"wlp{os.getpid()}"
    interfaces.add_wireguard(name)
    try:
        if _interface(name).kind != "wireguard":
            raise KernelError("the kernel made a link of another kind")
    finally:
        interfaces.remove_interface(name)
    return "a WireGuard link was made"


def _try_wireguard_go() -> str:
    program = shutil.which("wireguard-go")
    if program is None:
        raise KernelError("not found: install the package wireguard-go")
    subprocess.run([program, "--version"], check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=5)
    return program


def _try_tun() -> str:
    """Makes a TUN device and takes a packet out of it that was sent into it."""
    name = f"wlt{os.getpid()}"
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(file, TUNSETIFF, struct.pack("=16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
        device = _interface(name)
        interfaces.add_address(device, IPv4Interface("203.0.113.1/24"))
        interfaces.set_interface(device, state="up")
        with open_socket("203.0.113.1") as door:
            door.sendto(PAYLOAD, ("203.0.113.2", 9))
        give_up = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < give_up:
            try:
                packet = os.read(file, 2048)
            except BlockingIOError:
                time.sleep(0.005)
                continue
            if len(packet) == DATAGRAM and packet[12:20] == socket.inet_aton("203.0.113.1") + bytes([203, 0, 113, 2]):
                return "a packet came out of a TUN device"
        raise KernelError("a packet sent into a TUN device did not come out of it")
    finally:
        os.close(file)


# -- shaping ------------------------------------------------------------------------------------------------------


def _try_classes() -> str:
    scope = Scope(frozenset(), LOOPBACK)
    for error in shaper.Qdiscs().apply(Diff(add={LOOPBACK: Qdisc(LOOPBACK)})).values():
        raise error
    for error in shaper.Classes().apply(Diff(add={(LOOPBACK, MINOR): Class(LOOPBACK, MINOR, 100)})).values():
        raise error
    if not shaper.Qdiscs().read(scope):
        raise KernelError("root qdisc and classifier did not read back as written")
    before = packets_in_class()
    send(3, mark=MARK)
    marked = packets_in_class() - before
    send(3)
    send(3, mark=MARK + 1)
    others = packets_in_class() - before - marked
    if (marked, others) != (3, 0):
        raise KernelError(f"of 3 marked packets {marked} went into their class, of 6 others {others}")
    return "marked packets went into their class, others did not"


def _try_fq_codel() -> str:
    if shaper.leaf_kind() != "fq_codel":
        raise KernelError("not in this kernel: classes get a bfifo of about 100 ms instead")
    return "classes get an fq_codel leaf"


# -- legacy x_tables ----------------------------------------------------------------------------------------------


def _try_mark() -> str:
    packets, octets = _counted("mangle", "OUTPUT", entries.mark(MARK), lambda: send(3))
    if (packets, octets) != (3, 3 * DATAGRAM):
        raise KernelError(f"the rule counted {packets} packets and {octets} bytes of 3 and {3 * DATAGRAM}")
    return "packets were marked and counted"


def _try_marked_class() -> str:
    """A MARK rule and the classifier together, which is the agent's way of shaping."""
    before = packets_in_class()
    _counted("mangle", "OUTPUT", entries.mark(MARK), lambda: send(3))
    found = packets_in_class() - before
    if found != 3:
        raise KernelError(f"of 3 packets marked by a rule {found} went into their class")
    return "packets marked by a rule went into their class"


def _try_conntrack() -> str:
    packets, _ = _counted("filter", "INPUT", entries.jump("ACCEPT"), talk, match=entries.established())
    if packets != 1:
        raise KernelError(f"of a question and its answer {packets} packets were taken for answers")
    return "an answer was told from a question"


def _try_forgetting() -> str:
    for trouble in conntrack.warnings(Scope(frozenset(), "")):
        raise KernelError(trouble)
    return "Linux tells of its connections"


def _try_tcpmss() -> str:
    clamp, syn = entries.tcpmss_clamp(), entries.tcp_syn()
    packets, _ = _counted("mangle", "OUTPUT", clamp, connect, match=syn, protocol=socket.IPPROTO_TCP)
    if packets < 1:
        raise KernelError("the rule met no SYN of a connection")
    return "the SYN of a connection went through it"


def _try_snat() -> str:
    return _translated("127.0.0.5", entries.snat(IPv4Address("127.0.0.9")), "127.0.0.9")


def _try_masquerade() -> str:
    return _translated("127.0.0.6", entries.masquerade(), ADDRESS)


def _translated(source: str, target: bytes, wanted: str) -> str:
    seen: list[str] = []
    _counted("nat", "POSTROUTING", target, lambda: seen.append(talk(source)), source=IPv4Network(source))
    if seen != [wanted]:
        raise KernelError(f"a packet from {source} should have come from {wanted} and came from {seen[0]}")
    return "the source address was translated"


def _counted(
    table: str,
    chain: str,
    target: bytes,
    traffic: Callable[[], object],
    *,
    match: bytes = b"",
    protocol: int = socket.IPPROTO_UDP,
    source: IPv4Network = entries.ANYWHERE,
) -> tuple[int, int]:
    """Makes a rule on the loopback, runs `traffic`, reads the rule's packets and bytes, removes it."""
    came_in, goes_out = (LOOPBACK, "") if chain == "INPUT" else ("", LOOPBACK)
    rule = entries.entry(target, match=match, protocol=protocol, source=source, came_in=came_in, goes_out=goes_out)
    xtables.transact(table, lambda transaction: transaction.append(chain, rule))
    try:
        traffic()
        found = tables.read(table).rules(chain)
    finally:
        xtables.transact(table, lambda transaction: transaction.delete(chain, 0))
    return found[0].packets, found[0].octets


def _interface(name: str) -> Interface:
    found = interfaces.read_interface(name)
    if found is None:
        raise KernelError(f"the interface {name} is not there")
    return found


Trial = tuple[str, bool, Callable[[], str]] | tuple[str, bool, Callable[[], str], Backend]
TRIALS: tuple[Trial, ...] = (
    ("WireGuard in the kernel", False, _try_wireguard),
    ("wireguard-go", False, _try_wireguard_go),
    ("TUN device", False, _try_tun),
    ("HTB and classifier", True, _try_classes),
    ("fq_codel", False, _try_fq_codel),
    ("connections forgotten", False, _try_forgetting),
    ("iptables MARK with counters", True, _try_mark, "iptables"),
    ("iptables MARK to class", True, _try_marked_class, "iptables"),
    ("iptables conntrack match", False, _try_conntrack, "iptables"),
    ("iptables TCPMSS", True, _try_tcpmss, "iptables"),
    ("iptables SNAT", True, _try_snat, "iptables"),
    ("iptables MASQUERADE", True, _try_masquerade, "iptables"),
    *((name, True, trial, "nftables") for name, trial in nft_trials.TRIALS),
)
