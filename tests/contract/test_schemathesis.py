"""Schemathesis against the OpenAPI document: no 5xx, no answer outside the envelope, whatever is sent.

The same examples on every run, in both status modes, for names that are there and names that are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.fields import new_account, server_values
from gateway.http.v1 import CALLS
from gateway.http.v1.calls import Call
from gateway.http.v1.openapi import document
from tests.contract.served import Served, served
from tests.fakes.product import migrated_sqlite

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# So that calls get past "not found" too.
KNOWN = {"name": "Default_1", "year": "2024", "month": "2", "port": "8080", "protocol": "tcp"}
EXAMPLES = 12  # for each operation and mode

# The gateway's own thread uses `random` (pauses of sync) while Hypothesis draws; nothing that is drawn depends on it.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the .random. module inside strategies")


@pytest.fixture(scope="module", params=["always_200", "semantic"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    database = migrated_sqlite(tmp_path_factory.mktemp("fuzzed") / "gateway.db")
    with served(database, http_status=request.param) as gateway:
        gateway.do(gateway.product.servers.create(server_values({})))
        gateway.do(gateway.product.accounts.create(new_account({"wg_name": "Default_1", "name": "Default_1"})))
        gateway.do(gateway.product.port_forwards.add("Default_1", "tcp", 8080, "Default_1", 80))
        yield gateway


@schemathesis.check
def answers_in_the_envelope(_: Any, response: schemathesis.Response, case: schemathesis.Case[Any]) -> None:
    if case.path.endswith("/openapi.json") and response.status_code == 200:
        return
    found = response.json()
    assert set(found) == {"error", "msg", "status"}, found
    assert (found["status"], bool(found["error"])) in (("success", False), ("error", True)), found


@pytest.mark.parametrize("call", CALLS, ids=[f"{call.method} {call.path}" for call in CALLS])
def test_no_request_whatsoever_leaves_the_envelope(call: Call, gateway: Served) -> None:
    schema = schemathesis.openapi.from_dict(document(CALLS, gateway.url))
    options: dict[str, Any] = {
        "base_url": gateway.url,
        "cookies": {"access_hash": gateway.access_hash},
        "checks": [*CHECKS, answers_in_the_envelope],
    }

    @hypothesis.given(case=schema[call.path][call.method].as_strategy())
    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    def exchange(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(**options)
        if case.path_parameters:
            known = {name: KNOWN[name] for name in case.path_parameters}
            case.path_parameters.update(known)
            case.call_and_validate(**options)

    exchange()
