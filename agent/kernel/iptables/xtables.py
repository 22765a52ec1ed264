"""Changes of the legacy iptables tables: one transaction, under the lock of `tables`.

Owns the handles of a call, and nothing afterwards: every call starts from the kernel and works in the network namespace
of the calling thread. It never decides what a rule should be, and never runs a command. Called by `marks` and
`forwarding`.

Traps, all found by experiment:
- A table is replaced as a whole. libiptc notices another writer (EAGAIN) only if the *number* of rules changed; a
  change that keeps the number is silently undone. So everything happens under the lock that iptables itself takes.
- libiptc keeps counters exact (packets that pass during the transaction included) for rules it has not touched. A
  rule that is appended, inserted or replaced starts from the counters in its entry. See `Transaction.patch`.
- `iptc.Table` objects are cached by name inside the library, hold a namespace-bound socket, and with their default
  autocommit=True swallow errors. Here: autocommit off, a fresh handle for each transaction, closed at its end.
- `iptc.Rule` and `iptc.Target` are slow, open all five tables, and dup2() over stdout while they read parameters. They
  are used once, in `_check_layout`, in the one way that does none of this.
"""

from __future__ import annotations

import ctypes
import os
import sysconfig
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from ipaddress import IPv4Network
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from agent.errors import KernelError
from agent.kernel.iptables import entries, strangers, tables
from agent.kernel.iptables.entries import Image, Jump

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the library's own source has invalid escapes, which each fresh install compiles
    # Told the folders of its C part and of Debian's extensions, the library neither runs gcc and ld, ten times, nor
    # reads every library of the system to find them.
    os.environ.setdefault("IPTABLES_LIBDIR", sysconfig.get_path("platlib"))
    if (_folder := Path(f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}/xtables")).is_dir():
        os.environ.setdefault("XTABLES_LIBDIR", str(_folder))
    import iptc

_TRIES = 4  # transactions that lost against a writer who does not take the lock

# A rule like no other: `Transaction.delete` writes it over the one that has to go.
_DOOMED = entries.entry(
    entries.jump("RETURN"), source=IPv4Network("255.255.255.255/32"), destination=IPv4Network("255.255.255.255/32")
)
_EVERY_BYTE = (ctypes.c_ubyte * len(_DOOMED))(*b"\xff" * len(_DOOMED))  # the mask of what is compared

T = TypeVar("T")


# -- writing ------------------------------------------------------------------------------------------------------


class Transaction:
    """Changes to one table that become true all at once, or not at all.

    `image` is the table as it was at the start. Positions count from 0 in the chain as the transaction has left it:
    work from the end of a chain towards its start.
    """

    def __init__(self, table: Any, image: Image) -> None:
        self._table = table
        self.image = image
        self.changed = False
        self._chains = set(image.chains)

    def create(self, chain: str) -> None:
        if chain not in self._chains:
            self._table.create_chain(chain)
            self._chains.add(chain)
            self.changed = True

    def drop(self, chains: Collection[str]) -> None:
        """Removes chains with their rules. They may lead to each other, but no rule elsewhere to them."""
        present = [chain for chain in chains if chain in self._chains]
        for chain in present:
            self._table.flush_entries(chain)
        for chain in present:
            self._table.delete_chain(chain)
            self._chains.remove(chain)
            self.changed = True

    def append(self, chain: str, rule: bytes) -> None:
        self._table.append_entry(chain, rule)
        self.changed = True

    def insert(self, chain: str, rule: bytes, position: int) -> None:
        self._table.insert_entry(chain, rule, position)
        self.changed = True

    def replace(self, chain: str, rule: bytes, position: int) -> None:
        """Puts a rule in the place of another, to count on from its own counters."""
        self._table.replace_entry(chain, rule, position)
        self.changed = True

    def delete(self, chain: str, position: int) -> None:
        """iptc.Table deletes by content only, and there may be two of a kind; so make this one unlike any other."""
        self._table.replace_entry(chain, _DOOMED, position)
        self._table.delete_entry(chain, _DOOMED, _EVERY_BYTE)
        self.changed = True

    def patch(self, chain: str, position: int, rule: bytes) -> None:
        """Overwrites the target of a rule with that of `rule` (same kind, same size) where it lies.

        `replace` would set the counters back to what they were at the start of the transaction, and the packets since
        would be lost. libiptc keeps them exact for a rule that it does not know to be another one.
        """
        lying = self._table.first_rule(chain)
        for _ in range(position):
            lying = self._table.next_rule(lying)
        at = entries.target_at(rule)
        if lying.target_offset != at or lying.next_offset != len(rule):
            raise ValueError("only a target of the same size can be patched")
        ctypes.memmove(ctypes.addressof(lying) + at, rule[at:], len(rule) - at)
        if not self.changed:  # the library has not seen a change and would not commit
            self._table.create_chain("WL_PATCH")
            self._table.delete_chain("WL_PATCH")
            self.changed = True

    def fill(self, chain: str, wanted: Sequence[bytes]) -> None:
        """Makes the rules of a chain, created if need be, exactly `wanted`, in order.

        Rules that stay in place keep their counters exactly; one that moves, as they were at the start.
        """
        self.create(chain)
        found = self.image.rules(chain)
        if [rule.entry for rule in found] == list(wanted):
            return
        moved = {rule.entry: entries.with_counters(rule.entry, rule.packets, rule.octets) for rule in found}
        matcher = SequenceMatcher(None, [rule.entry for rule in found], wanted, autojunk=False)
        for tag, start, end, first, last in reversed(matcher.get_opcodes()):
            if tag == "equal":
                continue
            for position in reversed(range(start, end)):
                self.delete(chain, position)
            for rule in reversed(wanted[first:last]):
                self.insert(chain, moved.get(rule, rule), start)

    def hook(self, hooks: Sequence[Hook], own: Collection[str]) -> None:
        """Makes these hooks, first in their built-in chains, the only ways into the chains `own`."""
        strays, missing = _misplaced(self.image, hooks, own)
        counted = {rule.entry: entries.with_counters(rule.entry, rule.packets, rule.octets) for _, _, rule in strays}
        self._remove(strays)
        for hook in missing:
            self.insert(hook.builtin, counted.get(hook.entry, hook.entry), _standing_before(self.image, hook))

    def unhook(self, own: Collection[str]) -> None:
        self._remove(self.image.jumps_from_outside(own))

    def _remove(self, jumps: Sequence[Jump]) -> None:
        for chain, position, _ in reversed(jumps):  # within a chain they come in order of position
            self.delete(chain, position)


# -- the ways into our chains -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hook:
    """The unconditional jump from a built-in chain into one of ours.

    It is made at the top. A hook that counts has to stay there, for any rule before it could end the built-in chain;
    only hooks of other parts, to the chains `behind`, may come before it. Where `yields`, an administrator may put
    rules of his own before it (to close port 25 for all customers, say), and it stays where it is.
    """

    builtin: str
    chain: str
    behind: tuple[str, ...] = ()
    yields: bool = False

    @property
    def entry(self) -> bytes:
        return entries.entry(entries.jump(self.chain))


def is_hooked(image: Image, hooks: Sequence[Hook], own: Collection[str]) -> bool:
    """Whether all these hooks are where they have to be, and nothing else leads into the chains `own` from outside."""
    return not any(_misplaced(image, hooks, own))


def _misplaced(image: Image, hooks: Sequence[Hook], own: Collection[str]) -> tuple[list[Jump], list[Hook]]:
    """The jumps into our chains that should not be there, and the hooks that are missing."""
    strays, missing = image.jumps_from_outside(own), []
    for hook in hooks:
        rules = image.rules(hook.builtin)
        top = _standing_before(image, hook)
        if hook.yields:
            top = next((place for place, rule in enumerate(rules) if rule.entry == hook.entry), len(rules))
        if len(rules) > top and rules[top].entry == hook.entry:
            strays = [jump for jump in strays if jump[:2] != (hook.builtin, top)]
        else:
            missing.append(hook)
    return strays, missing


def _standing_before(image: Image, hook: Hook) -> int:
    """How many hooks of other parts stand at the top of the built-in chain."""
    allowed = {Hook(hook.builtin, chain).entry for chain in hook.behind}
    return sum(1 for _ in takewhile(lambda rule: rule.entry in allowed, image.rules(hook.builtin)))


# -- one transaction ----------------------------------------------------------------------------------------------


def transact(table: str, change: Callable[[Transaction], T]) -> T:
    """Runs `change` on the table and commits, all under the lock; nothing is written if it changed nothing.

    `change` may run several times, each time on a fresh reading. Raises KernelError, then nothing was changed.
    """
    _check_layout()
    with tables.locked():
        read_twice = not _is_layout_known()
        for attempt in range(1, _TRIES + 1):
            handle = None
            try:
                strangers.met(table, tables.info(table))  # which tells clearly why a table cannot be had
                handle = iptc.Table(table, autocommit=False)
                handle.refresh()
                image = tables.read_locked(table) if read_twice else tables.read_by(_address_of(handle))
                transaction = Transaction(handle, image)
                result = change(transaction)
                if transaction.changed:
                    handle.commit()
                strangers.left(table, tables.info(table))
                return result
            except iptc.IPTCError as error:
                if attempt == _TRIES:
                    raise KernelError(f"iptables: the {table} table could not be written: {error}") from error
            finally:
                if handle is not None:
                    handle.close()
    raise AssertionError("not reached")


@cache
def _is_layout_known() -> bool:
    """Can libiptc's own reading be used? Else the table is read twice. Told once, by one table.

    While no handle is open: the library has one object for each table.
    """
    handle = None
    try:
        handle = iptc.Table("filter", autocommit=False)
        handle.refresh()
        return tables.is_laid_out(_address_of(handle), "filter")
    except iptc.IPTCError:
        return False
    finally:
        if handle is not None:
            handle.close()


def _address_of(handle: Any) -> int:
    return ctypes.cast(handle._handle, ctypes.c_void_p).value or 0


@cache
def _check_layout() -> None:
    """Compares our idea of a MARK rule with the library's, once. Raises KernelError if a layout has changed."""

    class Template(iptc.Rule):  # type: ignore[misc]
        tables = ()  # else the library opens (and so makes the kernel load) all five tables

    rule = Template()
    rule.src = "192.0.2.1/255.255.255.255"
    rule.create_target("MARK").set_xmark = "0x6d/0xffffffff"
    ours = entries.entry(entries.mark(0x6D), source=IPv4Network("192.0.2.1/32"))
    if bytes(rule.rule) != ours:
        raise KernelError("iptables: the installed libxtables lays out MARK rules in another way", retry=False)
