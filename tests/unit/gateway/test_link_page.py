"""gateway/link_page.py: what may stand beside a customer's keys."""

from __future__ import annotations

import pytest

from gateway.errors import InvalidValue
from gateway.link_page import DEFAULTS, buttons, checked, is_link, markup


def test_a_few_tags_pass_and_all_else_is_text() -> None:
    text = '<h2>Help</h2> <p>2 &gt; 1 &amp; "so"<br/>write <b>us</b>: <a href="https://example.com/?a=1&amp;b=2">here</a></p>'
    assert markup(text) == (
        "<h2>Help</h2> <p>2 &gt; 1 &amp; &quot;so&quot;<br>write <b>us</b>: "
        '<a href="https://example.com/?a=1&amp;b=2" rel="noopener noreferrer">here</a></p>'
    )
    assert markup("1 < 2 &lt;script&gt;") == "1 &lt; 2 &lt;script&gt;"
    assert markup("") == ""


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=https://example.com/x.png>",
        "<p onclick=x()>a</p>",
        '<p style="color:red">a</p>',
        "<form action=https://example.com><input></form>",
        '<a href="javascript:alert(1)">a</a>',
        '<a href="http://example.com">a</a>',
        '<a href="https://example.com" onclick="x()">a</a>',
        '<a href="https://">a</a>',
        "<a>a</a>",
        "<iframe></iframe>",
        "<!-- a -->",
        "<!doctype html>",
        "<?php echo 1 ?>",
        "<![CDATA[a]]>",
        "</main>",
        "<p>not closed",
        "<b><i>crossed</b></i>",
        "<p/>",
        "</ a>",
        "<base href=https://example.com>",
        "<style>p{}</style>",
        '<meta http-equiv="refresh" content="0;url=https://example.com">',
    ],
)
def test_what_else_there_is_is_refused_with_what_is_right(text: str) -> None:
    assert markup(text) is None
    with pytest.raises(InvalidValue, match="Wrong before_body \\(only text with the tags"):
        checked("config", {"before_body": text})


@pytest.mark.parametrize("css", ["</style><script>", "@import 'x'", "p{background:URL (x)}", "p{a:\\75rl(x)}", "p\0"])
def test_a_style_that_could_leave_or_load_is_refused(css: str) -> None:
    with pytest.raises(InvalidValue, match="Wrong css"):
        checked("config", {"css": css})


def test_a_style_has_one_kind_of_line_end_for_browsers_hash_it_so() -> None:
    assert checked("config", {"css": "p > b { color: red }\r\nh1 { margin: 0 }\r"}) == {
        "css": "p > b { color: red }\nh1 { margin: 0 }"
    }


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("config", "title", "a\nb"),
        ("config", "title", "a" * 201),
        ("config", "after_body", "a" * 10_001),
        ("config", "title", "\ud800"),
        ("config_wireguard", "enable_config_qr", "yes"),
        ("config_wireguard", "button1_link", "http://example.com"),
        ("config_ikev2", "button6_link", 'https://example.com/"><script>'),
        ("config_ikev2", "button2_link", "https://exa mple.com"),
    ],
)
def test_every_wrong_field_is_named(group: str, name: str, value: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        checked(group, {name: value})
    assert name in caught.value.text


def test_absent_is_unchanged_and_empty_is_our_own_again() -> None:
    assert checked("config", {"title": " ", "unknown": "1"}) == {"title": ""}
    assert checked("config_wireguard", {"enable": "0", "enable_config_text": "true"}) == {
        "enable": False,
        "enable_config_text": True,
    }


def test_a_button_has_a_label_and_a_link() -> None:
    own = DEFAULTS["config_ikev2"] | {"button1_label": "Help", "button2_link": "https://example.com"}
    assert buttons(own) == []
    own |= {"button1_link": "https://example.com/help", "button6_label": "b", "button6_link": "https://example.org"}
    assert buttons(own) == [("Help", "https://example.com/help"), ("b", "https://example.org")]
    assert not is_link("https://[") and not is_link("//example.com") and not is_link("HTTPS:example.com")
