"""WireGuard in userspace: starts `wireguard-go`, and speaks to it through its UAPI socket.

The process is not ours to keep: it outlives the agent, and the next agent finds its socket and goes on with it, so a
restart of the agent drops no tunnel. It ends when its link is removed; when it dies, its link dies with it, which is
drift like any other. Protocol: https://www.wireguard.com/xplatform/ ("Configuration protocol").

Traps: one folder of sockets serves all network namespaces that share /run, so an interface name can be used once in
all of them. In an error answer the sign of errno depends on the version.
"""

from __future__ import annotations

import base64
import errno
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from agent.errors import KernelError
from agent.kernel.host import interfaces
from agent.kernel.wireguard.door import Absent, Device, HeldPeer, PeerChange, PortBusy, Refused, set_in_batches
from agent.model import NO_SECRET, Secret
from agent.objects import PeerState

SOCKETS = Path("/var/run/wireguard")  # wireguard-go: ipc/uapi_unix.go; it cannot be told another one
ANSWER_SECONDS = 5.0  # 1,000 peers take 0.1 s; the rest is for a starved machine
# A process that has not answered (stopped, say) is not asked again for so long: all other links wait meanwhile.
REST_SECONDS = 30.0
START_SECONDS = 10.0  # from start to the first answer; 0.1 s when idle
END_SECONDS = 10.0
POLL_SECONDS = 0.01
PEERS_PER_MESSAGE = 1000  # bounds how long the process is busy with one of our messages
NO_KEY = "0" * 64

_rests_until: dict[str, float] = {}  # monotonic, by interface; of all doors of this process


class UserspaceWireGuard:
    def __init__(self, program: str = "wireguard-go") -> None:
        self._program = program

    def available(self) -> str:
        """ "" or why it cannot be used here."""
        if shutil.which(self._program) is None:
            return f"there is no program {self._program}: install the package wireguard-go"
        try:
            os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return f"/dev/net/tun cannot be opened: {error.strerror}"
        return ""

    def create(self, interface: str) -> None:
        program = shutil.which(self._program)
        if program is None:
            raise KernelError(f"cannot create {interface}: {self.available()}", retry=False)
        _start(program, interface)
        give_up = time.monotonic() + START_SECONDS
        while True:
            with suppress(Absent):
                self.read_device(interface)
                return
            if time.monotonic() > give_up:
                raise KernelError(f"{self._program} for {interface} was started but does not answer")
            time.sleep(POLL_SECONDS)

    def remove(self, interface: str) -> None:
        """The process ends by itself when its link goes; an open connection sees it end."""
        try:
            connection = _connect(interface, END_SECONDS)
        except Absent:
            interfaces.remove_interface(interface)
            # Nobody listens: a socket file that is still there was left by a process that was killed.
            with suppress(FileNotFoundError):
                _path(interface).unlink()
            return
        with connection:
            interfaces.remove_interface(interface)
            try:
                ended = connection.recv(1) == b""
            except ConnectionResetError:
                ended = True
            except OSError:
                ended = False
        if not ended:
            raise KernelError(f"link {interface} is removed but its {self._program} does not end: end it by hand")

    def read_device(self, interface: str) -> Device:
        with _talking(interface):
            answer = _ask(interface, b"get=1\n\n", until=b"\npublic_key=")
        return parse_device(answer)

    def configure(self, interface: str, *, private_key: Secret | None = None, listen_port: int | None = None) -> None:
        lines = ["set=1"]
        if private_key is not None:
            lines.append(f"private_key={_hex(private_key.reveal())}")
        if listen_port is not None:
            lines.append(f"listen_port={listen_port}")
        with _talking(interface):
            status = _errno(_ask(interface, "\n".join([*lines, "", ""]).encode()))
            if status == errno.EADDRINUSE and listen_port:
                # It has let go of the old port and would go on naming the new one: make what it says true.
                _ask(interface, b"set=1\nlisten_port=0\n\n")
        if status == errno.EADDRINUSE and listen_port:
            raise PortBusy(interface, listen_port)
        _check(interface, status)

    def read_peers(self, interface: str, only: Collection[str] | None = None) -> list[HeldPeer]:
        with _talking(interface):
            return parse_peers(_ask(interface, b"get=1\n\n"), only)

    def set_peers(self, interface: str, changes: Sequence[PeerChange]) -> dict[str, KernelError]:
        def send(batch: Sequence[PeerChange]) -> None:
            with _talking(interface):
                _check(interface, _errno(_ask(interface, peers_message(batch))))

        return set_in_batches(changes, PEERS_PER_MESSAGE, send)

    def call_peers(self, interface: str, public_keys: Sequence[str]) -> None:
        with _talking(interface):
            _check(interface, _errno(_ask(interface, calls_message(public_keys))))


