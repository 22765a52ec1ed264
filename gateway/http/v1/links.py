"""/api/v1/otl: which one-time links there are, and what their page says besides the configuration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from zoneinfo import ZoneInfo

from gateway import fields, link_page
from gateway.http.envelope import Encoded, encoded
from gateway.http.v1.calls import BOOLEAN, ROOT, TEXT, Asked, Call, Field, by_name, record, shown
from gateway.link_page import DEFAULTS, RIGHT, TEXTS, Values
from gateway.store.one_time_links import ShownLink

LINKS = f"{ROOT}/otl"
DIGITS = 16  # of a digest


async def _list(asked: Asked) -> Encoded:
    zone, found = ZoneInfo(asked.settings.time_zone), list[bytes]()

    def show(some: list[ShownLink]) -> None:
        if some:
            found.append(encoded({one["key"]: one for one in (_spelled(link, zone) for link in some)})[1:-1])

    await asked.services.one_time_links.visit(show)
    return Encoded(b'{"olts":{%b}}' % b",".join(found))


def _spelled(link: ShownLink, zone: ZoneInfo) -> dict[str, str]:
    created, ends = (f"{datetime.fromtimestamp(time, zone):%F}" for time in (link.created, link.expires))
    key = f"{link.digest[:DIGITS]}... (of its digest: the key itself is not kept)"
    return {"account": link.account, "created_data": created, "key": key, "lifetime": ends}


def _shown(group: str) -> Callable[[Asked], Awaitable[Values]]:
    async def answer(asked: Asked) -> Values:
        links = asked.services.one_time_links
        values = (await links.page())[group]
        return {**values, "lifetime": str(await links.days())} if group == "config" else values

    return answer


def _set(group: str) -> Callable[[Asked], Awaitable[Values]]:
    shown = _shown(group)

    async def answer(asked: Asked) -> Values:
        is_named = group == "config" and "lifetime" in asked.form
        tuning = {"link_days": fields.number(asked.form, "lifetime", 1, 3650)} if is_named else {}
        await asked.services.one_time_links.set_page(group, link_page.checked(group, asked.form), tuning)
        return await shown(asked)

    return answer


def _field(name: str, default: str | bool) -> Field:
    if isinstance(default, bool):
        return Field(name, "Whether it is shown", r"^(|0|1|true|false)$")
    kind = "css" if name == "css" else "text" if name in TEXTS else "link" if name.endswith("_link") else ""
    return Field(name, f"Only {RIGHT[kind]}" if kind else "Text; empty: our own, or none")


LIFETIME = Field("lifetime", "Days that a new link is valid; empty: as in gateway.toml again", r"^(|[1-9][0-9]{0,3})$")
ABOUT = {
    "config": "around the configuration, and where a link is not relevant",
    "config_wireguard": "of WireGuard",
    "config_ikev2": "of IKEv2, where its server has it",
}
OBJECTS = {
    group: record(
        {
            **{name: BOOLEAN if isinstance(value, bool) else TEXT for name, value in values.items()},
            **({"lifetime": TEXT} if group == "config" else {}),
        }
    )
    for group, values in DEFAULTS.items()
}
KEY = "0123456789abcdef... (of its digest: the key itself is not kept)"
LINK = record(
    {
        "account": shown(TEXT, "NAME"),
        "created_data": shown(TEXT, "2026-11-28"),
        "key": shown(TEXT, KEY),
        "lifetime": shown(TEXT, "2026-12-08"),
    }
)
CALLS = (
    Call(
        "GET", f"{LINKS}/list", "One-time links that can still be opened", _list, record({"olts": by_name(LINK, KEY)})
    ),
    *(
        call
        for group, about in ABOUT.items()
        for call in (
            Call("GET", f"{LINKS}/{group}", f"What the one-time page shows {about}", _shown(group), OBJECTS[group]),
            Call(
                *("PUT", f"{LINKS}/{group}", f"Set what the one-time page shows {about}", _set(group), OBJECTS[group]),
                (*(_field(*one) for one in DEFAULTS[group].items()), *((LIFETIME,) if group == "config" else ())),
            ),
        )
    ),
)
