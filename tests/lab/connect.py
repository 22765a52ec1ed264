"""A WireGuard client in a lab host, made from the text of `config_text` and nothing else.

wireguard-go in the client's namespaces, the configuration through `wg-quick strip` and `wg setconf` (as a person would
do it), address, MTU and routes by hand. Called by lab.py; knows nothing of accounts or the gateway.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface, ip_network
from pathlib import Path

from tests.lab.errors import LabError, NoHandshake
from tests.lab.hosts import NAMESPACES, enter, existing, resolv_conf, run
from tests.lab.processes import Records, end, inside, spawn, wait_until
from tests.lab.services import python
from tests.lab.topology import INTERNET_ADDRESS, UPLINK, Host

INTERFACE = "wg0"  # /run is private, so every client may use the same
HANDSHAKE_SECONDS = 8.0  # WireGuard sends its second initiation after 5 s (REKEY_TIMEOUT)
TUNNEL_NICE = -15
KNOCK = "import socket,sys; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', (sys.argv[1], 9))"


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """What wg-quick(8) reads from [Interface] beyond wg(8), and the peer's endpoint and networks."""

    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    dns: tuple[str, ...]
    mtu: int | None
    endpoint: str  # host:port
    networks: tuple[IPv4Network | IPv6Network, ...]


def _favour_tunnels(lab: str) -> None:
    """Userspace WireGuard of this lab gets the CPU before other sessions of the machine.

    A VPN box and a client have a CPU of their own in the real world; here they share ours. A tunnel that waits for it
    drops packets after they were shaped (its UDP buffer holds about 90), and measures low by up to a fifth. The
    scheduler weighs sessions (sched(7), autogroup), so nice(1) inside one of them would change nothing.
    """
    for running in inside(NAMESPACES / name for name in existing(lab)):
        with contextlib.suppress(OSError):  # it has ended, or this kernel has no autogroups
            if Path(f"/proc/{running.pid}/comm").read_text().strip() == "wireguard-go":
                Path(f"/proc/{running.pid}/autogroup").write_text(str(TUNNEL_NICE))


def parse_config(text: str) -> ClientConfig:
    """Raises LabError if the text is not a client configuration with one peer."""
    parser = configparser.ConfigParser(delimiters=("=",), comment_prefixes=("#",), interpolation=None)
    try:
        parser.read_string("\n".join(line.strip() for line in text.splitlines()))
        own, peer = parser["Interface"], parser["Peer"]
        return ClientConfig(
            addresses=tuple(ip_interface(item) for item in _items(own["Address"])),
            dns=tuple(_items(own.get("DNS", ""))),
            mtu=int(own["MTU"]) if "MTU" in own else None,
            endpoint=peer["Endpoint"],
            networks=tuple(ip_network(item) for item in _items(peer["AllowedIPs"])),
        )
    except (configparser.Error, KeyError, ValueError) as bad:
        raise LabError(f"config_text is no client configuration: {type(bad).__name__}: {bad}") from bad


def _items(text: str) -> Iterator[str]:
    return (item for part in text.split(",") if (item := part.strip()))


class Client:
    def __init__(self, host: Host, state: Path) -> None:
        self._host = host
        self._state = state
        self._records = Records(state / "processes")
        self._part = f"client-{host.name}"
        self._file = state / "hosts" / host.name / f"{INTERFACE}.conf"

    def connect(self, text: str, *, wait: bool = True) -> ClientConfig:
        """Bring the tunnel up and send all traffic that the configuration names through it. Replaces a former one.

        Raises NoHandshake if the server does not answer in time; the tunnel stays up and goes on trying.
        """
        config = parse_config(text)
        self.disconnect()
        self._write(text)
        inside = enter(self._host, self._state)
        log = self._state / f"client-{self._host.name}.log"
        running = spawn(self._host.lab, [*inside, "wireguard-go", "--foreground", INTERFACE], log)
        self._records.save(self._part, running)
        listing = [*inside, "wg", "show", INTERFACE, "listen-port"]
        wait_until(lambda: run(listing, check=False).returncode == 0, f"wireguard-go, see {log}", 10.0, running)
        stripped = run([*inside, "wg-quick", "strip", str(self._file)]).stdout
        run([*inside, "wg", "setconf", INTERFACE, "/dev/stdin"], stdin=stripped)
        self._ip(self._link_commands(config))
        resolv_conf(self._host, self._state).write_text("".join(f"nameserver {item}\n" for item in config.dns))
        _favour_tunnels(self._host.lab)
        if wait:
            self._await_handshake()
        return config

    def _write(self, text: str) -> None:
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)

    def _link_commands(self, config: ClientConfig) -> Iterator[str]:
        versions = (4, 6) if self._host.ipv6 else (4,)
        yield from (f"address add {one} dev {INTERFACE}" for one in config.addresses if one.version in versions)
        if config.mtu:
            yield f"link set {INTERFACE} mtu {config.mtu}"
        yield f"link set {INTERFACE} up"
        server = socket.gethostbyname(config.endpoint.rpartition(":")[0])
        yield f"route replace {server} via {self._host.router} dev {UPLINK}"
        # `replace`, not two halves beside the default route: if the tunnel dies, nothing leaks around it.
        yield from (f"route replace {one} dev {INTERFACE}" for one in config.networks if one.version in versions)

    def _ip(self, commands: Iterator[str]) -> None:
        run(
            ["ip", "-netns", self._host.namespace, "-batch", "-"],
            stdin="".join(f"{command}\n" for command in commands),
        )

    def _await_handshake(self) -> None:
        """A tunnel shakes hands when there is something to send: send it an empty datagram now and then."""
        knock = [*enter(self._host, self._state), *python("-c", KNOCK, str(INTERNET_ADDRESS))]
        until = time.monotonic() + HANDSHAKE_SECONDS
        while not self.handshake():
            if time.monotonic() > until:
                raise NoHandshake(f"{self._host.name}: the tunnel is up, but no handshake in {HANDSHAKE_SECONDS:g} s")
            run(knock, check=False)
            time.sleep(0.1)

    def handshake(self) -> int:
        """Unix time of the latest handshake; 0 = none, or not connected."""
        inside = enter(self._host, self._state)
        done = run([*inside, "wg", "show", INTERFACE, "latest-handshakes"], check=False)
        return max((int(line.split("\t")[1]) for line in done.stdout.splitlines()), default=0)

    def disconnect(self) -> bool:
        """Take the tunnel down and go back to the plain default route. False: there was none."""
        running = self._records.load(self._part)
        if running and (left := end([running], signal.SIGTERM, 5.0)):
            end(left, signal.SIGKILL, 5.0)
        with contextlib.suppress(LabError):  # a killed wireguard-go leaves nothing: its interface goes with it
            run(["ip", "-netns", self._host.namespace, "link", "delete", INTERFACE])
        self._file.unlink(missing_ok=True)
        resolv_conf(self._host, self._state).write_text("")
        self._restore_routes()
        return running is not None

    def _restore_routes(self) -> None:
        """Every route via the router but the default is a tunnel's host route."""
        listed = run(["ip", "-json", "-netns", self._host.namespace, "route", "show", "via", str(self._host.router)])
        for route in json.loads(listed.stdout or "[]"):
            if route["dst"] != "default":
                self._ip(iter([f"route delete {route['dst']} via {self._host.router}"]))
        routers = filter(None, (self._host.router, self._host.router_ipv6))
        self._ip(f"route replace default via {router} dev {UPLINK}" for router in routers)
