"""The ladder's runner: no test stands beside the rungs, and no skip passes unseen in CI."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import run
from tests.run import Outcome, Skip

ROOT = Path(__file__).parents[2]
KNOWN = Skip(
    "tests.netns.test_wireguard::test_peers[kernel]", "this kernel has no WireGuard: install a kernel that has"
)
UNKNOWN = Skip("tests.netns.test_marks::test_counts", "root is needed")


def test_every_test_file_stands_on_a_rung() -> None:
    folders = [given.split()[0] for given in run.RUNGS.values() if given]
    tests = [str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")]
    assert tests
    assert [test for test in tests if not any(test.startswith(f"{folder}/") for folder in folders)] == []


def test_a_skip_without_a_known_reason_fails_in_ci_only(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = [Outcome("netns", passed=3, skips=[KNOWN, UNKNOWN])]
    assert run.sum_up(outcomes, 1.0, strict=False) == 0
    assert "3 passed, 0 failed, 2 skipped" in capsys.readouterr().out
    assert run.sum_up(outcomes, 1.0, strict=True) == 1
    shown = capsys.readouterr().out
    assert "3 passed, 1 failed, 1 skipped" in shown
    assert f"skipped: {UNKNOWN.test}: {UNKNOWN.reason} (not accepted in CI)" in shown


def test_an_accepted_skip_does_not_fail_in_ci() -> None:
    assert run.sum_up([Outcome("netns", passed=3, skips=[KNOWN])], 1.0, strict=True) == 0


def test_what_skips_without_wireguard_in_the_kernel_is_known_and_runs_on_a_kernel_that_has_it() -> None:
    """A skip that the ladder does not know fails in CI, and one that it knows must run somewhere."""
    reason = "this kernel has no WireGuard: install a kernel that has"
    folder = ROOT / "tests" / "netns"
    asking = [path for path in folder.glob("test_*.py") if '["kernel", "userspace"]' in path.read_text()]
    vm = (ROOT / "tests" / "system" / "test_distribution_kernel.py").read_text()
    assert asking
    for path in asking:
        assert Skip(f"tests.netns.{path.stem}::test_x[kernel]", reason).accepted()
        assert f"tests/netns/{path.name}" in vm


def test_counts_come_from_the_report_of_pytest(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="a" name="good"/>'
        '<testcase classname="a" name="bad"><failure message="x"/></testcase>'
        '<testcase classname="a" name="broken"><error message="x"/></testcase>'
        '<testcase classname="a" name="left"><skipped message="why"/></testcase>'
        "</testsuite></testsuites>"
    )
    outcome = Outcome("unit")
    outcome.read(report)
    assert (outcome.passed, outcome.failed, outcome.skips) == (1, 2, [Skip("a::left", "why")])
