"""The door to libnftables and the reader of elements: errors, namespaces, memory, and what nft itself shows."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from agent.errors import KernelError
from agent.kernel.nftables import nft, readout, ruleset
from agent.kernel.nftables.forwarding import NftForwardings
from agent.kernel.nftables.marks import TOWARDS, NftablesMarks
from agent.kernel.nftables.ruleset import Writing
from agent.objects import Diff, Forwarding, Mark, Scope
from tests.netns import crossing
from tests.netns.conftest import enter
from tests.netns.test_probe import python

Run = Callable[..., Any]
WRITE = Writing("t")
MAKE = [WRITE.add_table(), WRITE.add_set(TOWARDS)]


def text(number: int) -> str:
    return str(IPv4Address(0x0A400000 + number))


def elements(count: int) -> list[str]:
    return [f"{text(i)} counter packets {i} bytes {1000 * i} : {100 + i}" for i in range(count)]


def test_commands_are_one_transaction_and_errors_are_the_librarys_own_words(namespace: str) -> None:
    with enter(namespace) as run:
        with pytest.raises(KernelError, match=r"No such file or directory \(one of 3 commands\)$") as got:
            run(nft.apply, [*MAKE, "delete table ip nowhere"])
        assert got.value.retry
        assert ruleset.find(run(nft.listing, "t"), "t") is None
        with pytest.raises(KernelError, match=r"syntax error.* \(make me a table\)"):
            run(nft.apply, ["make me a table"])


def test_every_call_works_in_the_namespace_of_its_thread(make_namespace: Callable[[], str]) -> None:
    one, other = make_namespace(), make_namespace()
    with enter(one) as here, enter(other) as there:
        here(nft.apply, MAKE)
        assert ruleset.find(here(nft.listing, "t"), "t") is not None
        assert ruleset.find(there(nft.listing, "t"), "t") is None
        assert there(readout.read, "t", TOWARDS.name) == {}


def test_what_was_listed_stands_while_nobody_commits_but_elements_of_ours(make_namespace: Callable[[], str]) -> None:
    one, other = make_namespace(), make_namespace()

    def change(verb: str, number: int) -> None:
        nft.apply(WRITE.elements(verb, TOWARDS.name, elements(number)[-1:]), elements=True)

    with enter(one) as run, enter(other) as elsewhere:
        run(nft.apply, MAKE)
        state = run(nft.state)
        for number in (1, 2, 3):
            run(change, "add", number)
            assert run(nft.state) is state
        run(change, "delete", 2)
        elsewhere(nft.apply, MAKE)
        assert run(nft.state) is state is not elsewhere(nft.state)
        for foreign in (
            "add table inet other",
            f"add element ip t {TOWARDS.name} {{ {text(9)} : 9 }}",
            "delete table inet other",
        ):
            crossing.nft(one, foreign)
            assert run(nft.state) is not state
            state = run(nft.state)
        run(nft.apply, [WRITE.add_plain_chain("c")])
        assert run(nft.state) is not state, "that was no element"


def test_a_commit_of_others_beside_ours_is_no_element_of_ours(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with enter(namespace) as run:
        run(nft.apply, MAKE)
        state, really = run(nft.state), nft._run

        def interrupted(commands: str, output: int) -> str:
            crossing.nft(namespace, "add table inet other")
            return really(commands, output)

        monkeypatch.setattr(nft, "_run", interrupted)
        run(lambda: nft.apply(WRITE.elements("add", TOWARDS.name, elements(1)), elements=True))
        assert run(nft.state) is not state


@pytest.mark.parametrize("count", [0, 1, 60, 3000])
def test_elements_are_read_as_nft_shows_them(namespace: str, count: int) -> None:
    with enter(namespace) as run:
        run(nft.apply, [*MAKE, *WRITE.elements("add", TOWARDS.name, elements(count))])
        found = run(readout.read, "t", TOWARDS.name)
        few = run(readout.peek, "t", TOWARDS.name)
    listed = json.loads(crossing.nft(namespace, "-j list map ip t towards"))["nftables"][1]["map"].get("elem", [])
    shown = {
        IPv4Address(one["elem"]["val"]).packed: (
            mark,
            one["elem"]["counter"]["packets"],
            one["elem"]["counter"]["bytes"],
        )
        for one, mark in listed
    }
    assert found == shown
    assert len(found) == count
    assert bool(few) == bool(count)
    assert few.items() <= found.items()


def test_single_elements_are_found_and_absent_ones_are_not(namespace: str) -> None:
    asked = [IPv4Address(text(n)).packed for n in (3, 70, 7)]
    with enter(namespace) as run:
        assert run(readout.read_some, "t", TOWARDS.name, asked) == {}
        run(nft.apply, [*MAKE, *WRITE.elements("add", TOWARDS.name, elements(10))])
        found = run(readout.read_some, "t", TOWARDS.name, asked)
    assert found == {asked[0]: (103, 3, 3000), asked[2]: (107, 7, 7000)}


def test_a_map_without_counters_and_one_with_timeouts_read_too(namespace: str) -> None:
    """Whatever somebody else has put under our names must not break a reading."""
    for line in (
        "add table ip t",
        "add map ip t plain { type ipv4_addr : mark; }",
        "add element ip t plain { 10.0.0.1 : 7 }",
        "add map ip t timed { type ipv4_addr : mark; timeout 1h; counter; }",
        'add element ip t timed { 10.0.0.1 comment "x" : 8 }',
        "add set ip t wide { type ipv4_addr . mark; }",
        "add element ip t wide { 10.0.0.1 . 9 }",
    ):
        crossing.nft(namespace, line)
    with enter(namespace) as run:
        assert run(readout.read, "t", "plain") == {bytes([10, 0, 0, 1]): (7, 0, 0)}
        assert run(readout.read, "t", "timed") == {bytes([10, 0, 0, 1]): (8, 0, 0)}
        assert run(readout.read, "t", "wide") == {}


def test_whatever_others_keep_in_nftables_does_not_disturb(namespace: str) -> None:
    def iptables(words: str) -> None:
        subprocess.run(["ip", "netns", "exec", namespace, "iptables-nft", *words.split()], check=True, timeout=20)

    iptables("-t mangle -A FORWARD -m comment --comment h\u00e4 -j MARK --set-mark 3")
    iptables("-A FORWARD -m statistic --mode random --probability 0.5 -j LOG")
    for line in (
        "add table ip w",
        "add chain ip w c { type filter hook forward priority 0; }",
        "add set ip w recent { type ipv4_addr; flags dynamic,timeout; timeout 1m; }",
        "add rule ip w c update @recent { ip saddr limit rate 10/second } counter accept",
        "add rule ip w c meta mark and 0xff or 0x100 == 0x101 ip saddr vmap { 10.0.0.1 : drop }",
        "add quota ip w q { over 10 mbytes }",
        "add table ip sleeping { flags dormant; }",
        "add chain ip sleeping marks { type filter hook forward priority 0; }",
        "add rule ip sleeping marks counter",
        "add table inet wirelane",
        "add chain inet wirelane marks { type filter hook forward priority 0; }",
    ):
        crossing.nft(namespace, line)
    before = crossing.nft(namespace, "-s list ruleset")
    marks, scope = {IPv4Address("10.0.0.1"): Mark(IPv4Address("10.0.0.1"), 109)}, Scope(frozenset(), "")
    rules = {"wl0": Forwarding("wl0", IPv4Interface("10.0.0.1/24"), "up0", 9, True, None)}
    with enter(namespace) as run:
        assert not run(NftablesMarks().is_there) and not run(NftForwardings().is_there)
        run(NftablesMarks().apply, Diff(add=marks))
        run(NftForwardings().apply, Diff(add=rules))
        assert run(NftablesMarks().read, scope) == marks
        assert run(NftForwardings().read, scope) == rules
        crossing.nft(namespace, "insert rule ip wirelane marks counter")
        crossing.nft(namespace, "flush chain ip wirelane_forwarding clamp")
        assert run(NftablesMarks().read, scope) != marks and run(NftForwardings().read, scope) != rules
        run(NftablesMarks().apply, Diff(remove=marks))
        run(NftForwardings().apply, Diff(remove=rules))
    assert crossing.nft(namespace, "-s list ruleset") == before


def test_thousands_of_calls_keep_no_memory_and_no_file(namespace: str) -> None:
    def kilobytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4

    def calls(times: int) -> None:
        for number in range(times):
            nft.apply(WRITE.elements("add", TOWARDS.name, [f"{text(number % 100)} : 7"]))
            nft.listing("t")
            readout.read("t", TOWARDS.name)

    with enter(namespace) as run:
        run(nft.apply, MAKE)
        run(calls, 500)
        before, files = kilobytes(), len(list(Path("/proc/self/fd").iterdir()))
        run(calls, 2500)
        assert kilobytes() - before < 2000
        assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_counters_can_be_read_while_another_thread_writes(namespace: str) -> None:
    marks = NftablesMarks()
    standing = {a: Mark(a, 100 + i) for i in range(5000) if (a := IPv4Address(0x0A400000 + i))}
    over = threading.Event()

    def write() -> int:
        passes = 0
        while not over.is_set():
            address = IPv4Address(0x0A500000 + passes % 50)
            marks.apply(Diff(add={address: Mark(address, 50000)}))
            passes += 1
        return passes

    def read() -> list[int]:
        return [len(marks.counters().keys() & standing.keys()) for _ in range(20)]

    with enter(namespace) as writer, enter(namespace) as reader:
        writer(marks.apply, Diff(add=standing))
        passes: list[int] = []
        thread = threading.Thread(target=lambda: passes.append(writer(write)))
        thread.start()
        seen = reader(read)
        over.set()
        thread.join()
    assert passes[0] > 20
    assert min(seen) == 5000


def test_the_cost_of_one_account_does_not_grow_with_their_number(namespace: str) -> None:
    marks, scope = NftablesMarks(), Scope(frozenset(), "")

    def fill(first: int, last: int) -> None:
        marks.apply(Diff(add={a: Mark(a, 100 + i) for i in range(first, last) if (a := IPv4Address(0x0A400000 + i))}))

    def one_by_one() -> float:
        spent = []
        for number in range(40):
            address = IPv4Address(0x0B000000 + number)
            started = time.thread_time()
            marks.apply(Diff(add={address: Mark(address, 60000)}))
            spent.append(time.thread_time() - started)
        marks.apply(Diff(remove={a: Mark(a, 60000) for i in range(40) if (a := IPv4Address(0x0B000000 + i))}))
        return sorted(spent)[20]

    with enter(namespace) as run:
        run(fill, 0, 100)
        few = run(one_by_one)
        run(fill, 100, 10_000)
        many = run(one_by_one)
        assert len(run(marks.read, scope)) == 10_000
    assert many < 0.01
    assert many < 2 * few + 0.0005  # twice: two cores, and others on them


def test_the_rights_of_the_service_are_enough(namespace: str) -> None:
    """No CAP_SYS_ADMIN, no CAP_DAC_OVERRIDE."""
    code = """
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from agent.kernel.trials.backend import BACKENDS, refusal
from agent.kernel.iptables.marks import IptablesMarks
from agent.kernel.nftables.forwarding import NftForwardings
from agent.kernel.nftables.marks import NftablesMarks
from agent.objects import Diff, Forwarding, Mark, Scope
address, scope = IPv4Address("10.0.0.1"), Scope(frozenset(), "up0")
marks = {address: Mark(address, 109)}
rules = {"wl0": Forwarding("wl0", IPv4Interface("10.0.0.1/24"), "up0", 9, False, None)}
for door in (NftablesMarks(), IptablesMarks()):
    assert not door.is_there()
    door.apply(Diff(add=marks))
    assert door.read(scope) == marks and door.is_there()
    door.unhook()
    assert door.counters().keys() == marks.keys()
    door.clear()
NftForwardings().apply(Diff(add=rules))
assert NftForwardings().read(scope) == rules
print([refusal(one) for one in BACKENDS])
"""
    done = python(namespace, code)
    assert done.stdout == "['', '']\n", done.stderr
