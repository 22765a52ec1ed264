from ipaddress import IPv4Address, ip_network

import pytest
from immutables import Map

from agent.desired import Desired, Patch, Snapshot
from agent.errors import InvalidValue, StaleRevision
from agent.model import FilterRule, PortForward
from tests.fakes.state import EPOCH, IKEV2, account, key, login, server


def start(*accounts: int) -> Desired:
    return Desired.of(EPOCH, Snapshot(5, (server(),), tuple(account(n) for n in accounts), "UTC"))


def test_patches_one_by_one_equal_the_snapshot() -> None:
    patched = start(2, 3)
    patched = patched.patched(Patch(EPOCH, 5, 6, put_accounts=(account(4),)))
    patched = patched.patched(Patch(EPOCH, 6, 7, remove_accounts=(2,)))
    patched = patched.patched(Patch(EPOCH, 7, 8, put_accounts=(account(3, download=99),), time_zone="Europe/Warsaw"))
    taken = Desired.of(EPOCH, Snapshot(8, (server(),), (account(3, download=99), account(4)), "Europe/Warsaw"))
    assert patched == taken


def test_a_patch_that_brings_nothing_new_changes_nothing() -> None:
    desired = start(2)
    assert desired.patched(Patch(EPOCH, 3, 5, put_accounts=(account(2, download=1),))) is desired


@pytest.mark.parametrize("patch", [Patch("other", 5, 6), Patch(EPOCH, 6, 7)])
def test_a_patch_that_starts_elsewhere_is_stale(patch: Patch) -> None:
    with pytest.raises(StaleRevision):
        start(2).patched(patch)


def test_two_accounts_may_swap_addresses_in_one_patch() -> None:
    swapped = start(2, 3).patched(
        Patch(
            EPOCH,
            5,
            6,
            put_accounts=(
                account(2, address=IPv4Address("10.0.1.3")),
                account(3, address=IPv4Address("10.0.1.2")),
            ),
        )
    )
    assert dict(swapped.by_address) == {IPv4Address("10.0.1.3"): 2, IPv4Address("10.0.1.2"): 3}


def test_a_new_account_may_take_what_a_removed_one_leaves_in_the_same_patch() -> None:
    heir = account(9, address=IPv4Address("10.0.1.2"), mark=100, public_key=key(2))
    after = start(2).patched(Patch(EPOCH, 5, 6, remove_accounts=(2,), put_accounts=(heir,)))
    assert after.by_address[IPv4Address("10.0.1.2")] == 9 and set(after.accounts) == {9}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"address": IPv4Address("10.0.1.2")}, "address"),
        ({"mark": 100}, "mark"),
        ({"public_key": key(2)}, "public_key"),
        ({"server": "nowhere"}, "server"),
    ],
)
def test_what_two_accounts_cannot_share_is_refused_whole(changes: dict[str, object], field: str) -> None:
    desired = start(2)
    with pytest.raises(InvalidValue, match=field):
        desired.patched(Patch(EPOCH, 5, 6, put_accounts=(account(7), account(3, **changes))))
    assert set(desired.accounts) == {2}


def test_a_username_is_its_account_s_until_that_goes() -> None:
    first, other = account(2, login=login(2)), account(3, login=login(2, "another"))
    desired = Desired.of(EPOCH, Snapshot(5, (server(ikev2=IKEV2),), (first, account(3))))
    with pytest.raises(InvalidValue, match="account a3: username: account id 2 has it already"):
        desired.patched(Patch(EPOCH, 5, 6, put_accounts=(other,)))
    after = desired.patched(Patch(EPOCH, 5, 6, remove_accounts=(2,), put_accounts=(other,)))
    assert dict(after.by_username) == {"user_2": 3}
    assert after.patched(Patch(EPOCH, 6, 7, put_accounts=(account(3),))).by_username == Map()


def test_a_server_with_accounts_cannot_be_removed_alone() -> None:
    with pytest.raises(InvalidValue, match="no server 's1'"):
        start(2).patched(Patch(EPOCH, 5, 6, remove_servers=("s1",)))


def test_a_server_that_is_gone_may_be_removed_again() -> None:
    assert start().patched(Patch(EPOCH, 5, 6, remove_servers=("s1", "nowhere"))).servers == {}


def test_two_servers_cannot_share_a_port_or_an_interface() -> None:
    with pytest.raises(InvalidValue, match="listen_port"):
        Desired.of(EPOCH, Snapshot(1, (server(1), server(2, listen_port=51821)), ()))
    with pytest.raises(InvalidValue, match="interface"):
        Desired.of(EPOCH, Snapshot(1, (server(1), server(2, interface="wg1")), ()))


def test_an_unknown_time_zone_is_refused() -> None:
    with pytest.raises(InvalidValue, match="time_zone"):
        Desired.of(EPOCH, Snapshot(1, (), (), "Mars/Olympus"))


