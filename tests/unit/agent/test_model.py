"""Values that come from outside: what is right, and what is refused with a reason."""

from __future__ import annotations

import pytest

from agent.errors import InvalidValue
from agent.model import Reach
from agent.objects import tunnel_mtu
from tests.fakes.state import server


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", "internet"),
        ("internet", "internet"),
        ("all", "all"),
        ("0.0.0.0/0", "all"),
        ("internet,0.0.0.0/0", "all"),
        ("10.20.0.7", "10.20.0.7/32"),
        ("10.0.1.0/24, internet ,10.0.0.0/24", "internet,10.0.0.0/23"),
        ("169.254.169.254/32", "169.254.169.254/32"),
    ],
)
def test_a_reach_has_one_spelling(text: str, kept: str) -> None:
    assert str(Reach.parse(text)) == kept
    assert Reach.parse(kept) == Reach.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        *("lan", "all,10.0.0.0/8", ",", "internet,", "10.0.0.1/8", "fd00::/8", "127.0.0.0/8", "224.0.0.5", "0.0.0.0"),
        ",".join(f"10.{i}.0.0/24" for i in range(33)),
    ],
)
def test_a_reach_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"server\.reach"):
        Reach.parse(text)


@pytest.mark.parametrize("port", [-1, 0, 22, 161, 1023, 65536])
def test_a_server_takes_no_port_of_the_services_of_the_box(port: int) -> None:
    with pytest.raises(InvalidValue, match=r"server\.listen_port.*1024-65535"):
        server(listen_port=port)


@pytest.mark.parametrize(
    ("uplink", "tunnel"),
    [(1500, 1420), (1492, 1412), (1460, 1380), (9000, 1420), (1360, 1280), (1300, 1280), (65536, 1420)],
)
def test_a_tunnel_carries_what_leaves_the_uplink_whole(uplink: int, tunnel: int) -> None:
    assert tunnel_mtu(uplink) == tunnel
