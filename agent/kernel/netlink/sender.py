"""A small netlink sender that batches: ten thousand changes cost what the kernel itself needs for them.

Owns the conversation: chunks, acknowledgements, dumps, deadlines. Knows nothing of what a message means, keeps no
state and no socket between calls. Called by the rooms that speak of many objects (rtnetlink(7), netlink(7)); for single
links and addresses pyroute2 is the tool.

A socket belongs to the network namespace of the thread that makes it, so `Netlink` is made where it is used.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Sequence

from agent.errors import KernelError
from agent.kernel.netlink.framing import (
    HEADER,
    HEADER_BYTES,
    NETLINK_CAP_ACK,
    NETLINK_EXT_ACK,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_ECHO,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
    Refusal,
    refusal_in,
    split,
)

SO_SNDBUFFORCE = 32  # asm-generic/socket.h
SO_RCVBUFFORCE = 33

# Messages for one send(): the kernel works through all of them before it returns, and where it does not preempt itself,
# nothing else runs on that processor meanwhile. 200 classes among 10,000 kept our own event loop waiting for 80 ms.
CHUNK = 25
RECEIVE_BUFFER_BYTES = (
    4 << 20
)  # an error takes about 1.3 kB of the receive buffer: a chunk of nothing but errors must fit
SEND_BUFFER_BYTES = 1 << 20  # a chunk is one datagram, of some 4 kB where it makes classes
RECEIVE_BYTES = 1 << 17
DEADLINE = 30.0  # seconds for one chunk or one piece of a dump; 25 classes beside 30,000 others take some 0.2 s
DUMP_TRIES = 5

_PATCH = struct.Struct("=HI")  # flags and sequence number, at offset 6


class ListingRefused(KernelError):
    """Linux said no to a dump."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"netlink: listing failed: {refusal.text}")
        self.errno = refusal.errno


