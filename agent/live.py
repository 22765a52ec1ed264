"""Live reads: one account, one server, or who is in, as Linux has them now. Blocking; they change nothing that lasts.

Called by the gRPC door on the reader thread, with doors of its own, so that a long pass of the writer does not keep
anybody waiting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from agent.desired import Desired
from agent.doors import LiveKernel
from agent.errors import NotFound
from agent.model import Account, Address, Server, minor
from agent.objects import Counters, PeerState, SessionState, ShownRules
from agent.usage import Usage


class Look(Enum):
    """What of an account is read. Marks wait for the lock of iptables, which others hold too; the rest does not."""

    EVERYTHING = 0
    PEER = 1
    MARKS = 2
    CLASSES = 3


@dataclass(frozen=True, slots=True)
class LiveAccount:
    """None = not there, or not looked at. `uplink`: "" = not looked at."""

    account: Account
    peer: PeerState | None
    counters: Counters | None
    uplink: str
    interface: str
    upload_class: str | None
    download_class: str | None
    counters_ipv6: Counters | None = None  # of its second address


@dataclass(frozen=True, slots=True)
class LiveServer:
    """Texts of the root qdiscs: None = there is none of ours."""

    rules: ShownRules
    uplink: str
    interface: str
    uplink_root: str | None
    link_root: str | None


class LiveReads:
    """Call it on the reader thread only. `kernel`: doors of that thread."""

    def __init__(self, kernel: LiveKernel, usage: Usage) -> None:
        self._kernel = kernel
        self._usage = usage

    def read_account(self, desired: Desired | None, account_id: int, look: Look = Look.EVERYTHING) -> LiveAccount:
        """A disabled account has nothing there; its counters are where they stood. Raises NotFound, KernelError."""
        account = desired.accounts.get(account_id) if desired else None
        if desired is None or account is None:
            raise NotFound(f"there is no account {account_id} on this node")
        kernel, interface = self._kernel, desired.servers[account.server].interface
        peer, marks, classes = (look in (Look.EVERYTHING, one) for one in (Look.PEER, Look.MARKS, Look.CLASSES))
        uplink = kernel.uplink() if classes else ""
        if not account.enabled:
            stood = {address: self._usage.start_of(address, account.id) for address in account.addresses}
            first, second = _of_both(account, stood)
            return LiveAccount(account, None, first, uplink, interface, None, None, second)
        state = kernel.peer_states(interface).get(account.public_key) if peer else None
        first, second = _of_both(account, kernel.marks.counters(account.addresses) if marks else {})
        return LiveAccount(
            account,
            state,
            first,
            uplink,
            interface,
            kernel.class_text(uplink, minor(account.mark)) if classes and account.upload else None,
            kernel.class_text(interface, minor(account.mark)) if classes and account.download else None,
            second,
        )

    def read_server(self, desired: Desired | None, server: str) -> LiveServer:
        """Raises NotFound, KernelError."""
        _, found = _server(desired, server)
        kernel, uplink, interface, ipv6 = self._kernel, self._kernel.uplink(), found.interface, found.address_ipv6
        rules = kernel.server_rules(interface, found.address.network, ipv6.network if ipv6 else None)
        return LiveServer(rules, uplink, interface, kernel.root_text(uplink), kernel.root_text(interface))

    def read_sessions(self, desired: Desired | None, server: str) -> list[tuple[SessionState, int]]:
        """Who is in by IKEv2, with the ids of their accounts. `server`: "" = all. Raises NotFound, KernelError."""
        if desired is None or (server and server not in desired.servers):
            raise NotFound(f"there is no server {server!r} on this node")
        owned = ((state, desired.by_username.get(state.username, 0)) for state in self._kernel.sessions())
        return [(state, i) for state, i in owned if i and server in ("", desired.accounts[i].server)]

    def disconnect(self, desired: Desired | None, account_id: int) -> bool:
        """Was it in by IKEv2? Raises NotFound, KernelError."""
        account = desired.accounts.get(account_id) if desired else None
        if account is None:
            raise NotFound(f"there is no account {account_id} on this node")
        return account.login is not None and self._kernel.disconnect(account.login.username)

    def read_peers(self, desired: Desired | None, server: str) -> list[tuple[PeerState, int]]:
        """The peers of a server with the ids of their accounts (0 = unknown). Raises NotFound, KernelError."""
        desired, found = _server(desired, server)
        states = self._kernel.peer_states(found.interface)
        return [(state, desired.by_key.get((server, key), 0)) for key, state in states.items()]


def _of_both(account: Account, counted: Mapping[Address, Counters]) -> tuple[Counters | None, Counters | None]:
    """Of each family."""
    ipv6 = account.address_ipv6
    return counted.get(account.address), counted.get(ipv6) if ipv6 else None


def _server(desired: Desired | None, server: str) -> tuple[Desired, Server]:
    found = desired.servers.get(server) if desired else None
    if desired is None or found is None:
        raise NotFound(f"there is no server {server!r} on this node")
    return desired, found
