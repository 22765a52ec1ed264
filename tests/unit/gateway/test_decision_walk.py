"""The decision of the sync, walked by Hypothesis through everything that can go wrong, on a simulated clock.

What holds at every step is asserted in tests/fakes/clockwork.py: no caller hears of success unless the agent showed its
revision; nothing is sent to an agent that is not ours; all of it only to one that was asked just before; one call is in
flight; no waiter is left behind, and none is sent away while the agent speaks; pauses grow.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from gateway.agents import AgentRefused, StaleAgent
from gateway.errors import AgentUnreachable
from gateway.model import Origin
from tests.fakes.clockwork import CLAIM, NODE, SETTLE, Gateway, World
from tests.unit.gateway.test_profile import SERVER

# Seconds in which a change reaches an agent that answers again: the longest pause, a poll and some calls; and the claim
# of a gateway that died.
BOUND = 8.0 + CLAIM
ERRORS = [AgentUnreachable("no"), AgentRefused("no"), StaleAgent("no"), RuntimeError("no")]
which = st.integers(0, 1)


class Walk(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(SERVER)
        self.backup = replace(self.world.database, history=list(self.world.database.history))
        self.older = copy(self.world.agent)

    @rule(seconds=st.sampled_from([0.001, 0.011, 0.05, 0.3, 1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(many=st.integers(1, 3), at=which)
    def callers_commit(self, many: int, at: int) -> None:
        for _ in range(many):
            self._gateway(at).wait(*self.world.commit())

    @rule(at=which)
    def a_caller_changes_nothing(self, at: int) -> None:
        database = self.world.database
        if database.node.revision:
            self._gateway(at).wait(database.node.revision, database.history[-1])

    @rule()
    def another_process_commits(self) -> None:
        self.world.commit()

    @rule(is_away=st.booleans())
    def the_agent_goes_or_comes(self, is_away: bool) -> None:
        self.world.agent.away = is_away

    @rule(at=which, many=st.integers(1, 3))
    def callers_come_one_after_the_other_while_the_agent_is_away(self, at: int, many: int) -> None:
        self.world.agent.away = True
        for _ in range(many):
            self.callers_commit(1, at)
            self.world.advance(SETTLE + 0.1)

    @rule()
    def an_answer_is_lost(self) -> None:
        self.world.agent.lose_next_answer = True

    @rule(error=st.sampled_from(ERRORS))
    def a_call_fails(self, error: Exception) -> None:
        self.world.break_next.append(error)

    @rule(lag=st.sampled_from([0.0, 0.1, 1.0]))
    def the_kernel_is_slow(self, lag: float) -> None:
        self.world.lag = lag

    @rule()
    def the_agent_gets_an_empty_file(self) -> None:
        self.world.empty_file()

    @rule()
    def the_agent_is_backed_up(self) -> None:
        self.older = copy(self.world.agent)

    @rule()
    def the_agent_goes_back_to_its_backup(self) -> None:
        self.world.older_file(self.older)

    @rule()
    def the_database_is_backed_up(self) -> None:
        self.backup = replace(self.world.database, history=list(self.world.database.history))

    @rule()
    def the_database_goes_back_to_its_backup(self) -> None:
        self.world.restore(self.backup)

    @rule(revision=st.integers(0, 5))
    def another_agent_answers_there(self, revision: int) -> None:
        self.world.another_agent(Origin("theirs", 5, NODE), revision)

    @precondition(lambda self: len(self.world.gateways) == 1)
    @rule()
    def a_second_gateway_comes(self) -> None:
        self.world.add_gateway()

    @rule(at=which)
    def a_gateway_is_restarted(self, at: int) -> None:
        self.world.restart(self._gateway(at))

    @rule()
    def the_operator_says_that_the_database_is_right(self) -> None:
        self.world.say()

    @rule()
    def all_is_well_again(self) -> None:
        """Whatever was: every change arrives, in bounded time, unless it is for an operator to say."""
        world = self.world
        world.agent.away = world.agent.lose_next_answer = False
        world.lag, world.break_next = 0.0, []
        world.advance(BOUND)
        if world.database.compared(world.held).contested:
            assert all(gateway.state.behind or not world.database.node.revision for gateway in world.gateways)
            world.say()
            world.advance(BOUND)
        node = world.database.node
        assert (world.agent.revision, world.agent.origin.mark) == (node.revision, world.database.history[-1])
        assert (node.epoch, node.acknowledged) == (world.agent.epoch, node.revision)
        for gateway in world.gateways:
            assert not gateway.state.waiters and not gateway.waiting and not gateway.state.behind
            assert not gateway.state.silent
            assert gateway.state.status is not None and gateway.state.status.problem == ""

    def teardown(self) -> None:
        self.all_is_well_again()

    def _gateway(self, at: int) -> Gateway:
        return self.world.gateways[at % len(self.world.gateways)]


TestWalk = Walk.TestCase
TestWalk.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    phases=(Phase.reuse, Phase.generate),  # to shrink a walk takes minutes; its steps are printed as they are
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
