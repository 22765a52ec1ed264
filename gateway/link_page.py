"""PURE: what an operator may say on the one-time page: texts, style, labels, links. v1's keys.

A page with a customer's keys on it must not become somebody else's: texts have a few tags and links to https only, a
style loads nothing and cannot leave its place. What is not so is refused when it is set, never dropped in silence; and
what is shown went through the same parser again. Called by gateway/one_time_links, gateway/http.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from html.parser import HTMLParser
from urllib.parse import urlsplit

from gateway import fields
from gateway.errors import InvalidValue

Values = dict[str, str | bool]

BUTTONS = range(1, 7)
_BUTTONS: Values = {f"button{number}_{what}": "" for what in ("label", "link") for number in BUTTONS}
DEFAULTS: dict[str, Values] = {  # "" = our own
    "config": dict.fromkeys(("title", "css", "before_body", "after_body", "not_relevant"), ""),
    "config_wireguard": {
        **dict.fromkeys(("enable", "enable_config_qr", "enable_config_text"), True),
        "download_config_button_label": "",
        **_BUTTONS,
    },
    "config_ikev2": {
        "enable": True,
        **dict.fromkeys(("download_certificate_button_label", "download_profile_button_label"), ""),
        **_BUTTONS,
    },
}
TEXTS = ("before_body", "after_body", "not_relevant")
MOST = {"css": 10_000, **dict.fromkeys(TEXTS, 10_000)}  # characters
MOST_OF_OTHERS = 200
TAGS = ("p", "b", "strong", "i", "em", "u", "small", "h2", "h3", "ul", "ol", "li", "a")
ALONE = ("br", "hr")
RIGHT = {
    "css": "without '<', '\\', '@import' and 'url('",
    "text": f"text with the tags {', '.join((*TAGS, *ALONE))}, closed in their order; only a has an attribute: "
    'href="https://..."',
    "link": "https://...",
}
LINK = re.compile(r"https://[^\s\"'<>\\`]+", re.ASCII)


def checked(group: str, form: Mapping[str, str]) -> Values:
    """Those of the group that the form names. An empty text is our own again. Raises InvalidValue."""
    found: Values = {}
    for name, default in DEFAULTS[group].items():
        if name not in form:
            continue
        if isinstance(default, bool):
            found[name] = bool(fields.boolean(form, name))
        else:
            found[name] = _text(name, form[name].replace("\r\n", "\n").replace("\r", "\n").strip())
    return found


def _text(name: str, text: str) -> str:
    most, lines = MOST.get(name, MOST_OF_OTHERS), name in MOST
    if len(text) > most or not all(sign.isprintable() or (lines and sign in "\n\t") for sign in text):
        raise InvalidValue(f"Wrong {name} (only 0-{most} printable characters)", name)
    right = ""
    if name == "css" and not is_style(text):
        right = RIGHT["css"]
    elif name in TEXTS and markup(text) is None:
        right = RIGHT["text"]
    elif name.endswith("_link") and text and not is_link(text):
        right = RIGHT["link"]
    if right:
        raise InvalidValue(f"Wrong {name} (only {right})", name)
    return text


def is_style(text: str) -> bool:
    """Without `<` there is no way out of its element; the page's policy lets nothing be loaded in any case."""
    return not re.search(r"[<\\\r\0]|@import|url\s*\(", text, re.IGNORECASE)


def is_link(text: str) -> bool:
    try:
        return LINK.fullmatch(text) is not None and bool(urlsplit(text).hostname)
    except ValueError:
        return False


def buttons(values: Mapping[str, str | bool]) -> list[tuple[str, str]]:
    """Label and link of those that have both."""
    pairs = [(str(values[f"button{number}_label"]), str(values[f"button{number}_link"])) for number in BUTTONS]
    return [(label, link) for label, link in pairs if label and is_link(link)]


def markup(text: str) -> str | None:
    """The text as HTML that we wrote: known tags, everything else escaped. None = it has something else in it."""
    parser = _Markup()
    parser.feed(text)
    parser.close()
    return "".join(parser.written) if parser.right and not parser.open else None


class _Markup(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.written: list[str] = []
        self.open: list[str] = []
        self.right = True

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        link = attrs[0][1] if tag == "a" and len(attrs) == 1 and attrs[0][0] == "href" else None
        if tag in ALONE and not attrs:
            self.written.append(f"<{tag}>")
        elif tag == "a" and link is not None and is_link(link):
            self.open.append(tag)
            self.written.append(f'<a href="{escape(link)}" rel="noopener noreferrer">')
        elif tag in TAGS and tag != "a" and not attrs:
            self.open.append(tag)
            self.written.append(f"<{tag}>")
        else:
            self.right = False

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.right = False
        self.written.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.written.append(escape(data))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)  # browsers take no notice of the slash

    def handle_comment(self, data: str) -> None:
        self.right = False

    def handle_decl(self, decl: str) -> None:
        self.right = False

    def handle_pi(self, data: str) -> None:
        self.right = False

    def unknown_decl(self, data: str) -> None:
        self.right = False
