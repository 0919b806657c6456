"""Headless Chromium driven by Selenium, with its requests and console messages."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

SCRIPT = Path(__file__).parent / "chromium.sh"
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
"""Containers have neither a display nor the rights that the sandbox needs."""


class Browser:
    """One Chromium, on one page after another."""

    def __init__(self) -> None:
        done = subprocess.run(["bash", SCRIPT], check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"tests/chromium.sh: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        options = Options()
        options.binary_location = shutil.which("chromium")
        for switch in SWITCHES:
            options.add_argument(switch)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.printed: list[str] = []

    def quit(self) -> None:
        self.driver.quit()

    def open(self, page: Path, width: int = 1280, scheme: str = "light", media: str = "screen") -> None:
        self.driver.get_log("performance")
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        self.driver.get(page.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script returns."""
        return self.driver.execute_script(script, *arguments)

    @property
    def console(self) -> list[str]:
        """Messages of all pages until now: errors, refusals of the security policy, messages."""
        self.printed += [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]
        return self.printed

    @property
    def requests(self) -> set[str]:
        """Addresses asked for since the page was opened, or since they were looked at last."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}

    def picture(self) -> bytes:
        """A PNG of the whole page, below the fold too."""
        height = self.run("return document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": self.run("return innerWidth"), "height": height, "scale": 1}
        options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        return base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"])
