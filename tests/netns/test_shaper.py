"""Shaping on a real kernel: what is applied is read back, strangers are left alone, packets go where they should."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import KernelError
from agent.kernel import shaper, tc, tc_text
from agent.kernel.netlink import Netlink
from agent.kernel.scratch import NoNamespace, in_scratch_namespace
from agent.model import Class, ClassKey, Diff, Qdisc, Scope, minor
from tests.netns.conftest import enter

DEVICE, FAR = "up0", "up1"
SCOPE = Scope(frozenset({"absent0"}), DEVICE)
SO_MARK = 36  # asm-generic/socket.h
Run = Callable[..., Any]


class Box:
    """A namespace with an uplink, and a far host behind it; `run` runs in the box, `far` in the host."""

    def __init__(self, namespace: str, run: Run, far: Run) -> None:
        self.namespace, self.run, self.far = namespace, run, far
        self.qdiscs, self.classes = shaper.Qdiscs(), shaper.Classes()

    def command(self, *words: str) -> str:
        argv = ["ip", "netns", "exec", self.namespace, *words]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout

    def tc(self, line: str) -> str:
        return self.command("tc", *line.split())

    def root(self) -> dict[str, Any]:
        """Without what counts up by itself."""
        found = [item for item in json.loads(self.tc(f"-j qdisc show dev {DEVICE}")) if item.get("root")]
        assert len(found) == 1
        found[0].get("options", {}).pop("direct_packets_stat", None)
        return dict(found[0])

    def add_root(self) -> None:
        assert self.run(self.qdiscs.apply, Diff(add={DEVICE: Qdisc(DEVICE)})) == {}

    def put(self, rates: dict[int, int]) -> dict[ClassKey, Class]:
        """Classes by minor: rate, as new ones."""
        wanted = classes(rates)
        assert self.run(self.classes.apply, Diff(add=wanted)) == {}
        return wanted

    def read(self) -> dict[ClassKey, Class]:
        return dict(self.run(self.classes.read, SCOPE))


def classes(rates: dict[int, int]) -> dict[ClassKey, Class]:
    return {(DEVICE, number): Class(DEVICE, number, rate) for number, rate in rates.items()}


def silence_ipv6() -> None:
    """Nothing but the packets of a test shall be counted."""
    switch = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    if switch.exists():
        switch.write_text("1")


@pytest.fixture
def box(make_namespace: Callable[[], str]) -> Iterator[Box]:
    near, far = make_namespace(), make_namespace()
    for name in (near, far):
        with enter(name) as run:
            run(silence_ipv6)
    for argv in (
        f"-n {near} link add {DEVICE} type veth peer name {FAR} netns {far}",
        f"-n {near} addr add 192.0.2.1/24 dev {DEVICE}",
        f"-n {far} addr add 192.0.2.2/24 dev {FAR}",
        f"-n {near} link set {DEVICE} up",
        f"-n {far} link set {FAR} up",
    ):
        subprocess.run(["ip", *argv.split()], check=True, timeout=60)
    with enter(near) as run, enter(far) as far_run:
        yield Box(near, run, far_run)


# -- root qdisc and classifier ------------------------------------------------------------------------------------


def test_what_is_not_there_is_not_read(box: Box) -> None:
    assert box.run(box.qdiscs.read, SCOPE) == {}
    assert box.read() == {}


def test_root_and_classifier_are_made_and_read_back(box: Box) -> None:
    box.add_root()
    assert box.run(box.qdiscs.read, SCOPE) == {DEVICE: Qdisc(DEVICE)}
    root = box.root()
    assert (root["kind"], root["handle"], root["options"]["default"]) == ("htb", "1:", "0")
    filters = json.loads(box.tc(f"-j filter show dev {DEVICE}"))
    assert [(item["kind"], item["protocol"]) for item in filters if "options" in item] == [("bpf", "all")]


def test_applying_again_touches_nothing(box: Box) -> None:
    box.add_root()
    wanted = box.put({0x109: 20})
    send(box, 109, 3)
    before = box.tc(f"-s -d class show dev {DEVICE}"), box.tc(f"filter show dev {DEVICE}"), box.root()
    box.add_root()
    box.put({0x109: 20})
    after = box.tc(f"-s -d class show dev {DEVICE}"), box.tc(f"filter show dev {DEVICE}"), box.root()
    assert after == before
    assert box.read() == wanted


@pytest.mark.parametrize(
    "lines",
    [
        ["qdisc add dev {} root handle 8: pfifo limit 77"],
        ["qdisc add dev {} root handle 1: tbf rate 5mbit burst 20k latency 50ms"],
        ["qdisc add dev {} root handle 2: htb default 0"],
        ["qdisc add dev {} root handle 1: htb default 10"],
        [
            "qdisc add dev {} root handle 1: htb default 0",
            "class add dev {} parent 1: classid 1:109 htb rate 3mbit quantum 1600",
        ],
        [
            "qdisc add dev {} root handle 1: htb default 0",
            "filter add dev {} parent 1: protocol ip u32 match ip dst 192.0.2.9 flowid 1:9",
        ],
    ],
)
def test_a_strangers_root_is_refused_by_name_and_left_alone(box: Box, lines: list[str]) -> None:
    for line in lines:
        box.tc(line.format(DEVICE))
    shown = [f"-d qdisc show dev {DEVICE}", f"-d class show dev {DEVICE}", f"filter show dev {DEVICE}"]
    before = [box.tc(line) for line in shown]
    errors = box.run(box.qdiscs.apply, Diff(add={DEVICE: Qdisc(DEVICE)}))
    assert set(errors) == {DEVICE}
    root = box.root()
    for word in (DEVICE, f"{root['kind']} {root['handle']}", f"`tc qdisc del dev {DEVICE} root`"):
        assert word in str(errors[DEVICE])
    assert not errors[DEVICE].retry
    assert box.run(box.qdiscs.read, SCOPE) == {}
    assert box.read() == {}
    refused = box.run(box.classes.apply, Diff(add=classes({0x110: 5}), change=classes({0x109: 5})))
    assert set(refused) == {(DEVICE, 0x109), (DEVICE, 0x110)}
    assert box.run(box.classes.apply, Diff(remove=classes({0x109: 3}))) == {}
    assert box.run(box.qdiscs.apply, Diff(remove={DEVICE: Qdisc(DEVICE)})) == {}
    assert box.run(shaper.class_text, DEVICE, 0x109) is None
    assert [box.tc(line) for line in shown] == before


def test_an_empty_half_made_root_is_completed(box: Box) -> None:
    box.tc(f"qdisc add dev {DEVICE} root handle 1: htb default 0 r2q 17")
    before = box.root()
    assert box.run(box.qdiscs.read, SCOPE) == {}
    box.add_root()
    assert box.run(box.qdiscs.read, SCOPE) == {DEVICE: Qdisc(DEVICE)}
    assert box.root() == before  # not made anew: r2q is still 17
    assert box.put({0x109: 20}) == box.read()


@pytest.mark.parametrize(
    "lines",
    [
        ["filter del dev {}"],
        ["filter add dev {} parent 1: protocol ip prio 7 u32 match ip dst 192.0.2.9 flowid 1:9"],
        ["filter del dev {}", "filter add dev {} parent 1: protocol ip prio 1 u32 match ip dst 192.0.2.9 flowid 1:9"],
        ["filter del dev {}", "filter add dev {} parent 1: protocol all prio 1 bpf bytecode 1,6_0_0_65545"],
        ["filter add dev {} parent 1: protocol all prio 1 handle 9 bpf bytecode 1,6_0_0_65545"],
    ],
)
def test_a_changed_classifier_is_repaired_on_the_running_root(box: Box, lines: list[str]) -> None:
    box.add_root()
    wanted = box.put({0x109: 20})
    send(box, 109, 2)
    before = box.run(shaper.class_text, DEVICE, 0x109)
    for line in lines:
        box.command("tc", *(word.replace("_", " ") for word in line.format(DEVICE).split()))
    assert box.run(box.qdiscs.read, SCOPE) == {}
    assert box.read() == wanted  # still ours
    box.add_root()
    assert box.run(box.qdiscs.read, SCOPE) == {DEVICE: Qdisc(DEVICE)}
    assert box.run(shaper.class_text, DEVICE, 0x109) == before
    filters = json.loads(box.tc(f"-j filter show dev {DEVICE}"))
    assert len([item for item in filters if "options" in item]) == 1


def test_removing_the_qdisc_brings_the_kernels_default_back(box: Box) -> None:
    before = box.root()
    box.add_root()
    box.put({0x109: 20})
    assert box.run(box.qdiscs.apply, Diff(remove={DEVICE: Qdisc(DEVICE)})) == {}
    assert box.root() == before


def test_what_is_gone_is_removed_already(box: Box) -> None:
    gone = Diff(remove={DEVICE: Qdisc(DEVICE), "absent0": Qdisc("absent0")})
    assert box.run(box.qdiscs.apply, gone) == {}
    lost = {("absent0", 0x109): Class("absent0", 0x109, 1), **classes({0x109: 1})}
    assert box.run(box.classes.apply, Diff(remove=lost)) == {}
    box.add_root()
    assert box.run(box.classes.apply, Diff(remove=lost)) == {}


def test_a_device_that_is_not_there_spoils_only_itself(box: Box) -> None:
    errors = box.run(box.qdiscs.apply, Diff(add={"absent0": Qdisc("absent0"), DEVICE: Qdisc(DEVICE)}))
    assert {device: str(error) for device, error in errors.items()} == {"absent0": "absent0: no such interface"}
    wanted = {("absent0", 0x109): Class("absent0", 0x109, 1), **classes({0x109: 1})}
    errors = box.run(box.classes.apply, Diff(add=wanted))
    assert set(errors) == {("absent0", 0x109)}
    assert box.read() == classes({0x109: 1})


def test_both_work_on_a_device_that_is_down(box: Box) -> None:
    box.command("ip", "link", "set", DEVICE, "down")
    box.add_root()
    assert box.run(box.qdiscs.read, SCOPE) == {DEVICE: Qdisc(DEVICE)}
    assert box.put({0x109: 20}) == box.read()


# -- classes ------------------------------------------------------------------------------------------------------

RATES = (*range(1, 130), 622, 999, 1000, 1001, 2500, 3333, 9999, 10_000)


def test_classes_read_back_as_written(box: Box) -> None:
    box.add_root()
    wanted = box.put({minor(mark): rate for mark, rate in zip(range(100, 9999), RATES, strict=False)} | {0xFFFE: 7})
    assert len(wanted) == len(RATES) + 1
    assert box.read() == wanted


def test_a_thousand_rates_are_changed_in_one_go(box: Box) -> None:
    box.add_root()
    box.put(dict.fromkeys(range(0x100, 0x100 + 1000), 20))
    slower = classes(dict.fromkeys(range(0x100, 0x100 + 1000), 3))
    assert box.run(box.classes.apply, Diff(change=slower)) == {}
    assert box.read() == slower
    assert box.run(box.classes.apply, Diff(remove=slower)) == {}
    assert box.read() == {}


@pytest.mark.parametrize(
    "line",
    [
        "class change dev {} classid 1:109 htb rate 20mbit ceil 21mbit burst 15k cburst 15k quantum 3028",
        "class change dev {} classid 1:109 htb rate 20mbit burst 30k cburst 15k quantum 3028",
        "class change dev {} classid 1:109 htb rate 20mbit burst 15k cburst 30k quantum 3028",
        "class change dev {} classid 1:109 htb rate 20mbit burst 15k cburst 15k quantum 3029",
        "class change dev {} classid 1:109 htb rate 20mbit burst 15k cburst 15k quantum 3028 prio 1",
        "class change dev {} classid 1:109 htb rate 20001kbit burst 15k cburst 15k quantum 3028",
        "qdisc del dev {} parent 1:109",
        "qdisc change dev {} parent 1:109 handle 109: {kind} limit 77777",
        "qdisc replace dev {} parent 1:109 handle 10a: {kind}",
        "qdisc replace dev {} parent 1:109 handle 7: pfifo limit 10",
        "qdisc replace dev {} parent 1:109 pfifo limit 10",
    ],
)
def test_a_class_that_is_not_as_made_is_told_and_repaired(box: Box, line: str) -> None:
    box.add_root()
    wanted = box.put({0x109: 20, 0x110: 5})
    box.tc(line.format(DEVICE, kind=box.run(shaper.leaf_kind)))
    found = box.read()
    assert found == {**wanted, **classes({0x109: shaper.WRONG})}
    assert box.run(box.classes.apply, Diff(change={(DEVICE, 0x109): wanted[DEVICE, 0x109]})) == {}
    assert box.read() == wanted


def test_a_leaf_of_another_kind_under_our_handle_is_replaced(box: Box) -> None:
    box.add_root()
    wanted = box.put({0x109: 20})
    box.tc(f"qdisc del dev {DEVICE} parent 1:109")
    box.tc(f"qdisc add dev {DEVICE} parent 1:109 handle 109: pfifo limit 10")
    assert box.read() == classes({0x109: shaper.WRONG})
    assert box.run(box.classes.apply, Diff(change=wanted)) == {}
    assert box.read() == wanted


def test_strangers_classes_on_our_root_are_listed_and_removed(box: Box) -> None:
    box.add_root()
    wanted = box.put({0x109: 20})
    box.tc(f"class add dev {DEVICE} parent 1: classid 1:5 htb rate 1mbit quantum 1600")
    box.tc(f"class add dev {DEVICE} parent 1:109 classid 1:6 htb rate 1mbit quantum 1600")
    found = box.read()
    assert set(found) == {(DEVICE, 0x109), (DEVICE, 5), (DEVICE, 6)}
    assert {item.rate for item in found.values()} == {shaper.WRONG}
    strangers = {key: item for key, item in found.items() if key[1] < 0x100}
    assert box.run(box.classes.apply, Diff(change=wanted, remove=strangers)) == {}
    assert box.read() == wanted


def test_a_class_the_kernel_refuses_spoils_only_itself(box: Box) -> None:
    """The leaf of minor 1 would need the root's own handle."""
    box.add_root()
    errors = box.run(box.classes.apply, Diff(add=classes({0x109: 1, 1: 1, 0x110: 1})))
    assert set(errors) == {(DEVICE, 1)}
    assert str(errors[DEVICE, 1]).startswith(f"class 1:1 on {DEVICE}: ")
    assert box.read() == classes({0x109: 1, 1: shaper.WRONG, 0x110: 1})


