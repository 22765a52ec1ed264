"""The binary form of rules, against bytes that iptables 1.8.9 wrote and Linux 6.18 gave back."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network

import pytest

from agent.kernel.iptables import entries
from agent.kernel.iptables.entries import entry, jump
from tests.unit.agent.tables import image

NETWORK = IPv4Network("10.0.0.0/24")


def target_of(rule: bytes) -> str:
    return rule[entries.target_at(rule) :].hex()


@pytest.mark.parametrize(
    ("target", "kernel"),
    [
        (
            entries.snat(IPv4Address("1.2.3.4")),
            "3800534e4154" + "00" * 26 + "010000000100000001020304010203040000000000000000",
        ),
        (entries.masquerade(), "38004d415351554552414445" + "00" * 20 + "01000000" + "00" * 20),
        (
            entries.masquerade((10000, 32767)),
            "38004d415351554552414445" + "00" * 20 + "0100000012000000" + "00" * 8 + "27107fff00000000",
        ),
        (
            entries.snat(IPv4Address("1.2.3.4"), (10000, 32767)),
            "3800534e4154" + "00" * 26 + "0100000013000000010203040102030427107fff00000000",
        ),
        (entries.tcpmss_clamp(), "28005443504d5353" + "00" * 24 + "ffff000000000000"),
        (entries.mark(0x6D), "28004d41524b" + "00" * 25 + "02" + "6d000000ffffffff"),
    ],
)
def test_targets_are_laid_out_as_the_kernel_gives_them(target: bytes, kernel: str) -> None:
    assert target.hex() == kernel
    assert len(target) == struct.unpack_from("=H", target)[0]


@pytest.mark.parametrize(
    ("match", "kernel"),
    [
        (entries.udp_destination(51820), "3000756470" + "00" * 27 + "0000ffff6cca6cca" + "00" * 8),
        (entries.tcp_syn(), "3000746370" + "00" * 27 + "0000ffff0000ffff0006020000000000"),
        (
            entries.stray(),
            "c800636f6e6e747261636b" + "00" * 20 + "03" + "00" * 146 + "0100000005000000" + "00" * 14,
        ),
        (
            entries.established(),
            "c800636f6e6e747261636b" + "00" * 20 + "03" + "00" * 146 + "0100000006000000" + "00" * 14,
        ),
    ],
)
def test_matches_are_laid_out_as_the_kernel_gives_them(match: bytes, kernel: str) -> None:
    assert match.hex() == kernel


def test_a_rule_is_laid_out_as_the_kernel_gives_it() -> None:
    rule = entry(entries.masquerade(), source=NETWORK, goes_out="e0")
    assert rule[:112].hex() == (
        "0a000000"
        "00000000"
        "ffffff00"
        "00000000" + "00" * 16 + "6530" + "00" * 14 + "00" * 16 + "ffffff" + "00" * 13 + "00000000"
        "00000000"
        "7000a800"
        "00000000" + "00" * 16
    )


def test_an_interface_name_is_matched_to_its_end() -> None:
    rule = entry(jump("DROP"), not_in="wg1")
    assert rule[48:64] == b"\xff" * 4 + bytes(12)  # with "wg1" alone, "wg10" would match too
    assert rule[83] == 1  # IPT_INV_VIA_IN
    assert entries.in_interface(rule) == "wg1"


def test_counters_are_put_into_a_rule_without_changing_it() -> None:
    rule = entry(jump("ACCEPT"))
    counted = entries.with_counters(rule, 3, 1 << 40)
    assert struct.unpack_from("=QQ", counted, 96) == (3, 1 << 40)
    assert entries.with_counters(counted, 0, 0) == rule


def test_fields_are_told_from_a_rule_and_only_from_one_of_their_kind() -> None:
    port = entry(jump("ACCEPT"), protocol=17, match=entries.udp_destination(5000))
    snat = entry(entries.snat(IPv4Address("192.0.2.1")), source=NETWORK, goes_out="up0")
    assert entries.udp_port(port) == 5000
    assert entries.udp_port(snat) == 0
    assert entries.udp_port(entry(jump("ACCEPT"), match=entries.tcp_syn())) == 0
    assert entries.snat_address(snat) == IPv4Address("192.0.2.1")
    assert entries.snat_address(entry(entries.masquerade())) is None
    assert (entries.source(snat), entries.out_interface(snat)) == (NETWORK, "up0")


def test_a_table_reads_back_as_it_was_written() -> None:
    ours = [entry(entries.mark(7)), entry(jump("OURS2"), goto=True), entry(jump("RETURN")), entry(jump(""))]
    hooked = [entry(jump("OURS")), entry(jump("DROP"), protocol=17, match=entries.udp_destination(9))]
    found = image({"INPUT": [], "FORWARD": hooked}, {"OURS": ours, "OURS2": []})
    assert list(found.chains) == ["INPUT", "FORWARD", "OURS", "OURS2"]
    assert [rule.entry for rule in found.rules("OURS")] == ours
    assert [rule.target for rule in found.rules("OURS")] == ["MARK", "OURS2", "RETURN", ""]
    assert [rule.entry for rule in found.rules("FORWARD")] == hooked
    assert found.rules("OURS2") == found.rules("INPUT") == found.rules("none") == []


def test_counters_are_read_beside_the_rule() -> None:
    (rule,) = image({"FORWARD": [entries.with_counters(entry(jump("DROP")), 5, 600)]}).rules("FORWARD")
    assert (rule.entry, rule.packets, rule.octets) == (entry(jump("DROP")), 5, 600)


def test_jumps_into_our_chains_are_found_wherever_they_are() -> None:
    found = image(
        {"FORWARD": [entry(jump("DROP")), entry(jump("OURS"))]},
        {"FOREIGN": [entry(jump("OURS2"), goto=True, protocol=6, match=entries.tcp_syn())], "OURS": [], "OURS2": []},
    )
    jumps = found.jumps_from_outside({"OURS", "OURS2", "ABSENT"})
    assert [(chain, position, rule.target) for chain, position, rule in jumps] == [
        ("FORWARD", 1, "OURS"),
        ("FOREIGN", 0, "OURS2"),
    ]
