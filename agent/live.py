"""Live reads: one account, or the peers of one server, as Linux has them now. Blocking, never writing.

Called by the gRPC door on the reader thread, with doors of its own, so that a long pass of the writer does not keep
anybody waiting.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.desired import Desired
from agent.errors import NotFound
from agent.model import Account, Counters, PeerState, minor
from agent.parts import LiveKernel


@dataclass(frozen=True, slots=True)
class LiveAccount:
    """None = not there."""

    account: Account
    peer: PeerState | None
    counters: Counters | None
    uplink: str
    interface: str
    upload_class: str | None
    download_class: str | None


def read_account(kernel: LiveKernel, desired: Desired | None, account_id: int) -> LiveAccount:
    """Raises NotFound, KernelError."""
    account = desired.accounts.get(account_id) if desired else None
    if desired is None or account is None:
        raise NotFound(f"there is no account {account_id} on this node")
    interface, uplink = desired.servers[account.server].interface, kernel.uplink()
    states = kernel.peer_states(interface) if account.enabled else {}
    return LiveAccount(
        account,
        states.get(account.public_key),
        kernel.marks.counters().get(account.address),
        uplink,
        interface,
        kernel.class_text(uplink, minor(account.mark)) if account.upload else None,
        kernel.class_text(interface, minor(account.mark)) if account.download else None,
    )


def read_peers(kernel: LiveKernel, desired: Desired | None, server: str) -> list[tuple[PeerState, int]]:
    """The peers of a server with the ids of their accounts (0 = unknown). Raises NotFound, KernelError."""
    found = desired.servers.get(server) if desired else None
    if desired is None or found is None:
        raise NotFound(f"there is no server {server!r} on this node")
    states = kernel.peer_states(found.interface)
    return [(state, desired.by_key.get((server, key), 0)) for key, state in states.items()]