class Netlink:
    """A netlink socket with a deadline. Use it in a `with`; raises KernelError when the socket itself fails."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._protocol = protocol
        self._socket = _open(protocol)
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, messages: Sequence[bytes]) -> list[Refusal]:
        """Sends all; what was refused, in order. The rest is done: one bad message spoils only itself."""
        refusals: list[Refusal] = []
        for start in range(0, len(messages), CHUNK):
            refusals += self._send_chunk(messages[start : start + CHUNK], start)
        return refusals

    def ask(self, request: bytes) -> bytes | Refusal | None:
        """One object by its name: its message, the refusal, or None where Linux has nothing to show.

        ECHO, because older kernels (6.1) answer a get of a qdisc or class only to who asks for the echo.
        """
        first = self._transmit([request], NLM_F_ACK | NLM_F_ECHO)
        answer: bytes | None = None
        while True:
            for kind, flags, sequence, data in split(self._receive()):
                if sequence != first:
                    continue
                if kind == NLMSG_ERROR:
                    return refusal_in(data, flags, 0) or answer
                answer = answer or data

    def dump(self, request: bytes, *, torn_will_do: bool = False, keep: Callable[[bytes], bool] = bool) -> list[bytes]:
        """All objects that the request selects, each as its whole message (header too).

        Started again when Linux says that they changed meanwhile. `torn_will_do`: the last try counts even then; some
        objects may be missing from it or be there twice. `keep`: which of them are wanted. Raises KernelError.
        """
        for left in reversed(range(DUMP_TRIES)):
            found = self._dump_once(request, torn_will_do and not left, keep)
            if found is not None:
                return found
        raise KernelError("netlink: the objects change faster than they can be listed")

    def peek(self, request: bytes) -> list[bytes]:
        """The first objects of a dump, as many as Linux sends at once; none if there are none. Raises KernelError."""
        first = self._transmit([request], NLM_F_DUMP)
        found = []
        for kind, flags, sequence, data in split(self._receive()):
            refusal = refusal_in(data, flags, 0) if kind <= NLMSG_DONE else None
            if refusal:
                raise ListingRefused(refusal)
            if sequence == first and kind > NLMSG_DONE:
                found.append(data)
        self._reopen()  # nobody wants the rest
        return found

    def _dump_once(
        self, request: bytes, torn_will_do: bool = False, keep: Callable[[bytes], bool] = bool
    ) -> list[bytes] | None:
        """None when it has to be started again. One loop without detours: it runs for 20,000 messages in a resync."""
        first = self._transmit([request], NLM_F_DUMP)
        found: list[bytes] = []
        torn = 0
        while True:
            try:
                data = self._receive()
            except _Overrun:
                self._reopen()  # the rest of this dump would refuse another one (EBUSY)
                return None
            offset, end = 0, len(data)
            while offset + HEADER_BYTES <= end:
                length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
                part = data[offset : offset + length]
                offset += max(length, HEADER_BYTES) + 3 & ~3
                if sequence != first:
                    continue
                torn |= flags & NLM_F_DUMP_INTR
                if kind > NLMSG_DONE:
                    if keep(part):
                        found.append(part)
                    continue
                refusal = refusal_in(part, flags, 0)
                if refusal:
                    raise ListingRefused(refusal)
                return None if torn and not torn_will_do else found

    def _send_chunk(self, chunk: Sequence[bytes], start: int) -> list[Refusal]:
        first = self._transmit(chunk, 0)
        last = first + len(chunk) - 1
        refusals: list[Refusal] = []
        while True:
            try:
                answers = split(self._receive())
            except _Overrun:
                return self._send_singly(chunk, start)
            for kind, flags, sequence, data in answers:
                if kind != NLMSG_ERROR or not first <= sequence <= last:
                    continue
                refusal = refusal_in(data, flags, start + sequence - first)
                if refusal:
                    refusals.append(refusal)
                if sequence == last:
                    return refusals

    def _send_singly(self, chunk: Sequence[bytes], start: int) -> list[Refusal]:
        """Answers were lost: ask again for each message. Every message of ours may be sent twice."""
        self._reopen()  # a socket that overran drops everything until it has been emptied
        refusals: list[Refusal] = []
        for index, request in enumerate(chunk):
            refusals += self._send_chunk([request], start + index)
        return refusals

    def _transmit(self, chunk: Sequence[bytes], flags: int) -> int:
        """Sends as one datagram; `flags` for each, ACK for the last (errors come without asking). First sequence."""
        first = self._sequence + 1
        self._sequence += len(chunk)
        datagram = bytearray(b"".join(chunk))
        offset = 0
        for sequence, request in enumerate(chunk, first):
            wanted = struct.unpack_from("=H", request, 6)[0] | flags
            if sequence == self._sequence and flags & NLM_F_DUMP != NLM_F_DUMP:
                wanted |= NLM_F_ACK
            _PATCH.pack_into(datagram, offset + 6, wanted, sequence)
            offset += len(request)
        try:
            self._socket.send(datagram)
        except OSError as error:
            raise KernelError(f"netlink: sending failed: {error}") from error
        return first

    def _reopen(self) -> None:
        self._socket.close()
        self._socket = _open(self._protocol)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(RECEIVE_BYTES)
        except TimeoutError as error:
            raise KernelError(f"netlink: no answer within {DEADLINE:.0f} s") from error
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise _Overrun("netlink: answers were lost: the receive buffer was full") from error
            raise KernelError(f"netlink: receiving failed: {error}") from error


class _Overrun(KernelError):
    """The receive buffer was full and answers are lost (ENOBUFS)."""


def _open(protocol: int) -> socket.socket:
    opened = None
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        opened.settimeout(DEADLINE)
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        opened.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
        opened.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        opened.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        opened.bind((0, 0))
    except OSError as error:
        if opened is not None:
            opened.close()
        raise KernelError(f"netlink: {error.strerror} (the agent needs CAP_NET_ADMIN)", retry=False) from error
    return opened
