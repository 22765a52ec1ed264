"""Shaping on a real kernel, seen from the packets: where they go, how fast, and what tc says of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from agent.kernel.tc import shaper
from agent.model import minor
from agent.objects import Diff
from tests.netns.shaped_box import DEVICE, SO_MARK, Box, classes, make_box


@pytest.fixture
def box(make_namespace: Callable[[], str]) -> Iterator[Box]:
    with make_box(make_namespace) as made:
        yield made


# -- packets ------------------------------------------------------------------------------------------------------


def test_a_marked_packet_goes_into_the_class_of_its_mark(box: Box) -> None:
    box.add_root()
    marks = (100, 109, 999, 1000, 9999, 40_960, 65_534)
    box.put({minor(mark): 100 for mark in marks})
    for count, mark in enumerate(marks, 1):
        box.send(mark, count)
    assert [box.counters(minor(mark)).packets for mark in marks] == list(range(1, len(marks) + 1))


def test_what_has_no_class_passes_unshaped(box: Box) -> None:
    box.add_root()
    box.put({0x109: 1})
    receiver = box.far(listen_udp)
    with receiver:
        for mark in (0, 99, 110, 10_000, 40_959, 65_535, 0x10000 | 109):
            box.send(mark, 30, 1400, receiver)
            assert receive(receiver, 30) == list(range(30))
    assert box.counters(0x109).packets == 0


def listen_udp() -> socket.socket:
    door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    door.bind(("192.0.2.2", 0))
    door.settimeout(10)
    return door


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
    box.add_root()
    box.put({0x109: before})
    receiver = box.far(listen_udp)
    with receiver:
        box.send(109, 50, 1400, receiver)
        waiting = box.counters(0x109)
        assert waiting.backlog_packets > 20
        assert box.run(box.classes.apply, Diff(change=classes({0x109: after}))) == {}
        changed = box.counters(0x109)
        assert changed.backlog_packets > 10
        if box.run(shaper.leaf_kind) == "bfifo":  # fq_codel drops of itself what waits too long
            assert receive(receiver, 50) == list(range(50))
            assert (box.counters(0x109).packets, box.counters(0x109).drops, box.counters(0x109).backlog_packets) == (
                50,
                0,
                0,
            )
        else:
            assert changed.packets + changed.backlog_packets + changed.drops == 50
            assert changed.drops <= waiting.drops + 1
    assert box.read() == classes({0x109: after})


SEGMENT = 65_536 * 8e-6  # megabits, the largest that TCP hands over


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


# At 1 Mbit/s one segment of 64 kB is an eighth of all that can come within four seconds, and may come at either end.
@pytest.mark.parametrize(("rate", "least"), [(1, 0.7), (5, 0.85), (20, 0.85)])
def test_one_connection_gets_what_was_sold_and_no_more(box: Box, rate: int, least: float) -> None:
    box.add_root()
    box.put({0x109: rate})
    assert least * rate < tcp_megabits(box, 109, 4) < 1.01 * rate + SEGMENT / 4


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
    box.send(110, 12, 1400)
    box.send(109, 90, 1400)
    box.command("ip", "link", "set", DEVICE, "down")  # so that what is queued stays while both are asked
    texts = tc_texts(box)
    assert set(texts) == {0x109, 0x110, 7, 8, 9}
    assert {number: box.run(shaper.class_text, DEVICE, number) for number in texts} == texts


def test_no_class_no_text(box: Box) -> None:
    assert box.run(shaper.class_text, DEVICE, 0x109) is None
    box.add_root()
    assert box.run(shaper.class_text, DEVICE, 0x109) is None
    assert box.run(shaper.class_text, "absent0", 0x109) is None


def test_text_of_a_root_is_what_tc_prints(box: Box) -> None:
    assert box.run(shaper.root_text, DEVICE) is None
    box.add_root()
    box.put({0x109: 5})
    tcp_megabits(box, 109, 0.3)

    def is_equal() -> bool:
        """The kernel says something by itself now and then, perhaps between the two."""
        return bool(box.run(shaper.root_text, DEVICE) == box.tc(f"-s qdisc show dev {DEVICE} root"))

    assert any(is_equal() for _ in range(5))
    assert box.run(shaper.root_text, "nowhere0") is None
