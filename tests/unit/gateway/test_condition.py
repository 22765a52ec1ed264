"""gateway/condition.py: what status, /metrics and node list say of a node."""

from __future__ import annotations

from dataclasses import replace

from gateway.condition import MOST_TOLD, Condition, Report
from gateway.model import AgentStatus, Failure, Node

NODE = Node(1, "fra1", "unix:/agent", revision=9, epoch="e", acknowledged=5)
STATUS = AgentStatus(
    "e", 9, 9, needs_snapshot=False, last_sample_time=1_000, last_resync_time=940, clock_offset=-172_800.0
)


def condition(status: AgentStatus | None = STATUS, node: Node = NODE, **report: str) -> Condition:
    return Condition(node, Report(status, **report), now=173_810.0)


def test_the_agents_own_word_comes_before_its_acknowledgement() -> None:
    assert (condition().state, condition().pending, condition().problem) == ("OK", 0, "")
    behind = condition(replace(STATUS, revision=7, applied_revision=7))
    assert (behind.state, behind.pending, behind.problem) == ("pending", 2, "not everything is applied yet")
    assert condition(replace(STATUS, epoch="another")).pending == 4  # of another file its number says nothing
    assert condition(contested="another history").pending == 4  # nor of another history


def test_of_a_node_that_is_away_only_the_database_and_the_cause_are_known() -> None:
    gone = condition(None, away="connection refused", cause="no-answer")
    assert (gone.state, gone.pending, gone.failed_accounts) == ("away", 4, 0)
    assert gone.problem == "the agent does not answer: connection refused; 4 changes wait for it"
    assert (gone.sample_age, gone.resync_age) == (None, None)
    assert condition(None, replace(NODE, acknowledged=9)).problem == "the agent does not answer"


def test_ages_are_by_the_agents_own_clock_which_may_be_days_off() -> None:
    assert (condition().sample_age, condition().resync_age) == (10.0, 70.0)
    assert condition(replace(STATUS, clock_offset=None)).sample_age is None  # a version of before
    assert condition(replace(STATUS, last_sample_time=0)).sample_age is None


def test_failures_are_counted_by_account_and_told_up_to_a_bound() -> None:
    failures = tuple(Failure(i // 2, f"a{i // 2}", "no room") for i in range(40))  # two each; of the node itself, too
    failed = condition(replace(STATUS, failures=failures))
    assert (failed.state, failed.failed_accounts) == ("failed", 19)
    assert failed.problem.count("no room") == MOST_TOLD
    assert failed.problem.endswith("; and 30 more")
    assert condition(replace(STATUS, failures=(Failure(0, "", "no qdisc"),))).problem == "node: no qdisc"


def test_a_contested_node_says_so_once() -> None:
    text = "its agent holds revision 9 of another database"
    contested = condition(replace(STATUS, problem=text), contested=text)
    assert (contested.state, contested.problem) == ("contested", text)