# -- packets ------------------------------------------------------------------------------------------------------


def send(box: Box, mark: int, count: int, size: int = 1000) -> None:
    """Datagrams from the box to the far host, marked as the MARK rules would."""

    def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
            door.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            for _ in range(count):
                door.sendto(bytes(size), ("192.0.2.2", 9))

    box.run(work)


def sent(box: Box, number: int) -> int:
    counters = tc_text.class_counters(box.run(shaper.read_class, DEVICE, number))
    return counters.packets


def test_a_marked_packet_goes_into_the_class_of_its_mark(box: Box) -> None:
    box.add_root()
    marks = (100, 109, 999, 1000, 9999, 40_960, 65_534)
    box.put({minor(mark): 100 for mark in marks})
    for count, mark in enumerate(marks, 1):
        send(box, mark, count)
    assert [sent(box, minor(mark)) for mark in marks] == list(range(1, len(marks) + 1))


def test_what_has_no_class_passes_unshaped(box: Box) -> None:
    box.add_root()
    box.put({0x109: 1})
    receiver = box.far(listen_udp)
    with receiver:
        for mark in (0, 99, 110, 10_000, 40_959, 65_535, 0x10000 | 109):
            send_to(box, receiver, mark, 30)
            assert receive(receiver, 30) == list(range(30))
    assert sent(box, 0x109) == 0


