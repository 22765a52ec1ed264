"""/api/v1/firewall: the rules that accounts and servers stand for, as the database has them.

What a node's kernel really holds of one account or server, with counters, are the calls about that one. The host's own
firewall is not managed here, and what would change it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from gateway.errors import NotFound
from gateway.filter_rules import ACTIONS, CHAIN, FULL, HOSTS_OWN, IN_USE, NO_RULE, PROTOCOLS
from gateway.http.envelope import Encoded
from gateway.http.v1 import objects
from gateway.http.v1.calls import BOOLEAN, ROOT, TEXT, Asked, Call, Field, listing, record, shown, texts
from gateway.http.v1.listed import all_accounts
from gateway.model import Account
from gateway.store.filter_rules import FilterRule

FIREWALL = f"{ROOT}/firewall"


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


# -- the operator's own rules ----------------------------------------------------------------------------------------


def _filter_rule(one: FilterRule) -> dict[str, str]:
    return {
        "action": ACTIONS[0 if one.accepts else 1],
        "chain": CHAIN,
        "d_ip": one.destination,
        "d_port": str(one.destination_port),
        "name": one.name,
        "protocol": one.protocol.upper(),
        "s_ip": one.source,
        "s_port": str(one.source_port),
    }


async def _filter(asked: Asked) -> list[dict[str, str]]:
    return [_filter_rule(one) for one in await asked.services.filter_rules.list()]


async def _add(asked: Asked) -> Any:
    if (place := asked.path["name"]) not in PLACES:
        raise NotFound(NO_PLACE)
    return (await asked.services.filter_rules.add(asked.form, at_top=place == "top")).told(_filter_rule).of_all


async def _remove(asked: Asked) -> Any:
    return (await asked.services.filter_rules.remove(asked.path["name"])).told(lambda _: "success").of_all


PLACES = ("top", "end")
NO_PLACE = "A rule is added at top or end"
NO_MAIL = {
    **{"action": "DROP", "chain": CHAIN, "d_ip": "0.0.0.0/0", "d_port": "25", "name": "nomail"},
    **{"protocol": "TCP", "s_ip": "0.0.0.0/0", "s_port": ""},
}
FILTER_RULE = record({name: shown(TEXT, value) for name, value in NO_MAIL.items()})
PORT = r"^[0-9]{0,5}$"


def _words(some: Iterable[str]) -> str:
    return f"^({'|'.join(dict.fromkeys(word for one in some for word in (one, one.lower())))})$"


FILTER_FIELDS = (
    Field("name", "Letters and numbers, unique", r"^[A-Za-z0-9]{1,64}$", required=True),
    Field("action", "ACCEPT or DROP", _words(ACTIONS), required=True),
    Field("chain", "FORWARD; INPUT and OUTPUT are the host's own", _words((CHAIN,)), required=True),
    Field("d_ip", "Destination, CIDR; 0.0.0.0/0 is all of IPv4, ::/0 all of IPv6", required=True),
    Field("s_ip", "Source, CIDR, of the same family", required=True),
    Field("d_port", "Destination port, 0-65535; 0 or empty = any; with ANY of TCP and UDP", PORT),
    Field("s_port", "Source port, likewise", PORT),
    Field("protocol", "TCP, UDP, ICMP or ANY (which empty means too)", _words((*PROTOCOLS, ""))),
)
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
    Call("GET", FIREWALL + "/rules/filter", "Rules for what accounts send and get", _filter, listing(FILTER_RULE)),
    # One path for both, as a rule may be called `top` or `end`.
    Call(
        *("POST", FIREWALL + "/rules/filter/{name}", "One more: at `top`, before all others, or at the `end`", _add),
        *(FILTER_RULE, FILTER_FIELDS),
        is_of_all=True,
        example=FIREWALL + "/rules/filter/end",
        typical=("protocol", "d_port"),
        errors=(NO_PLACE, IN_USE, FULL, HOSTS_OWN),
    ),
    Call("DELETE", FIREWALL + "/rules/filter/{name}", "A rule goes", _remove, TEXT, is_of_all=True, errors=(NO_RULE,)),
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
