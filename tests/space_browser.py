"""The page of examples/space in a headless Chromium; as a script, the screenshots of the documentation.

python tests/space_browser.py runs/demo/pipeline runs/demo-conditional/pipeline
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import ElementNotInteractableException, StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parents[1]
SECONDS = 60  # at most, until something happens
NOT_YET = (StaleElementReferenceException, ElementNotInteractableException)  # the page is being changed
ERROR = ".toast-body.error"
# Without a graphics card; the canvas is drawn with WebGL.
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--use-angle=swiftshader")
NINE = (
    (60, -85),
    (-10, -105),
    (-50, -70),
    (-25, -25),
    (35, -35),
    (60, -85),
    (55, 10),
    (25, 105),
)  # pixels from the center


class Space:
    """The page with what a user does on it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def find(self, selector: str) -> WebElement:
        """Returns an element as soon as it is there."""
        return self.wait(lambda: self.driver.find_elements(By.CSS_SELECTOR, selector))[0]

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Waits for something true, and returns it."""
        waiting = WebDriverWait(self.driver, SECONDS, 0.2, ignored_exceptions=NOT_YET)
        return waiting.until(lambda driver: condition())

    def text(self, element_id: str, part: str) -> str:
        """Returns the text of an element as soon as it holds a part."""
        shown: list[str] = []

        def holds() -> bool:
            shown.append(self.find(f"#{element_id}").text)
            return part in shown[-1]

        try:
            self.wait(holds)
        except Exception as error:
            raise AssertionError(f"{part!r} is not shown in #{element_id}, but {shown[-1:]!r}") from error
        return shown[-1]

    def click(self, selector: str) -> None:
        """Clicks an element as soon as that is possible."""

        def clicked() -> bool:
            element = self.find(selector)
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            if element.is_enabled():
                element.click()
            return element.is_enabled()

        self.wait(clicked)

    def enter(self, selector: str, text: str) -> None:
        """Replaces the text of a field, and leaves it."""
        field = self.find(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE, text, Keys.TAB)

    def load(self, name: str | os.PathLike) -> None:
        self.enter("#generator textarea, #generator input", str(name))
        self.click("#load")

    def draw_nine(self) -> None:
        """Draws a nine with the mouse."""
        self.click("#canvas button[aria-label=Brush]")
        canvas = self.find("#canvas canvas")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        pen = ActionChains(self.driver, duration=60).move_to_element_with_offset(canvas, *NINE[0]).click_and_hold()
        for (x, y), (to_x, to_y) in itertools.pairwise(NINE):
            pen.move_by_offset(to_x - x, to_y - y)
        pen.release().perform()

    def error(self, part: str) -> str:
        """Returns the text of the message that holds a part, and closes it."""
        shown = self.wait(
            lambda: [one for one in self.driver.find_elements(By.CSS_SELECTOR, ERROR) if part in one.text]
        )
        text = shown[0].text
        self.click(f"{ERROR} button")
        self.wait(lambda: not self.driver.find_elements(By.CSS_SELECTOR, ERROR))
        return text

    def plot(self) -> str:
        """Returns the source of the figure as soon as there is one."""
        return self.find("#plot img").get_attribute("src")

    def save_screenshot(self, path: Path) -> None:
        """Writes the whole page."""
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        self.driver.set_window_size(1280, height + 150)
        self.driver.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
        self.find("body").screenshot(str(path))


@contextlib.contextmanager
def running_space(preset: str | os.PathLike) -> Iterator[str]:
    """Starts the app with a generator on a free port, and yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    app = subprocess.Popen([sys.executable, ROOT / "examples/space/app.py", preset], env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        while app.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address, timeout=1).close()
                break
        yield address
    finally:
        app.terminate()
        app.wait()


@contextlib.contextmanager
def open_browser() -> Iterator[webdriver.Chrome]:
    """Starts Debian's Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for option in (*OPTIONS, "--window-size=1280,1500"):
        options.add_argument(option)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def main(unconditional: str, conditional: str) -> None:
    """Saves a screenshot of the page with a generator of each kind, after a nine was drawn."""
    with running_space(unconditional) as address, open_browser() as driver:
        space = Space(driver)
        for name, file in ((unconditional, "space.png"), (conditional, "space_conditional.png")):
            driver.get(address)
            space.text("drawn", "Drawn: 10")
            if name == conditional:
                space.load(name)
                space.text("drawn", "Condition")
                space.find(".condition input:checked")
                while ticked := driver.find_elements(By.CSS_SELECTOR, ".condition input:checked"):
                    space.click(f".condition input[name='{ticked[0].get_attribute('name')}']")
                for prime in "2357":
                    space.click(f".condition input[name='{prime}']")
                space.click("#draw")
                space.text("drawn", "2, 3, 5, 7")
            space.draw_nine()
            space.text("prediction", "The ensemble predicts")
            space.plot()
            space.save_screenshot(ROOT / "docs/images" / file)


if __name__ == "__main__":
    main(*sys.argv[1:])
