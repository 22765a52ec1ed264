"""IKEv2 in the passes of the writer: nobody is let in before all stands, and its failures close no other way in."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Interface

from agent.desired import Desired, Snapshot
from agent.model import IKEV2_DEVICE
from agent.objects import LoginRow, Responder
from agent.parts import GATE, LOGINS, PARTS, RESPONDER
from agent.usage import Usage
from agent.wanted import wanted
from agent.writer import Writer
from tests.fakes.kernel import FakeKernel
from tests.fakes.state import EPOCH, IKEV2, MemoryKeeper, account, login, server

DESIRED = Desired.of(
    EPOCH,
    Snapshot(1, (server(1, ikev2=IKEV2),), (account(2, login=login(2)), account(3, login=login(3), download=0))),
)


def a_writer(kernel: FakeKernel) -> Writer:
    return Writer(kernel, Usage(MemoryKeeper(), lambda: 1_700_000_000.0))


def is_right(kernel: FakeKernel) -> bool:
    want, shown = wanted(DESIRED, "eth0"), kernel.shown()
    return all(shown[part.name] == want[part] for part in PARTS)


def test_one_pass_builds_all_of_it_and_opens_last() -> None:
    kernel = FakeKernel()
    report = a_writer(kernel).full(DESIRED)
    assert is_right(kernel) and not report.failures
    assert kernel.writes[-1] == f"add gate {IKEV2_DEVICE}"
    assert report.responder == ("strongSwan 5.9.8", 500)


def test_what_was_started_anew_has_all_of_its_own_after_the_same_pass() -> None:
    kernel = FakeKernel()
    writer = a_writer(kernel)
    writer.full(DESIRED)
    kernel.writes.clear()
    kernel.responder_part.held[IKEV2_DEVICE] = Responder(IKEV2_DEVICE, is_sound=False)  # a program has ended
    assert not writer.full(DESIRED).failures and is_right(kernel)
    assert kernel.writes[0] == f"change responder {IKEV2_DEVICE}" and kernel.writes[-1] == f"add gate {IKEV2_DEVICE}"
    assert {line.split()[1] for line in kernel.writes} == {"responder", "qdiscs", "classes", "logins", "gate"}
    kernel.writes.clear()
    assert not writer.full(DESIRED).changes


def test_settings_of_its_device_are_put_right_and_nothing_else() -> None:
    kernel = FakeKernel()
    writer = a_writer(kernel)
    writer.full(DESIRED)
    kernel.writes.clear()
    kernel.responder_part.held[IKEV2_DEVICE] = Responder(IKEV2_DEVICE, is_set=False)  # another MTU
    assert not writer.full(DESIRED).failures and is_right(kernel)
    assert kernel.writes == [f"change responder {IKEV2_DEVICE}"]


def test_ipv6_is_offered_where_a_server_has_both_and_given_to_its_accounts_alone() -> None:
    own = IPv6Address("fd77::2")
    secret, address, second_address = login(2).password, IPv4Address("10.0.1.2"), IPv4Address("10.0.2.3")
    both = account(2, login=login(2), address_ipv6=own)
    plain = account(3, server="s2", login=login(3), address=second_address)
    first, second = server(1, ikev2=IKEV2, address_ipv6=IPv6Interface("fd77::1/64")), server(2, ikev2=IKEV2)
    for servers in ((first, second), (second, first)):
        want = wanted(Desired.of(EPOCH, Snapshot(1, servers, (both, plain))), "eth0")
        assert want[GATE][IKEV2_DEVICE].ipv6 and want[RESPONDER][IKEV2_DEVICE].ipv6
        assert want[LOGINS]["user_2"] == LoginRow("user_2", secret, address, IKEV2.dns, address_ipv6=own)
        assert want[LOGINS]["user_3"] == LoginRow("user_3", secret, second_address, IKEV2.dns[:1])
    want = wanted(
        Desired.of(EPOCH, Snapshot(1, (server(1, address_ipv6=first.address_ipv6), second), (plain,))), "eth0"
    )
    assert not want[GATE][IKEV2_DEVICE].ipv6 and not want[RESPONDER][IKEV2_DEVICE].ipv6


def test_where_it_cannot_be_started_its_accounts_come_in_by_wireguard() -> None:
    kernel = FakeKernel()
    kernel.refuses["responder", "add", IKEV2_DEVICE] = "port 500 is taken"
    report = a_writer(kernel).full(DESIRED)
    assert {(failure.account_id, failure.subject) for failure in report.failures.values()} == {(0, "s1")}
    shown = kernel.shown()
    assert len(shown["peers"]) == 2 and len(shown["marks"]) == 2 and ("wg1", 0x100) in shown["classes"]
    assert not shown["logins"] and not shown["gate"] and not any(key[0] == IKEV2_DEVICE for key in shown["classes"])


def test_a_login_whose_class_is_refused_is_not_let_in() -> None:
    kernel = FakeKernel()
    kernel.refuses["classes", "add", (IKEV2_DEVICE, 0x100)] = "no buffer space"
    a_writer(kernel).full(DESIRED)
    assert set(kernel.shown()["logins"]) == {"user_3"}


def test_one_that_stands_loses_its_login_where_its_new_class_is_refused() -> None:
    kernel = FakeKernel()
    writer = a_writer(kernel)
    accounts = [replace(one, download=0) for one in DESIRED.accounts.values()]
    writer.full(Desired.of(EPOCH, Snapshot(1, tuple(DESIRED.servers.values()), tuple(accounts))))
    kernel.refuses["classes", "add", (IKEV2_DEVICE, 0x100)] = "no buffer space"
    writer.full(DESIRED)
    assert set(kernel.shown()["logins"]) == {"user_3"}, "nothing would limit the other one there"
