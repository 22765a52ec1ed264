"""The command line: what it prints where, and its exit status. `serve` is tried in tests/contract/test_serve.py."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from agent.enrol import JoinToken
from gateway import account_file
from gateway.__main__ import main
from gateway.config import load_config
from gateway.model import ServerValues
from gateway.secret_files import read_key
from gateway.store import open_store, settings
from tests.contract.test_store import use_cases
from tests.fakes import direct
from tests.fakes.product import migrated_sqlite

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "gateway.toml"
    path.write_text(f'database = "sqlite:///{tmp_path}/gateway.db"\nkey_file = "{tmp_path}/secret.key"\n')
    return str(path)


@pytest.fixture
def ready(config: str, capfd: Captured) -> str:
    """A configuration whose database is there."""
    assert main(["--config", config, "migrate"]) == 0
    capfd.readouterr()
    return config


def outcome(capfd: Captured, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    status = main(["--config", *arguments])
    out, err = capfd.readouterr()
    return status, out, err


def test_migrate_makes_database_and_key_and_may_be_repeated(config: str, capfd: Captured, tmp_path: Path) -> None:
    assert outcome(capfd, config, "migrate") == (0, "", "")
    key = (tmp_path / "secret.key").read_text()
    assert outcome(capfd, config, "migrate") == (0, "", "")
    assert (tmp_path / "secret.key").read_text() == key
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("gateway.db", "secret.key")} == {0o600}


def test_a_missing_database_is_named_with_the_cure(config: str, capfd: Captured, tmp_path: Path) -> None:
    status, out, err = outcome(capfd, config, "key", "list")
    assert (status, out) == (2, "")
    assert err == (
        f"wirelane-gateway: database: {tmp_path}/gateway.db does not exist: `wirelane-gateway migrate` makes it\n"
    )
    assert not (tmp_path / "gateway.db").exists()


def test_another_key_than_the_databases_is_refused(ready: str, capfd: Captured, tmp_path: Path) -> None:
    (tmp_path / "secret.key").write_text("ab" * 32)
    for command in (("key", "list"), ("migrate",)):
        status, _, err = outcome(capfd, ready, *command)
        assert status == 2
        assert "not the key that the database was written with" in err
    (tmp_path / "secret.key").unlink()
    status, _, err = outcome(capfd, ready, "migrate")
    assert status == 2
    assert "put it back from your backup" in err
    assert not (tmp_path / "secret.key").exists()


def test_a_key_is_printed_alone_and_once(ready: str, capfd: Captured) -> None:
    status, out, err = outcome(capfd, ready, "key", "add", "billing", "--ip", "192.0.2.1", "--ip", "10.0.0.0/8")
    assert status == 0
    assert re.fullmatch(r"[0-9a-f]{80}\n", out)
    assert "only this once" in err
    status, listing, _ = outcome(capfd, ready, "key", "list")
    title, line = listing.splitlines()
    assert title.split() == ["NAME", "NETWORKS", "CREATED"]
    assert line.startswith("billing  192.0.2.1/32,10.0.0.0/8  20")
    assert out.strip() not in listing


def test_keys_are_refused_in_one_line(ready: str, capfd: Captured) -> None:
    assert outcome(capfd, ready, "key", "add", "k", "--ip", "192.0.2.1")[0] == 0
    for arguments, text in (
        (("key", "add", "k", "--ip", "192.0.2.1"), "There is a key k already; revoke it first"),
        (("key", "add", "x y", "--ip", "192.0.2.1"), "Wrong name of a key"),
        (("key", "add", "x", "--ip", "10.0.0.1/8"), "Wrong address of a key"),
        (("key", "revoke", "other"), "There is no key other"),
    ):
        status, out, err = outcome(capfd, ready, *arguments)
        assert (status, out) == (1, "")
        assert err.startswith(f"wirelane-gateway: {text}")
        assert err.count("\n") == 1
    assert outcome(capfd, ready, "key", "revoke", "k")[0] == 0
    assert outcome(capfd, ready, "key", "list")[1].splitlines()[1:] == []


def test_nodes_are_added_shown_changed_and_removed(ready: str, capfd: Captured) -> None:
    assert outcome(capfd, ready, "node", "add", "fra", "unix:/run/fra.sock", "--endpoint", "fra.example.com")[0] == 0
    status, out, _ = outcome(capfd, ready, "node", "list")
    title, line = out.splitlines()
    said = dict(zip(title.split(), line.split(), strict=False))
    assert (said["NAME"], said["TARGET"], said["ENDPOINT"]) == ("fra", "unix:/run/fra.sock", "fra.example.com")
    assert (said["REVISION"], said["ACKNOWLEDGED"], said["PENDING"], said["EPOCH"]) == ("1", "0", "1", "-")
    assert {
        said[of_its_agent] for of_its_agent in ("APPLIED", "FAILED", "DRIFT", "CLOCK", "CERTIFICATE", "VERSION")
    } == {"-"}
    assert said["STATE"] == "away:"
    assert outcome(capfd, ready, "node", "edit", "fra", "--target", "unix:/run/b.sock", "--endpoint", "")[0] == 0
    assert outcome(capfd, ready, "node", "list")[1].splitlines()[1].split()[1:13:11] == ["unix:/run/b.sock", "-"]
    assert "takes no new servers" in outcome(capfd, ready, "node", "drain", "fra")[2]
    assert outcome(capfd, ready, "node", "list")[1].endswith(" (drained)\n")
    assert outcome(capfd, ready, "node", "undrain", "fra")[0] == 0
    assert "drained" not in outcome(capfd, ready, "node", "list")[1]
    assert outcome(capfd, ready, "node", "remove", "fra")[0] == 0
    assert outcome(capfd, ready, "node", "list")[1].count("\n") == 1
    assert outcome(capfd, ready, "node", "drain", "fra") == (1, "", "wirelane-gateway: Node fra not found\n")
    status, _, err = outcome(capfd, ready, "node", "resync", "fra", "--from-database")
    assert (status, err) == (1, "wirelane-gateway: Node fra not found\n")


HEADER = "name,wg_name,b_download,password\n"


def with_a_server(config: str, tmp_path: Path) -> None:
    async def make() -> None:
        store = await open_store(f"sqlite:///{tmp_path}/gateway.db", bytes.fromhex(read_key_text(tmp_path)))
        await direct.add_node(store, "local", "unix:/run/agent.sock", "vpn.example.com")
        await use_cases(store)[1].create(ServerValues(name="s"))
        await store.close()

    asyncio.run(make())


def read_key_text(tmp_path: Path) -> str:
    return (tmp_path / "secret.key").read_text().strip()


def test_accounts_are_imported_and_what_is_wrong_is_told_by_line(ready: str, capfd: Captured, tmp_path: Path) -> None:
    with_a_server(ready, tmp_path)
    file, errors = tmp_path / "in.csv", tmp_path / "errors.csv"
    file.write_text(HEADER + "a,s,5,secret\nb,s,x,\nc,nowhere,,\nd,s,,\n")
    status, out, err = outcome(capfd, ready, "account", "import", str(file), "--dry-run")
    assert (status, out) == (1, "")
    assert err.splitlines()[:2] == [
        "line 3: b_download: Wrong b_download (only 0-10000)",
        "line 4: wg_name: Wireguard server not valid",
    ]
    assert "4 accounts in the file: 2 would be created, 0 were there already, 2 refused" in err
    assert "nothing was changed" in err
    status, out, err = outcome(capfd, ready, "account", "import", str(file), "--errors", str(errors))
    assert (status, out) == (1, "")
    assert "2 created, 0 were there already, 2 refused" in err and f"see {errors}" in err
    assert errors.read_text() == (
        "line,field,error\n3,b_download,Wrong b_download (only 0-10000)\n4,wg_name,Wireguard server not valid\n"
    )
    assert errors.stat().st_mode & 0o777 == 0o600
    file.write_text(HEADER + "a,s,5,secret\nd,s,,\n")
    status, out, err = outcome(capfd, ready, "account", "import", str(file), "--errors", str(errors))
    assert status == 0 and "0 created, 2 were there already, 0 refused" in err
    assert errors.read_text() == "line,field,error\n"


def test_hundreds_of_bad_lines_do_not_flood_the_screen(ready: str, capfd: Captured, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text("name,wg_name\n" + "a b,s\n" * 300)
    status, _, err = outcome(capfd, ready, "account", "import", str(file))
    assert status == 1
    assert len(err.splitlines()) == 22
    assert "and 280 more lines: --errors FILE lists all of them" in err


def test_an_export_is_private_and_never_overwrites_unasked(ready: str, capfd: Captured, tmp_path: Path) -> None:
    with_a_server(ready, tmp_path)
    file = tmp_path / "in.jsonl"
    file.write_text('{"name":"a","wg_name":"s","password":"secret"}\n')
    assert outcome(capfd, ready, "account", "import", str(file))[0] == 0
    target = tmp_path / "out.jsonl"
    status, out, err = outcome(capfd, ready, "account", "export", str(target))
    assert (status, out) == (0, "") and "keep it safe" in err and "secret" not in err
    assert target.stat().st_mode & 0o777 == 0o600
    (line,) = target.read_text().splitlines()
    assert json.loads(line)["password"] == "secret"
    status, _, err = outcome(capfd, ready, "account", "export", str(target))
    assert (status, err) == (2, f"wirelane-gateway: {target}: it exists already; --force overwrites it\n")
    assert outcome(capfd, ready, "account", "export", str(target), "--force")[0] == 0
    assert target.read_text() == line + "\n"
    status, out, err = outcome(capfd, ready, "account", "export")
    assert status == 0 and out.splitlines()[0].startswith("name,username,wg_name,") and "secret" in out
    assert outcome(capfd, ready, "account", "import", str(target))[0] == 0


def test_an_output_that_is_full_is_named_and_nothing_of_it_stays(
    ready: str, capfd: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_a_server(ready, tmp_path)
    file, target = tmp_path / "in.csv", tmp_path / "out.csv"
    file.write_text("name,wg_name\n" + "".join(f"a{number},s\n" for number in range(200)) + "?,s\n")
    full = "/dev/full: No space left on device\n"
    status, _, err = outcome(capfd, ready, "account", "import", str(file), "--errors", "/dev/full")
    assert (status, err.count("\n")) == (1, 1) and err.endswith(full)
    assert outcome(capfd, ready, "account", "export", "/dev/full", "--format", "csv")[::2] == (
        1,
        f"wirelane-gateway: {full}",
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    written = account_file.written
    monkeypatch.setattr(
        account_file, "written", lambda *page: written(*page) * 100
    )  # the limit holds for the database, too
    for force in ((), ("--force",)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1]))
        try:
            status, _, err = outcome(capfd, ready, "account", "export", str(target), *force)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (status, err) == (1, f"wirelane-gateway: {target}: File too large\n")
        assert not list(tmp_path.glob("*out.csv*"))
        target.write_text("old")


def test_files_that_cannot_be_are_one_clear_line(ready: str, capfd: Captured, tmp_path: Path) -> None:
    odd, good = tmp_path / "accounts.txt", tmp_path / "in.csv"
    odd.write_text("")
    good.write_text("a,b\n")
    for arguments, text in (
        (("import", str(tmp_path / "absent.csv")), "No such file or directory"),
        (("import", str(tmp_path), "--format", "csv"), "Is a directory"),
        (("import", str(odd)), "--format"),
        (("import", str(good), "--errors", str(good)), "the very file that is imported"),
        (("import", str(good)), "line 1: a header is needed, with the columns name, wg_name"),
        (("export", str(odd)), "--format"),
        (("export", str(tmp_path / "no" / "out.csv")), "No such file or directory"),
    ):
        status, out, err = outcome(capfd, ready, "account", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert text in err
    assert good.read_text() == "a,b\n"


def test_a_node_on_another_host_gets_a_join_token_once(ready: str, capfd: Captured) -> None:
    with open(ready, "a") as file:
        file.write('public_url = "https://vpn.example.com"\n')
    status, token, err = outcome(capfd, ready, "node", "add", "fra1", "--address", "198.51.100.11:7443")
    assert (status, token.count("\n"), token[:9]) == (0, 1, "wl1.fra1.")
    assert token.strip() not in err and "only this once and good for 60 minutes" in err
    assert "`wirelane-agent enrol --token-file -`" in err
    assert JoinToken.parse(token).url == "https://vpn.example.com"
    status, again, err = outcome(
        capfd, ready, "node", "token", "fra1", "--minutes", "5", "--gateway", "http://192.0.2.1"
    )
    assert (status, JoinToken.parse(again).url, "good for 5 minutes" in err) == (0, "http://192.0.2.1", True)
    assert JoinToken.parse(again).seed != JoinToken.parse(token).seed
    assert JoinToken.parse(again).pin == JoinToken.parse(token).pin


def test_without_a_url_the_host_has_to_be_told_one(ready: str, capfd: Captured) -> None:
    status, token, err = outcome(capfd, ready, "node", "add", "fra1", "--address", "fra1.example.com:7443")
    assert (status, JoinToken.parse(token).url) == (0, "")
    assert "`wirelane-agent enrol --token-file - --gateway URL`" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("add", "fra", "192.0.2.1:9000"), "--address another host's HOST:PORT"),
        (("add", "fra", "--address", "unix:/run/a.sock"), "--address another host's HOST:PORT"),
        (("add", "fra", "--address", "192.0.2.1"), "such as 198.51.100.11:7443"),
        (("token", "nobody"), "Node nobody not found"),
        (("token", "local"), "it needs no certificate"),
    ],
)
def test_what_cannot_be_enrolled_is_told(ready: str, capfd: Captured, arguments: tuple[str, ...], words: str) -> None:
    outcome(capfd, ready, "node", "add", "local", "unix:/run/agent.sock")
    status, out, err = outcome(capfd, ready, "node", *arguments)
    assert (status in (1, 2), out) == (True, "")
    assert words in err
    assert outcome(capfd, ready, "node", "list")[1].count("\n") == 2


def test_revoking_begins_a_new_series(ready: str, capfd: Captured) -> None:
    for series in (2, 3):
        status, out, err = outcome(capfd, ready, "gateway", "revoke")
        assert (status, out) == (0, "")
        assert f"series {series} of the gateways' certificates begins" in err


def test_an_authority_is_exchanged_in_three_steps(ready: str, capfd: Captured) -> None:
    def states() -> dict[str, str]:
        lines = outcome(capfd, ready, "authority", "list")[1].splitlines()[1:]
        return {pin: state for pin, *_, state in map(str.split, lines)}

    assert states() == {}
    outcome(capfd, ready, "node", "add", "fra1", "--address", "198.51.100.11:7443")
    ((old, state),) = states().items()
    assert state == "signs"
    status, out, _ = outcome(capfd, ready, "authority", "new")
    new = out.strip()
    assert (status, states()) == (0, {old: "signs", new: "trusted"})
    assert outcome(capfd, ready, "authority", "drop", old)[0] == 1
    assert outcome(capfd, ready, "authority", "use", new)[0] == 0
    assert states() == {old: "trusted", new: "signs"}
    assert outcome(capfd, ready, "authority", "drop", old)[0] == 0
    assert states() == {new: "signs"}


@pytest.mark.parametrize("minutes", ["0", "10081", "x", "-1"])
def test_a_join_token_lives_minutes_or_days_not_longer(ready: str, capfd: Captured, minutes: str) -> None:
    with pytest.raises(SystemExit):
        main(["--config", ready, "node", "token", "fra1", "--minutes", minutes])
    assert "1-10080" in capfd.readouterr().err or minutes == "-1"


def test_a_target_that_cannot_be_is_refused_with_a_clear_sentence(ready: str, capfd: Captured) -> None:
    status, _, err = outcome(capfd, ready, "node", "add", "fra", "unix:agent.sock")
    assert status == 1
    assert "'unix:agent.sock' must name an absolute path" in err
    assert outcome(capfd, ready, "node", "list")[1].count("\n") == 1


def test_check_prints_what_is_in_force_or_every_mistake(config: str, capfd: Captured, tmp_path: Path) -> None:
    status, out, err = outcome(capfd, config, "check")
    assert status == 0 and err.startswith("wirelane-gateway: warning: public_url is not set")
    with open(config, "a") as file:
        file.write('public_url = "https://vpn.example.com"\n')
    assert outcome(capfd, config, "check")[::2] == (0, "")
    assert 'listen = "127.0.0.1:8080"' in out
    Path(config).write_text('listen = 5\nlink_day = 1\nendpoint = "a b"\n')
    status, out, err = outcome(capfd, config, "check")
    assert (status, out) == (2, "")
    assert [line.split(": ")[1:3] for line in err.splitlines()] == [
        [f"{config}:1", "listen"],
        [f"{config}:2", "link_day"],
        [f"{config}:3", "endpoint"],
    ]


def test_check_opens_the_files_that_serve_will_need(config: str, capfd: Captured, tmp_path: Path) -> None:
    (tmp_path / "secret.key").write_text("ab" * 32)
    (tmp_path / "secret.key").chmod(0o644)
    with open(config, "a") as file:
        file.write(f'tls_certificate = "{tmp_path}/absent.pem"\ntls_key = "{tmp_path}/absent.key"\n')
    status, _, err = outcome(capfd, config, "check")
    assert status == 2
    assert "tls_certificate, tls_key: No such file or directory" in err
    assert "chmod 600" in err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("sslmode=bogus", "sslmode must be one of"),
        ("foo=1", "'foo' is not understood"),
        ("sslrootcert=/nowhere/ca.pem", "sslrootcert: /nowhere/ca.pem is not there"),
    ],
)
def test_check_reads_the_databases_url_to_its_end(option: str, said: str, tmp_path: Path, capfd: Captured) -> None:
    path = tmp_path / "gateway.toml"
    url, key = f"postgresql://wirelane@127.0.0.1/wirelane?{option}", tmp_path / "secret.key"
    path.write_text(f'database = "{url}"\nkey_file = "{key}"\n')
    status, _, err = outcome(capfd, str(path), "check")
    assert status == 2 and said in err


@pytest.mark.parametrize("arguments", [[], ["key"], ["key", "add", "x"], ["node", "add", "x"], ["nonsense"]])
def test_a_wrong_command_line_is_status_2(arguments: list[str], capfd: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to see what root does")
def test_root_makes_no_file_of_its_own_in_the_gateways_folder() -> None:
    # Another user has to get there, and each start of pytest closes its own folder to others.
    with tempfile.TemporaryDirectory(prefix="wirelane-") as place:
        folder, config = Path(place) / "state", Path(place) / "gateway.toml"
        folder.mkdir(mode=0o700)
        folder.parent.chmod(0o755)
        os.chown(folder, 65534, 65534)
        config.write_text(f'database = "sqlite:///{folder}/gateway.db"\nkey_file = "{folder}/secret.key"\n')
        command = [sys.executable, "-m", "gateway", "--config", str(config), "migrate"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert {path.stat().st_uid for path in folder.iterdir()} == {65534}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run as somebody else")
@pytest.mark.parametrize(
    ("command", "named"),
    [("check", "key_file: "), ("serve", "key_file: "), ("migrate", ""), ("node list", "database: ")],
)
def test_a_closed_folder_is_a_clear_error(command: str, named: str) -> None:
    with tempfile.TemporaryDirectory(prefix="wirelane-") as place:
        folder, config = Path(place) / "closed" / "state", Path(place) / "gateway.toml"
        folder.mkdir(parents=True)
        folder.parent.parent.chmod(0o755)
        os.chown(folder, 65534, 65534)  # who takes the place of root
        folder.parent.chmod(0o700)
        config.write_text(f'database = "sqlite:///{folder}/gateway.db"\nkey_file = "{folder}/secret.key"\n')
        words = [sys.executable, "-m", "gateway", "--config", str(config), *command.split()]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr and str(folder) in done.stderr and "Traceback" not in done.stderr


def test_an_sqlite_file_that_is_no_database_is_one_clear_line(ready: str, capfd: Captured, tmp_path: Path) -> None:
    (tmp_path / "gateway.db").write_bytes(b"nonsense" * 1000)
    status, out, err = outcome(capfd, ready, "node", "list")
    assert (status, out) == (2, "")
    assert "put it aside and restore your backup" in err
    assert "Traceback" not in err


def test_an_older_schema_is_refused_with_the_command_that_helps(config: str, capfd: Captured, tmp_path: Path) -> None:
    migrated_sqlite(tmp_path / "gateway.db")
    (tmp_path / "secret.key").write_text("ab" * 32)
    (tmp_path / "secret.key").chmod(0o600)
    import sqlite3

    with sqlite3.connect(tmp_path / "gateway.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'older'")
    database.close()
    status, _, err = outcome(capfd, config, "serve")
    assert status == 2
    assert "migrate" in err


def test_check_refuses_a_port_that_the_service_may_not_have_and_tells_the_cure(
    config: str, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway.http import ports

    able = {"process": False, "unit": False}
    monkeypatch.setattr(ports, "_is_capable", lambda: able["process"])
    monkeypatch.setattr(ports, "_unit_is_capable", lambda: able["unit"])
    Path(config).write_text(Path(config).read_text() + 'listen = "127.0.0.1:443"\n')
    status, _, err = outcome(capfd, config, "check")
    assert status == 2 and "ip_unprivileged_port_start=443" in err and "PrivateUsers=no" in err
    for who in able:
        able.update(process=False, unit=False)
        able[who] = True
        assert outcome(capfd, config, "check")[0] == 0


@pytest.mark.parametrize("command", ["export", "import"])
@pytest.mark.parametrize("before", ["link", "dangling link", "hard link", "open to all"])
def test_a_file_of_secrets_is_new_and_ours_whatever_had_its_name(
    ready: str, capfd: Captured, tmp_path: Path, command: str, before: str
) -> None:
    with_a_server(ready, tmp_path)
    victim, target, source = tmp_path / "victim", tmp_path / "out.csv", tmp_path / "in.csv"
    victim.write_text("precious\n")
    source.write_text("name,wg_name\nbad name,s\n")
    match before:
        case "link":
            target.symlink_to(victim)
        case "dangling link":
            target.symlink_to(tmp_path / "nowhere")
        case "hard link":
            target.hardlink_to(victim)
        case _:
            target.write_text("old")
            target.chmod(0o666)
    more = ["--force", str(target)] if command == "export" else [str(source), "--errors", str(target)]
    capfd.readouterr()
    outcome(capfd, ready, "account", command, *more)
    assert victim.read_text() == "precious\n" and not (tmp_path / "nowhere").exists()
    assert target.lstat().st_mode & 0o177777 == 0o100600 and target.stat().st_uid == os.getuid()
    assert target.read_text().startswith("name," if command == "export" else "line,")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def piped(config: str, *arguments: str) -> str:
    """What a command says on standard error whose reader is gone before the first line."""
    command = [sys.executable, "-m", "gateway", "--config", config, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        return process.stderr.read()


@pytest.mark.parametrize("arguments", [("account", "export"), ("usage", "--csv"), ("node", "list"), ("key", "list")])
def test_a_reader_that_is_gone_is_no_trouble_of_the_database(
    ready: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    with_a_server(ready, tmp_path)
    said = piped(ready, *arguments)
    assert "database" not in said and "Traceback" not in said and "Broken pipe" not in said


def test_an_export_onto_a_full_disk_says_that_it_is_the_file(ready: str, capfd: Captured, tmp_path: Path) -> None:
    with_a_server(ready, tmp_path)
    status, _, err = outcome(capfd, ready, "account", "export", "/dev/full", "--force", "--format", "csv")
    assert status == 1 and "/dev/full: No space left on device" in err and "database" not in err


def test_usage_of_a_month_is_shown_with_deleted_accounts(ready: str, capfd: Captured, tmp_path: Path) -> None:
    with_a_server(ready, tmp_path)
    file = tmp_path / "in.jsonl"
    file.write_text('{"name":"-a","wg_name":"s"}\n')
    assert outcome(capfd, ready, "account", "import", str(file))[0] == 0
    status, out, _ = outcome(capfd, ready, "usage", "--month", "2026-01", "--csv")
    assert (status, out) == (0, "account,server,deleted,download,upload\n'-a,s,,0,0\n")
    assert json.loads(outcome(capfd, ready, "usage", "--json")[1]) == [
        {"account": "-a", "server": "s", "deleted": "", "download": 0, "upload": 0}
    ]
    assert "total" in outcome(capfd, ready, "usage")[1]
    assert outcome(capfd, ready, "usage", "--month", "2026-13")[0] == 2
    status, _, err = outcome(capfd, ready, "usage", "--account", "nobody")
    assert status == 1 and "There is no account nobody" in err


ESCAPES = "\x1b[31m\x9b2J\r\nforged"


@pytest.mark.parametrize(
    "arguments",
    [
        ("node", "resync", ESCAPES, "--show-difference"),
        ("node", "remove", ESCAPES),
        ("node", "add", "fra", ESCAPES),
        ("key", "revoke", ESCAPES),
        ("key", "add", "one", "--ip", ESCAPES),
        ("account", "import", f"{ESCAPES}.csv"),
        ("account", "export", f"{ESCAPES}/accounts.csv"),
        ("check", ESCAPES),
        (ESCAPES,),
    ],
)
def test_nothing_that_was_typed_moves_the_cursor(ready: str, capfd: Captured, arguments: tuple[str, ...]) -> None:
    try:
        status = main(["--config", ready, *arguments])
    except SystemExit as error:  # argparse
        status = int(str(error.code))
    err = capfd.readouterr().err
    assert status in (1, 2)
    assert not re.search(r"[^\n -~]", err) and "\nforged" not in err, err


def test_nothing_in_the_name_of_the_configuration_does(capfd: Captured) -> None:
    status, _, err = outcome(capfd, f"/nowhere/{ESCAPES}", "check")
    assert status == 2 and "?[31m" in err and not re.search(r"[^\n -~]", err) and "\nforged" not in err


def test_check_tells_what_the_api_set_instead(ready: str, capfd: Captured) -> None:
    database = load_config(Path(ready)).database

    async def tune() -> None:
        async with await open_store(database, read_key(load_config(Path(ready)))) as store:
            await store.change(lambda tx: settings.tune(tx, {"usage_months": 7}))

    asyncio.run(tune())
    status, out, err = outcome(capfd, ready, "check")
    assert status == 0 and "usage_months = 2" in out
    assert "wirelane-gateway: usage_months = 7: set by the API, it wins over the file" in err.splitlines()
