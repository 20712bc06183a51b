"""Chromium without a window, for what a page does in it."""

import os
import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@contextmanager
def chromium(**logs: str):
    """A browser that is driven, with a log of its console and such others as are named; skips where there is none."""
    from selenium import webdriver

    driver = shutil.which("chromedriver")
    if not CHROMIUM or not driver:
        if os.environ.get("CI"):
            pytest.fail("CI must have Chromium and its driver")
        pytest.skip("requires Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "hide-scrollbars", "disable-sync"):
        options.add_argument(f"--{flag}")
    for flag in ("disable-background-networking", "disable-component-update", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", **logs})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield started
    finally:
        started.quit()


def show(browser, width: int, dark: bool = False, height: int = 900) -> None:
    """Has a page be as wide as a screen, and in light or dark colours."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


LUMINANCE = """
const parts = getComputedStyle(arguments[0])[arguments[1]].match(/[0-9.]+/g).map(Number);
return (0.299 * parts[0] + 0.587 * parts[1] + 0.114 * parts[2]) / 255;
"""
