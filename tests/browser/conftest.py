"""A real sweep, its dashboard and a headless browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from tests.cli.commands import environment

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CONFIG = Path(__file__).parent / "sweep.yaml"
PICTURES = "TOKENPRUNE_SCREENSHOTS"
"""Variable with the folder that gets the screenshots of the documents (`make screenshots`)."""

PLACE = "TOKENPRUNE_SWEPT"
"""Variable with a directory for the sweep; what is finished there is not run again."""

NIGHTLY = "TOKENPRUNE_NIGHTLY"
"""Variable under which a missing browser is a failure."""

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",  # Chromium's own sandbox needs a user namespace, which containers and root lack
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # what a browser asks the network for on its own
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_SIZE = {"width": 1480, "height": 900}
# the page opens a chat pane once per browser, for a service that is not there
_NO_CHAT = 'localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")'


@dataclass(frozen=True)
class Swept:
    """A finished sweep and what its command said."""

    directory: Path
    said: str


@dataclass(frozen=True)
class Served:
    """A running dashboard: its address, and the addresses of the views that the command printed, by name."""

    address: str
    links: dict[str, str]

    def link(self, kind: str) -> str:
        """Address of the first view of a kind."""
        return next(link for name, link in self.links.items() if name.partition(":")[0] == kind)


def missing(what: str) -> NoReturn:
    """Fail where the run is meant to have a browser, skip elsewhere."""
    text = f"{what}: `apt-get install -y chromium` and `make env` bring what the browser tests need"
    if os.environ.get(NIGHTLY):
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium, the system's own."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        missing("there is no Chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=list(_FLAGS))
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def swept(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """The sweep of `sweep.yaml`; without a browser nobody needs it."""
    directory = Path(os.environ.get(PLACE) or tmp_path_factory.mktemp("swept") / "demo")
    command = [sys.executable, "-m", "tokenprune", "sweep", str(CONFIG), "--out", str(directory), "--quiet"]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1500, check=False)
    assert ran.returncode == 0, ran.stderr
    return Swept(directory, ran.stderr)


@pytest.fixture(scope="session")
def served(swept: Swept, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`tokenprune ui` on it, on a free port."""
    log = tmp_path_factory.mktemp("ui") / "out.txt"
    command = [sys.executable, "-m", "tokenprune", "ui", str(swept.directory)]
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=environment(), stdout=stream, stderr=subprocess.STDOUT)
    try:
        yield _addresses(process, log)
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh window."""
    context = browser.new_context(viewport=_SIZE)  # type: ignore[arg-type]
    context.add_init_script(_NO_CHAT)
    window = context.new_page()
    window.set_default_timeout(180_000)  # a page of MLflow on a busy machine
    yield window
    context.close()


@pytest.fixture
def shoot(tmp_path: Path) -> Callable[[Any, str], Path]:
    """Take a screenshot, for the documents where they are wanted."""
    folder = Path(os.environ.get(PICTURES) or tmp_path)

    def take(window: Any, name: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.png"
        window.screenshot(path=path, animations="disabled")
        return path

    return take


def _addresses(process: subprocess.Popen[bytes], log: Path) -> Served:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and process.poll() is None:
        text = log.read_text()
        if "Ctrl-C ends it" in text:
            links = dict(re.findall(r"^  (\S.*?)  +(http\S+)$", text, flags=re.MULTILINE))
            (address,) = re.findall(r"^dashboard: (\S+)$", text, flags=re.MULTILINE)
            return Served(address, links)
        time.sleep(0.5)
    raise AssertionError(f"`tokenprune ui` did not come up:\n{log.read_text()}")
