"""charon at both ends of the benchmark of IKEv2: many clients in one process, and what one would use instead.

`Clients`: a host's, all behind its one address; told over its control socket, so a login costs no start of a program.
`Rival`: a responder with one connection, one secret and one pool of one address for each account, as panels make it.
Both live in hosts of the lab and are nobody's business elsewhere. Called by ikev2.py.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import vici
from vici.exception import CommandException

from agent.model import Ikev2
from tests.lab.errors import LabError
from tests.lab.lab import Lab

CHARON = "/usr/sbin/charon-systemd"
PLUGINS = (
    "random nonce openssl x509 revocation constraints pubkey pkcs1 pkcs8 pem sha1 sha2 hmac md5 kdf kernel-libipsec "
    "kernel-netlink socket-default vici eap-identity eap-mschapv2"
)
SETTINGS = """\
charon-systemd {{
  load = {plugins}
  threads = 16
  install_routes = no
  cookie_threshold = 200
  cookie_threshold_ip = 100
  block_threshold = 101
  plugins {{
    vici {{
      socket = unix://{control}
    }}
  }}
}}
"""
START_SECONDS, LOGIN_SECONDS, BURST_SECONDS = 20.0, 30.0, 180.0
ANSWER_SECONDS = 60.0
CHILD = {"remote_ts": ["0.0.0.0/0"], "esp_proposals": ["aes128gcm16"]}
PROPOSALS = ["aes128gcm16-prfsha256-curve25519"]


@dataclass(frozen=True, slots=True)
class User:
    username: str
    password: str
    address: str


class Charon:
    """One in a host of the lab; ended by `with`. Raises LabError where it does not start."""

    def __init__(self, lab: Lab, host: str) -> None:
        self._folder = lab.state / f"charon-{host}"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._control = self._folder / "vici"
        self._command = lab.command(host, CHARON)
        settings = self._folder / "strongswan.conf"
        settings.write_text(SETTINGS.format(plugins=PLUGINS, control=self._control))
        self._environment = {**os.environ, "STRONGSWAN_CONF": str(settings)}

    def __enter__(self) -> Self:
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        give_up = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.__exit__()
                raise LabError(f"{self._command[-1]} does not start; see {self._folder}/log")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        with suppress(OSError), self.session() as session:
            return bool(session.version())
        return False

    @property
    def pid(self) -> int:
        return self._process.pid  # what enters the host replaces itself by it

    @contextmanager
    def session(self) -> Iterator[Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(str(self._control))
            yield vici.Session(connection)


class Clients(Charon):
    def know(self, users: Iterable[User], server: str, identity: str, authority: str) -> None:
        """A connection for each; none is made yet."""
        with self.session() as session:
            session.load_cert({"type": "X509", "flag": "CA", "data": authority})
            for user in users:
                name = user.username
                session.load_shared({"id": name, "type": "EAP", "data": user.password, "owners": [name]})
                connection = {
                    "version": "2",
                    "remote_addrs": [server],
                    "proposals": PROPOSALS,
                    "encap": "yes",
                    "vips": ["0.0.0.0"],
                    "local": {"auth": "eap-mschapv2", "id": name, "eap_id": name},
                    "remote": {"auth": "pubkey", "id": identity},
                    "children": {name: CHILD},
                }
                session.load_conn({name: connection})

    def login(self, username: str) -> float:
        """Seconds. Raises LabError."""
        began = time.monotonic()
        try:
            with self.session() as session:
                list(session.initiate({"child": username, "timeout": str(int(LOGIN_SECONDS * 1000))}))
        except CommandException as refused:
            raise LabError(f"{username} does not get in: {refused}") from refused
        return time.monotonic() - began

    def logins_at_once(self, usernames: Sequence[str]) -> tuple[float, int]:
        """Seconds until all are in, or until time is over; and how many are."""
        began = time.monotonic()
        with self.session() as session:
            for name in usernames:
                list(session.initiate({"child": name, "timeout": "-1"}))  # it is not waited for
            while (there := self._count(session)) < len(usernames) and time.monotonic() - began < BURST_SECONDS:
                time.sleep(0.1)
        return time.monotonic() - began, there

    @staticmethod
    def _count(session: Any) -> int:
        return sum(
            sa.get("state") == b"ESTABLISHED" and bool(sa.get("child-sas"))
            for event in session.list_sas()
            for sa in event.values()
        )

    def leave(self) -> None:
        """All of them."""
        with self.session() as session:
            for name in {name for event in session.list_sas() for name in event}:
                with suppress(CommandException):
                    list(session.terminate({"ike": name, "force": "yes", "timeout": "1000"}))
            if left := self._count(session):
                raise LabError(f"{left} sessions do not end")


class Rival(Charon):
    def serve(self, users: Iterable[User], shown: Ikev2) -> float:
        """Seconds to load it all."""
        began = time.monotonic()
        with self.session() as session:
            session.load_cert({"type": "X509", "flag": "CA", "data": shown.authority})
            session.load_key({"type": "rsa", "data": shown.private_key.reveal()})
            for user in users:
                self.put(session, user, shown)
        return time.monotonic() - began

    @staticmethod
    def put(session: Any, user: User, shown: Ikev2) -> None:
        name = user.username
        session.load_shared({"id": name, "type": "EAP", "data": user.password, "owners": [name]})
        session.load_pool({name: {"addrs": f"{user.address}/32"}})
        connection = {
            "version": "2",
            "proposals": PROPOSALS,
            "encap": "yes",
            "send_cert": "always",
            "pools": [name],
            "local": {"auth": "pubkey", "certs": [shown.certificate], "id": shown.identity},
            "remote": {"auth": "eap-mschapv2", "id": name, "eap_id": name},
            "children": {name: {"local_ts": ["0.0.0.0/0"], "esp_proposals": ["aes128gcm16"]}},
        }
        session.load_conn({name: connection})


def folder_of(lab: Lab, node: str) -> Path:
    return lab.state / node / "ikev2"