def listen_udp() -> socket.socket:
    door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    door.bind(("192.0.2.2", 0))
    door.settimeout(10)
    return door


def send_to(box: Box, receiver: socket.socket, mark: int, count: int) -> None:
    def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
            door.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            for number in range(count):
                door.sendto(number.to_bytes(4, "big") + bytes(1396), receiver.getsockname())

    box.run(work)


def receive(receiver: socket.socket, count: int) -> list[int]:
    """The numbers of the datagrams, until `count` have come or ten seconds pass without one."""
    numbers: list[int] = []
    try:
        while len(numbers) < count:
            numbers.append(int.from_bytes(receiver.recv(2048)[:4], "big"))
    except TimeoutError:
        pass
    return numbers


@pytest.mark.parametrize(("before", "after"), [(10, 2), (2, 10), (4, 5)])
def test_a_rate_change_loses_nothing_of_what_is_queued(box: Box, before: int, after: int) -> None:
    def look() -> shaper.tc_text.ClassCounters:
        return shaper.tc_text.class_counters(box.run(shaper.read_class, DEVICE, 0x109))

    box.add_root()
    box.put({0x109: before})
    receiver = box.far(listen_udp)
    with receiver:
        send_to(box, receiver, 109, 50)
        waiting = look()
        assert waiting.backlog_packets > 20
        assert box.run(box.classes.apply, Diff(change=classes({0x109: after}))) == {}
        changed = look()
        assert changed.backlog_packets > 10
        if box.run(shaper.leaf_kind) == "bfifo":  # fq_codel drops of itself what waits too long
            assert receive(receiver, 50) == list(range(50))
            assert (look().packets, look().drops, look().backlog_packets) == (50, 0, 0)
        else:
            assert changed.packets + changed.backlog_packets + changed.drops == 50
            assert changed.drops <= waiting.drops + 1
    assert box.read() == classes({0x109: after})


