"""Traffic shaping: our HTB root with its classifier on each device, and a class with its leaf for each rate.

Owns the parts `Qdiscs` and `Classes`, and whose root qdisc it is: one that is not ours is never replaced, filled or
listed. Remembers nothing of what the kernel holds. Called by the reconciler, never twice at a time.

One sender of our own does all of it, qdiscs too: to list them is to list ten thousand leaves, and its errors carry the
kernel's own words.

Ours is an HTB `1:` with `default 0` (what has no class passes unshaped) that carries our sign or our classifier. An
empty one without a classifier is taken over. Everything on a root of ours is ours: what should not be there goes.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import cache

from agent.errors import KernelError
from agent.kernel.host.scratch import NoNamespace, in_scratch_namespace
from agent.kernel.netlink import Netlink, Refusal
from agent.kernel.tc import printed, wire
from agent.model import LINKS
from agent.objects import Class, ClassKey, Diff, Qdisc, Scope

GONE = frozenset({errno.ENOENT, errno.ENODEV})  # what should be removed is removed already
WRONG = -1  # the rate of a class that is not as we make it: no class is ever wanted with it, so it gets repaired
TRIAL_SECONDS = 5.0
LOOPBACK = 1  # ifindex, in every namespace


class Qdiscs:
    """Part: our root qdisc and its classifier, by device."""

    def read(self, scope: Scope) -> dict[str, Qdisc]:
        """Devices where both are right; and others with a root of ours, right or not, as on a former uplink."""
        with Netlink() as netlink:
            right = {
                device: Qdisc(device)
                for device, ifindex in _present(scope.devices).items()
                if _is_right_root(_root(netlink, ifindex)) and _is_right(_filters(netlink, ifindex))
            }
            # One question shows which interfaces have HTB at all: 3 ms for 500 of them, 11 if each is asked.
            possible = {wire.index_of(data) for data in netlink.dump(wire.list_devices(), keep=wire.has_htb)} - {
                LOOPBACK
            }
            left = {
                device: Qdisc(device)
                for ifindex, device in (socket.if_nameindex() if possible else ())
                # A link that `links` does not take for ours may still let customers in: it stays shaped.
                if ifindex in possible
                and device not in scope.devices
                and not device.startswith(LINKS)
                and _is_ours(netlink, ifindex, _root(netlink, ifindex))
            }
        return right | left

    def apply(self, diff: Diff[str, Qdisc]) -> Mapping[str, KernelError]:
        errors: dict[str, KernelError] = {}
        with Netlink() as netlink:
            for devices, work in ((diff.remove, _remove_qdisc), (diff.change, _put_qdisc), (diff.add, _put_qdisc)):
                for device in devices:
                    try:
                        work(netlink, device)
                    except KernelError as error:
                        errors[device] = error
        return errors


class Classes:
    """Part: one HTB class with its leaf for each (device, minor)."""

    def read(self, scope: Scope) -> dict[ClassKey, Class]:
        """All classes of our roots. One that differs in anything from what `apply` makes has the rate WRONG."""
        found: dict[ClassKey, Class] = {}
        kind = leaf_kind()
        with Netlink() as netlink:
            ours = {
                device: ifindex
                for device, ifindex in _present(scope.devices).items()
                # A root that is going to be made anew takes its classes along.
                if _is_ours(netlink, ifindex, root := _root(netlink, ifindex)) and _is_right_root(root)
            }
            leaves = _leaves(netlink, frozenset(ours.values())) if ours else {}
            for device, ifindex in ours.items():
                for data in netlink.dump(wire.list_classes(ifindex)):
                    item = wire.parse(data)
                    minor = item.handle & 0xFFFF
                    rate = wire.rate_of(item.options) if item.parent == wire.ROOT else WRONG
                    if rate != WRONG and leaves.get((ifindex, minor)) != wire.leaf_for(rate, kind):
                        rate = WRONG
                    found[device, minor] = Class(device, minor, rate)
        return found

    def apply(self, diff: Diff[ClassKey, Class]) -> Mapping[ClassKey, KernelError]:
        """Removes first: a stranger's class below one of ours would keep ours from being repaired."""
        errors: dict[ClassKey, KernelError] = {}
        with Netlink() as netlink:
            ours, refused = _sort(
                netlink, {device for part in (diff.add, diff.change, diff.remove) for device, _ in part}
            )
            errors |= _remove_classes(netlink, ours, [key for key in diff.remove if key[0] in ours])
            wanted = {**diff.change, **diff.add}
            errors |= {key: refused[key[0]] for key in wanted if key[0] in refused}
            errors |= _put_classes(
                netlink, ours, {key: item for key, item in wanted.items() if key[0] in ours}, diff.add
            )
        return errors


