"""The one-time link's pages in a real browser (headless Chromium), at the size of a phone."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from gateway.fields import new_account, server_values
from gateway.link_page import DEFAULTS, checked
from tests.contract.served import Served, served
from tests.fakes.product import migrated_sqlite

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
WAIT_SECONDS = 20

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="chromium and chromedriver (Debian packages chromium, chromium-driver) are missing",
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(migrated_sqlite(tmp_path_factory.mktemp("links") / "gateway.db")) as gateway:
        gateway.do(gateway.product.servers.create(server_values({})))
        gateway.do(gateway.product.accounts.create(new_account({"wg_name": "Default_1", "name": "peer_1"})))
        yield gateway


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = Chrome(options=options, service=Service(str(DRIVER)))
    try:
        browser.set_page_load_timeout(WAIT_SECONDS)
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        allowed = {"behavior": "allow", "downloadPath": str(downloads), "eventsEnabled": True}
        browser.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
        yield browser
    finally:
        browser.quit()


def link(gateway: Served) -> str:
    return f"{gateway.url}/otl/{gateway.do(gateway.product.one_time_links.create('peer_1'))}"


def opened(browser: Chrome, gateway: Served) -> str:
    """Opens a new link and presses the button; the link."""
    url = link(gateway)
    browser.get(url)
    found(browser, "open").click()
    found(browser, "config")
    return url


def found(browser: Chrome, identifier: str) -> WebElement:
    return WebDriverWait(browser, WAIT_SECONDS).until(lambda page: page.find_element(By.ID, identifier))


def heading(browser: Chrome) -> str:
    return str(browser.find_element(By.TAG_NAME, "h1").text)


def shown_text(browser: Chrome) -> str:
    return str(found(browser, "config").get_property("textContent"))


def messages(browser: Chrome, kind: str) -> list[dict[str, Any]]:
    """What came since the last look: "browser" is the console, "performance" what the network did."""
    return list(browser.get_log(kind))  # type: ignore[no-untyped-call]


def config_text(gateway: Served) -> str:
    account = gateway.do(gateway.product.accounts.get("peer_1"))
    return f"PrivateKey = {account.private_key.reveal()}\n"


def clipboard(browser: Chrome) -> str:
    script = "navigator.clipboard.readText().then(arguments[0], error => arguments[0]('refused: ' + error))"
    return str(browser.execute_async_script(script))


def eventually(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (value := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return value


def test_button_shows_the_configuration_once(browser: Chrome, gateway: Served) -> None:
    url = link(gateway)
    for _ in range(3):  # looking at it uses nothing up
        browser.get(url)
        assert heading(browser) == "Your VPN access is ready"
    found(browser, "open").click()
    assert config_text(gateway) in shown_text(browser)
    browser.get(url)
    assert heading(browser) == "This link is not relevant"


def test_second_tap_on_the_button_does_not_burn_the_link(browser: Chrome, gateway: Served) -> None:
    browser.get(link(gateway))
    browser.execute_script("const b = document.getElementById('open'); b.click(); b.click(); b.click();")
    assert config_text(gateway) in shown_text(browser)


def test_copy_button_gives_the_whole_text(browser: Chrome, gateway: Served) -> None:
    browser.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"origin": gateway.url, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    opened(browser, gateway)
    found(browser, "copy").click()
    WebDriverWait(browser, WAIT_SECONDS).until(lambda _: found(browser, "copied").text == "Copied.")
    assert clipboard(browser) == shown_text(browser)


def test_copy_button_works_without_the_clipboard_interface(browser: Chrome, gateway: Served) -> None:
    """As on a gateway that is reached by plain HTTP."""
    opened(browser, gateway)
    browser.execute_script("Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})")
    found(browser, "copy").click()
    WebDriverWait(browser, WAIT_SECONDS).until(lambda _: found(browser, "copied").text == "Copied.")
    browser.execute_script("delete navigator.clipboard")
    assert clipboard(browser) == shown_text(browser)


def test_file_that_is_saved_is_the_configuration(browser: Chrome, gateway: Served, downloads: Path) -> None:
    opened(browser, gateway)
    text = shown_text(browser)
    found(browser, "download").click()
    file = downloads / "peer_1.conf"
    assert eventually(lambda: file.exists() and file.read_text()) == text
    assert heading(browser) == "Your VPN configuration"  # still there


@pytest.mark.skipif(shutil.which("zbarimg") is None, reason="zbarimg (package zbar-tools) is missing")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_picture_on_the_screen_scans_to_the_same_text(
    browser: Chrome, gateway: Served, scheme: str, tmp_path: Path
) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    opened(browser, gateway)
    shot = tmp_path / "page.png"
    whole = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    shot.write_bytes(base64.b64decode(whole["data"]))
    run = subprocess.run(["zbarimg", "--raw", "--quiet", shot], capture_output=True, timeout=30, check=True)
    assert run.stdout.decode().removesuffix("\n") == shown_text(browser)


def test_page_fits_a_phone_and_its_buttons_a_thumb(browser: Chrome, gateway: Served) -> None:
    browser.get(link(gateway))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= PHONE["width"]
    assert found(browser, "open").size["height"] >= 48
    opened(browser, gateway)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= PHONE["width"]
    for button in ("download", "copy"):
        assert found(browser, button).size["height"] >= 48


def test_nothing_is_fetched_but_the_page_and_its_policy_is_never_broken(browser: Chrome, gateway: Served) -> None:
    for kind in ("browser", "performance"):
        messages(browser, kind)  # what was before
    url = opened(browser, gateway)
    found(browser, "copy").click()
    assert messages(browser, "browser") == []
    asked = {
        event["params"]["request"]["url"]
        for entry in messages(browser, "performance")
        if (event := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    }
    assert {address for address in asked if not address.startswith("data:")} == {url}


def test_an_operator_s_style_and_texts_are_shown_and_break_nothing(browser: Chrome, gateway: Served) -> None:
    links = gateway.product.one_time_links
    form = {
        "title": "Ours",
        "css": "h1 { color: rgb(1, 2, 3) }\r\nmain > p::before { content: 'x' }",
        "before_body": '<p>Help: <a href="https://example.com/help">here</a></p>',
    }
    gateway.do(links.set_page("config", checked("config", form)))
    try:
        messages(browser, "browser")  # what was before
        opened(browser, gateway)
        assert browser.title == "Ours"
        heading = browser.find_element(By.TAG_NAME, "h1")
        assert heading.value_of_css_property("color").replace("rgba", "rgb").startswith("rgb(1, 2, 3")
        assert browser.find_element(By.LINK_TEXT, "here").get_property("href") == "https://example.com/help"
        assert found(browser, "copy").is_displayed(), "our own script runs"
        assert messages(browser, "browser") == [], "the policy lets all of it in"
    finally:
        gateway.do(links.set_page("config", dict(DEFAULTS["config"])))
