"""What the doctor says of this node as gateways on other hosts know it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.config import Config
from agent.identity import load, save
from agent.offline import known_as
from tests.fakes.certificates import NAME, an_authority, an_identity


def test_the_doctor_says_who_this_node_is_to_others_and_what_is_wrong_with_that(tmp_path: Path) -> None:
    config, now, authority = (
        Config(listen_fleet="0.0.0.0:7443", identity=tmp_path / "i"),
        datetime.now(UTC),
        an_authority(),
    )
    assert known_as(replace(config, listen_fleet=""), now) == []
    assert "not enrolled" in known_as(config, now)[0]
    save(config.identity, an_identity(authority), now)
    (line,) = known_as(config, now)
    assert f"node fra, {NAME}, until " in line
    assert (
        f"trusts gateways of the authority {authority.pin[:16]}; by this host's clock it is {now:%Y-%m-%d %H:%M}"
        in line
    )
    assert known_as(config, now + timedelta(days=91))[0].startswith("problem: the certificate of this node holds from ")
    assert load(config.identity) is not None
