from pathlib import Path

import pytest

from agent.__main__ import main
from agent.config import Config, as_toml, load_config, parse_config
from agent.errors import ConfigError


def test_every_problem_is_told_at_once() -> None:
    table = {"sample_seconds": 0, "uplnk": "eth0", "wireguard": "magic", "listen": "0.0.0.0:1", "resync_seconds": "x"}
    with pytest.raises(ConfigError) as caught:
        parse_config(table)
    told = "\n".join(caught.value.problems)
    for name in ("sample_seconds", "uplnk", "wireguard", "listen", "resync_seconds"):
        assert name in told


def test_what_is_shown_reads_back_as_the_same(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    config = parse_config({"uplink": "ens18", "sample_seconds": 3})
    path.write_text(as_toml(config))
    assert load_config(path) == config


def test_a_key_in_a_table_is_spelled_with_it(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    for text in ('marks.backend = "nftables"\n', '[marks]\nbackend = "nftables"\n'):
        path.write_text(text)
        assert load_config(path).marks_backend == "nftables"
    assert 'marks.backend = "nftables"' in as_toml(load_config(path))
    path.write_text(as_toml(load_config(path)))
    assert load_config(path).marks_backend == "nftables"


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"marks": {"backend": "pf"}}, "marks.backend: 'pf' must be one of auto, iptables, nftables"),
        ({"marks": {"backend": 1}}, "marks.backend: must be a text in quotes"),
        ({"marks": {"backends": "auto"}}, "marks.backends: there is no such key"),
        ({"marks": "auto"}, "marks: there is no such key"),
        ({"marks_backend": "auto"}, "marks_backend: there is no such key"),
        ({"mark": {}}, "mark: there is no such key"),
    ],
)
def test_a_wrong_key_in_or_of_a_table_is_refused(table: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_config(table)


def test_true_is_not_a_number() -> None:
    with pytest.raises(ConfigError, match="sample_seconds: must be a whole number"):
        parse_config({"sample_seconds": True})


def test_a_named_file_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(tmp_path / "no.toml"), "check"]) == 2
    assert "No such file" in capsys.readouterr().err


def test_check_prints_the_configuration_in_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('uplink = "ens18"\n')
    assert main(["--config", str(path), "check"]) == 0
    out = capsys.readouterr().out
    assert 'uplink = "ens18"' in out and f"sample_seconds = {Config().sample_seconds}" in out


def test_status_without_an_agent_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f'listen = "unix:{tmp_path}/agent.sock"\n')
    assert main(["--config", str(path), "status"]) == 1
    assert "is it running, and may you use its socket?" in capsys.readouterr().err


def test_what_is_opened_to_accounts_is_ports_each_once() -> None:
    assert Config().opened == ()
    opened = Config(open_to_accounts="tcp/80, dns,udp/53").opened
    assert [(one.protocol, one.port) for one in opened] == [("tcp", 53), ("udp", 53), ("tcp", 80)]


@pytest.mark.parametrize("text", ["ssh", "80", "tcp/", "tcp/0", "udp/65536", "tcp/80,", "icmp/1", "tcp/-1", "tcp/²"])
def test_what_cannot_be_opened_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"open_to_accounts: .* must be dns, or tcp/ or udp/ with a port"):
        Config(open_to_accounts=text)


@pytest.mark.parametrize("arguments", [("--config", "/nowhere/\x1b[31m\x9b\r\nforged", "check"), ("check", "\x1b[2J")])
def test_nothing_that_was_typed_moves_the_cursor(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(arguments)
    except SystemExit as error:  # argparse
        status = int(str(error.code))
    err = capsys.readouterr().err
    assert status == 2 and "?[" in err and "\nforged" not in err
    assert all(char == "\n" or char.isprintable() for char in err)


@pytest.mark.parametrize("listen", ["0.0.0.0:7443", "[::]:7443", "192.0.2.1:1", "[2001:db8::1]:65535", ""])
def test_gateways_on_other_hosts_call_an_address_and_port(listen: str) -> None:
    assert parse_config({"listen_fleet": listen}).listen_fleet == listen


@pytest.mark.parametrize("listen", ["0.0.0.0", "fra:7443", ":7443", "::7443", "[0.0.0.0]:1", "0.0.0.0:0", "unix:/a"])
def test_what_is_no_address_and_port_is_refused(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"listen_fleet: .* must be an address of this host and a port"):
        parse_config({"listen_fleet": listen})


@pytest.mark.parametrize("address", ["127.0.0.1:9586", "0.0.0.0:1", "[::1]:65535", ""])
def test_metrics_are_read_at_an_address_of_this_host_or_nowhere(address: str) -> None:
    assert parse_config({"metrics": address}).metrics == address


@pytest.mark.parametrize(
    "address", ["9586", "localhost:9586", "::1:9586", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536"]
)
def test_metrics_at_no_address_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"metrics: .* must be an address of this host and a port, or empty"):
        parse_config({"metrics": address})
