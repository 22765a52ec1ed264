"""One pass: reads what Linux holds, compares it with what is wanted, and makes the difference, in the one right order.

The blocking half of the one writer. reconcile.py owns it and calls it, passes on the writer thread. It keeps
the last full reading (`found`) up to date with what it did, so that a change of k accounts costs k, and forgets it when
a pass breaks off: the kernel is read, not remembered.

The order of a pass, and what each step is for:

1. peers that go, go first: from here on their accounts pass no packet; then links that go, for their ports; and what
   Linux remembers of connections of addresses that are free now, before anybody gets them (again after step 4, of those
   that peers have left there);
2. a sample, where rules are about to be replaced or removed: the last byte is counted;
3. rules whose address has a new owner start from zero;
4. add and change, PARTS from left to right: whatever shapes and counts an account stands before its peer. A boot with
   thousands of accounts goes slice by slice, those first who were last seen: they wait a second, not for all others.
   Where peers stand already, forwarding to another uplink waits for the classes to be made there (ways.py);
5. another sample if rules go, because a peer may have moved away from their address only in step 4;
6. remove the rest, PARTS from right to left.

Where there are many classes, new ones take Linux long: a walk over all others for each. They are made on a thread of
their own then, beside the marks, and for a new account from the moment its patch has come (`shape_ahead`), beside the
disk. No packet finds its way to them, for the rules that lead there, and the peer, come later. Step 4 takes them over
before it adds or changes a peer, a class, or where a rule leads.

What fails spoils only its account (or its server, if that is what failed): nothing is added or changed that needs it.
What is there already stays, with what shapes and counts it: a customer is neither cut off nor let loose because a
repair failed. Only whose class is gone and cannot be made again is cut off till then, for nothing would limit him.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from agent.desired import Desired
from agent.diff import diff, diff_of, sliced
from agent.errors import BrokenStore, KernelError, StoreError
from agent.misfits import of_accounts, of_servers
from agent.model import ANY_STAMP, NO_STAMP, ClassKey, Diff, Mark, Peer, Scope, minor, stamp_after
from agent.parts import ACCOUNT_PARTS, PARTS, Kernel
from agent.report import Change, Report
from agent.shaping import Errors, Shaping, apply, shape
from agent.usage import Usage
from agent.wanted import Wanted, owner_of, scope_of, server_on, wanted, wanted_accounts
from agent.ways import as_they_listen, closed, let_loose, opened_last, without

SLICE = 1_000  # accounts
# From so many classes on, one more takes Linux long enough to be worth a second thread; see decision 0009.
MANY_CLASSES = 4_000


class Writer:
    """Call every method on one thread; `knows_kernel` and `shape_ahead` on any, while no other runs but a sample."""

    def __init__(self, kernel: Kernel, usage: Usage) -> None:
        self._kernel = kernel
        self._usage = usage
        self._found: Wanted | None = None  # None = not to be trusted
        self._shown: Desired | None = None  # what `found` was made equal to
        self._ahead: Shaping | None = None

    def knows_kernel(self, desired: Desired) -> bool:
        """Can `touched` be used, or is a full pass due?"""
        return self._found is not None and self._shown is not None and self._shown.servers == desired.servers

    def full(self, desired: Desired) -> Report:
        """Reads everything and repairs it. Raises KernelError if something cannot even be read."""
        self._found = None
        undone: Collection[ClassKey] = ()
        if self._ahead is not None:  # its patch has not come to us yet: what was made is read, and removed
            self._ahead.done.result()
            undone, self._ahead = self._ahead.classes.add, None
        lost = self._kernel.keep_answers(bool(desired.servers))  # at once: classes on a new uplink take their time
        try:
            uplink = self._kernel.uplink()
        except KernelError:
            self._cut_off(desired)
            raise
        mtu = self._kernel.tunnel_mtu(uplink)
        want = wanted(desired, uplink, self._usage.recent() if self._shown is None else (), mtu)
        found = self.read(want, uplink)
        self._usage.revision = desired.revision
        self._usage.stamped(min((mark.counters.made for mark in found.marks.values()), default=NO_STAMP))
        disk_trouble = self._observed(desired, found)
        diffs = {part: diff(getattr(want, part), getattr(found, part)) for part in PARTS}
        addresses = self._usage.addresses().union(desired.by_address)
        one = _Pass(self._kernel, self._usage, self._shown, desired, uplink, found, diffs, addresses, is_whole=True)
        report = self._finish(desired, one, desired.accounts)
        report.refuse((0, name, reason) for name, reason in of_servers(desired).items())
        report.fail(0, "", lost)
        scope = Scope(frozenset(want.links), uplink)
        report.warnings, report.problem = self._kernel.warnings(scope), self._kernel.problem(scope)
        report.refused_connections = self._kernel.refused_connections()
        report.networks = self._kernel.host_networks()
        report.tunnel_mtu = mtu
        report.undone = sum(c.part == "classes" and c.verb == "remove" and c.key in undone for c in report.changes)
        if disk_trouble:
            raise disk_trouble
        return report

    def _cut_off(self, desired: Desired) -> None:
        """Without a way to the internet nothing can be built, but who must not be let in any more goes all the same."""
        want = wanted(desired, "")
        scope = Scope(frozenset({*want.links, *self._kernel.links.read(scope_of(want, ""))}), "")
        unwanted = diff(want.peers, self._kernel.peers.read(scope)).remove
        if unwanted:
            self._kernel.peers.apply(Diff(remove=unwanted))
        # An uplink that comes back under its name must not find the way open before its classes are there.
        self._kernel.forwarding.apply(closed(want.forwarding, self._kernel.forwarding.read(scope)))

    def _observed(self, desired: Desired, found: Wanted) -> StoreError | None:
        """Counts what was read. A full disk must not keep customers of a rebooted node out: it is told afterwards."""
        sample = {address: mark.counters for address, mark in found.marks.items()}
        try:
            self._usage.observe(sample, desired.by_address, desired.time_zone)
        except BrokenStore:
            raise
        except StoreError as error:
            return error
        return None

    def shape_ahead(self, desired: Desired, account_ids: Collection[int], uplink: str) -> bool:
        """Begins to make the classes of these accounts, new in a desired state that is still to be accepted.

        The next pass takes them over. If the state is not accepted after all, that has to be a full one: it removes
        them. Returns whether it began. It does not where classes are few or Linux is not known, nor for more accounts
        than a slice: the first of them would wait for the classes of the last.
        """
        if self._ahead is not None or self._found is None or len(self._found.classes) < MANY_CLASSES:
            return False
        if len(account_ids) > SLICE:
            return False
        classes = wanted_accounts(desired, account_ids, uplink).classes
        new = {key: value for key, value in classes.items() if key not in self._found.classes}
        if new:
            self._ahead = shape(self._kernel, Diff(add=new))
        return bool(new)

    def touched(self, desired: Desired, account_ids: Iterable[int], uplink: str) -> Report:
        """Makes only these accounts right, at their cost alone. Only where `knows_kernel`."""
        assert self._found is not None and self._shown is not None
        ids, found, self._usage.revision = tuple(account_ids), self._found, desired.revision
        self._found = None  # until the pass has ended well
        if self._ahead is not None:
            found.classes.update(self._ahead.classes.add)  # the pass looks what has become of them
        want, old = wanted_accounts(desired, ids, uplink), wanted_accounts(self._shown, ids, uplink)
        diffs = {
            part: diff_of([*getattr(want, part), *getattr(old, part)], getattr(want, part), getattr(found, part))
            for part in PARTS
        }
        accounts = (state.accounts.get(i) for state in (self._shown, desired) for i in ids)
        addresses = {account.address for account in accounts if account}
        one = _Pass(self._kernel, self._usage, self._shown, desired, uplink, found, diffs, addresses, self._ahead)
        return self._finish(desired, one, ids)

    def _finish(self, desired: Desired, one: _Pass, account_ids: Iterable[int]) -> Report:
        report = one.run()
        report.refuse(of_accounts(desired, account_ids))
        self._ahead = None
        self._found, self._shown = one.found, desired  # what was refused is left to the full pass that follows
        return report

    def read(self, want: Wanted, uplink: str) -> Wanted:
        """Everything of ours that Linux holds."""
        links = self._kernel.links.read(scope_of(want, uplink))
        scope = Scope(frozenset({*want.links, *links}), uplink)
        parts = {part: getattr(self._kernel, part).read(scope) for part in PARTS if part != "links"}
        return Wanted(links=links, **parts)

    def plan(self, desired: Desired) -> dict[str, Diff[Any, Any]]:
        """What a full pass would change. Changes nothing."""
        uplink = self._kernel.uplink()
        want = wanted(desired, uplink, mtu=self._kernel.tunnel_mtu(uplink))
        found = self.read(want, uplink)
        return {part: diff(getattr(want, part), getattr(found, part)) for part in PARTS}

    def sample(self, desired: Desired) -> None:
        """Takes the kernel's counters into the totals."""
        self._usage.observe(self._kernel.marks.counters(), desired.by_address, desired.time_zone)