# -- the words of the protocol ------------------------------------------------------------------------------------


def peers_message(changes: Sequence[PeerChange]) -> bytes:
    """One set operation. Allowed IPs are replaced peer by peer, which leaves the peer's session alone."""
    parts = ["set=1\n"]
    for change in changes:
        key = f"public_key={_hex(change.public_key)}\n"
        if change.address is None or change.anew:
            parts.append(f"{key}remove=true\n")
        if change.address is None:
            continue
        parts.append(key)
        if change.reset or change.preshared:
            parts.append(f"preshared_key={_hex(change.preshared.reveal()) if change.preshared else NO_KEY}\n")
        if change.reset:
            parts.append("persistent_keepalive_interval=0\n")
        if change.endpoint:
            parts.append(f"endpoint={change.endpoint}\n")
        parts.append(f"replace_allowed_ips=true\nallowed_ip={change.address}/32\n")
        if change.address_ipv6:
            parts.append(f"allowed_ip={change.address_ipv6}/128\n")
    parts.append("\n")
    return "".join(parts).encode()


def calls_message(public_keys: Sequence[str]) -> bytes:
    words = [
        f"public_key={_hex(key)}\nupdate_only=true\npersistent_keepalive_interval={seconds}\n"
        for key in public_keys
        for seconds in (1, 0)
    ]
    return "".join(["set=1\n", *words, "\n"]).encode()


def parse_device(answer: bytes) -> Device:
    """The head of a get operation, as far as the first peer at least."""
    head, separator, _ = answer.partition(b"\npublic_key=")
    values = dict(line.split("=", 1) for line in head.decode().splitlines() if line)
    key = values.get("private_key", NO_KEY)
    return Device(
        private_key=Secret("" if key == NO_KEY else _base64(key)),
        listen_port=int(values.get("listen_port", 0)),
        has_peers=bool(separator) or "public_key" in values,
    )


def parse_peers(answer: bytes, only: Collection[str] | None = None) -> list[HeldPeer]:
    """All peers of a get operation, or those with these public keys. Unknown words are passed over."""
    # The line feed in front: "preshared_key=" and the like must not be taken for the start of a peer.
    blocks = ("\n" + answer.decode()).split("\npublic_key=")[1:]
    keys = None if only is None else {_hex(key) for key in only}
    return [_peer(block) for block in blocks if keys is None or block[: len(NO_KEY)] in keys]


def _peer(block: str) -> HeldPeer:
    lines = block.split("\n")
    values = dict([line.split("=", 1) for line in lines[1:] if line])
    public_key, preshared = _base64(lines[0]), values.get("preshared_key", NO_KEY)
    address, address_ipv6 = _only_addresses(block, values.get("allowed_ip", ""))
    return HeldPeer(
        PeerState(
            public_key,
            address,
            values.get("endpoint", ""),
            int(values.get("persistent_keepalive_interval", 0)),
            int(values.get("last_handshake_time_sec", 0)),
            int(values.get("rx_bytes", 0)),
            int(values.get("tx_bytes", 0)),
            address_ipv6,
        ),
        NO_SECRET if preshared == NO_KEY else Secret(_base64(preshared)),
    )


