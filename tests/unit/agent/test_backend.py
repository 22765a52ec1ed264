"""Which backend is chosen, and what the doctor says of the other one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from agent import offline
from agent.config import Config
from agent.errors import KernelError
from agent.kernel.iptables import tables
from agent.kernel.nftables import nft
from agent.kernel.trials import backend, probe
from agent.kernel.trials.backend import choose_backend, refusal
from agent.kernel.trials.probe import Finding


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What does not work on this host."""
    lacks: set[str] = set()

    def check(table: str) -> None:
        if "iptables" in lacks:
            raise KernelError(f"iptables: no {table}", retry=False)

    def check_nftables() -> None:
        if "nftables" in lacks:
            raise KernelError("nftables: not here", retry=False)

    monkeypatch.setattr(offline, "describe_ikev2", lambda *_: "ikev2: not here")
    monkeypatch.setattr(tables, "info", check)
    monkeypatch.setattr(nft, "check", check_nftables)
    return lacks


@pytest.mark.parametrize(
    ("configured", "lacks", "chosen"),
    [
        ("auto", set(), "iptables"),
        ("auto", {"iptables"}, "nftables"),
        ("auto", {"nftables"}, "iptables"),
        ("iptables", {"nftables"}, "iptables"),
        ("nftables", set(), "nftables"),
        ("nftables", {"iptables"}, "nftables"),
    ],
)
def test_auto_takes_iptables_where_it_works(lacking: set[str], configured: str, lacks: set[str], chosen: str) -> None:
    lacking |= lacks
    assert choose_backend(configured) == chosen


@pytest.mark.parametrize(
    ("configured", "reason"),
    [
        ("auto", "no way to mark packets: iptables: no mangle; nftables: not here"),
        ("iptables", "no way to mark packets: iptables: no mangle"),
        ("nftables", "no way to mark packets: nftables: not here"),
    ],
)
def test_nothing_that_works_is_an_error_with_every_reason(lacking: set[str], configured: str, reason: str) -> None:
    lacking |= {"iptables", "nftables"}
    with pytest.raises(KernelError) as got:
        choose_backend(configured)
    assert str(got.value) == reason
    assert not got.value.retry


def test_trouble_of_the_moment_does_not_change_the_way(monkeypatch: pytest.MonkeyPatch, lacking: set[str]) -> None:
    def busy(table: str) -> None:
        raise KernelError(f"iptables: the {table} table keeps changing under the reader", retry=True)

    monkeypatch.setattr(tables, "info", busy)
    assert choose_backend("auto") == "iptables"


@pytest.mark.parametrize(
    ("release", "works"), [("5.6.19", False), ("4.19.0-27-amd64", False), ("5.7.0", True), ("6.1", True)]
)
def test_a_kernel_that_does_not_say_where_a_packet_came_in_is_refused(
    monkeypatch: pytest.MonkeyPatch, lacking: set[str], release: str, works: bool
) -> None:
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(release=release))
    assert [not refusal(one) for one in backend.BACKENDS] == [works, works]


def test_a_missing_library_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "LIBRARY", "libnftables.so.99")
    nft._library.cache_clear()
    try:
        assert refusal("nftables").endswith("install the package libnftables1")
        with pytest.raises(KernelError) as got:
            nft.check()
        assert not got.value.retry
    finally:
        nft._library.cache_clear()


def findings(*missing: str) -> list[Finding]:
    return [
        Finding("classes", "classes" not in missing, True, "x"),
        Finding("MARK", "MARK" not in missing, True, "x", "iptables"),
        Finding("conntrack", "conntrack" not in missing, False, "x", "iptables"),
        Finding("map", "map" not in missing, True, "x", "nftables"),
    ]


@pytest.mark.parametrize(
    ("missing", "configured", "able", "says"),
    [
        ((), "auto", True, "marks.backend = 'nftables' would work too: "),
        (("conntrack",), "auto", True, "marks: iptables (marks.backend = 'auto'): "),
        (("map",), "auto", True, "marks.backend = 'nftables' would not work here: see what is missing above"),
        (("map",), "nftables", False, "cannot mark by nftables; missing: map; marks.backend = 'iptables' would do"),
        (("MARK",), "auto", False, "cannot mark by iptables; missing: MARK; marks.backend = 'nftables' would do"),
        (("MARK", "map"), "auto", False, "cannot mark by iptables; missing: MARK"),
        (("classes",), "auto", False, "this host cannot run the agent yet; missing: classes"),
    ],
)
def test_the_doctor_says_what_is_chosen_and_what_the_other_would_give(
    monkeypatch: pytest.MonkeyPatch,
    lacking: set[str],
    missing: tuple[str, ...],
    configured: str,
    able: bool,
    says: str,
) -> None:
    monkeypatch.setattr(probe, "probe", lambda: findings(*missing))
    monkeypatch.setattr(offline, "choose_mode", lambda configured: "kernel")
    monkeypatch.setattr(offline, "uplink", lambda configured: "eth0")
    _, choices, can = offline.diagnose(Config(marks_backend=configured))
    assert can is able
    assert says in "\n".join(choices)


def test_a_host_without_legacy_tables_is_fine_with_nftables(monkeypatch: pytest.MonkeyPatch, lacking: set[str]) -> None:
    lacking.add("iptables")
    monkeypatch.setattr(probe, "probe", lambda: findings("MARK"))
    monkeypatch.setattr(offline, "choose_mode", lambda configured: "kernel")
    monkeypatch.setattr(offline, "uplink", lambda configured: "eth0")
    _, choices, can = offline.diagnose(Config())
    assert can
    assert "marks.backend = 'iptables' would not work here: iptables: no mangle" in choices
    assert backend.BACKENDS == ("iptables", "nftables")
