"""A real browser, for pages as people see them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no chromium or google-chrome on the path: apt-get install chromium")
PHONE = 390  # pixels, the width of a small phone


@contextmanager
def browsed(place: Path | str, width: int = 1280, arguments: Sequence[str] = ()) -> Iterator[Any]:
    """A file or an address that is open in a browser; an error, a message or a request for anything elsewhere fails the test at the end."""
    from playwright.sync_api import sync_playwright

    troubles: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", *arguments], timeout=120_000)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(60_000)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        address = place.as_uri() if isinstance(place, Path) else place
        own = ("file:", "data:") if isinstance(place, Path) else (place, "data:", f"blob:{place}")
        page.on("request", lambda request: troubles.append(request.url) if not request.url.startswith(own) else None)
        page.goto(address)
        yield page
        browser.close()
    assert troubles == []


def fits(page: Any, width: int = PHONE) -> bool:
    """Whether nothing on the page reaches beyond a screen of this width."""
    page.set_viewport_size({"width": width, "height": 800})
    return bool(page.evaluate("document.documentElement.scrollWidth") <= width)
