"""gateway.toml -> Config. Every key has a type, a unit, a default and a sentence; an unknown key is an error.

All problems are reported together, with the line where the key stands. Holds no secret: those are in files of their own
(gateway/secret_files.py). Knows no database and no network. `wirelane-gateway check` prints what is in force.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from gateway import endpoint
from gateway.errors import ConfigError
from gateway.fields import network

DEFAULT_PATH = Path("/etc/wirelane/gateway.toml")

Check = Callable[[Any], str]  # of a value: what is wrong with it, "" = nothing


# -- what values may be -----------------------------------------------------------------------------------------------


def _within(least: float, most: float) -> Check:
    return lambda value: (
        "" if math.isfinite(value) and least <= value <= most else f"{value} must be within {least:g}-{most:g}"
    )


def _one_of(*choices: str) -> Check:
    return lambda value: "" if value in choices else f"{value!r} must be one of {', '.join(choices)}"


def _path(value: str) -> str:
    return "" if not value or Path(value).is_absolute() else f"{value!r} must be an absolute path"


def _database(value: str) -> str:
    # The value may hold a password: it is never part of the message.
    form = "must be sqlite:////path/to/file or postgresql://user@host:port/database"
    try:
        url = urlsplit(value)
        is_file = url.scheme == "sqlite" and not url.netloc and url.path.startswith("//") and len(url.path) > 2
        is_server = url.scheme == "postgresql" and len(url.path) > 1 and (url.port or 5432) > 0
    except ValueError:
        return form
    return "" if is_file or is_server else form


def listen_address(value: str) -> tuple[str, int]:
    """ "127.0.0.1:8080" or "[::1]:8080" -> (address, port). Raises ValueError."""
    host, _, port = value.rpartition(":")
    if host.startswith("[") != host.endswith("]") or (":" in host) != host.startswith("["):
        raise ValueError(value)
    if not port.isascii() or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(value)
    return str(ip_address(host.strip("[]"))), int(port)


def _listen(value: str) -> str:
    try:
        listen_address(value)
    except ValueError:
        return f'{value!r} must be an address and a port, such as "127.0.0.1:8080" or "[::1]:8080"'
    return ""


def _url(value: str) -> str:
    if not value:
        return ""
    try:
        url = urlsplit(value)
        good = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        good = False
    if not good or url.query or url.fragment or url.username is not None or not value.isprintable():
        return f"{value!r} must be a URL such as https://vpn.example.com"
    return ""


def _networks(values: tuple[str, ...]) -> str:
    for value in values:
        try:
            network(value)
        except ValueError as error:
            return f"{error}; give addresses or networks such as 10.0.0.0/8"
    return ""


def _host(value: str) -> str:
    return "" if not value or endpoint.is_right(value) else f"{value!r} must be {endpoint.RIGHT}"


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        return f"{value!r} is no IANA time zone, such as Europe/Warsaw"
    return ""


def _any(value: object) -> str:
    return ""


# -- the keys ---------------------------------------------------------------------------------------------------------


def _key(default: Any, check: Check, sentence: str) -> Any:
    return field(default=default, metadata={"check": check, "sentence": sentence}, repr=False)


@dataclass(frozen=True, slots=True)
class Config:
    """Checked on birth. Raises ConfigError with every problem."""

    database: str = _key(
        "sqlite:////var/lib/wirelane-gateway/gateway.db",
        _database,
        "Where accounts, servers and usage are kept: sqlite:////path or postgresql://user@host:port/database.",
    )
    database_password_file: str = _key(
        "", _path, "File with the password of the PostgreSQL user, so that it stands neither here nor in a URL."
    )
    key_file: str = _key(
        "/var/lib/wirelane-gateway/secret.key",
        _path,
        "File (mode 0600) with the key that encrypts private keys and passwords in the database; made at the first"
        " start. It may be a systemd credential (see the unit). Back it up: the database is worth little without.",
    )
    listen: str = _key("127.0.0.1:8080", _listen, 'Address and port of the HTTP API, such as "0.0.0.0:443".')
    tls_certificate: str = _key("", _path, "PEM file with certificate and chain; empty: plain HTTP, for a proxy.")
    tls_key: str = _key("", _path, "PEM file with the certificate's private key.")
    public_url: str = _key(
        "",
        _url,
        "Where customers reach the gateway, such as https://vpn.example.com; one-time links begin with it, and without"
        " it there are none.",
    )
    trusted_proxies: tuple[str, ...] = _key(
        (), _networks, 'Proxies whose X-Forwarded-For is believed: addresses or networks, such as ["127.0.0.1"].'
    )
    metrics_networks: tuple[str, ...] = _key(
        ("127.0.0.0/8", "::1/128"),
        _networks,
        "Who may read /metrics without an access key, when no proxy is in between: addresses or networks; [] = nobody.",
    )
    endpoint: str = _key(
        "",
        _host,
        "Where clients reach a server when neither it nor its node says so: a host name or an address; empty: unknown.",
    )
    time_zone: str = _key("UTC", _zone, "Where days and months of the traffic statistics begin and end (IANA name).")
    settle_seconds: float = _key(
        2.0,
        _within(0.1, 30),
        "How long a call waits for the node before it answers that the change is pending, seconds.",
    )
    collect_seconds: float = _key(
        300.0, _within(1, 86_400), "How often the nodes' traffic totals are fetched, in seconds. The API may set it."
    )
    http_status: Literal["always_200", "semantic"] = _key(
        "always_200",
        _one_of("always_200", "semantic"),
        "always_200: errors answer with HTTP 200, as v1 clients expect; semantic: with 4xx and 5xx.",
    )
    usage_months: int = _key(
        2,
        _within(0, 1200),
        "Months of traffic statistics that are kept, the current one included; 0 = all. The API may set it.",
    )
    link_days: int = _key(10, _within(1, 3650), "Days that a one-time link stays valid. The API may set it.")
    handshake_uptime: int = _key(
        180,
        _within(1, 86_400),
        "Seconds since the last handshake within which an account counts as online. The API may set it.",
    )
    account_limit: int = _key(0, _within(0, 10_000_000), "How many accounts there may be; 0 = as many as fit.")
    address_rest_seconds: int = _key(
        3600,
        _within(0, 31_536_000),
        "Seconds that an address which was given back is nobody's, while others are free; 0 = none.",
    )
    config_tabs: bool = _key(False, _any, "true: client configurations are indented with tabs, as v1 wrote them.")
    log_level: str = _key(
        "info", _one_of("debug", "info", "warning", "error"), "How much is logged: debug, info, warning or error."
    )

    def __post_init__(self) -> None:
        found = {f.name: f.metadata["check"](getattr(self, f.name)) for f in fields(self)}
        if bool(self.tls_certificate) != bool(self.tls_key):
            found["tls_key" if self.tls_certificate else "tls_certificate"] = "TLS needs tls_certificate and tls_key"
        if not self.key_file:
            found["key_file"] = "must name a file"
        if self.database_password_file and self.sqlite_file:
            found["database_password_file"] = "an SQLite database has no password"
        if problems := [f"{name}: {problem}" for name, problem in found.items() if problem]:
            raise ConfigError(problems)

    @property
    def sqlite_file(self) -> Path | None:
        """The database's file; None = it is a server."""
        url = urlsplit(self.database)
        return Path(url.path[1:]) if url.scheme == "sqlite" else None


