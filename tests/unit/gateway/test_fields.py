"""gateway/fields.py: every right spelling becomes its value, every wrong one the v1 text."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import fields as attributes
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import fields
from gateway.errors import InvalidValue
from gateway.model import GENERATE, AccountEdit, NewAccount, Secret, ServerValues

KEY = base64.b64encode(bytes(range(32))).decode()
KEY_WITH_PLUS = "sdxzHEBOdgm9ZzRn2tw2bzdnU1v7mUp1plpAU+craSo="
WRONG_NAME = "Wrong name (only letters, numbers and '_', '-')"


def new(**form: str) -> NewAccount:
    return fields.new_account({"wg_name": "Default_1", **form})


def refused(parse: Callable[[Mapping[str, str]], object], **form: str) -> str:
    with pytest.raises(InvalidValue) as caught:
        parse({"wg_name": "Default_1", **form})
    return caught.value.text


def test_account_that_names_only_its_server_leaves_the_rest_to_be_generated() -> None:
    assert new() == NewAccount(server="Default_1")


def test_a_preshared_key_is_made_given_taken_away_or_left() -> None:
    assert new(preshared_key="").preshared_key is None and fields.account_edit({}).preshared_key is None
    for text, meant in (("1", GENERATE), ("0", Secret()), (f" {KEY} ", Secret(KEY))):
        assert new(preshared_key=text).preshared_key == meant
        assert fields.account_edit({"preshared_key": text}).preshared_key == meant
    assert fields.account_edit({"preshared_key": ""}).preshared_key == Secret()


@pytest.mark.parametrize("text", ["true", "2", "x" * 44, KEY[:-1], KEY[:-2] + "H=", "A" * 43 + "="])
@pytest.mark.parametrize("parse", [fields.account_edit, fields.new_account])
def test_a_wrong_preshared_key_is_an_error_that_names_the_field_and_not_the_key(
    parse: Callable[[Mapping[str, str]], object], text: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse({"wg_name": "Default_1", "preshared_key": text})
    assert caught.value.field == "preshared_key" and "preshared_key" in caught.value.text
    assert text not in caught.value.text or len(text) < 5


def test_every_field_of_a_new_account_is_read() -> None:
    form = {
        "allowed_IPs": "10.0.110.52",
        "b_download": "100",
        "b_upload": "0",
        "name": "NAME111",
        "username": "USER-1_a",
        "password": "PASS WORD",
        "private_key": KEY,
        "public_key": KEY,
        "status": "disable",
    }
    assert new(**form) == NewAccount(
        server="Default_1",
        address=IPv4Address("10.0.110.52"),
        download=100,
        upload=0,
        name="NAME111",
        username="USER-1_a",
        password=Secret("PASS WORD"),
        private_key=Secret(KEY),
        public_key=KEY,
        enabled=False,
    )


def test_empty_fields_are_absent_and_unknown_ones_ignored() -> None:
    empty = dict.fromkeys(("allowed_IPs", "b_download", "b_upload", "name", "username", "password", "status"), "")
    assert new(**empty, private_key="  ", public_key="", ipv6="0", mangle="7", whatever="\0") == new()
    assert fields.account_edit({**empty, "name": "other", "mangle": "7"}) == AccountEdit()
    assert fields.account_edit({**empty, "wg_name": "elsewhere"}) == AccountEdit(server="elsewhere")


def test_server_of_a_new_account_must_be_named() -> None:
    for form in ({}, {"wg_name": ""}, {"wg_name": "a b"}, {"wg_name": "x" * 65}, {"wg_name": "ü"}):
        with pytest.raises(InvalidValue, match=r"^Wireguard server not valid$"):
            fields.new_account(form)


@pytest.mark.parametrize("text", ["a", "_", "-", "123-456-text", "A" * 64])
def test_right_names(text: str) -> None:
    assert new(name=text, username=text).name == text


@pytest.mark.parametrize("text", ["a b", "a.b", "a/b", "ä", "a\n\nb", "a\0", "x" * 65, "٣", "'; DROP TABLE", "<b>"])
def test_wrong_names(text: str) -> None:
    assert refused(fields.new_account, name=text) == WRONG_NAME
    assert refused(fields.new_account, username=text) == WRONG_NAME.replace("name (", "Username (")
    assert refused(fields.server_values, name=text) == WRONG_NAME


@pytest.mark.parametrize("text", ["10.0.110.4", "10.0.110.4/32", "  10.0.110.4 "])
def test_address_is_bare_or_a_slash_32(text: str) -> None:
    assert new(allowed_IPs=text).address == IPv4Address("10.0.110.4")
    assert fields.account_edit({"allowed_IPs": text}).address == IPv4Address("10.0.110.4")


@pytest.mark.parametrize(
    "text",
    ["10.0.110", "10.0.110.4/24", "10.0.110.256", "010.0.0.1", "::1", "a", "10.0.0.1,10.0.0.2", "/32", "٣.1.1.1"],
)
def test_wrong_address_has_the_text_that_v1_lists_for_the_call(text: str) -> None:
    assert refused(fields.new_account, allowed_IPs=text) == "Wrong IP format"
    assert refused(fields.account_edit, allowed_IPs=text) == "Wrong external IP format"


@pytest.mark.parametrize("text", ["0", "1", "10000", " 12 "])
def test_right_rates(text: str) -> None:
    assert new(b_download=text).download == int(text)
    assert fields.account_edit({"b_upload": text}).upload == int(text)
    assert fields.server_values({"b_upload": text}).upload == int(text)


@pytest.mark.parametrize(
    "text", ["-1", "+1", "10001", "1.0", "1e3", "0x10", "012", "1_0", "٣", "ten", "9" * 5000, "1\0"]
)
def test_wrong_rates_name_the_field_and_its_bounds(text: str) -> None:
    for parse in (fields.new_account, fields.account_edit, fields.server_values):
        assert refused(parse, b_download=text) == "Wrong b_download (only 0-10000)"
        assert refused(parse, b_upload=text) == "Wrong b_upload (only 0-10000)"


def test_status_is_enable_or_disable() -> None:
    assert new(status="enable").enabled
    assert fields.account_edit({"status": "disable"}).enabled is False
    for text in ("Enable", "1", "true", "off"):
        assert refused(fields.account_edit, status=text) == "Wrong status (only enable or disable)"


def test_password_is_any_printable_text_and_is_not_trimmed() -> None:
    for text in ("*#%!@$&", " a b ", "pässwörd", "x" * 128):
        assert fields.account_edit({"password": text}).password == Secret(text)
    for text in ("x" * 129, "a\nb", "a\tb", "a\0b", "\ud800"):
        problem = "Wrong password (only 1-128 printable characters)"
        assert refused(fields.new_account, password=text) == problem


@pytest.mark.parametrize(
    "text",
    [
        "short",
        KEY[:-1],
        KEY_WITH_PLUS.replace("+", " "),  # what arrives when a client does not percent-encode
        base64.b64encode(bytes(32)).decode(),
        base64.b64encode(b"x" * 31).decode(),
        KEY[:-2] + "9=",  # the same 32 bytes, spelled otherwise
        "ключ",
    ],
)
def test_a_key_that_does_not_decode_is_refused(text: str) -> None:
    for parse in (fields.new_account, fields.server_values):
        assert refused(parse, private_key=text) == "Keys are invalid"
        assert refused(parse, public_key=text) == "Keys are invalid"


def test_an_ipv6_address_of_an_account_is_bare_or_whole() -> None:
    for parse in (lambda **form: new(**form), lambda **form: fields.account_edit(form)):
        assert parse(allowed_IPs_ipv6=" FD00::0002 ").address_ipv6 == IPv6Address("fd00::2")
        assert parse(allowed_IPs_ipv6="fd00::2/128").address_ipv6 == IPv6Address("fd00::2")
        assert parse(allowed_IPs_ipv6="").address_ipv6 is None
    for text in ("fd00::2/64", "10.0.0.2", "fe80::1%eth0", "fd00::2,fd00::3"):
        assert refused(fields.account_edit, allowed_IPs_ipv6=text) == "Wrong IPv6 format"


@pytest.mark.parametrize(
    "text",
    [
        *("fd00::1", "fd00::/64", "fe80::1/64", "ff02::1/64", "::1/64", "2002::1/64", "2001::1/64", "10.0.0.1/24"),
        *("fd00::1/40", "fd00::1/120", "fd00::1%eth0/64", "64:ff9b::1/96", "fd00::1/64/64", "x"),
    ],
)
def test_a_network_of_ipv6_that_no_server_can_have_is_refused(text: str) -> None:
    assert refused(fields.server_values, address_ipv6=text).startswith("Wrong IPv6 format (only")


def test_every_field_of_a_server_is_read() -> None:
    form = {
        "node": "west",
        "name": "Default_1",
        "interface_name": "wg1",
        "private_key": KEY,
        "public_key": KEY,
        "listen_port": "51821",
        "address": "10.0.86.1/24",
        "external_ip": "192.0.2.7",
        "endpoint": "VPN.example.com",
        "dns_1": "9.9.9.9",
        "dns_2": "1.1.1.1",
        "mtu": "1380",
        "keep_alive": "25",
        "allowed_ips": "10.0.0.0/8, 192.168.1.7/16,::/0",
        "internal_traffic": "true",
        "reach": "10.20.1.0/24, Internet, 10.20.0.7/24",
        "b_download": "20",
        "b_upload": "10",
        "ikev2": "0",
        "ipv6": "false",
        "address_ipv6": "FD00:0:0:1::1/64",
        "dns_1_ipv6": "2001:4860:4860::8888",
        "dns_2_ipv6": "",
        "nat_ipv6": "0",
    }
    values = fields.server_values(form)
    assert values.address_ipv6 == IPv6Interface("fd00:0:0:1::1/64") and values.dns_2_ipv6 == ""
    assert all(getattr(values, attribute.name) is not None for attribute in attributes(ServerValues))
    assert values.address == IPv4Interface("10.0.86.1/24")
    assert values.endpoint == "vpn.example.com"
    assert values.allowed_ips == "10.0.0.0/8,192.168.0.0/16,::/0"
    assert values.reach == "internet,10.20.0.0/23"
    assert values.internal_traffic is True and values.ikev2 is False


def test_what_a_server_edit_does_not_name_is_unchanged_and_what_it_empties_is_cleared() -> None:
    assert fields.server_values({}) == ServerValues()
    cleared = fields.server_values(
        dict.fromkeys(("external_ip", "endpoint", "dns_1", "dns_2", "allowed_ips", "reach"), "")
    )
    assert cleared == ServerValues(external_ip="", endpoint="", dns_1="", dns_2="", allowed_ips="", reach="internet")


@pytest.mark.parametrize(
    ("key", "text", "problem"),
    [
        ("name", "online", "Wrong name ('online' and 'info' are reserved)"),
        ("name", "info", "Wrong name ('online' and 'info' are reserved)"),
        ("interface_name", "eth0", "Wrong network interface name (wgXXX)"),
        ("interface_name", "wg", "Wrong network interface name (wgXXX)"),
        ("interface_name", "wg12345678901", "Wrong network interface name (wgXXX)"),
        ("listen_port", "80", "Wrong Port format"),
        ("listen_port", "65536", "Wrong Port format"),
        ("external_ip", "vpn.example.com", "Wrong external IP format"),
        ("dns_1", "dns", "Wrong DNS1 IP format"),
        ("dns_2", "1.1.1", "Wrong DNS2 IP format"),
        ("mtu", "9101", "Wrong mtu (only 0 or 576-9100)"),
        ("mtu", "575", "Wrong mtu (only 0 or 576-9100)"),
        ("keep_alive", "65536", "Wrong keep_alive (only 0-65535)"),
        ("internal_traffic", "yes", "Wrong internal_traffic (only 1, 0, true or false)"),
        ("endpoint", "vpn.example.com:51820", "Wrong endpoint (only an IP address or a domain)"),
        ("endpoint", "-a.example", "Wrong endpoint (only an IP address or a domain)"),
        ("external_ip", "0.0.0.0", "Wrong external IP format"),
        ("external_ip", "0.1.2.3", "Wrong external IP format"),
        ("external_ip", "127.0.0.1", "Wrong external IP format"),
        ("external_ip", "224.0.0.1", "Wrong external IP format"),
        ("external_ip", "255.255.255.255", "Wrong external IP format"),
        ("external_ip", "169.254.1.1", "Wrong external IP format"),
        ("external_ip", "240.0.0.1", "Wrong external IP format"),
        ("external_ip", "::1", "Wrong external IP format"),
        ("external_ip", "192.0.2.1/32", "Wrong external IP format"),
        ("endpoint", "300.1.1.1", "Wrong endpoint (only an IP address or a domain)"),
        ("endpoint", "a\nPublicKey = x", "Wrong endpoint (only an IP address or a domain)"),
        ("address", "10.0.86.1", "Wrong IP format (only a.b.c.d/16-30)"),
        ("address", "10.0.86.0/24", "Wrong IP format (only a.b.c.d/16-30)"),
        ("address", "10.0.86.255/24", "Wrong IP format (only a.b.c.d/16-30)"),
        ("address", "10.0.86.1/255.255.255.0", "Wrong IP format (only a.b.c.d/16-30)"),
        ("address", "10.0.86.1/8", "Wrong IP format (only a.b.c.d/16-30)"),
        ("address", "127.0.0.1/24", "Wrong IP format (only a.b.c.d/16-30)"),
        ("address", "224.0.0.1/24", "Wrong IP format (only a.b.c.d/16-30)"),
        ("reach", "lan", "Wrong reach (only internet, all, or a list"),
        ("reach", "10.0.0.0/8;192.168.0.0/16", "Wrong reach"),
        ("reach", "all,10.0.0.0/8", "Wrong reach"),
        ("reach", "internet,", "Wrong reach"),
        ("reach", "fd00::/8", "Wrong reach"),
        ("reach", "224.0.0.0/4", "Wrong reach"),
        ("reach", "127.0.0.1", "Wrong reach"),
        ("reach", ",".join(f"10.{i}.0.0/24" for i in range(33)), "Wrong reach"),
        ("allowed_ips", "0.0.0.0/0;10.0.0.0/8", "Wrong allowed_ips format"),
        ("allowed_ips", "fe80::1%eth0/128", "Wrong allowed_ips format"),
        ("allowed_ips", ",".join(f"10.0.{i}.0/24" for i in range(200)), "Wrong allowed_ips format"),
    ],
)
def test_wrong_server_fields_have_their_text(key: str, text: str, problem: str) -> None:
    assert refused(fields.server_values, **{key: text}).startswith(problem)


def test_month_is_read_with_and_without_a_leading_zero() -> None:
    assert fields.month("2022", "11") == (2022, 11)
    assert fields.month("2024", "02") == fields.month("2024", "2") == (2024, 2)


@pytest.mark.parametrize("text", ["0", "00", "13", "1.0", "", "002", "٣", "-1", "jan"])
def test_wrong_month(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"^Wrong month setting$"):
        fields.month("2022", text)


@pytest.mark.parametrize("text", ["22", "0000", "1969", "3000", "20222", "٢٠٢٢", "", "-2022", "year"])
def test_wrong_year(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"^Wrong year setting$"):
        fields.month(text, "1")


FIELD_NAMES = [
    *("wg_name", "allowed_IPs", "b_download", "b_upload", "name", "username", "password", "private_key", "public_key"),
    *("status", "allowed_IPs_ipv6", "node", "interface_name", "listen_port", "address", "external_ip", "endpoint"),
    *("dns_1", "dns_2", "mtu", "keep_alive", "allowed_ips", "internal_traffic", "ikev2", "ipv6"),
]
LIKELY = st.sampled_from(
    ["10.0.0.1/24", "10.0.0.1", "a", "0", "1", "true", KEY, "enable", "51820", "wg1", "::/0", "1/"]
)
ANY_TEXT = LIKELY | st.text() | st.text(alphabet="0123456789./:%-_+ \n", max_size=12)
FORMS = st.dictionaries(st.sampled_from(FIELD_NAMES) | st.text(max_size=3), ANY_TEXT)


def problem_of(parse: Callable[[], object]) -> str | None:
    try:
        parse()
    except InvalidValue as error:
        return error.text
    return None


@settings(deadline=None)  # a busy machine is no failure
@given(FORMS)
def test_no_form_whatsoever_raises_anything_but_invalid_value(form: dict[str, str]) -> None:
    for parse in (fields.new_account, fields.account_edit, fields.server_values):
        text = problem_of(lambda: parse(form))  # noqa: B023 (called at once)
        assert text is None or (text.isprintable() and 0 < len(text) < 120)


@settings(deadline=None)  # a busy machine is no failure
@given(ANY_TEXT, ANY_TEXT)
def test_no_month_whatsoever_raises_anything_but_invalid_value(year: str, number: str) -> None:
    text = problem_of(lambda: fields.month(year, number))
    assert text in (None, "Wrong month setting", "Wrong year setting")


@settings(deadline=None)  # a busy machine is no failure
@given(FORMS)
def test_what_is_accepted_can_be_put_into_a_configuration_line(form: dict[str, str]) -> None:
    try:
        values = fields.server_values(form)
    except InvalidValue:
        return
    for text in (values.endpoint, values.allowed_ips, values.name, values.public_key, values.interface):
        assert text is None or (text.isascii() and text.isprintable() and " " not in text)