class _Pass:
    """The steps of one pass. `found` is brought up to date with what was done."""

    def __init__(
        self,
        kernel: Kernel,
        usage: Usage,
        shown: Desired | None,
        desired: Desired,
        uplink: str,
        found: Wanted,
        diffs: Mapping[str, Diff[Any, Any]],
        addresses: Iterable[IPv4Address],
        shaping: Shaping | None = None,
        *,
        is_whole: bool = False,
    ) -> None:
        self._kernel = kernel
        self._usage = usage
        self._before = shown or desired  # Linux does not know whose an object is that should not be there; this does
        self._desired = desired
        self.found = found
        self._diffs = dict(diffs)
        self._addresses = frozenset(addresses)  # whose baseline is to be checked
        self._shaping, self._is_whole = shaping, is_whole
        self._report = Report(uplink)
        self._failed_devices: set[str] = set()
        self._failed_owners: set[int] = set()

    def run(self) -> Report:
        peers, marks = self._diffs["peers"], self._diffs["marks"]
        new = {*self._diffs["classes"].add, *(self._shaping.classes.add if self._shaping else ())}
        self._write("peers", Diff(remove=peers.remove))
        self._write("links", Diff(remove=self._diffs["links"].remove))  # their ports are free for new ones
        moving = {key: self.found.peers[key].address for key in peers.change}
        self._forget_connections(marks.remove.keys() | {peer.address for peer in peers.remove.values()})
        self._start_new_owners()
        for part in ("links", "qdiscs"):
            self._write(part, self._allowed(self._diffs[part]))
        forwarding = as_they_listen(self._allowed(self._diffs["forwarding"]), self.found, self._failed_devices)
        at_once, at_last = opened_last(forwarding, self.found, new)
        self._write("forwarding", at_once)
        for diffs in sliced(self._diffs, ACCOUNT_PARTS, SLICE):
            self._shape_and_mark(diffs)
            self._write("peers", self._allowed(diffs["peers"]))
        at_last = without(at_last, self._failed_devices)
        self._write("peers", Diff(remove=let_loose(at_last, new, self.found)))
        self._write("forwarding", at_last)
        self._forget_connections(moving.values())
        stuck = self._addresses_in_use(marks.remove)
        stuck_minors = {minor(self.found.marks[a].mark) for a in stuck if a in self.found.marks}
        removed_marks = {a: mark for a, mark in marks.remove.items() if a not in stuck}
        if removed_marks:
            self._sample()
        self._write("marks", Diff(remove=self._started(removed_marks.items())))
        owned = self._desired.by_address  # a disabled account's numbers go on when it is enabled again
        gone = [a for a in removed_marks if a not in self.found.marks and a in owned]
        self._usage.restarted({a: owned[a] for a in gone if self._usage.owner_of(a) != owned[a]})
        self._usage.forget(a for a in self._addresses if a not in owned and a not in self.found.marks)
        for part in ("forwarding", "classes", "qdiscs"):
            remove = self._diffs[part].remove
            if part == "classes":  # a peer that stands as it was stays shaped as it was
                remove = {key: value for key, value in remove.items() if key[1] not in stuck_minors}
            if part == "qdiscs":  # nor does a former uplink lose its classes while the way still leads there
                used = {one.uplink for one in self.found.forwarding.values()}
                remove = {key: value for key, value in remove.items() if key not in used}
            self._write(part, Diff(remove=remove))
        return self._report

    def _addresses_in_use(self, going: Iterable[IPv4Address]) -> set[IPv4Address | None]:
        """Of peers that could not be removed, or stay as they are because something failed; and of rules that do.

        `going`: addresses that are to lose their rules.

        None: of a peer without an address of ours.
        """
        peers, marks = self._diffs["peers"], self._diffs["marks"]
        kept = [key for key in peers.remove if key in self.found.peers]
        kept += [key for key, peer in peers.change.items() if self._is_held_back(peer)]
        held_back = {address for address, mark in marks.change.items() if self._is_held_back(mark)}
        # What a link holds that could not be made right is not known: it may let in whom it should not.
        dark = {server.name for device in self._failed_devices if (server := server_on(self._before, device))}
        owned = {a: self._before.accounts.get(self._before.by_address.get(a, 0)) for a in going if dark}
        unseen = {address for address, account in owned.items() if account and account.server in dark}
        return {self.found.peers[key].address for key in kept} | held_back | unseen

    def _forget_connections(self, addresses: Iterable[IPv4Address | None]) -> None:
        """Of these, but for those that a peer of this pass still has."""
        peers = (*self._diffs["peers"].remove, *self._diffs["peers"].change)
        kept = {self.found.peers[key].address for key in peers if key in self.found.peers}
        try:
            self._kernel.forget_connections({address for address in addresses if address} - kept)
        except KernelError as error:
            self._report.fail(0, "", error)

    # -- whose bytes --

    def _start_new_owners(self) -> None:
        """Steps 2 and 3: addresses that count for somebody else by now, whether their rules differ or not."""
        marks, owners = self._diffs["marks"], self._desired.by_address
        known = ((a, self._usage.owner_of(a)) for a in self._addresses if a in owners)
        new = {address: owners[address] for address, owner in known if owner not in (None, owners[address])}
        if new:
            self._forget_connections(new)
            self._sample()
            self._usage.restarted({a: o for a, o in new.items() if a not in self.found.marks})
            # The rules of a disabled heir's address only go: step 5 counts them to their end for the former owner.
            standing = {a: o for a, o in new.items() if a in self.found.marks and a not in marks.remove}
            self._usage.hand_over(standing)
            restarts = {a: replace(self._wanted_mark(a), restart=True) for a in standing}
            self._write("marks", Diff(change=restarts))
            self._usage.restarted({a: o for a, o in standing.items() if o not in self._failed_owners})
        self._usage.expect({a: mark.owner for a, mark in marks.add.items()})
        there = {a: mark for a in self._addresses - new.keys() if (mark := self.found.marks.get(a))}
        foreign = {
            a: owners[a] for a, mark in there.items() if self._usage.is_foreign(a, mark.counters) and a in owners
        }
        again = {a: replace(self._wanted_mark(a), restart=True) for a in foreign if a not in marks.remove}
        self._write("marks", Diff(change=self._started(again.items())))
        self._diffs["marks"] = Diff(
            self._started(marks.add.items()),
            self._started(a_m for a_m in marks.change.items() if a_m[0] not in new.keys() | again.keys()),
        )

    def _started(self, marks: Iterable[tuple[IPv4Address, Mark]]) -> dict[IPv4Address, Mark]:
        at, after = self._usage.revision, self._after
        return {a: replace(m, counters=self._usage.start_of(a, m.owner), at=at, after=after) for a, m in marks}

    def _wanted_mark(self, address: IPv4Address) -> Mark:
        account = self._desired.accounts[self._desired.by_address[address]]
        return Mark(address, account.mark, account.id, at=self._usage.revision, after=self._after)

    @property
    def _after(self) -> int:
        return ANY_STAMP if self._is_whole else self._usage.stamp

    def _sample(self) -> None:
        """Of the addresses of this pass only: the rest has its own time."""
        sample = self._kernel.marks.counters(self._addresses)
        self._usage.observe(sample, self._desired.by_address, self._desired.time_zone, whole=False)

    # -- writing --

    def _allowed(self, difference: Diff[Any, Any]) -> Diff[Any, Any]:
        """Add and change, without what must not be because something it needs has failed."""
        if not (self._failed_devices or self._failed_owners):
            return Diff(difference.add, difference.change)
        change = {key: value for key, value in difference.change.items() if not self._is_held_back(value)}
        add = {}
        for key, value in difference.add.items():
            owner = getattr(value, "owner", 0)
            device = key[0] if isinstance(key, tuple) else key
            if device in self._failed_devices or owner in self._failed_owners:
                self._failed_owners.update({owner} - {0})
            else:
                add[key] = value
        return Diff(add, change)

    def _is_held_back(self, value: Any) -> bool:
        """A rule must not lead to a class that was refused, nor a peer to an address without rules."""
        return isinstance(value, (Mark, Peer)) and value.owner in self._failed_owners

    def _shape_and_mark(self, diffs: Mapping[str, Diff[Any, Any]]) -> None:
        classes, marks = self._allowed(diffs["classes"]), diffs["marks"]
        if classes:
            self._await_classes()
            if marks and len(self.found.classes) >= MANY_CLASSES:
                self._shaping = shape(self._kernel, classes)
            else:
                self._write("classes", classes)
        if marks.change:
            self._await_classes()
        self._write("marks", self._allowed(marks))
        self._await_classes()

    def _await_classes(self) -> None:
        """Takes over those that a thread of their own has made."""
        if self._shaping is not None:
            shaping, self._shaping = self._shaping, None
            self._written("classes", shaping.classes, shaping.done.result())

    def _write(self, part: str, difference: Diff[Any, Any]) -> None:
        if difference:
            self._written(part, difference, apply(self._kernel, part, difference))

    def _written(self, part: str, difference: Diff[Any, Any], errors: Errors) -> None:
        """Takes over what was done, and notes what was not."""
        if isinstance(errors, KernelError):
            self._report.fail(0, "", KernelError(f"{part}: {errors}"))
            errors = dict.fromkeys((*difference.add, *difference.change, *difference.remove), errors)
        found = getattr(self.found, part)
        for verb, values in (("add", difference.add), ("change", difference.change), ("remove", difference.remove)):
            for key, value in values.items():
                if key in errors:
                    if verb == "add":
                        found.pop(key, None)
                    self._note(part, key, value, errors[key])
                    continue
                self._report.changes.append(Change(part, verb, key, getattr(value, "owner", 0)))
                if verb == "remove":
                    found.pop(key, None)
                else:
                    found[key] = value
        if part == "marks" and not errors:
            said = stamp_after(difference, self._usage.stamp) or self._usage.stamp
            self._usage.stamped(said, is_there=bool(found))

    def _note(self, part: str, key: Any, value: Any, error: KernelError) -> None:
        if part in ("links", "qdiscs", "forwarding"):
            self._failed_devices.add(key)
            server = server_on(self._desired, key) or server_on(self._before, key)
            self._report.fail(0, server.name if server else "", error)  # "" = of the node: nothing counts as applied
            return
        owner = getattr(value, "owner", 0) or owner_of(self._desired, part, key) or owner_of(self._before, part, key)
        account = self._desired.accounts.get(owner) or self._before.accounts.get(owner)
        self._failed_owners.update({owner} - {0})
        self._report.fail(owner, account.name if account else "", error)
