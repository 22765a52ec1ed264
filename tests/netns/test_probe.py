"""The probe: says what is true, as ordinary tools find it too, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import KernelError
from agent.kernel.iptables import xtables
from agent.kernel.linux import choose_mode
from agent.kernel.tc import shaper
from agent.kernel.trials import probe
from agent.kernel.trials.backend import BACKENDS
from tests.netns.conftest import enter

ROOT = Path(__file__).resolve().parents[2]
# What the service unit leaves to the agent: no CAP_SYS_ADMIN, so no namespaces.
SERVICE = ["setpriv", "--bounding-set", "-all,+net_admin,+net_raw", "--"]


def succeeds(namespace: str, line: str) -> bool:
    argv = ["ip", "netns", "exec", namespace, *line.split()]
    return subprocess.run(argv, check=False, capture_output=True, timeout=60).returncode == 0


def python(namespace: str, code: str) -> subprocess.CompletedProcess[str]:
    argv = ["ip", "netns", "exec", namespace, *SERVICE, sys.executable, "-c", code]
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)


def works(name: str) -> bool:
    return next(finding.works for finding in probe.probe() if finding.name == name)


def test_everything_the_agent_needs_works_on_this_machine(namespace: str) -> None:
    with enter(namespace) as run:
        findings = run(probe.probe)
    assert [finding for finding in findings if finding.needed and not finding.works] == []
    assert len({finding.name for finding in findings}) == len(findings) == 19
    assert probe.complete(findings) == BACKENDS
    assert all(finding.detail for finding in findings)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("WireGuard in the kernel", "ip link add wlx{pid} type wireguard"),
        ("TUN device", "ip tuntap add dev wlx{pid} mode tun"),
        ("fq_codel", "tc qdisc add dev lo root fq_codel"),
        ("iptables conntrack match", "iptables-legacy -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT"),
        (
            "iptables TCPMSS",
            "iptables-legacy -t mangle -A FORWARD -p tcp --syn -j TCPMSS --clamp-mss-to-pmtu",
        ),
        ("iptables SNAT", "iptables-legacy -t nat -A POSTROUTING -j SNAT --to-source 192.0.2.1"),
        ("iptables MASQUERADE", "iptables-legacy -t nat -A POSTROUTING -j MASQUERADE"),
        ("iptables MARK with counters", "iptables-legacy -t mangle -A FORWARD -j MARK --set-mark 109"),
        ("nftables map with counters", "nft add table ip x; add map ip x m {{ type ipv4_addr : mark; counter; }}"),
        ("nftables SNAT", "nft add table ip x; add chain ip x c {{ type nat hook postrouting priority 100; }}"),
        ("wireguard-go", "wireguard-go --version"),
    ],
)
def test_findings_agree_with_ordinary_tools(namespace: str, name: str, line: str) -> None:
    assert works(name) == succeeds(namespace, line.format(pid=os.getpid()))


def test_a_probe_leaves_nothing_behind(namespace: str) -> None:
    def look() -> list[str]:
        lines = ["ip -d addr show", "tc qdisc show", "iptables-legacy-save", "nft list ruleset"]
        argvs = [["ip", "netns", "exec", namespace, *line.split()] for line in lines]
        return [subprocess.run(argv, check=True, capture_output=True, text=True).stdout for argv in argvs]

    def without_comments(texts: list[str]) -> list[str]:
        return [line for text in texts for line in text.splitlines() if not line.startswith("#")]

    with enter(namespace) as run:
        run(probe.probe)  # what is opened once and kept, is open now
        before, files, threads = look(), set(os.listdir("/proc/self/fd")), threading.active_count()
        run(probe.probe)
        assert without_comments(look()) == without_comments(before)
        assert set(os.listdir("/proc/self/fd")) == files
        assert threading.active_count() == threads


def test_a_probe_takes_a_few_seconds_at_most() -> None:
    started = time.monotonic()
    probe.probe()
    assert time.monotonic() - started < 10


def test_what_is_missing_is_told_with_its_cure_and_spoils_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = {finding.name: finding for finding in probe.probe()}
    missing = findings.pop("wireguard-go")
    assert (missing.works, missing.needed) == (False, False)
    assert missing.detail == "not found: install the package wireguard-go"
    assert all(finding.works for finding in findings.values() if finding.needed)


def test_what_one_backend_lacks_leaves_the_other_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(table: str, change: object) -> None:
        raise KernelError(f"iptables: cannot read the {table} table: not here", retry=False)

    monkeypatch.setattr(xtables, "transact", absent)
    findings = probe.probe()
    assert probe.complete(findings) == ("nftables",)
    assert {finding.detail for finding in findings if finding.backend == "iptables"} == {
        f"iptables: cannot read the {table} table: not here" for table in ("mangle", "filter", "nat")
    }


@pytest.fixture
def service(namespace: str) -> Callable[[str], subprocess.CompletedProcess[str]]:
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    return lambda code: python(namespace, code)


def test_a_service_without_namespaces_still_knows_wireguard_and_its_leaves(
    service: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    imports = "from agent.kernel.linux import choose_mode; from agent.kernel.tc import shaper"
    code = f"{imports}; print(choose_mode('auto'), shaper.leaf_kind())"
    done = service(code)
    assert done.stdout == f"{choose_mode('auto')} {shaper.leaf_kind()}\n", done.stderr


def test_a_whole_probe_without_leave_to_make_a_namespace_says_so(
    service: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    done = service("from agent.kernel.trials import probe; probe.probe()")
    assert done.returncode == 1
    assert "NoNamespace: no scratch network namespace: Operation not permitted" in done.stderr