def class_text(device: str, minor: int) -> str | None:
    """The first three lines that `tc -s class show` prints for a class of ours; None where there is none."""
    data = read_class(device, minor)
    return None if data is None else printed.class_lines(data)


def root_text(device: str) -> str | None:
    """What `tc -s qdisc show` prints for our root of a device; None where there is none. Raises KernelError."""
    with Netlink() as netlink:
        _, root = _our_root(netlink, device)
    return None if root is None else printed.root_lines(root)


def read_class(device: str, minor: int) -> bytes | None:
    """The kernel's own message about a class of ours; None where there is none. Raises KernelError."""
    with Netlink() as netlink:
        ifindex, root = _our_root(netlink, device)
        if root is None:
            return None
        answer = netlink.ask(wire.get_class(ifindex, minor))
    if isinstance(answer, Refusal):
        if answer.errno in GONE:
            return None
        raise _error(answer, f"class {wire.text_of_id(wire.HANDLE | minor)} on {device}")
    return answer


# -- devices and whose they are -----------------------------------------------------------------------------------


def _present(devices: Iterable[str]) -> dict[str, int]:
    """Index by name, in the namespace of this thread; what is not there is left out."""
    found = {}
    for device in devices:
        try:
            found[device] = socket.if_nametoindex(device)
        except OSError:  # also for a name that cannot be one
            continue
    return found


def _root(netlink: Netlink, ifindex: int) -> wire.Found | None:
    """The root qdisc; None where the kernel shows none (a device that is down, or gone)."""
    answer = _root_message(netlink, ifindex)
    return None if answer is None else wire.parse(answer)


def _root_message(netlink: Netlink, ifindex: int) -> bytes | None:
    answer = netlink.ask(wire.get_root(ifindex))
    if isinstance(answer, Refusal):
        if answer.errno in GONE:
            return None
        raise _error(answer, f"root qdisc of interface {ifindex}")
    return answer


def _our_root(netlink: Netlink, device: str) -> tuple[int, bytes | None]:
    """The device's index and the kernel's own message about its root; (0, None) where that is not ours."""
    ifindex = _present([device]).get(device)
    root = _root_message(netlink, ifindex) if ifindex is not None else None
    if ifindex is None or root is None or not _is_ours(netlink, ifindex, wire.parse(root)):
        return 0, None
    return ifindex, root


def _filters(netlink: Netlink, ifindex: int) -> list[wire.Found]:
    return [wire.parse(data) for data in netlink.dump(wire.list_filters(ifindex))]


def _is_right_root(root: wire.Found | None) -> bool:
    return root is not None and wire.is_htb_like_ours(root) and wire.lets_unclassified_through(root)


def _is_right(filters: list[wire.Found]) -> bool:
    """Exactly one, and it is our classifier. (The head of a priority's list comes as a filter with handle 0.)"""
    rest = [item for item in filters if not (wire.is_in_our_place(item) and item.handle == 0)]
    return len(rest) == 1 and wire.is_our_filter(rest[0])


def _is_ours(netlink: Netlink, ifindex: int, root: wire.Found | None) -> bool:
    if wire.is_signed(root):
        return True
    return wire.is_htb_like_ours(root) and any(wire.is_our_filter(item) for item in _filters(netlink, ifindex))


