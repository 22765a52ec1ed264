"""FreeRADIUS as it was started: where it listens, by which secret, and which file it has open. And does it answer?

It keeps the file that it has opened: another one of the same name is read by nobody, whatever is written there. And it
may live and do nothing (stopped, hung): so it is asked by a Status-Server packet (RFC 5997), which touches no account.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.kernel.ikev2.files import write

ASK_SECONDS, ASK_TIMES = 1.0, 2  # a packet that is lost, or a moment of much to do, is no reason to put everybody out
STATUS_SERVER, ACCESS_ACCEPT = 12, 2
MESSAGE_AUTHENTICATOR = struct.pack("!BB", 80, 18)
_HEAD = struct.Struct("!BBH16s")  # code, identifier, length, authenticator


@dataclass(frozen=True, slots=True)
class Radius:
    port: int  # on loopback
    secret: str
    file: tuple[int, int] | None  # device and inode of the logins

    def save(self, path: Path) -> None:
        write(path, json.dumps([self.port, self.secret, *(self.file or ())]))

    def reads(self, users: Path) -> bool:
        return self.file is not None and identity(users) == self.file

    def answers(self) -> bool:
        """Takes two seconds where it does not."""
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(ASK_SECONDS)
            asking.connect(("127.0.0.1", self.port))
            return any(self._answers(asking) for _ in range(ASK_TIMES))
        return False

    def _answers(self, asking: socket.socket) -> bool:
        number, salt, key = secrets.randbelow(256), secrets.token_bytes(16), self.secret.encode()
        asked = _HEAD.pack(STATUS_SERVER, number, _HEAD.size + 18, salt) + MESSAGE_AUTHENTICATOR
        asking.send(asked + hmac.digest(key, asked + bytes(16), "md5"))
        with suppress(TimeoutError):
            said = asking.recv(4096)
            head, rest = said[: _HEAD.size], said[_HEAD.size :]
            proof = hashlib.md5(head[:4] + salt + rest + key, usedforsecurity=False).digest()
            return head[:2] == bytes((ACCESS_ACCEPT, number)) and hmac.compare_digest(head[4:], proof)
        return False


def started(path: Path) -> Radius | None:
    """None = nobody knows, or it was started by a version before."""
    try:
        match json.loads(path.read_text()):
            case [int(port), str(secret), int(device), int(inode)]:
                return Radius(port, secret, (device, inode))
    except (OSError, ValueError):
        pass
    return None


def identity(users: Path) -> tuple[int, int] | None:
    """Of a link in the file's place: its own."""
    with suppress(OSError):
        found = users.lstat()
        return found.st_dev, found.st_ino
    return None
