"""docs/alerts.yml and docs/grafana: Prometheus' own tool checks them, and they speak of metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from agent.metrics import MetricsServer
from agent.status import Status
from gateway.condition import Condition, Report
from gateway.http.metrics import Calls, Scrape
from gateway.model import AgentStatus, Node
from gateway.system import Fleet

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "docs" / "alerts.yml"
TESTS = Path(__file__).with_name("alerts_test.yml")
DASHBOARDS = sorted((ROOT / "docs" / "grafana").glob("*.json"))
NAME = re.compile(r"\b(?:wirelane|process)_[a-z_]+\b")
TABLES = {"wirelane_forwarding", "wirelane_connections", "wirelane_ports", "wirelane_filter"}  # of nftables
VARIABLES = {"$__rate_interval": "5m", "$node": ".*"}


def promtool(*arguments: str | Path) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("there is no promtool (Debian's prometheus)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shown() -> str:
    """Everything that gateway and agent can show, with a node that is well and one that is away."""
    status = AgentStatus(
        "e", 1, 1, needs_snapshot=False, last_sample_time=5, last_resync_time=5, clock_offset=0.1, certificate_expires=7
    )
    nodes = (
        Condition(Node(1, "fra1", "unix:/a", 1, "e", 1), Report(status), 9.0, 3.0),
        Condition(Node(2, "ams1", "unix:/b", 1, "e", 1), Report(None, "gone", "no-answer"), 9.0),
    )
    calls = Calls()
    calls.ended("GET", "/healthz", 200, 0.001)
    agent = Status("e", last_sample_time=5, last_resync_time=5, time=9.0, certificate_expires=7)
    of_agent = generate_latest(MetricsServer(lambda: agent, "0.1.0"))
    return (generate_latest(Scrape(calls, {}, Fleet(nodes, 1, 1, "", 7.0))) + of_agent).decode()


def labels_by_name() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(shown()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions(dashboard: Any) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            yield expression


def test_the_alerts_are_rules_and_each_comes_when_it_should() -> None:
    promtool("check", "rules", ALERTS)
    promtool("test", "rules", TESTS)
    told = TESTS.read_text()
    assert [
        name for name in re.findall(r"- alert: (\w+)", ALERTS.read_text()) if f'alertname="{name}"' not in told
    ] == []


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_every_expression_of_a_dashboard_is_one(path: Path, tmp_path: Path) -> None:
    found = list(expressions(json.loads(path.read_text())))
    assert found and not [expression for expression in found if "$" in expression]
    rules = [{"record": f"panel_{number}", "expr": expression} for number, expression in enumerate(found)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML
    promtool("check", "rules", tmp_path / "rules.yml")


@pytest.mark.parametrize("path", [ALERTS, TESTS, ROOT / "docs" / "operations.md", *DASHBOARDS], ids=lambda p: p.name)
def test_papers_speak_of_metrics_that_there_are(path: Path) -> None:
    known = labels_by_name()
    assert {name for name in NAME.findall(path.read_text()) if name not in known} <= TABLES


def test_dashboards_ask_for_labels_that_there_are() -> None:
    known = labels_by_name()
    of_prometheus = {"job", "instance"}
    for path in DASHBOARDS:
        for expression in expressions(json.loads(path.read_text())):
            for name, selector in re.findall(r"\b((?:wirelane|process)_[a-z_]+)\{([^}]*)\}", expression):
                asked = set(re.findall(r"(\w+)\s*=", selector))
                assert asked <= known[name] | of_prometheus, (expression, asked)


def test_a_dashboard_has_a_title_and_panels_that_do_not_overlap() -> None:
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        assert dashboard["title"] and dashboard["uid"] and len({panel["id"] for panel in dashboard["panels"]}) > 10
        cells = [
            (x, y)
            for place in (panel["gridPos"] for panel in dashboard["panels"])
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
