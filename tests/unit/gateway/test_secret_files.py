"""gateway/secret_files.py: where the secrets come from, and who else may read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.config import Config
from gateway.errors import ConfigError
from gateway.secret_files import database_url, read_key


def with_key_file(folder: Path) -> Config:
    return Config(database=f"sqlite:///{folder}/gateway.db", key_file=str(folder / "secret.key"))


def test_the_password_comes_from_its_file_and_may_hold_anything(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("p@ss:w/rd\n")
    secret.chmod(0o640)
    config = Config(database="postgresql://wirelane@db:5433/wirelane", database_password_file=str(secret))
    assert database_url(config) == "postgresql://wirelane:p%40ss%3Aw%2Frd@db:5433/wirelane"
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match=r"database_password_file: .* can be read by others .* chmod 640"):
        database_url(config)


def test_the_first_start_makes_a_private_key_file_and_the_next_one_reads_it(tmp_path: Path) -> None:
    config = with_key_file(tmp_path)
    old = os.umask(0)
    try:
        key = read_key(config, may_make=True)
    finally:
        os.umask(old)
    assert len(key) == 32
    assert (tmp_path / "secret.key").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["secret.key"]
    assert read_key(config) == read_key(config, may_make=True) == key


def test_a_key_that_is_missing_is_never_replaced_beside_a_database(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is missing: put it back from your backup"):
        read_key(with_key_file(tmp_path))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_file_that_others_can_read_is_refused_with_the_cure(tmp_path: Path, mode: int) -> None:
    config = with_key_file(tmp_path)
    read_key(config, may_make=True)
    (tmp_path / "secret.key").chmod(mode)
    with pytest.raises(ConfigError, match=f"can be read by others .* chmod 600 {tmp_path}/secret.key"):
        read_key(config)


@pytest.mark.parametrize("text", ["", "abc", "z" * 64, "a" * 63, "\xff" * 64])
def test_a_key_file_with_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "secret.key").write_bytes(text.encode("latin-1"))
    (tmp_path / "secret.key").chmod(0o600)
    with pytest.raises(ConfigError, match="key_file: "):
        read_key(with_key_file(tmp_path))


def test_a_folder_that_is_missing_is_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make the folder"):
        read_key(with_key_file(tmp_path / "absent"), may_make=True)


@pytest.mark.parametrize("may_make", [False, True])
def test_a_key_file_behind_a_closed_folder_is_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_make: bool
) -> None:
    def closed(path: object, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.stat", closed)  # root passes through any folder
    monkeypatch.setattr("builtins.open", closed)
    with pytest.raises(ConfigError, match=r"key_file: .*secret\.key cannot be read: Permission denied: let"):
        read_key(with_key_file(tmp_path), may_make=may_make)


def test_a_systemd_credential_may_be_the_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_key_file(tmp_path)
    key = read_key(config, may_make=True)
    (tmp_path / "secret.key").chmod(0o440)  # systemd lets the unit's user read it by an ACL, whose mask looks like this
    monkeypatch.setattr("gateway.secret_files.CREDENTIALS", tmp_path)
    assert read_key(config) == key