def tcp_megabits(box: Box, mark: int, seconds: float) -> float:
    """Goodput of one connection from the box to the far host."""

    def listen() -> socket.socket:
        return socket.create_server(("192.0.2.2", 0))

    def connect() -> socket.socket:
        door = socket.socket()
        door.settimeout(10)
        door.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        door.connect(server.getsockname())
        return door

    with box.far(listen) as server, box.run(connect) as sender, server.accept()[0] as receiver:
        receiver.settimeout(10)
        stop = time.monotonic() + seconds + 1

        def pour() -> None:
            while time.monotonic() < stop:
                try:
                    sender.send(bytes(1 << 16))
                except OSError:
                    return

        thread = threading.Thread(target=pour)
        thread.start()
        started = time.monotonic()
        while time.monotonic() < started + 1:  # the first second is slow start and the burst
            receiver.recv(1 << 20)
        started, total = time.monotonic(), 0
        while time.monotonic() < started + seconds:
            total += len(receiver.recv(1 << 20))
        elapsed = time.monotonic() - started
        receiver.close()
        thread.join(15)
    return total * 8e-6 / elapsed


@pytest.mark.parametrize("rate", [1, 5, 20])
def test_one_connection_gets_what_was_sold_and_no_more(box: Box, rate: int) -> None:
    box.add_root()
    box.put({0x109: rate})
    assert 0.85 * rate < tcp_megabits(box, 109, 4) < 1.01 * rate


