"""What is around every page, and what a browser may do with it: nothing is loaded from anywhere, style and scripts are
inside and allowed by their hashes. The operator's own style is one of them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template

from starlette.responses import HTMLResponse

from gateway import link_page

Look = Mapping[str, Mapping[str, str | bool]]  # as gateway/link_page.py's DEFAULTS
PLAIN: Look = link_page.DEFAULTS


def page(name: str) -> str:
    return files("gateway.http.pages").joinpath(name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


FRAME, STYLE = Template(page("frame.html")), page("style.css")
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex, nofollow",
}


def _policy(style: str, script: str) -> str:
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src {_source(style)}",
            "script-src " + (_source(script) if script else "'none'"),
            "img-src data:",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    )


def framed(title: str, body: str, script: str, look: Look, status: int = 200) -> HTMLResponse:
    """With the operator's title, style and texts around."""
    config = {name: str(value) for name, value in look["config"].items()}
    style = f"{STYLE}\n{config['css']}" if link_page.is_style(config["css"]) and config["css"] else STYLE
    before, after = (link_page.markup(config[name]) or "" for name in ("before_body", "after_body"))
    content = FRAME.substitute(
        title=escape(config["title"] or title),
        style=style,
        body="\n".join(part for part in (before, body, after) if part),
        script=f"<script>{script}</script>" if script else "",
    )
    return HTMLResponse(content, status, headers={**HEADERS, "Content-Security-Policy": _policy(style, script)})


def buttons(values: Mapping[str, str | bool]) -> str:
    """The operator's links."""
    return "\n".join(
        f'<a class="button" href="{escape(link)}" rel="noopener noreferrer">{escape(label)}</a>'
        for label, link in link_page.buttons(values)
    )