def test_who_gets_in_no_more_or_by_another_way_is_leaving() -> None:
    before = Desired.of(EPOCH, Snapshot(1, (server(1), server(2)), tuple(account(n) for n in range(2, 9))))
    off = account(8, enabled=False)
    before = before.patched(Patch(EPOCH, 1, 2, put_accounts=(off,)))
    after = before.patched(
        Patch(
            EPOCH,
            2,
            3,
            remove_accounts=(2,),
            put_accounts=(
                account(3, enabled=False),
                account(4, public_key=key(400)),
                account(5, server="s2", address=IPv4Address("10.0.2.5")),
                account(6, download=77, mark=9000),  # this one stays
            ),
        )
    )
    ids = range(2, 20)
    assert before.leaving(after, ids) == {2, 3, 4, 5}
    assert before.leaving(after, [3, 6]) == {3}
    assert after.leaving(before, ids) == {4, 5}, "who comes is not leaving"
    assert not before.leaving(before, ids)


def test_switched_off_is_the_same_state_but_for_those() -> None:
    state = Desired.of(EPOCH, Snapshot(7, (server(),), (account(2), account(3))))
    off = state.without([2, 99])
    assert (off.accounts[2], off.accounts[3]) == (account(2, enabled=False), account(3))
    assert (off.revision, off.servers, off.by_address, off.by_key) == (
        state.revision,
        state.servers,
        state.by_address,
        state.by_key,
    )
    assert state.accounts[2].enabled and state.without([]) is state.without([99]) is state


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (Patch("other", 1, 2), f"this agent's epoch is {EPOCH}, the patch is for other"),
        (Patch(EPOCH, 7, 8), "this agent holds revision 1, the patch starts at 7"),
        (Patch(EPOCH, 1, 2, put_accounts=(account(9, address=account(2).address),)), "account a9: address"),
        (Patch(EPOCH, 1, 2, put_accounts=(account(9, mark=100),)), "account a9: mark"),
        (Patch(EPOCH, 1, 2, put_accounts=(account(9, public_key=key(2)),)), "account a9: public_key"),
        (
            Patch(EPOCH, 1, 2, put_accounts=(account(9, server="s7"),)),
            "a9: server: there is no server 's7' here",
        ),
        (Patch(EPOCH, 1, 2, (server(2, interface="wg1"),)), "server s2: interface: wg1 is server s1's already"),
        (Patch(EPOCH, 1, 2, (server(2, listen_port=51821),)), "server s2: listen_port: 51821 is server s1's already"),
        (Patch(EPOCH, 1, 2, time_zone="Mars/Base"), "time_zone: 'Mars/Base' is not an IANA time zone"),
    ],
)
def test_what_cannot_be_says_which_field_and_why(patch: Patch, said: str) -> None:
    state = Desired.of(EPOCH, Snapshot(1, (server(),), (account(2),)))
    with pytest.raises((StaleRevision, InvalidValue)) as error:
        state.patched(patch)
    assert said in str(error.value)


def test_a_filter_that_comes_with_one_server_holds_for_all() -> None:
    everywhere = ip_network("0.0.0.0/0")
    rules = (FilterRule(False, everywhere, everywhere, "tcp", 0, 25),)
    two = Desired.of(EPOCH, Snapshot(5, (server(1), server(2))))
    after = two.patched(Patch(EPOCH, 5, 6, put_servers=(server(2, filter=rules),)))
    assert [one.filter for one in after.servers.values()] == [rules, rules]
    assert after.patched(Patch(EPOCH, 6, 7, put_servers=(server(1),))).servers == two.servers
    unlike = Snapshot(6, (server(1, filter=rules), server(2)))
    assert Desired.of(EPOCH, unlike).servers == two.servers


def test_a_port_leads_to_one_account_of_the_node() -> None:
    web = PortForward("tcp", 80, 8080)
    one = Desired.of(EPOCH, Snapshot(1, (server(),), (account(2, ports=(web,)), account(3))))
    assert dict(one.by_port) == {("tcp", 80): 2}
    with pytest.raises(InvalidValue, match="port 80/tcp: account id 2 has it already"):
        one.patched(Patch(EPOCH, 1, 2, put_accounts=(account(3, ports=(web,)),)))
    swapped = one.patched(Patch(EPOCH, 1, 2, put_accounts=(account(3, ports=(web,)), account(2))))
    assert dict(swapped.by_port) == {("tcp", 80): 3}
    assert swapped.patched(Patch(EPOCH, 2, 3, remove_accounts=(3,))).by_port == Map()


@pytest.mark.parametrize("wrong", [("sctp", 1, 1), ("tcp", 0, 1), ("tcp", 65536, 1), ("udp", 1, 0)])
def test_a_port_that_cannot_be_is_refused(wrong: tuple[str, int, int]) -> None:
    with pytest.raises(InvalidValue, match=r"^ports\."):
        PortForward(*wrong)
