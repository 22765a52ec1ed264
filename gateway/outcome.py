"""PURE: whose failure a refusal is, and which refusals stand.

Called by sync.py, which keeps them as the agent said them. Ids of accounts and names of servers name what a caller asks
about; they are of different types, so one set holds both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from gateway.model import Applied, Failure, Patch, Snapshot

MOST_LOGGED = 10  # refusals of one answer; all of them stand in the status

SERVER_WEIGHT = 60  # accounts: 15 kB, each 250 bytes


def outcome(failures: Iterable[Failure], about: Collection[int | str]) -> str:
    """What became of these accounts and servers: "failed" or "applied"."""
    return "failed" if any(_concerns(failure, about) for failure in failures) else "applied"


def standing(known: Iterable[Failure], sent: Patch | Snapshot, applied: Applied) -> tuple[Failure, ...]:
    """What stands refused after an answer: of what was sent, the answer knows better, unless the agent was not done."""
    if applied.outcome != "pending":
        answered = _subjects(sent) if isinstance(sent, Patch) else None
        known = [each for each in known if answered is not None and not _concerns(each, answered)]
    return tuple(dict.fromkeys((*known, *applied.failures)))


def size(patch: Patch) -> int:
    """How many changes it carries."""
    return sum(map(len, (patch.put_servers, patch.remove_servers, patch.put_accounts, patch.remove_accounts)))


def weight(patch: Patch) -> int:
    """As `size`; a server, which may come with certificates and a filter, is as long as many accounts."""
    return size(patch) + (SERVER_WEIGHT - 1) * len(patch.put_servers)


def _concerns(failure: Failure, about: Collection[int | str]) -> bool:
    """Is it of one of these, or of the node as a whole, which is everybody's."""
    if failure.account_id:
        return failure.account_id in about
    return not failure.subject or failure.subject in about


def _subjects(patch: Patch) -> set[int | str]:
    accounts, servers = patch.put_accounts, patch.put_servers
    return {*patch.remove_accounts, *patch.remove_servers, *(a.id for a in accounts), *(s.name for s in servers)}
