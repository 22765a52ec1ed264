"""One pass: reads what Linux holds, compares it with what is wanted, and makes the difference, in the one right order.

The blocking half of the one writer. reconcile.py owns it and calls it, passes on the writer thread. It keeps
the last full reading (`found`) up to date with what it did, so that a change of k accounts costs k, and forgets it when
a pass breaks off: the kernel is read, not remembered.

The order of a pass is steps.py's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

from agent.desired import Desired
from agent.diff import Diffs, diff, diffs, diffs_of
from agent.doors import Kernel
from agent.endpoints import Endpoints
from agent.errors import BrokenStore, KernelError, StoreError
from agent.misfits import of_accounts, of_servers
from agent.model import IKEV2_DEVICE, Address
from agent.objects import Diff, Scope
from agent.parts import (
    CLASSES,
    FORWARDING,
    GATE,
    LINKS,
    LOGINS,
    MARKS,
    PARTS,
    PEERS,
    QDISCS,
    RESPONDER,
    WAYS_IN,
    Part,
)
from agent.report import Report
from agent.steps import Pass
from agent.usage import Usage, Used
from agent.wanted import Wanted, scope_of, wanted, wanted_accounts
from agent.ways import closed


class Writer:
    """Call every method on one thread; `knows_kernel` on any, while no other runs but a sample, `counted` on any."""

    def __init__(self, kernel: Kernel, usage: Usage) -> None:
        self._kernel = kernel
        self._usage = usage
        self._endpoints = Endpoints(kernel)
        self._remembered: set[Address] = set()  # whose connections are still to be forgotten
        self._found: Wanted | None = None  # None = not to be trusted
        self._applied: Desired | None = None  # what `found` was made equal to

    @property
    def counted(self) -> Used:
        return self._usage.counted

    def knows_kernel(self, desired: Desired) -> bool:
        """Can `touched` be used, or is a full pass due?"""
        return self._found is not None and self._applied is not None and self._applied.servers == desired.servers

    def full(self, desired: Desired) -> Report:
        """Reads everything and repairs it. Raises KernelError if something cannot even be read."""
        self._found = None
        lost = self._kernel.keep_answers(bool(desired.servers))  # at once: classes on a new uplink take their time
        try:
            uplink = self._kernel.uplink()
        except KernelError:
            self._cut_off(desired)
            self._close_ways(desired)
            raise
        mtu = self._kernel.tunnel_mtu(uplink)
        want = wanted(desired, uplink, self._usage.recent() if self._applied is None else (), mtu)
        try:
            found = self.read(want, uplink)
        except KernelError:
            self._cut_off(desired)
            raise
        is_whole = all(one.is_read for one in found[LINKS].values())
        self._usage.begin(desired.revision, found[MARKS])
        self._endpoints.read(found[PEERS], self._applied, desired)
        disk_trouble = self._observed(desired, found)
        addresses = self._usage.addresses().union(desired.by_address)
        differ = diffs(want, found)
        report = self._finish(desired, self._pass(desired, uplink, found, differ, addresses), desired.accounts)
        if not is_whole:
            self._found = None  # a link whose peers nobody knows: each change begins with another look
        report.refuse((0, name, reason) for name, reason in of_servers(desired).items())
        report.fail(0, "", lost)
        scope = Scope(frozenset(want[LINKS]), uplink)
        report.warnings, report.problem = self._kernel.warnings(scope), self._kernel.problem(scope)
        report.refused_connections = self._kernel.refused_connections()
        report.networks, report.listening = self._kernel.host_networks(), self._kernel.listening()
        report.tunnel_mtu = mtu
        report.responder = self._kernel.responder()
        if disk_trouble:
            raise disk_trouble
        return report

    def _cut_off(self, desired: Desired) -> None:
        """Where something cannot be read nothing can be built, but who must not be let in any more goes all the same,
        wherever that can be seen."""
        want = wanted(desired, "")
        scope = self._seen(want)
        for part in WAYS_IN:
            with suppress(KernelError):
                unwanted = diff(want[part], self._kernel.door(part).read(scope)).remove
                if unwanted:
                    self._kernel.door(part).apply(Diff(remove=unwanted))

    def _close_ways(self, desired: Desired) -> None:
        """An uplink that comes back under its name must not find the way open before its classes are there."""
        want, ways = wanted(desired, ""), self._kernel.door(FORWARDING)
        ways.apply(closed(want[FORWARDING], ways.read(self._seen(want))))

    def _seen(self, want: Wanted) -> Scope:
        """All links, those that nobody wants among them, as far as that can be told."""
        links: Collection[str] = ()
        with suppress(KernelError):
            links = self._kernel.door(LINKS).read(scope_of(want, ""))
        return Scope(frozenset({*want[LINKS], *links}), "")

    def _observed(self, desired: Desired, found: Wanted) -> StoreError | None:
        """Counts what was read. A full disk must not keep customers of a rebooted node out: it is told afterwards."""
        sample = {address: mark.counters for address, mark in found[MARKS].items()}
        try:
            self._usage.observe(sample, desired.by_address, desired.time_zone)
        except BrokenStore:
            raise
        except StoreError as error:
            return error
        return None

    def touched(self, desired: Desired, account_ids: Iterable[int], uplink: str) -> Report:
        """Makes only these accounts right, at their cost alone. Only where `knows_kernel`."""
        assert self._found is not None and self._applied is not None
        ids, found = tuple(account_ids), self._found
        self._usage.begin(desired.revision)
        self._found = None  # until the pass has ended well
        want, old = wanted_accounts(desired, ids, uplink), wanted_accounts(self._applied, ids, uplink)
        differ = diffs_of((want, old), want, found)
        accounts = (state.accounts.get(i) for state in (self._applied, desired) for i in ids)
        addresses = {address for account in accounts if account for address in account.addresses}
        return self._finish(desired, self._pass(desired, uplink, found, differ, addresses), ids)

    def _pass(self, desired: Desired, uplink: str, found: Wanted, differ: Diffs, addresses: Iterable[Address]) -> Pass:
        known = self._kernel, self._usage, self._endpoints, self._remembered, self._applied
        return Pass(*known, desired, uplink, found, differ, addresses)

    def _finish(self, desired: Desired, one: Pass, account_ids: Iterable[int]) -> Report:
        report = one.run()
        report.refuse(of_accounts(desired, account_ids))
        self._found, self._applied = one.found, desired  # what was refused is left to the full pass that follows
        return report

    def read(self, want: Wanted, uplink: str) -> Wanted:
        """Everything of ours that Linux holds."""
        begin = scope_of(want, uplink)
        first: dict[Part[Any, Any], dict[Any, Any]] = {
            LINKS: self._kernel.door(LINKS).read(begin),
            RESPONDER: self._kernel.door(RESPONDER).read(begin),
        }
        scope = Scope(begin.interfaces.union(*first.values()), uplink)
        others: dict[Part[Any, Any], dict[Any, Any]] = {
            part: self._kernel.door(part).read(scope) for part in PARTS if part not in first
        }
        if want[RESPONDER] and not all(one.is_sound for one in first[RESPONDER].values()):
            # It will be started anew, and what is on its device goes with that.
            for part in (QDISCS, CLASSES, LOGINS, GATE):
                others[part] = {key: one for key, one in others[part].items() if part.device(key) != IKEV2_DEVICE}
        return Wanted({**first, **others})

    def plan(self, desired: Desired) -> Diffs:
        """What a full pass would change. Changes nothing."""
        uplink = self._kernel.uplink()
        want = wanted(desired, uplink, mtu=self._kernel.tunnel_mtu(uplink))
        return diffs(want, self.read(want, uplink))

    def sample(self, desired: Desired) -> None:
        """Takes the kernel's counters into the totals; and forgets where clients were who do not come back."""
        self._endpoints.forget(desired)
        self._usage.observe(self._kernel.marks.counters(), desired.by_address, desired.time_zone)
