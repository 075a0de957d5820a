"""A headless Chromium of this machine, driven through its chromedriver. Nothing is downloaded."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent.parent
SCREENSHOTS = ROOT / "build" / "screenshots"
MISSING = (
    "Chromium and its driver are needed: on Debian, `apt-get install chromium chromium-driver`; elsewhere name them in TEST_CHROMIUM and "
    "TEST_CHROMEDRIVER. Selenium comes with `pip install -e '.[browser]'`."
)
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
WIDE, NARROW = (1600, 1000), (400, 800)


class Said(NamedTuple):
    """An entry of the console. `source`: `network` where Chromium itself tells of a request that failed."""

    source: str
    level: str
    message: str


class Request(NamedTuple):
    """A request that the page made."""

    url: str
    body: str | None
    headers: dict[str, str]


def found() -> tuple[str, str] | None:
    """Chromium and its driver, where both are there."""
    wanted = {"TEST_CHROMIUM": ("chromium", "chromium-browser"), "TEST_CHROMEDRIVER": ("chromedriver",)}
    paths = [
        shutil.which(os.environ[variable]) if variable in os.environ else next(filter(None, map(shutil.which, names)), None)
        for variable, names in wanted.items()
    ]
    return None if None in paths else (str(paths[0]), str(paths[1]))


class Browser:
    """`with Browser() as browser:` one tab. Raises RuntimeError where there is no Chromium."""

    def __init__(self) -> None:
        paths = found()
        try:
            from selenium import webdriver
            from selenium.webdriver.chrome.service import Service
            from selenium.webdriver.common.by import By
            from selenium.webdriver.common.keys import Keys
        except ImportError:
            paths = None
        if paths is None:
            raise RuntimeError(MISSING)
        self._css, self._keys = By.CSS_SELECTOR, Keys
        self._folder = tempfile.TemporaryDirectory(prefix="chromium-")
        options = webdriver.ChromeOptions()
        options.binary_location = paths[0]
        for word in (*OPTIONS, f"--user-data-dir={self._folder.name}"):
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options, Service(paths[1]))
        self.driver.set_page_load_timeout(60)
        self.opened: list[str] = []
        self._said: list[Said] = []
        self._requests: list[Request] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.driver.quit()
        self._folder.cleanup()

    def reset(self) -> None:
        """As new, for the next test: nothing stored, no page, nothing said."""
        if self.driver.current_url.startswith("http"):
            self.js("sessionStorage.clear(); localStorage.clear()")
        self.opened.clear()
        self.driver.get("about:blank")
        self._note()
        self._said.clear()
        self._requests.clear()
        self.resize(*WIDE)
        self.prefer("light")

    # What is around the page

    def open(self, url: str) -> None:
        self.opened.append(url)
        self.driver.get(url)

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        """What the system says of `light` and `dark`."""
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def screenshot(self, name: str) -> None:
        """Of the whole page, to build/screenshots/."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        width, height = self.js("return [innerWidth, document.documentElement.scrollHeight]")
        before = self.js("return innerHeight")
        self.resize(width, min(height, 4000))
        self.driver.save_screenshot(str(SCREENSHOTS / f"{name}.png"))
        self.resize(width, before)

    def said(self) -> list[Said]:
        """What came to the console since the last `reset`, the driver's own words about the network included."""
        self._note()
        return list(self._said)

    def faults(self) -> list[Said]:
        """What the page itself did wrong: anything but a request that failed or was refused."""
        return [said for said in self.said() if said.source != "network"]

    def forgive(self) -> None:
        """Forget what was said and asked: it was wanted."""
        self._note()
        self._said.clear()
        self._requests.clear()

    def has_dialog(self) -> bool:
        """Whether an alert or the like is open."""
        from selenium.common.exceptions import NoAlertPresentException

        try:
            self.driver.switch_to.alert.dismiss()
        except NoAlertPresentException:
            return False
        return True

    def requests(self) -> list[Request]:
        """What was asked for since the last `reset`."""
        self._note()
        return list(self._requests)

    def _note(self) -> None:
        self._said += [Said(entry["source"], entry["level"], entry["message"]) for entry in self.driver.get_log("browser")]
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                request = message["params"]["request"]
                self._requests.append(Request(request["url"], request.get("postData"), request["headers"]))

    # What is on it

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def text(self, css: str) -> str:
        """As it is read: of the first such element."""
        return str(self.js("return document.querySelector(arguments[0]).innerText", css))

    def texts(self, css: str) -> list[str]:
        """Of all such elements that are shown."""
        script = "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).map(e => e.innerText)"
        return list(self.js(script, css))

    def widths(self, css: str) -> list[float]:
        """In pixels, as drawn."""
        return list(self.js("return [...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect().width)", css))

    def is_shown(self, css: str) -> bool:
        return bool(self.js("return document.querySelector(arguments[0])?.checkVisibility() ?? false", css))

    def overflow(self, css: str = "html") -> float:
        """By how many pixels its content is wider than it is."""
        return float(self.js("const e = document.querySelector(arguments[0]); return e.scrollWidth - e.clientWidth", css))

    def style(self, css: str, name: str) -> str:
        """A computed value."""
        return str(self.js("return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", css, name))

    def names(self, css: str) -> list[str]:
        """What assistive technology calls these elements. Browsers differ in the spaces around a label's text."""
        return [element.accessible_name.strip() for element in self.driver.find_elements(self._css, css)]

    def roles(self, css: str) -> list[str]:
        """What assistive technology takes these elements for."""
        return [element.aria_role for element in self.driver.find_elements(self._css, css)]

    def focused(self) -> str:
        """The id of what has the focus, or else its tag and text."""
        return str(self.js("const e = document.activeElement; return e.id || `${e.tagName.toLowerCase()} ${e.innerText}`"))

    def wait_for(self, css: str, *words: str, timeout_s: float = 30.0) -> str:
        """Wait until the element is shown and its text has these words. Returns it."""
        seen = {"text": ""}

        def has() -> bool:
            seen["text"] = self.text(css) if self.is_shown(css) else ""
            return self.is_shown(css) and all(word in seen["text"] for word in words)

        wait_until(has, timeout_s, lambda: f"{words} in {css}, where {seen['text']!r} is,")
        return seen["text"]

    # What a user does

    def click(self, css: str) -> None:
        self.driver.find_element(self._css, css).click()

    def write(self, css: str, text: str) -> None:
        """Instead of what is there."""
        element = self.driver.find_element(self._css, css)
        element.clear()
        element.send_keys(text)

    def paste(self, css: str, text: str) -> None:
        """The same at once, for long texts."""
        self.driver.find_element(self._css, css).clear()
        self.click(css)
        self.driver.execute_cdp_cmd("Input.insertText", {"text": text})

    def choose(self, css: str, value: str) -> None:
        """Choose an option of a select by its value."""
        from selenium.webdriver.support.select import Select

        Select(self.driver.find_element(self._css, css)).select_by_value(value)

    def press(self, *keys: str, holding: Sequence[str] = ()) -> None:
        """Keys by name (`TAB`) or as text, one after the other, to what has the focus."""
        from selenium.webdriver import ActionChains

        for key in keys:
            chain = ActionChains(self.driver, duration=0)
            held = [getattr(self._keys, name) for name in holding]
            for one in held:
                chain.key_down(one)
            chain.send_keys(getattr(self._keys, key, key))
            for one in held:
                chain.key_up(one)
            chain.perform()