def _only_addresses(block: str, last: str) -> tuple[IPv4Address | None, IPv6Address | None]:
    """`last`: of its allowed IPs."""
    try:
        if last.endswith("/32") and block.count("\nallowed_ip=") == 1:
            return IPv4Address(socket.inet_pton(socket.AF_INET, last[:-3])), None  # 4 times faster than from text
        held = [line[11:] for line in block.split("\n") if line.startswith("allowed_ip=")]
        held.sort(key=lambda one: ":" in one)
        if len(held) == 2 and held[0].endswith("/32") and held[1].endswith("/128"):
            return IPv4Address(held[0][:-3]), IPv6Address(held[1][:-4])
    except (OSError, ValueError):
        pass  # an IPv6 network of length 32
    return None, None


def _hex(key: str) -> str:
    return base64.b64decode(key).hex()


def _base64(key: str) -> str:
    return base64.b64encode(bytes.fromhex(key)).decode()


def _errno(answer: bytes) -> int:
    """Every answer ends with one; 0 = done."""
    return abs(int(answer.rpartition(b"errno=")[2]))


def _check(interface: str, status: int) -> None:
    if status:
        raise Refused(f"WireGuard refused a change on {interface}: {os.strerror(status)}")


# -- the socket ---------------------------------------------------------------------------------------------------


def _path(interface: str) -> Path:
    return SOCKETS / f"{interface}.sock"


@contextmanager
def _talking(interface: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "does not answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise KernelError(f"the WireGuard process of {interface}: {reason}") from error


def _connect(interface: str, seconds: float) -> socket.socket:
    """Raises Absent where nobody listens, TimeoutError and other OSErrors as they come."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(seconds)
    try:
        connection.connect(str(_path(interface)))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        connection.close()
        raise Absent(f"no WireGuard process answers for {interface}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _ask(interface: str, question: bytes, until: bytes = b"") -> bytes:
    """One operation on a connection of its own: after an error the process reads on in the middle of the question.

    Stops early once `until` has come.
    """
    if time.monotonic() < _rests_until.get(interface, 0.0):
        raise TimeoutError(errno.ETIMEDOUT, "its process did not answer a moment ago")
    try:
        answer = _answer(interface, question, until)
    except TimeoutError:
        _rests_until[interface] = time.monotonic() + REST_SECONDS
        raise
    _rests_until.pop(interface, None)
    return answer


def _answer(interface: str, question: bytes, until: bytes) -> bytes:
    give_up = time.monotonic() + ANSWER_SECONDS
    with _connect(interface, ANSWER_SECONDS) as connection:
        with suppress(BrokenPipeError):  # it stopped reading at something wrong; its answer says what
            connection.sendall(question)
        answer = bytearray()
        # An empty line ends the answer and stands nowhere else.
        while not answer.endswith(b"\n\n") and not (until and until in answer):
            connection.settimeout(max(give_up - time.monotonic(), 0.001))
            piece = connection.recv(1 << 18)
            if not piece:
                raise ConnectionResetError(errno.ECONNRESET, "it closed the connection")
            answer += piece
    return bytes(answer)


def _start(program: str, interface: str) -> None:
    """Starts the process, which puts itself into the background. Raises KernelError with its own last words.

    It gets a session of its own (a terminal's Ctrl-C is not for it), and an environment of its own: LOG_LEVEL would
    make it keep our outputs open, WG_PROCESS_FOREGROUND would keep it here.
    """
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            [program, interface],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            cwd="/",
            env={"PATH": os.defpath},
            start_new_session=True,
        )
        try:
            status = process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise KernelError(f"{program} {interface} did not go into the background") from None
        words.seek(0)
        last = words.read().decode(errors="replace").strip().rpartition("\n")[2]
    if status:
        raise KernelError(f"{program} {interface} failed with status {status}: {last}")
