"""Chromium without a window, and what a person does with the page in it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH"
)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("--headless=new", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The open page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str, width: int = 1280, height: int = 860, scheme: str = "light") -> None:
        """Open the page afresh, its storage empty, once its list of models is there."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
        self.driver.get_log("browser")
        self.driver.get(url)

    def ready(self) -> None:
        """Wait for the server's figures."""
        self.until(lambda: self.text("#running").isdigit())

    def all(self, css: str) -> list[Any]:
        """Elements."""
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> Any:
        """The element."""
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        """The text of an element, whether it can be seen or not."""
        return str(self.one(css).get_property("textContent"))

    def texts(self, css: str) -> list[str]:
        """The texts of elements."""
        return [str(element.get_property("textContent")) for element in self.all(css)]

    def script(self, code: str, *args: Any) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(code, *args)

    def press(self, *keys: str) -> None:
        """Type into whatever has the focus."""
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def ask(self, message: str) -> None:
        """Write a message and send it with Enter."""
        self.one("#text").send_keys(message, Keys.ENTER)

    def choose(self, css: str, name: str) -> None:
        """Choose from a list."""
        Select(self.one(css)).select_by_value(name)

    def until(self, check: Any) -> None:
        """Wait; a hang is the failure."""
        WebDriverWait(self.driver, 30, poll_frequency=0.05).until(lambda _: check())

    def answered(self, count: int = 1) -> None:
        """Wait until so many answers have ended."""
        self.until(lambda: len(self.all('.answer[aria-busy="false"]')) == count)

    def complaints(self) -> list[str]:
        """What the browser complained of (a missing icon and refused requests are none)."""
        entries = [entry for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        return [e["message"] for e in entries if "Failed to load resource" not in e["message"]]
