"""gateway/http/v1/objects.py: v1's spelling of our values."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from zoneinfo import ZoneInfo

from gateway.fields import account_edit
from gateway.http.v1 import objects
from gateway.model import Account, DayUsage, MarkCounters, PeerState, Secret, Server

ACCOUNT = Account(
    id=7,
    name="peer_10",
    username="user_10",
    password=Secret("dH4%%2M2%B"),
    server="Default_106",
    node="local",
    address=IPv4Address("10.0.105.18"),
    private_key=Secret("PRIVATE"),
    public_key="PUBLIC",
    mark=109,
    download=20,
    upload=0,
    enabled=False,
)


def test_account_object_is_all_texts() -> None:
    assert objects.account_object(ACCOUNT) == {
        "allowed_IPs": "10.0.105.18",
        "b_download": "20",
        "b_upload": "0",
        "mangle": "109",
        "name": "peer_10",
        "password": "dH4%%2M2%B",
        "private_key": "PRIVATE",
        "public_key": "PUBLIC",
        "status": "disable",
        "username": "user_10",
        "wg_name": "Default_106",
    }


def test_of_a_preshared_key_only_that_there_is_one_is_told_and_never_as_a_field_of_an_edit() -> None:
    told = objects.account_object(replace(ACCOUNT, preshared_key=Secret("SHARED")))
    assert told == objects.account_object(ACCOUNT) | {"has_preshared_key": "1"}
    assert account_edit(told).preshared_key is None


def test_server_object_mixes_texts_booleans_and_an_integer_as_v1_does() -> None:
    server = Server(
        id=1,
        node="local",
        name="Default_1",
        interface="wg1",
        private_key=Secret("PRIVATE"),
        public_key="PUBLIC",
        listen_port=51821,
        address=IPv4Interface("10.0.86.1/24"),
        dns_1=IPv4Address("8.8.8.8"),
        keep_alive=25,
        internal_traffic=True,
        download=12,
    )
    assert objects.server_object(server) == {
        "address": "10.0.86.1/24",
        "b_download": "12",
        "b_upload": "0",
        "dns_1": "8.8.8.8",
        "dns_2": "",
        "external_ip": "",
        "ikev2": False,
        "interface_name": "wg1",
        "internal_traffic": True,
        "keep_alive": 25,
        "listen_port": "51821",
        "name": "Default_1",
        "private_key": "PRIVATE",
        "public_key": "PUBLIC",
    }


def test_dump_of_a_peer_that_is_not_there_has_the_empty_values() -> None:
    assert objects.dump_object(ACCOUNT, None) == {
        "allowed_ips": "10.0.105.18/32",
        "endpoint": "(none)",
        "keepalive": "off",
        "latest_handshake": "0",
        "transfer_rx": "0",
        "transfer_tx": "0",
    }


def test_dump_of_a_connected_peer() -> None:
    peer = PeerState(7, "PUBLIC", "10.0.105.18", "192.0.2.1:4000", 25, 1700000000, 148, 92)
    assert objects.dump_object(ACCOUNT, peer) == {
        "allowed_ips": "10.0.105.18/32",
        "endpoint": "192.0.2.1:4000",
        "keepalive": "25",
        "latest_handshake": "1700000000",
        "transfer_rx": "148",
        "transfer_tx": "92",
    }


def test_mangle_rules_are_the_documented_lines() -> None:
    assert objects.mark_lines(ACCOUNT, MarkCounters(109, 3, 4000, 1, 60)) == (
        "0.0.0.0/0 -> 10.0.105.18 MARK 0x6d Pkt:3 Bytes:4000\n10.0.105.18 -> 0.0.0.0/0 MARK 0x6d Pkt:1 Bytes:60\n"
    )


def test_classes_are_three_lines_and_an_empty_one() -> None:
    lines = "class htb 1:109 root leaf cb97: prio 0 rate 20Mbit \n Sent 0 bytes 0 pkt \n backlog 0b 0p requeues 0"
    assert objects.class_lines("ens18", lines, "unlimited") == f"ens18 --> {lines}\n\n"
    assert objects.class_lines("ens18", lines + "\n", "unlimited") == f"ens18 --> {lines}\n\n"
    assert objects.class_lines("wg106", None, "unlimited") == "wg106 --> no class (unlimited)\n\n"


def test_traffic_is_integers_by_day() -> None:
    assert objects.day_objects("a", [DayUsage(date(2022, 11, 1), 5, 6)]) == [
        {"account": "a", "date": "2022-11-01", "traffic_download": 5, "traffic_upload": 6}
    ]


def test_online_times_follow_the_time_zone() -> None:
    peer = PeerState(7, "PUBLIC", "10.0.105.18", "192.0.2.1:4000", 0, 1700000000, 148, 92)
    shown = objects.online_object(ACCOUNT, peer, ZoneInfo("Europe/Warsaw"))
    assert shown["latest_handshake"] == "2023-11-14 23:13:20"
    assert set(map(type, shown.values())) == {str} and sorted(shown) == sorted(objects.ONLINE["required"])


def test_what_is_declared_is_what_is_said() -> None:
    assert sorted(objects.ACCOUNT["required"]) == sorted(objects.account_object(ACCOUNT))
    assert sorted(objects.DUMP["required"]) == sorted(objects.dump_object(ACCOUNT, None))
    (day,) = objects.day_objects("a", [DayUsage(date(2022, 11, 1))])
    assert sorted(objects.DAY["required"]) == sorted(day)


def test_the_rules_of_a_second_family_stand_behind_those_of_v1() -> None:
    both = replace(ACCOUNT, address_ipv6=IPv6Address("fd00::2"))
    text = objects.mark_lines(both, MarkCounters(109, 3, 4000, 1, 60), MarkCounters(109, 1, 80, 2, 99))
    assert text.startswith(objects.mark_lines(ACCOUNT, MarkCounters(109, 3, 4000, 1, 60)))
    assert text.endswith("::/0 -> fd00::2 MARK 0x6d Pkt:1 Bytes:80\nfd00::2 -> ::/0 MARK 0x6d Pkt:2 Bytes:99\n")
