"""What people see in a browser. A stranger to v1/; both stand on the files beside them. Put together by
gateway/http/app.py; what a page is made of lies here too, as files."""

from __future__ import annotations

from gateway.http.pages.one_time_link import Pages
from gateway.http.path import Answers
from gateway.http.services import HttpSettings, Services


def paths(services: Services, settings: HttpSettings) -> dict[str, Answers]:
    link = Pages(services, settings)
    return {"/otl/{key}": {"GET": link.ask, "POST": link.open}}
