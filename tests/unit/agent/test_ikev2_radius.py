"""Whether FreeRADIUS answers: what is believed of what comes back from its port."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.kernel.ikev2 import radius
from agent.kernel.ikev2.radius import Radius

SECRET = b"shared"


@contextmanager
def somebody(says: Callable[[bytes], bytes | None]) -> Iterator[int]:
    """Listens; yields the port. None = is silent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.bind(("127.0.0.1", 0))

        def serve() -> None:
            while asked := port.recvfrom(4096):
                if not asked[0]:
                    return
                if (answer := says(asked[0])) is not None:
                    port.sendto(answer, asked[1])

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield port.getsockname()[1]
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ending:
                ending.sendto(b"", port.getsockname())
            serving.join()


def accepted(asked: bytes, secret: bytes = SECRET, code: int = 2) -> bytes:
    head = bytes((code, asked[1], 0, 20))
    return head + hashlib.md5(head + asked[4:20] + secret).digest()


class Second:
    """Answers when it is asked again."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, asked: bytes) -> bytes | None:
        self.asked += 1
        return accepted(asked) if self.asked > 1 else None


@pytest.mark.parametrize(
    ("says", "believed"),
    [
        (accepted, True),
        (Second(), True),
        (lambda asked: None, False),
        (lambda asked: accepted(asked, b"another"), False),
        (lambda asked: accepted(asked, code=3), False),
        (lambda asked: b"", False),
        (lambda asked: asked, False),
    ],
)
def test_it_answers_who_knows_the_secret(
    monkeypatch: pytest.MonkeyPatch, says: Callable[[bytes], bytes | None], believed: bool
) -> None:
    monkeypatch.setattr(radius, "ASK_SECONDS", 0.2)
    with somebody(says) as port:
        assert Radius(port, SECRET.decode(), (1, 2)).answers() is believed


def test_nobody_listens() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.bind(("127.0.0.1", 0))
        number = port.getsockname()[1]
    assert not Radius(number, "shared", (1, 2)).answers()


def test_what_it_was_started_with_is_found_again(tmp_path: Path) -> None:
    users, path = tmp_path / "users.db", tmp_path / "radius.json"
    users.write_text("")
    Radius(1812, "shared", radius.identity(users)).save(path)
    asked = radius.started(path)
    assert asked == Radius(1812, "shared", radius.identity(users)) and asked.reads(users)
    users.rename(tmp_path / "other")
    assert not asked.reads(users)
    users.symlink_to(tmp_path / "other")
    assert not asked.reads(users)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[1, "x", null, 2]', "\udcff", "[[[["])
def test_what_is_damaged_is_not_known(tmp_path: Path, text: str) -> None:
    path = tmp_path / "radius.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert radius.started(path) is None
    assert radius.started(tmp_path) is None
