"""One Chromium for all tests, and the service that they look at."""

from collections.abc import Iterator

import pytest

from tests.browser.chromium import Browser


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    try:
        browser = Browser()
    except RuntimeError as missing:
        pytest.exit(str(missing), returncode=2)
    with browser:
        yield browser


def origin_of(url: str) -> str:
    return "/".join(url.split("/")[:3])


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """As new. Whatever a test does, the page makes no mistake of its own and asks nobody but the service that it came from."""
    chromium.reset()
    yield chromium
    assert chromium.faults() == []
    origins = {origin_of(request.url) for request in chromium.requests()}
    assert origins <= {origin_of(url) for url in chromium.opened}