# -- the file ---------------------------------------------------------------------------------------------------------


def load_config(path: Path | None) -> Config:
    """Reads a file; None = the default one, which may be absent. Raises ConfigError with every problem."""
    if path is None and not DEFAULT_PATH.exists():
        return Config()
    path = path or DEFAULT_PATH
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError([f"{path}: {reason}"]) from None
    try:
        return parse_config(table)
    except ConfigError as error:
        raise ConfigError([_placed(path, text, problem) for problem in error.problems]) from None


def parse_config(table: Mapping[str, Any]) -> Config:
    """A TOML table -> Config. Raises ConfigError with every problem."""
    problems: list[str] = []
    values: dict[str, Any] = {}
    known = {f.name: f.default for f in fields(Config)}
    for name, value in table.items():
        if name not in known:
            like = difflib.get_close_matches(name, known, 1)
            problems.append(f"{name}: there is no such key" + (f"; did you mean {like[0]}?" if like else ""))
        elif wrong := _wrong_type(known[name], value):
            problems.append(f"{name}: {wrong}")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    try:
        config = Config(**values)
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return config


def _wrong_type(default: object, value: object) -> str:
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "must be true or false"
    if isinstance(default, int):
        return "" if isinstance(value, int) and not isinstance(value, bool) else "must be a whole number"
    if isinstance(default, float):
        return "" if isinstance(value, int | float) and not isinstance(value, bool) else "must be a number"
    if isinstance(default, tuple):
        is_texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return "" if is_texts else 'must be a list of texts, such as ["127.0.0.1"]'
    return "" if isinstance(value, str) else "must be a text in quotes"


def _placed(path: Path, text: str, problem: str) -> str:
    """The problem with the line where its key stands."""
    name = re.escape(problem.partition(":")[0])
    place = re.compile(rf"\s*(\[+\s*)?[\"']?{name}[\"']?\s*[=.\]]")
    line = next((number for number, line in enumerate(text.splitlines(), 1) if place.match(line)), None)
    return f"{path}:{line}: {problem}" if line else f"{path}: {problem}"


def as_toml(config: Config) -> str:
    """The configuration in force, as TOML with its sentences; without secrets."""
    lines = []
    for f in fields(config):
        value = getattr(config, f.name)
        if f.name == "database":
            value = re.sub(r"^(\w+://[^/@]*?):[^/]*@", r"\1:***@", value)
        value = list(value) if isinstance(value, tuple) else value
        lines += [f"# {f.metadata['sentence']}", f"{f.name} = {json.dumps(value, ensure_ascii=False)}"]
    return "\n".join(lines)


def advice(config: Config) -> list[str]:
    """What works, but not for everybody: one sentence each, for `check` and the start."""
    if config.public_url:
        return []
    return ["public_url is not set: no one-time links can be made; set it to where customers reach the gateway"]