# -- text ---------------------------------------------------------------------------------------------------------


def tc_texts(box: Box) -> dict[int, str]:
    """The first three lines that tc prints for each class, by minor."""
    texts = {}
    for block in box.tc(f"-s class show dev {DEVICE}").split("\n\n"):
        lines = block.split("\n")[:3]
        if len(lines) == 3:
            texts[int(lines[0].split()[2].partition(":")[2], 16)] = "".join(f"{line}\n" for line in lines)
    return texts


def test_text_is_what_tc_prints_for_any_rate(box: Box) -> None:
    box.add_root()
    rates = sorted({*range(1, 200), *range(200, 10_001, 97), 1000, 2500, 10_000})
    box.put({0x100 + rate: rate for rate in rates})
    texts = tc_texts(box)
    assert len(texts) == len(rates)
    assert {number: box.run(shaper.class_text, DEVICE, number) for number in texts} == texts


def test_text_is_what_tc_prints_under_load_and_for_odd_classes(box: Box) -> None:
    box.add_root()
    box.put({0x109: 1, 0x110: 100})
    box.tc(f"class add dev {DEVICE} parent 1: classid 1:7 est 1sec 4sec htb rate 1500kbit ceil 3mbit prio 2 overhead 9")
    box.tc(f"class add dev {DEVICE} parent 1: classid 1:8 htb rate 1234567896bit burst 2m quantum 1600")
    box.tc(f"class add dev {DEVICE} parent 1:8 classid 1:9 htb rate 50gbit burst 40k quantum 1600")
    send(box, 110, 12, 1400)
    send(box, 109, 90, 1400)
    box.command("ip", "link", "set", DEVICE, "down")  # so that what is queued stays while both are asked
    texts = tc_texts(box)
    assert set(texts) == {0x109, 0x110, 7, 8, 9}
    assert {number: box.run(shaper.class_text, DEVICE, number) for number in texts} == texts


def test_no_class_no_text(box: Box) -> None:
    assert box.run(shaper.class_text, DEVICE, 0x109) is None
    box.add_root()
    assert box.run(shaper.class_text, DEVICE, 0x109) is None
    assert box.run(shaper.class_text, "absent0", 0x109) is None


# -- what the kernel can do ---------------------------------------------------------------------------------------


def test_leaf_kind_is_what_the_kernel_makes(box: Box) -> None:
    made = subprocess.run(
        ["ip", "netns", "exec", box.namespace, "tc", "qdisc", "add", "dev", "lo", "root", "fq_codel"],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert shaper.leaf_kind() == ("fq_codel" if made.returncode == 0 else "bfifo")


def test_leaf_kind_is_found_without_leave_to_make_a_namespace(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = shaper.leaf_kind()

    def refuse(*_: object) -> bool:
        raise NoNamespace("no")

    monkeypatch.setattr(shaper, "in_scratch_namespace", refuse)
    assert box.run(shaper.leaf_kind.__wrapped__) == wanted
    assert json.loads(box.command("tc", "-j", "qdisc", "show", "dev", "lo"))[0]["kind"] == "noqueue"


def test_a_trial_leaves_no_trace(box: Box) -> None:
    before = box.tc("qdisc show")
    box.run(shaper.leaf_kind.__wrapped__)
    assert box.tc("qdisc show") == before


def test_a_trial_that_hangs_ends_with_an_error() -> None:
    with pytest.raises(KernelError, match="longer than"):
        in_scratch_namespace(lambda: time.sleep(1), 0.2)
    with Netlink() as door:
        assert door.send([tc.get_root(4711)])[0].index == 0
