"""The system's Chromium for tests that look at pages as people do. It finds no host but this one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Whatever a page asks for is seen by the test, and answered by nobody outside this machine.
_ALONE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"


def chromium_path() -> str:
    """Where Chromium is. Without one the test is skipped; under CI=true it fails, so that no attack goes untried
    unseen."""
    if path := next(filter(None, map(shutil.which, _NAMES)), None):
        return path
    reason = "no Chromium is installed: apt-get install chromium"
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium; `new_context()` for each test that must not see cookies of another.

    While it is open its event loop counts as running in this thread, where `asyncio.run` then refuses.
    """
    path = chromium_path()
    as_root = os.geteuid() == 0
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=[_ALONE, *["--no-sandbox"] * as_root])
        yield found
        found.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for the tests of a module."""
    with chromium() as found:
        yield found