def _sort(netlink: Netlink, devices: Iterable[str]) -> tuple[dict[str, int], dict[str, KernelError]]:
    """Devices whose root is ours, with their index; and why classes cannot be made on the others."""
    present = _present(devices)
    ours: dict[str, int] = {}
    refused: dict[str, KernelError] = {}
    for device in devices:
        if device not in present:
            refused[device] = KernelError(f"{device}: no such interface")
        elif _is_ours(netlink, present[device], _root(netlink, present[device])):
            ours[device] = present[device]
        else:
            refused[device] = KernelError(f"{device} has no root qdisc of ours to make classes on")
    return ours, refused


def _error(refusal: Refusal, subject: str) -> KernelError:
    return KernelError(f"{subject}: {refusal.text}")


# -- root qdisc and classifier ------------------------------------------------------------------------------------


def _put_qdisc(netlink: Netlink, device: str) -> None:
    ifindex = _present([device]).get(device)
    if ifindex is None:
        raise KernelError(f"{device}: no such interface")
    root = _root(netlink, ifindex)
    if root is None or root.handle == 0:  # the kernel's default
        for refusal in netlink.send([wire.add_root(ifindex)]):
            raise _error(refusal, f"root qdisc htb 1: on {device}")
    elif not _may_be_completed(netlink, ifindex, root):
        raise KernelError(
            f"{device} has a root qdisc that is not ours ({root.kind} {wire.text_of_id(root.handle)}), and it is left "
            f"alone: remove it with `tc qdisc del dev {device} root`, or give the agent another uplink",
            retry=False,
        )
    elif not wire.lets_unclassified_through(root):
        for refusal in netlink.send([wire.delete_root(ifindex), wire.add_root(ifindex)]):
            raise _error(refusal, f"root qdisc htb 1: on {device}, made anew")
    _put_filter(netlink, device, ifindex)


def _may_be_completed(netlink: Netlink, ifindex: int, root: wire.Found) -> bool:
    """Ours already, or as empty as one of ours that was left half-made."""
    if _is_ours(netlink, ifindex, root):
        return True
    return (
        wire.is_htb_like_ours(root) and not _filters(netlink, ifindex) and not netlink.dump(wire.list_classes(ifindex))
    )


def _put_filter(netlink: Netlink, device: str, ifindex: int) -> None:
    """Ours is in its place before anything else goes. Only a stranger of another kind in its place must leave first."""
    filters = _filters(netlink, ifindex)
    if _is_right(filters):
        return
    twins = {item.handle for item in filters if wire.is_in_our_place(item)} - {0, wire.FILTER_HANDLE}
    others = {item.info for item in filters if not wire.is_in_our_place(item)}
    blocking = {info for info in others if info >> 16 == wire.FILTER_PRIORITY}
    netlink.send([wire.delete_filter(ifindex, info) for info in blocking])
    for refusal in netlink.send([wire.put_filter(ifindex)]):
        raise _error(refusal, f"classifier on {device}")
    netlink.send([wire.delete_filter(ifindex, wire.FILTER_INFO, handle) for handle in twins])
    netlink.send([wire.delete_filter(ifindex, info) for info in others - blocking])


def _remove_qdisc(netlink: Netlink, device: str) -> None:
    """The kernel puts its default in the place by itself."""
    ifindex = _present([device]).get(device)
    if ifindex is None or not _is_ours(netlink, ifindex, _root(netlink, ifindex)):
        return
    for refusal in netlink.send([wire.delete_root(ifindex)]):
        if refusal.errno not in GONE:
            raise _error(refusal, f"root qdisc 1: on {device}")


# -- classes and leaves -------------------------------------------------------------------------------------------


