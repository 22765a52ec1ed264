"""The netlink sender against a real kernel: errors by index, large batches, lost answers."""

from __future__ import annotations

import errno
import socket

import pytest

from agent.errors import KernelError
from agent.kernel.netlink import Netlink, Refusal
from agent.kernel.netlink import sender as netlink
from agent.kernel.tc import wire
from tests.netns.conftest import enter

LOOPBACK = 1


def send(messages: list[bytes]) -> list[Refusal]:
    with Netlink() as door:
        return door.send(messages)


def minors_on_loopback() -> set[int]:
    with Netlink() as door:
        return {wire.parse(data).handle & 0xFFFF for data in door.dump(wire.list_classes(LOOPBACK))}


def test_each_refusal_names_its_message_and_says_why(namespace: str) -> None:
    wrong = {0, 1, 199, 200, 450, 999}  # first and last of a chunk too
    batch = [
        wire.change_leaf(LOOPBACK, 0x100 + i, wire.Leaf("bfifo", 1))
        if i in wrong
        else wire.put_class(LOOPBACK, 0x100 + i, 1)
        for i in range(1000)
    ]
    with enter(namespace) as run:
        assert run(send, [wire.add_root(LOOPBACK)]) == []
        refusals = run(send, batch)
        assert {item.index for item in refusals} == wrong
        assert {(item.errno, item.text) for item in refusals} == {(errno.ENOENT, "Specified class not found")}
        assert run(minors_on_loopback) == {0x100 + i for i in range(1000) if i not in wrong}


def test_thirty_thousand_messages_are_all_answered(namespace: str) -> None:
    with enter(namespace) as run:
        run(send, [wire.add_root(LOOPBACK)])
        refusals = run(send, [wire.delete_class(LOOPBACK, 0x100 + i) for i in range(30_000)])
    assert [item.index for item in refusals] == list(range(30_000))
    assert {item.errno for item in refusals} == {errno.ENOENT}


def test_answers_lost_for_want_of_memory_are_asked_for_again(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "RECEIVE_BUFFER_BYTES", 2048)  # the kernel's least; a chunk's errors do not fit
    batch = [wire.delete_class(LOOPBACK, 0x100 + i) for i in range(150)] + [wire.put_class(LOOPBACK, 0x5000, 1)]

    def overrun() -> str:
        with Netlink() as door:
            door._transmit(batch, 0)
            try:
                while True:
                    door._receive()
            except KernelError as error:
                return str(error)

    with enter(namespace) as run:
        run(send, [wire.add_root(LOOPBACK)])
        assert "receive buffer was full" in run(overrun)
        assert [item.index for item in run(send, batch)] == list(range(150))
        assert run(minors_on_loopback) == {0x5000}


def test_nothing_to_send_is_done_at_once(namespace: str) -> None:
    with enter(namespace) as run:
        assert run(send, []) == []


def test_one_object_is_asked_for_by_name(namespace: str) -> None:
    def ask(request: bytes) -> bytes | Refusal | None:
        with Netlink() as door:
            return door.ask(request)

    with enter(namespace) as run:
        run(send, [wire.add_root(LOOPBACK), wire.put_class(LOOPBACK, 0x109, 20)])
        answer = run(ask, wire.get_class(LOOPBACK, 0x109))
        assert wire.rate_of(wire.parse(answer).options) == 20
        assert run(ask, wire.get_class(LOOPBACK, 0x110)).errno == errno.ENOENT
        assert run(ask, wire.get_root(4711)).errno == errno.ENODEV


def test_silence_ends_with_an_error(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "DEADLINE", 0.1)

    def listen() -> None:
        with Netlink() as door:
            door._receive()  # nobody was asked

    with enter(namespace) as run, pytest.raises(KernelError, match="no answer"):
        run(listen)


def test_no_socket_is_left_open(namespace: str) -> None:
    """A socket that is forgotten would be a ResourceWarning, and warnings are errors; here is the positive side."""
    with enter(namespace) as run:
        door = run(Netlink)
        opened: socket.socket = door._socket
        run(door.__exit__, None, None, None)
    assert opened.fileno() == -1
