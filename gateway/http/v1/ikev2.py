"""/api/v1/ikev2: its certificates, its switch, and who is in. Private keys are in no answer."""

from __future__ import annotations

from typing import Any

from gateway.accepted import Accepted, Placed
from gateway.certificates import FAILED, PARTS
from gateway.errors import InvalidValue
from gateway.http.v1 import objects
from gateway.http.v1.calls import BOOLEAN, ROOT, TEXT, Asked, Call, Field, listing, record, texts
from gateway.ikev2 import HAS_ROOT, NO_ROOT, NO_SERVER
from gateway.store.ikev2 import Ikev2

IKEV2 = f"{ROOT}/ikev2"
MISSING = "Account not found"
SWITCH = {"1": True, "true": True, "0": False, "false": False}


async def _config(asked: Asked) -> dict[str, Any]:
    return objects.ikev2_object(await asked.services.ikev2.get())


async def _info(asked: Asked) -> dict[str, str]:
    """v1's third key was of a program that strongSwan has no more."""
    name, number = asked.services.ikev2.running()
    return {
        "strongswan": name.removeprefix("strongSwan "),
        "pid_charon": str(number) if number else "",
        "pid_starter": "",
    }


async def _switch(asked: Asked) -> Any:
    text = asked.form.get("enabled", "").strip().lower()
    if text not in SWITCH:
        raise InvalidValue("Wrong enabled (only 1, 0, true or false)", "enabled")
    return _told(await asked.services.ikev2.switch(SWITCH[text]))


async def _make_authority(asked: Asked) -> Any:
    return _told(await asked.services.ikev2.make_authority(_subject(asked, "ca_")))


async def _bring_authority(asked: Asked) -> Any:
    pair = (asked.form.get(name, "") for name in ("ca_cert", "ca_key"))
    return _told(await asked.services.ikev2.bring_authority(*pair))


async def _make_server(asked: Asked) -> Any:
    where = (asked.form.get(f"server_{name}", "").strip() for name in ("domain", "ip", "ipv6"))
    return _told(await asked.services.ikev2.make_server(_subject(asked, "server_"), *where))


async def _drop_authority(asked: Asked) -> Any:
    return _told(await asked.services.ikev2.drop_authority())


async def _drop_server(asked: Asked) -> Any:
    return _told(await asked.services.ikev2.drop_server())


async def _online(asked: Asked) -> list[dict[str, str]]:
    service = asked.services.ikev2
    return [objects.ikev2_online(account, one, service.ago(one)) for account, one in await service.online()]


async def _disconnect(asked: Asked) -> Placed[str]:
    account = await asked.services.ikev2.disconnect(asked.name(MISSING))
    return Placed("success", account.node)


def _subject(asked: Asked, prefix: str) -> dict[str, str]:
    return {part: asked.form.get(prefix + part, "").strip() for part in PARTS}


def _told(accepted: Accepted[Ikev2]) -> Any:
    return accepted.told(objects.ikev2_object).of_all


def _names(prefix: str, whose: str) -> tuple[Field, ...]:
    words = {
        "common_name": "Name of the certificate",
        "organization": "Organization",
        "organizational_unit": "Unit of it",
        "locality": "Town",
        "state_or_province_name": "State or province",
        "country_name": "Two letters",
    }
    needed = ("common_name", "organization")
    return tuple(
        Field(prefix + part, f"{text}, of the {whose}", required=part in needed) for part, text in words.items()
    )


CONFIG = record(
    {
        "enabled": BOOLEAN,
        **dict.fromkeys((f"{prefix}{part}" for prefix in ("ca_", "server_") for part in PARTS), TEXT),
        **dict.fromkeys(("server_domain", "server_ip", "server_ipv6", "ca_cert", "server_cert"), TEXT),
    }
)
BROUGHT = (
    Field("ca_cert", "PEM: a root with an RSA key", required=True),
    Field("ca_key", "PEM, without a password", required=True),
)
SERVER = (
    Field("server_domain", "What clients call the nodes: a domain, or an address", required=True),
    Field("server_ip", "IPv4 address, in the certificate too", required=True),
    Field("server_ipv6", "IPv6 address, likewise"),
    *_names("server_", "server"),
)
CALLS = (
    Call("GET", IKEV2 + "/config", "Certificates and switch; private keys are never told", _config, CONFIG),
    Call(
        *("GET", IKEV2 + "/info", "What answers IKEv2", _info),
        texts("strongswan", "pid_charon", "pid_starter"),
    ),
    Call(
        *("PUT", IKEV2, "Switch IKEv2 on or off, on all servers that have it", _switch, CONFIG),
        (Field("enabled", "1 or 0", r"^(0|1|true|false)$", required=True),),
        errors=(NO_ROOT, NO_SERVER),
    ),
    Call(
        *("PUT", IKEV2 + "/generate_ca_rsa", "Make the root certificate", _make_authority, CONFIG),
        _names("ca_", "root"),
        errors=(HAS_ROOT, "Common Name must be filled", "Organization must be filled"),
    ),
    Call(
        "PUT",
        IKEV2 + "/import_ca_rsa",
        "Bring a root certificate along",
        _bring_authority,
        CONFIG,
        BROUGHT,
        errors=(HAS_ROOT, "CaCert must be filled", "CaKey must be filled", "Certificate not found", FAILED),
    ),
    Call(
        "PUT",
        IKEV2 + "/generate_server_rsa",
        "Make the server certificate",
        _make_server,
        CONFIG,
        SERVER,
        errors=(
            "The root certificate is not present in the system",
            "Server Domain must be filled",
            "Server IP must be filled",
            "Common Name must be filled",
            "Organization must be filled",
        ),
    ),
    Call(
        "DELETE",
        IKEV2 + "/delete_ca_rsa",
        "Delete both certificates; IKEv2 is off",
        _drop_authority,
        CONFIG,
        errors=(NO_ROOT,),
    ),
    Call(
        "DELETE",
        IKEV2 + "/delete_server_rsa",
        "Delete the server's; IKEv2 is off",
        _drop_server,
        CONFIG,
        errors=(NO_ROOT, NO_SERVER),
    ),
    Call("GET", IKEV2 + "/online", "Accounts that are connected by IKEv2", _online, listing(objects.IKEV2_ONLINE)),
    Call(
        "DELETE",
        IKEV2 + "/online/{name}",
        "Put an account out; it may come back",
        _disconnect,
        TEXT,
        errors=(MISSING, "Node ... is not available"),
    ),
)
