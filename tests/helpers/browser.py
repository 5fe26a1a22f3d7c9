"""Chromium for tests of pages, which reaches nothing but this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

#: Set where the tests must not be skipped for want of a browser.
REQUIRED = "CONTEXT_ENCODER_BROWSER"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@contextmanager
def open_browser() -> Iterator[Any]:
    """A browser of Playwright; the test is skipped, or fails where it is required, without one."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if CHROMIUM is None or sync_playwright is None:
        if os.environ.get(REQUIRED):
            pytest.fail("Chromium and Playwright are needed")
        pytest.skip("needs Chromium and Playwright")
    with sync_playwright() as playwright:
        # Names do not resolve and nothing but this machine is reached.
        options = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()
