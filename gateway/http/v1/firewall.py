"""/api/v1/firewall: the rules that accounts and servers stand for, as the database has them.

What a node's kernel really holds of one account or server, with counters, are the calls about that one. The host's own
firewall is not managed here, and what would change it is refused.
"""

from __future__ import annotations

from typing import Any, NoReturn

from gateway.errors import NotFound
from gateway.http.envelope import Encoded
from gateway.http.v1 import objects
from gateway.http.v1.calls import BOOLEAN, ROOT, TEXT, Asked, Call, listing, record, texts
from gateway.http.v1.listed import all_accounts
from gateway.model import Account

FIREWALL = f"{ROOT}/firewall"
HOSTS_OWN = "The firewall of the host itself is not managed by this API: its policies and its own rules are the host's"


async def _mangle(asked: Asked) -> Encoded:
    def rules(account: Account) -> list[dict[str, str]]:
        return objects.mark_rules(account) if account.enabled else []

    return await all_accounts(asked.services, rules)


async def _nat(asked: Asked) -> list[dict[str, str]]:
    return [objects.nat_rule(server) for server in await asked.services.servers.list()]


async def _info(asked: Asked) -> dict[str, str]:
    return await asked.services.system.firewall()


async def _conf(asked: Asked) -> dict[str, Any]:
    servers = await asked.services.servers.list()
    return {
        "internal_traffic": any(server.internal_traffic for server in servers),
        "ip_forward": bool(servers),  # agents switch it on for the links and the uplink while there are servers
        "policy_forward": "",
        "policy_input": "",
        "policy_output": "",
    }


async def _no_conf(_: Asked) -> NoReturn:
    raise NotFound(HOSTS_OWN)


MARK_RULE = texts("action", "chain", "d_ip", "s_ip", "name", "set-mark")
NAT_RULE = texts("action", "chain", "d_ip", "s_ip", "name", "to-source")
CONF = record(
    {
        **dict.fromkeys(("internal_traffic", "ip_forward"), BOOLEAN),
        **dict.fromkeys(("policy_forward", "policy_input", "policy_output"), TEXT),
    }
)
CALLS = (
    Call("GET", FIREWALL + "/rules/mangle", "The two mark rules of each enabled account", _mangle, listing(MARK_RULE)),
    Call("GET", FIREWALL + "/rules/nat", "The source address of each server's traffic", _nat, listing(NAT_RULE)),
    Call(
        "GET",
        FIREWALL + "/info",
        "What the nodes mark and shape with",
        _info,
        texts("ip_forward", "iproute2", "iptables"),
    ),
    Call("GET", FIREWALL + "/conf", "What is forwarded; the host's policies are its own (empty)", _conf, CONF),
    Call("PUT", FIREWALL + "/conf", "Refused: the host's firewall is its own", _no_conf, CONF, errors=(HOSTS_OWN,)),
)
