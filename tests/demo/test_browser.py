"""The page in a real browser: a prompt is typed, both plans and both pictures appear, and nobody outside is asked."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from PIL import Image

from src.cli.compose import compose
from src.demo.__main__ import launch, prepared
from tests.tiny_run import lora_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium: apt-get install chromium chromium-driver"),
    pytest.mark.skipif(find_spec("selenium") is None, reason='no selenium: pip install -e ".[browser]"'),
    pytest.mark.skipif(find_spec("gradio") is None, reason='no gradio: pip install -e ".[demo]"'),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --window-size=1200,1300"
)
WAIT = 120.0  # seconds until something shows; a busy machine is slow


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The page of a trained run, served."""
    page = prepared(compose([f"run={lora_run().path}", "paint_every=1"], "demo"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _, url, public = launch(page, port, share=False)
    assert public is None
    yield url
    page.close(verbose=False)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A headless Chromium with a profile of its own, which notes what it asks the network for."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    options.binary_location = CHROMIUM
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(WAIT)
    yield driver
    driver.quit()


def wait_for(browser: Any, what: Any) -> Any:
    """The first true value of `what(browser)`."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    passing = [NoSuchElementException, StaleElementReferenceException]
    return WebDriverWait(browser, WAIT, poll_frequency=0.05, ignored_exceptions=passing).until(what)


def field(browser: Any, place: str) -> Any:
    return wait_for(browser, lambda b: b.find_element("css selector", f"#{place} textarea, #{place} input"))


def fill(browser: Any, place: str, text: str) -> None:
    from selenium.webdriver.common.keys import Keys

    field(browser, place).send_keys(Keys.CONTROL, "a")
    field(browser, place).send_keys(text or Keys.DELETE)


def status(browser: Any, side: str) -> str:
    return browser.find_element("css selector", f"#status-{side}").text


def picture(browser: Any, side: str) -> Image.Image:
    """What the page shows, fetched where the page has it from."""
    source = browser.find_element("css selector", f"#image-{side} img").get_attribute("src")
    if source.startswith("data:"):
        data = base64.b64decode(source.partition(",")[2])
    else:
        assert source.startswith("http://127.0.0.1:")
        with urlopen(source) as answer:  # noqa: S310 (the page's own address)
            data = answer.read()
    return Image.open(io.BytesIO(data)).convert("RGB")


def asked_outside(browser: Any) -> set[str]:
    """The addresses on other machines that the page asked for."""
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    urls = (m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent")
    return {url for url in urls if url.startswith(("http", "ws")) and "://127.0.0.1" not in url}


def test_a_prompt_becomes_plans_and_pictures(browser: Any, address: str, tmp_path: Path) -> None:
    browser.get(address)
    fill(browser, "prompt", "two green squares")
    fill(browser, "candidates", "3")
    field(browser, "seed").click()
    browser.find_element("id", "paint").click()
    seen = set()

    def finished(page: Any) -> bool:
        seen.add(status(page, "base"))
        return "reward" in status(page, "trained")

    wait_for(browser, finished)
    assert any("of 36 tokens" in text for text in seen), "patch by patch"
    for side in ("base", "trained"):
        assert field(browser, f"plan-{side}").get_attribute("value")
        assert "best of 3" in status(browser, side)
        assert "shapes" in status(browser, side)
        wait_for(browser, lambda b, side=side: b.find_element("css selector", f"#candidates-{side} img").is_displayed())
        shown = picture(browser, side)
        assert shown.size == (288, 288)
        assert len(shown.getcolors(maxcolors=1 << 24) or ()) > 10
    assert browser.save_screenshot(str(tmp_path / "page.png"))
    assert asked_outside(browser) == set()


def test_an_empty_prompt_is_told(browser: Any, address: str) -> None:
    browser.get(address)
    fill(browser, "prompt", "")
    browser.find_element("id", "paint").click()
    wait_for(browser, lambda b: "prompt: is empty" in b.find_element("tag name", "body").text)
