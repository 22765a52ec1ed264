"""What both processes have to know alike, and neither can have from the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import agent.model
import gateway.allocate
from agent.rpc import bounds
from agent.rpc import codec as of_agent
from gateway import filter_rules
from gateway.agents import codec as of_gateway
from gateway.errors import InvalidValue

BEYOND = 1 << 17  # of every mark that anybody could mean
NETWORKS = st.one_of(
    st.builds("{}/{}".format, st.ip_addresses(v=4), st.integers(0, 33)),
    st.builds("{}/{}".format, st.ip_addresses(v=6), st.integers(0, 129)),
    st.sampled_from(
        ("0.0.0.0/0", "::/0", "10.0.0.1", "::ffff:10.0.0.1/128", "fe80::1%eth0/64", "010.0.0.0/8", " 10.0.0.0/8 ")
    ),
)
PORTS = st.one_of(st.integers(-1, 65_536).map(str), st.sampled_from(("", "0", "00025", "٢٥", "+25")))
FORMS = st.fixed_dictionaries(
    {
        "name": st.just("rule"),
        "chain": st.just("FORWARD"),
        "action": st.sampled_from(("ACCEPT", "drop")),
        "protocol": st.sampled_from(("", "TCP", "udp", "ICMP", "ANY")),
        **dict.fromkeys(("s_ip", "d_ip"), NETWORKS),
        **dict.fromkeys(("s_port", "d_port"), PORTS),
    }
)


def test_the_gateway_gives_exactly_the_marks_that_an_agent_takes() -> None:
    those = {mark for part in gateway.allocate.MARKS for mark in range(part.lo, part.hi + 1)}
    assert those == {mark for mark in range(BEYOND) if agent.model.is_mark(mark)}
    assert len({agent.model.minor(mark) for mark in those}) == len(those), "each has a class of its own"


@given(FORMS)
def test_a_filter_rule_that_the_gateway_accepts_is_taken_and_meant_alike(form: dict[str, str]) -> None:
    try:
        one = filter_rules._checked(form)
    except InvalidValue:
        return
    taken = of_agent._filter_rule("filter", of_gateway._filter_rule(*one))
    assert (taken.accepts, str(taken.source), str(taken.destination)) == (one.accepts, one.source, one.destination)
    assert (taken.protocol, taken.source_port, taken.destination_port) == one[4:]


def test_an_agent_takes_as_many_filter_rules_as_there_can_be() -> None:
    assert filter_rules.MOST == bounds.MOST_FILTER_RULES
