"""The agent's identity: what is saved, what is not, and what is said of what is there."""

from __future__ import annotations

import dataclasses
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.errors import IdentityError
from agent.identity import FILE, Identity, identity_of, load, new_key, public_key_of, save
from agent.model import Secret
from gateway.authority import Authority, gateway_certificate, new_authority, new_node_name, node_certificate

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
OURS, THEIRS = new_authority(NOW), new_authority(NOW)


def made(by: Authority = OURS, name: str = "", key: Secret | None = None) -> Identity:
    key = key or new_key()
    certificate = node_certificate(by, public_key_of(key), "fra1", name or new_node_name(), NOW)
    return identity_of(certificate, key, OURS.certificate)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    name = new_node_name()
    identity = made(name=name)
    assert load(tmp_path / "identity") is None
    save(tmp_path / "identity", identity, NOW)
    found = load(tmp_path / "identity")
    assert found == identity
    assert (found.node, found.name, found.expires) == ("fra1", name, NOW + timedelta(days=90))


def test_several_authorities_are_kept_in_order(tmp_path: Path) -> None:
    both = dataclasses.replace(made(), authorities=THEIRS.certificate + OURS.certificate)
    save(tmp_path, both, NOW)
    found = load(tmp_path)
    assert found is not None and found.authorities == THEIRS.certificate + OURS.certificate


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        save(tmp_path / "state" / "identity", made(), NOW)
    finally:
        os.umask(mask)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / "identity").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / "identity" / FILE).stat().st_mode & 0o777 == 0o600


def test_a_new_one_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    old, new = made(), made()
    save(tmp_path, old, NOW)
    (tmp_path / f".{FILE}.new").write_text("of somebody who lost power")
    with (tmp_path / FILE).open("rb") as reading:
        save(tmp_path, new, NOW)
        assert old.certificate in reading.read()  # it is another file now, not this one written over
    assert load(tmp_path) == new
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda one: dataclasses.replace(one, key=new_key()), "for another key"),
        (lambda one: dataclasses.replace(one, authorities=THEIRS.certificate), "not one of its authorities'"),
        (lambda one: dataclasses.replace(one, certificate=b"rubbish"), "cannot be read"),
        (lambda one: dataclasses.replace(one, authorities=b""), "cannot be read"),
        (lambda one: dataclasses.replace(one, key=Secret("rubbish")), "cannot be read"),
        (lambda one: identity_of(gateway_certificate(OURS, NOW)[1], one.key, OURS.certificate), "for another key"),
    ],
)
def test_what_does_not_fit_together_is_not_saved(tmp_path: Path, spoil: object, words: str) -> None:
    save(tmp_path, good := made(), NOW)
    with pytest.raises(IdentityError, match=words):
        save(tmp_path, spoil(made()), NOW)  # type: ignore[operator]
    assert load(tmp_path) == good


def test_a_certificate_for_calling_is_not_one_for_serving(tmp_path: Path) -> None:
    key, certificate = gateway_certificate(OURS, NOW)
    with pytest.raises(IdentityError, match="authorities"):
        save(tmp_path, identity_of(certificate, Secret(key.reveal()), OURS.certificate), NOW)


@pytest.mark.parametrize("days", [-8, 91])
def test_what_does_not_hold_now_is_not_saved_but_loaded_and_told(tmp_path: Path, days: int) -> None:
    identity, then = made(), NOW + timedelta(days=days)
    with pytest.raises(IdentityError, match=f"holds from 2026-11-20 .* and it is {then:%Y-%m-%d} .* this host's clock"):
        save(tmp_path, identity, then)
    save(tmp_path, identity, NOW)
    found = load(tmp_path)
    assert found == identity
    with pytest.raises(IdentityError, match="this host's clock"):
        found.check(then)


@pytest.mark.parametrize("cut", [0, 50, 300, 800])
def test_a_damaged_file_is_told_with_the_cure(tmp_path: Path, cut: int) -> None:
    save(tmp_path, made(), NOW)
    os.truncate(tmp_path / FILE, cut)
    with pytest.raises(IdentityError, match="new join token"):
        load(tmp_path)


def test_a_disk_that_does_not_take_it_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match="cannot be written"):
        save(tmp_path / "file" / "identity", made(), NOW)


def test_the_key_is_never_shown() -> None:
    assert "PRIVATE" not in repr(made())
