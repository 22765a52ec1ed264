"""gateway.toml: what is accepted, what is refused and in which words."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config, as_toml, load_config, parse_config
from gateway.errors import ConfigError


def problems_of(table: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config(table)
    return caught.value.problems


def written(folder: Path, text: str) -> Path:
    path = folder / "gateway.toml"
    path.write_text(text)
    return path


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")) == Config()


def test_a_missing_default_file_gives_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.config.DEFAULT_PATH", tmp_path / "absent.toml")
    assert load_config(None) == Config()


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: No such file"):
        load_config(tmp_path / "absent.toml")


def test_every_problem_is_reported_with_its_line(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '# a comment\nlisten = "nowhere"\nsettle_second = 3\nlink_days = "ten"\n\n[extra]\nx = 1\n',
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert sorted(caught.value.problems) == [
        f'{path}:2: listen: \'nowhere\' must be an address and a port, such as "127.0.0.1:8080" or "[::1]:8080"',
        f"{path}:3: settle_second: there is no such key; did you mean settle_seconds?",
        f"{path}:4: link_days: must be a whole number",
        f"{path}:6: extra: there is no such key",
    ]


def test_a_file_that_is_no_toml_says_where(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2"):
        load_config(written(tmp_path, 'listen = "127.0.0.1:80"\nlisten = = 1\n'))


GOOD: list[dict[str, Any]] = [
    {"listen": "0.0.0.0:443"},
    {"listen": "[::1]:8080"},
    {"database": "postgresql://wirelane@db.example:5433/wirelane"},
    {"database": "postgresql:///wirelane"},
    {"trusted_proxies": ["127.0.0.1", "10.0.0.0/8", "fd00::/8"]},
    {"endpoint": "vpn.example.com"},
    {"endpoint": "192.0.2.1"},
    {"time_zone": "America/Argentina/Buenos_Aires"},
    {"settle_seconds": 1},
    {"public_url": "https://vpn.example.com/"},
    {"usage_months": 0},
    {"tls_certificate": "/etc/x.pem", "tls_key": "/etc/x.key"},
]


@pytest.mark.parametrize("table", GOOD, ids=str)
def test_good_values_are_taken(table: dict[str, Any]) -> None:
    config = parse_config(table)
    for name, value in table.items():
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"database": "mysql://x/y"}, "database: must be sqlite:////path"),
    ({"database": "sqlite:///relative.db"}, "database: must be sqlite:////path"),
    ({"database": "postgresql://host:port/x"}, "database: must be"),
    ({"database": "postgresql://host"}, "database: must be"),
    ({"key_file": "secret.key"}, "key_file: 'secret.key' must be an absolute path"),
    ({"key_file": ""}, "key_file: must name a file"),
    ({"listen": "8080"}, "listen: "),
    ({"listen": "localhost:8080"}, "listen: "),
    ({"listen": "::1:8080"}, "listen: "),
    ({"listen": "127.0.0.1:0"}, "listen: "),
    ({"listen": "127.0.0.1:65536"}, "listen: "),
    ({"tls_certificate": "/etc/x.pem"}, "tls_key: TLS needs"),
    ({"tls_key": "/etc/x.pem"}, "tls_certificate: TLS needs"),
    ({"public_url": "vpn.example.com"}, "public_url: "),
    ({"trusted_proxies": ["fe80::1%eth0"]}, "trusted_proxies: "),
    ({"public_url": "https://a/?b"}, "public_url: "),
    ({"trusted_proxies": ["proxy"]}, "trusted_proxies: "),
    ({"trusted_proxies": ["10.0.0.1/8"]}, "trusted_proxies: "),
    ({"trusted_proxies": "127.0.0.1"}, "trusted_proxies: must be a list of texts"),
    ({"endpoint": "vpn.example.com:51820"}, "endpoint: "),
    ({"endpoint": "300.1.1.1"}, "endpoint: "),
    ({"time_zone": "Mars/Olympus"}, "time_zone: 'Mars/Olympus' is no IANA time zone"),
    ({"time_zone": "../etc/passwd"}, "time_zone: "),
    ({"settle_seconds": 0}, "settle_seconds: 0 must be within 0.1-30"),
    ({"settle_seconds": float("nan")}, "settle_seconds: "),
    ({"settle_seconds": True}, "settle_seconds: must be a number"),
    ({"collect_seconds": 0.5}, "collect_seconds: "),
    ({"link_days": 0}, "link_days: 0 must be within 1-3650"),
    ({"account_limit": -1}, "account_limit: "),
    ({"config_tabs": 1}, "config_tabs: must be true or false"),
    ({"http_status": "teapot"}, "http_status: 'teapot' must be one of always_200, semantic"),
    ({"log_level": "loud"}, "log_level: "),
    ({"database_password_file": "/etc/x"}, "database_password_file: an SQLite database has no password"),
]


@pytest.mark.parametrize(("table", "text"), BAD, ids=str)
def test_bad_values_are_refused_with_the_key_and_the_cure(table: dict[str, Any], text: str) -> None:
    problems = problems_of(table)
    assert len(problems) == 1
    assert problems[0].startswith(text)


def test_a_password_in_the_url_is_never_shown() -> None:
    config = parse_config({"database": "postgresql://wirelane:hunter2@db/wirelane"})
    assert "hunter2" not in as_toml(config) + repr(config)
    assert 'database = "postgresql://wirelane:***@db/wirelane"' in as_toml(config)
    assert "hunter2" not in " ".join(problems_of({"database": "postgresql://wirelane:hunter2@db:port/"}))


def test_what_is_shown_can_be_read_back_and_every_key_has_a_sentence() -> None:
    config = parse_config({"trusted_proxies": ["127.0.0.1"], "endpoint": "vpn.example.com", "settle_seconds": 1.5})
    assert parse_config(tomllib.loads(as_toml(config))) == config
    assert all(len(f.metadata["sentence"]) > 20 for f in fields(Config))


def test_the_example_file_names_every_key_with_its_default() -> None:
    example = Path(__file__).parents[3] / "systemd" / "gateway.toml"
    lines = [line.removeprefix("#") for line in example.read_text().splitlines()]
    text = "\n".join(line for line in lines if line.split(" = ")[0] in {f.name for f in fields(Config)})
    table = tomllib.loads(text)
    assert set(table) == {f.name for f in fields(Config)}
    assert parse_config(table) == Config()