def _leaves(netlink: Netlink, ifindexes: frozenset[int]) -> dict[tuple[int, int], wire.Leaf]:
    """By interface and minor of the class; only those with the handle that we give (the minor)."""
    found = {}
    for data in netlink.dump(wire.list_qdiscs()):
        item = wire.parse(data)
        minor = item.handle >> 16
        if item.ifindex in ifindexes and item.parent == wire.HANDLE | minor:
            found[item.ifindex, minor] = wire.leaf_of(item.kind, item.options)
    return found


def _remove_classes(netlink: Netlink, ours: Mapping[str, int], keys: Sequence[ClassKey]) -> dict[ClassKey, KernelError]:
    refusals = _send(netlink, keys, lambda key: wire.delete_class(ours[key[0]], key[1]))
    return {key: _class_error(refusal, key) for key, refusal in refusals.items() if refusal.errno not in GONE}


def _put_classes(
    netlink: Netlink, ours: Mapping[str, int], wanted: Mapping[ClassKey, Class], new: Container[ClassKey]
) -> dict[ClassKey, KernelError]:
    """Classes, then their leaves. A leaf gets up to three chances: made for a new class, changed in place where one of
    ours is there, put in the place of whatever else is there.

    Device by device: the kernel walks all classes of a device for each new one, and two large walks by turns would
    push each other out of the processor's cache (ten thousand accounts: 9 s instead of 11 to 30).
    """
    kind = leaf_kind()
    wanted = dict(sorted(wanted.items()))

    def put_class(key: ClassKey) -> bytes:
        return wire.put_class(ours[key[0]], key[1], wanted[key].rate)

    def add_leaf(key: ClassKey) -> bytes:
        return wire.add_leaf(ours[key[0]], key[1], wire.leaf_for(wanted[key].rate, kind))

    def change_leaf(key: ClassKey) -> bytes:
        return wire.change_leaf(ours[key[0]], key[1], wire.leaf_for(wanted[key].rate, kind))

    def delete_leaf(key: ClassKey) -> bytes:
        return wire.delete_leaf(ours[key[0]], key[1])

    refusals = _send(netlink, list(wanted), put_class)
    made = [key for key in wanted if key not in refusals]
    odd = [*_send(netlink, [key for key in made if key in new], add_leaf), *(key for key in made if key not in new)]
    odd = list(_send(netlink, odd, change_leaf))
    refusals |= _send(netlink, odd, delete_leaf, add_leaf)
    return {key: _class_error(refusal, key) for key, refusal in refusals.items()}


def _send(netlink: Netlink, keys: Sequence[ClassKey], *makers: Callable[[ClassKey], bytes]) -> dict[ClassKey, Refusal]:
    """Sends what the makers make for each key; the refusals of the last maker's messages, by key."""
    count = len(makers)
    refusals = netlink.send([make(key) for key in keys for make in makers])
    return {keys[item.index // count]: item for item in refusals if item.index % count == count - 1}


def _class_error(refusal: Refusal, key: ClassKey) -> KernelError:
    return _error(refusal, f"class {wire.text_of_id(wire.HANDLE | key[1])} on {key[0]}")


@cache
def leaf_kind() -> str:
    """`fq_codel` where the kernel has it, else `bfifo`. Tried once, by making one and reading it back.

    Where no namespace may be made for the trial, the question goes to the loopback as a request that is wrong in
    itself, so that it is refused in any case: as unknown, or as wrong.
    """
    try:
        works = in_scratch_namespace(_try_fq_codel, TRIAL_SECONDS)
    except NoNamespace:
        with Netlink() as netlink:
            works = any(
                item.errno == errno.EINVAL for item in netlink.send([wire.add_fq_codel_root(LOOPBACK, flows=0)])
            )
    return "fq_codel" if works else "bfifo"


def _try_fq_codel() -> bool:
    with Netlink() as netlink:
        netlink.send([wire.add_fq_codel_root(LOOPBACK, wire.FLOWS)])
        root = _root(netlink, LOOPBACK)
        return root is not None and root.kind == "fq_codel"
