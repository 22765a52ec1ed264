"""The steps of one pass, in the one right order: ORDER, read from the list of parts.

1. Whatever lets somebody in goes first (peers): from here on their accounts pass no packet. Then links that go, for
   their ports. And what Linux remembers of connections of addresses that are free now, before anybody gets them.
2. Rules whose address has a new owner start from zero, behind a sample.
3. What is wanted of the servers is added and changed, then of the accounts: whatever shapes and counts an account
   stands before its peer. A boot with thousands of accounts goes slice by slice, those first who were last seen: they
   wait a second, not for all others. Where peers stand already, the way to another uplink waits for the classes to be
   made there (ways.py), and is opened now.
4. What Linux remembers of the addresses that peers have left in step 3; and another sample if rules go, for that too.
5. The rest is removed.

What fails spoils only its account (or its server, if that is what failed): nothing is added or changed that needs it.
What is there already stays, with what shapes and counts it: a customer is neither cut off nor let loose because a
repair failed. Only whose class is gone and cannot be made again is cut off till then, for nothing would limit him.

Owned by writer.py, which makes a Pass for each pass and takes over what it `found` afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from agent.desired import Desired
from agent.diff import Diffs, sliced
from agent.doors import Kernel
from agent.endpoints import Endpoints
from agent.errors import KernelError
from agent.model import IKEV2_DEVICE, Address, minor
from agent.objects import Diff, LoginRow, Mark, Peer
from agent.parts import (
    ACCOUNT_PARTS,
    CLASSES,
    FORWARDING,
    LOGINS,
    MARKS,
    PARTS,
    PEERS,
    QDISCS,
    SERVER_PARTS,
    WAYS_IN,
    AccountPart,
    Part,
)
from agent.report import Change, Report
from agent.shaping import Errors, Shaping, apply, shape
from agent.usage import Usage
from agent.wanted import Wanted
from agent.ways import as_they_listen, opened_last, unlimited, without

K = TypeVar("K")
V = TypeVar("V")

SLICE = 1_000  # accounts
# From so many classes on, one more takes Linux long enough to be worth a second thread; see decision 0009.
MANY_CLASSES = 4_000


class Pass:
    """`found` is brought up to date with what was done. `addresses`: whose baseline is to be checked. `applied`:
    what the last pass made true, None = nobody knows. `remembered`: addresses whose connections Linux should have
    forgotten and has not; kept by the writer from pass to pass."""

    def __init__(
        self,
        kernel: Kernel,
        usage: Usage,
        endpoints: Endpoints,
        remembered: set[Address],
        applied: Desired | None,
        desired: Desired,
        uplink: str,
        found: Wanted,
        diffs: Diffs,
        addresses: Iterable[Address],
    ) -> None:
        self._kernel = kernel
        self._usage = usage
        self._endpoints = endpoints
        self._remembered = remembered
        self._before = applied or desired  # Linux does not know whose an object is that should not be there; this does
        self._desired = desired
        self.found = found
        self._diffs = diffs
        self._addresses = frozenset(addresses)
        self._shaping: Shaping | None = None  # classes that are being made
        self._new = frozenset(diffs[CLASSES].add)
        self._at_last: Diff[str, Any] = Diff()  # ways that wait for their classes
        self._report = Report(uplink)
        self._failed_devices: set[str] = set()
        self._failed_owners: set[int] = set()
        self._stuck: set[Address | None] = set()  # addresses whose rules stay
        self._moving: list[Address | None] = []  # that peers leave

    def run(self) -> Report:
        for step in ORDER:
            step(self)
        return self._report

    # -- what goes --

    def remove(self, part: Part[Any, Any]) -> None:
        stays = self._stays(part)
        going = {key: value for key, value in self._diffs[part].remove.items() if key not in stays}
        self._write(part, Diff(remove=self._usage.start(going) if part is MARKS else going))

    def _stays(self, part: Part[Any, Any]) -> Collection[Any]:
        """What must not go because of what could not go, or could not be made right, before it."""
        if part is MARKS:
            return self._stuck
        if part is CLASSES:  # a peer that stands as it was stays shaped as it was
            minors = {minor(self.found[MARKS][a].mark) for a in self._stuck if a in self.found[MARKS]}
            return [key for key in self._diffs[CLASSES].remove if key[1] in minors]
        if part is QDISCS:  # nor does a former uplink lose its classes while the way still leads there
            return {one.uplink for one in self.found[FORWARDING].values()}
        return ()

    def see_what_stays_and_count_the_rest(self) -> None:
        """A peer may have moved away from an address until now, so what goes is read as late as this."""
        going = self._diffs[MARKS].remove
        self._stuck = self._addresses_in_use(going)
        if going.keys() - self._stuck:
            self._sample()

    def _addresses_in_use(self, going: Iterable[Address]) -> set[Address | None]:
        """Of peers that could not be removed, or stay as they are because something failed; and of rules that do.

        `going`: addresses that are to lose their rules.

        None: of a peer without an address of ours.
        """
        marks = self._diffs[MARKS]
        kept: list[Peer | LoginRow] = []
        for part in WAYS_IN:
            going_in, found = self._diffs[part], self.found[part]
            kept += [found[key] for key in going_in.remove if key in found]
            kept += [found[key] for key, one in going_in.change.items() if one.owner in self._failed_owners]
        held_back = {address for address, mark in marks.change.items() if mark.owner in self._failed_owners}
        # What a link holds that could not be made right is not known: it may let in whom it should not.
        dark = {server.name for device in self._failed_devices if (server := self._before.server_of(device))}
        owned = {a: self._before.accounts.get(self._before.by_address.get(a, 0)) for a in going if dark}
        unseen = {address for address, account in owned.items() if account and account.server in dark}
        return {a for one in kept for a in one.addresses} | held_back | unseen

    def forget_connections_of_the_freed(self) -> None:
        freed = (address for peer in self._diffs[PEERS].remove.values() for address in peer.addresses)
        self._moving = [address for key in self._diffs[PEERS].change for address in self.found[PEERS][key].addresses]
        self._forget_connections((*self._diffs[MARKS].remove, *freed))

    def forget_connections_of_the_moved(self) -> None:
        self._forget_connections(self._moving)

    def _forget_connections(self, addresses: Iterable[Address | None]) -> None:
        """Of these, but for those that a peer of this pass still has; and of those of which a pass before could not,
        also where an heir has begun connections meanwhile: a reload is less than a stranger's stream on his bill."""
        peers = (*self._diffs[PEERS].remove, *self._diffs[PEERS].change)
        kept = {address for key in peers if key in self.found[PEERS] for address in self.found[PEERS][key].addresses}
        freed = self._remembered.union(address for address in addresses if address) - kept
        try:
            self._kernel.forget_connections(freed)
        except KernelError as error:
            self._remembered.update(freed)
            self._report.fail(0, "", error)
        else:
            self._remembered.clear()

    # -- whose bytes --

    def start_new_owners(self) -> None:
        """Addresses that count for somebody else by now, whether their rules differ or not; and rules whose numbers
        are older than their owner."""
        marks, by_address = self._diffs[MARKS], self._desired.by_address
        owners = {a: by_address[a] for a in self._addresses if a in by_address}
        standing = {a: self.found[MARKS][a].counters for a in owners if a in self.found[MARKS]}
        heirs = self._usage.heirs(owners)
        if heirs:
            self._forget_connections(heirs)
            self._sample()
            # The rules of a disabled heir's address only go: they are counted to their end for the former owner.
            begun = {a: owner for a, owner in heirs.items() if a not in marks.remove}
            anew = self._wanted_marks(a for a in begun if a in standing)
            self._write(MARKS, Diff(change=self._usage.start(anew, anew=True)))
            self._usage.restarted({a: owner for a, owner in begun.items() if owner not in self._failed_owners})
        self._usage.expect({a: mark.owner for a, mark in marks.add.items()})
        again = [a for a in self._usage.foreign(standing) if a not in heirs and a not in marks.remove]
        self._write(MARKS, Diff(change=self._usage.start(self._wanted_marks(again), anew=True)))
        change = {a: mark for a, mark in marks.change.items() if a not in heirs and a not in again}
        self._diffs[MARKS] = Diff(self._usage.start(marks.add), self._usage.start(change), marks.remove)

    def _wanted_marks(self, addresses: Iterable[Address]) -> dict[Address, Mark]:
        accounts = ((a, self._desired.accounts[self._desired.by_address[a]]) for a in addresses)
        return {address: Mark(address, one.mark, one.id) for address, one in accounts}

    def _sample(self) -> None:
        """Of the addresses of this pass only: the rest has its own time."""
        sample = self._kernel.marks.counters(self._addresses)
        self._usage.observe(sample, self._desired.by_address, self._desired.time_zone, whole=False)

    def close_accounts_of_what_is_gone(self) -> None:
        """A disabled account's numbers go on when it is enabled again."""
        there, owned = self.found[MARKS], self._desired.by_address
        self._usage.forget(a for a in self._addresses if a not in there and a not in owned)

    # -- what is made --

    def build(self, part: Part[Any, Any]) -> None:
        """Of the servers."""
        difference = self._allowed(part, self._diffs[part])
        if part is FORWARDING:
            listening = as_they_listen(difference, self.found, self._failed_devices)
            difference, self._at_last = opened_last(listening, self.found, self._new)
        self._write(part, difference)

    def build_accounts(self) -> None:
        for diffs in sliced(self._diffs, SLICE):
            for part in ACCOUNT_PARTS:
                self._build(part, diffs)

    def _build(self, part: AccountPart[Any, Any], diffs: Diffs) -> None:
        """Where there are many classes, Linux takes long to make one. Marks that are new are made meanwhile: nothing
        comes to those before there is a peer."""
        if part is not MARKS or diffs[MARKS].change:
            self._await_classes()
        difference = self._allowed(part, diffs[part])
        if part is CLASSES and difference and diffs[MARKS] and len(self.found[CLASSES]) >= MANY_CLASSES:
            self._shaping = shape(self._kernel, difference)
        else:
            self._write(part, difference)

    def _await_classes(self) -> None:
        """Takes over those that a thread of their own has made."""
        if self._shaping is not None:
            shaping, self._shaping = self._shaping, None
            self._written(CLASSES, shaping.classes, shaping.done.result())

    def cut_off_whom_nothing_limits(self) -> None:
        self._at_last = without(self._at_last, self._failed_devices)
        by_wireguard, by_ikev2 = unlimited(self._at_last, self._new, self.found)
        self._write(PEERS, Diff(remove=by_wireguard))
        if IKEV2_DEVICE not in self._failed_devices:  # else nobody comes in there
            self._write(LOGINS, Diff(remove=by_ikev2))

    def open_the_last_ways(self) -> None:
        self._write(FORWARDING, self._at_last)

    # -- writing --

    def _allowed(self, part: Part[K, V], difference: Diff[K, V]) -> Diff[K, V]:
        """Add and change, without what must not be because something it needs has failed."""
        if not (self._failed_devices or self._failed_owners):
            return Diff(difference.add, difference.change)
        change, add = dict(difference.change), {}
        if isinstance(part, AccountPart) and part.leads:
            change = {key: one for key, one in change.items() if _owner(one) not in self._failed_owners}
        for key, value in difference.add.items():
            owner, device = _owner(value), part.device(key)
            if device in self._failed_devices or owner in self._failed_owners:
                # A second way in that is closed keeps nobody out of the first.
                self._failed_owners.update({owner} - {0} if device != IKEV2_DEVICE else ())
            else:
                add[key] = value
        return Diff(add, change)

    def _write(self, part: Part[Any, Any], difference: Diff[Any, Any]) -> None:
        if difference:
            if part is PEERS:
                difference = self._endpoints.before(difference, self.found[PEERS], self._before, self._desired)
            self._written(part, difference, apply(self._kernel, part, difference))

    def _written(self, part: Part[Any, Any], difference: Diff[Any, Any], errors: Errors) -> None:
        """Takes over what was done, and notes what was not."""
        if isinstance(errors, KernelError):
            self._report.fail(0, "", KernelError(f"{part.name}: {errors}"))
            errors = dict.fromkeys((*difference.add, *difference.change, *difference.remove), errors)
        found = self.found[part]
        for verb, values in difference.by_verb():
            for key, value in values.items():
                if key in errors:
                    self._note(part, key, value, errors[key])
                    continue
                self._report.changes.append(Change(part.name, verb, key, _owner(value)))
                if verb == "remove":
                    found.pop(key, None)
                else:
                    found[key] = value
        if part is MARKS and not errors:
            self._usage.wrote(difference, is_there=bool(found))

    def _note(self, part: Part[Any, Any], key: Any, value: Any, error: KernelError) -> None:
        if not isinstance(part, AccountPart):
            self._failed_devices.add(key)
            servers = self._desired.servers_on(key) or self._before.servers_on(key)
            for name in [server.name for server in servers] or [""]:  # "" = of the node: nothing counts as applied
                self._report.fail(0, name, error)
            return
        owner = value.owner or part.owner(self._desired, key) or part.owner(self._before, key)
        account = self._desired.accounts.get(owner) or self._before.accounts.get(owner)
        self._failed_owners.update({owner} - {0})
        self._report.fail(owner, account.name if account else "", error)


def _owner(value: Any) -> int:
    """Account id; 0 = a server's, or unknown."""
    return getattr(value, "owner", 0)


def _each(do: Callable[[Pass, Any], None], parts: Iterable[Part[Any, Any]]) -> tuple[Callable[[Pass], None], ...]:
    return tuple(lambda one, part=part: do(one, part) for part in parts)


ORDER: tuple[Callable[[Pass], None], ...] = (
    *_each(Pass.remove, (part for part in reversed(PARTS) if part.goes_first)),
    Pass.forget_connections_of_the_freed,
    Pass.start_new_owners,
    *_each(Pass.build, (part for part in SERVER_PARTS if not part.comes_last)),
    Pass.build_accounts,
    Pass.cut_off_whom_nothing_limits,
    Pass.open_the_last_ways,
    *_each(Pass.build, (part for part in SERVER_PARTS if part.comes_last)),
    Pass.forget_connections_of_the_moved,
    Pass.see_what_stays_and_count_the_rest,
    *_each(Pass.remove, (part for part in reversed(PARTS) if not part.goes_first)),
    Pass.close_accounts_of_what_is_gone,
)
