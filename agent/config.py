"""agent.toml -> Config. Every key has a type, a unit, a default and a sentence; an unknown key is an error.

All problems are reported together. `wirelane-agent check` prints what is in force.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import Field, dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from agent.errors import ConfigError
from agent.model import INTERFACE_PATTERN
from agent.objects import Opening

DEFAULT_PATH = Path("/etc/wirelane/agent.toml")
LOG_LEVELS = ("debug", "info", "warning", "error")
WIREGUARD_MODES = ("auto", "kernel", "userspace")
MARKS_BACKENDS = ("auto", "iptables", "nftables")
ESP_CHOICES = ("auto", "kernel", "userspace")
CUT_OFF_CHOICES = ("serve", "stop")


DNS = (Opening("udp", 53), Opening("tcp", 53))
MAX_OPENED = 32


def _opening(word: str) -> Opening:
    protocol, _, port = word.partition("/")
    if protocol not in ("tcp", "udp") or not (port.isascii() and port.isdecimal()) or not 1 <= int(port) <= 65535:
        raise ValueError(f"{word!r} must be dns, or tcp/ or udp/ with a port within 1-65535")
    return Opening(protocol, int(port))


def _is_address(text: str) -> bool:
    """ "192.0.2.1:7443", "[::]:7443"."""
    host, _, port = text.rpartition(":")
    try:
        version = ip_address(host.removeprefix("[").removesuffix("]")).version
    except ValueError:
        return False
    is_spelled = host.startswith("[") and host.endswith("]") if version == 6 else not host.startswith("[")
    return is_spelled and port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535


def _says(sentence: str, key: str = "") -> dict[str, str]:
    """`key`: as it is spelled in the file, where that is not the name of the field."""
    return {"sentence": sentence, "key": key}


@dataclass(frozen=True, slots=True)
class Config:
    state: Path = field(
        default=Path("/var/lib/wirelane-agent/agent.db"),
        metadata=_says("The agent's own file: what it was asked for, and what was counted. It holds private keys."),
    )
    listen: str = field(
        default="unix:/run/wirelane-agent/agent.sock",
        metadata=_says("Where a gateway on this host calls: a unix socket."),
    )
    listen_fleet: str = field(
        default="",
        metadata=_says(
            "Where gateways on other hosts call, such as 0.0.0.0:7443, over mutual TLS 1.3; empty: nowhere. It opens "
            "once this node is enrolled."
        ),
    )
    identity: Path = field(
        default=Path("/var/lib/wirelane-agent/identity"),
        metadata=_says("The folder of this node's key and certificate, which `wirelane-agent enrol` makes."),
    )
    socket_group: str = field(
        default="", metadata=_says("The group that may use the socket (mode 0660); empty: only root.")
    )
    uplink: str = field(
        default="auto", metadata=_says("The interface to the internet; auto: the one of the default route.")
    )
    wireguard: str = field(
        default="auto", metadata=_says("kernel, userspace (wireguard-go), or auto: kernel where Linux has it.")
    )
    marks_backend: str = field(
        default="auto",
        metadata=_says(
            "What marks and translates packets: iptables (legacy tables), nftables, or auto: iptables where it works.",
            "marks.backend",
        ),
    )
    ikev2_esp: str = field(
        default="auto",
        metadata=_says(
            "Who encrypts the packets of IKEv2: kernel, userspace (charon itself), or auto: kernel where Linux can.",
            "ikev2.esp",
        ),
    )
    open_to_accounts: str = field(
        default="",
        metadata=_says(
            "What of this box accounts may use besides ping, at their server's own address: dns, or ports such as "
            "tcp/80, comma between. Everything else of the box is closed to them."
        ),
    )
    sample_seconds: int = field(
        default=10, metadata=_says("How often the traffic counters are read, in seconds, 1-3600.")
    )
    resync_seconds: int = field(
        default=60, metadata=_says("How often everything is read back and repaired, in seconds, 1-3600.")
    )
    public_networks: bool = field(
        default=False,
        metadata=_says("true: a server may have a network of public addresses, which are yours to route."),
    )
    connections_per_account: int = field(
        default=4000,
        metadata=_says("How many connections an account may have open at a time, 0-1000000; 0: no bound."),
    )
    metrics: str = field(
        default="",
        metadata=_says(
            "Where Prometheus reads /metrics, such as 127.0.0.1:9586; whoever reaches it may. Empty: nowhere."
        ),
    )
    cut_off: str = field(
        default="serve",
        metadata=_says(
            "What this node does when no gateway has called for cut_off_seconds: serve (it goes on), or stop (nobody "
            "is served until one has said that what it holds stands; also after a start)."
        ),
    )
    cut_off_seconds: int = field(default=3600, metadata=_says("See cut_off; seconds, 5-31536000."))
    log_level: str = field(default="info", metadata=_says("debug, info, warning or error."))

    def __post_init__(self) -> None:
        problems = []
        if not self.state.is_absolute():
            problems.append(f"state: {str(self.state)!r} must be an absolute path")
        if not self.listen.startswith("unix:/") or len(self.listen) - len("unix:") > 107:
            problems.append(f"listen: {self.listen!r} must be unix:/absolute/path of at most 107 bytes")
        if self.listen_fleet and not _is_address(self.listen_fleet):
            problems.append(f"listen_fleet: {self.listen_fleet!r} must be an address of this host and a port, or empty")
        if not self.identity.is_absolute():
            problems.append(f"identity: {str(self.identity)!r} must be an absolute path")
        if not INTERFACE_PATTERN.fullmatch(self.uplink):
            problems.append(f"uplink: {self.uplink!r} must be auto or the name of an interface")
        if self.wireguard not in WIREGUARD_MODES:
            problems.append(f"wireguard: {self.wireguard!r} must be one of {', '.join(WIREGUARD_MODES)}")
        try:
            _ = self.opened
        except ValueError as error:
            problems.append(f"open_to_accounts: {error}")
        if self.ikev2_esp not in ESP_CHOICES:
            problems.append(f"ikev2.esp: {self.ikev2_esp!r} must be one of {', '.join(ESP_CHOICES)}")
        if self.marks_backend not in MARKS_BACKENDS:
            problems.append(f"marks.backend: {self.marks_backend!r} must be one of {', '.join(MARKS_BACKENDS)}")
        for name in ("sample_seconds", "resync_seconds"):
            if not 1 <= getattr(self, name) <= 3600:
                problems.append(f"{name}: {getattr(self, name)} must be within 1-3600")
        if not 0 <= self.connections_per_account <= 1_000_000:
            problems.append(f"connections_per_account: {self.connections_per_account} must be within 0-1000000")
        if self.metrics and not _is_address(self.metrics):
            problems.append(f"metrics: {self.metrics!r} must be an address of this host and a port, or empty")
        if self.cut_off not in CUT_OFF_CHOICES:
            problems.append(f"cut_off: {self.cut_off!r} must be one of {', '.join(CUT_OFF_CHOICES)}")
        if not 5 <= self.cut_off_seconds <= 31_536_000:
            problems.append(f"cut_off_seconds: {self.cut_off_seconds} must be within 5-31536000")
        if self.log_level not in LOG_LEVELS:
            problems.append(f"log_level: {self.log_level!r} must be one of {', '.join(LOG_LEVELS)}")
        if problems:
            raise ConfigError(problems)

    @property
    def opened(self) -> tuple[Opening, ...]:
        """`open_to_accounts`, each port once, in order."""
        words = [word.strip() for word in self.open_to_accounts.split(",")] if self.open_to_accounts.strip() else []
        doors = {door for word in words for door in ((*DNS,) if word == "dns" else (_opening(word),))}
        if len(doors) > MAX_OPENED:
            raise ValueError(f"{len(doors)} ports are too many: at most {MAX_OPENED}")
        return tuple(sorted(doors, key=lambda door: (door.port, door.protocol)))

    @property
    def socket_path(self) -> Path:
        return Path(self.listen.removeprefix("unix:"))

    @property
    def ikev2_folder(self) -> Path:
        """For what runs, so beside the socket: nothing of it outlives a boot."""
        return self.socket_path.with_name("ikev2")


def load_config(path: Path | None) -> Config:
    """Reads a file; None = the default one, which may be absent. Raises ConfigError with every problem."""
    if path is None and not DEFAULT_PATH.exists():
        return Config()
    path = path or DEFAULT_PATH
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError([f"{path}: {reason}"]) from error
    return parse_config(table)


def parse_config(table: dict[str, Any]) -> Config:
    """A TOML table -> Config. Raises ConfigError with every problem."""
    problems: list[str] = []
    values: dict[str, Any] = {}
    known = {_key(f): f for f in fields(Config)}
    for name, value in _flat(table, known):
        kind = type(known[name].default) if name in known else None
        if kind is None:
            problems.append(f"{name}: there is no such key; there are {', '.join(known)}")
        elif kind is bool and not isinstance(value, bool):
            problems.append(f"{name}: must be true or false")
        elif kind is int and (not isinstance(value, int) or isinstance(value, bool)):
            problems.append(f"{name}: must be a whole number")
        elif kind not in (int, bool) and not isinstance(value, str):
            problems.append(f"{name}: must be a text in quotes")
        else:
            values[known[name].name] = value if kind is not type(DEFAULT_PATH) else Path(value)
    try:
        config = Config(**values)
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return config


def _key(one: Field[Any]) -> str:
    return one.metadata["key"] or one.name


def _flat(table: dict[str, Any], known: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """With the keys of tables that we know as `table.key`."""
    for name, value in table.items():
        if isinstance(value, dict) and any(key.startswith(f"{name}.") for key in known):
            yield from ((f"{name}.{inner}", of) for inner, of in value.items())
        else:
            yield name, value


def as_toml(config: Config) -> str:
    """The configuration in force, as TOML with its sentences."""
    lines = []
    for f in fields(Config):
        value = getattr(config, f.name)
        lines.append(f"# {f.metadata['sentence']}")
        plain = str(value).lower() if isinstance(value, bool) else str(value)
        lines.append(f"{_key(f)} = {plain}" if isinstance(value, int) else f'{_key(f)} = "{value}"')
    return "\n".join(lines)
