"""A browser, and doors of real stacks."""

import base64
import io
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from PIL import Image

from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from demo.drawing import draw
from demo.scenes import HELD_OUT_SEEDS, make_scene
from tandem.stack import Stack, StackConfig
from tandem.stack.process import ServiceProcess
from tests.end_to_end.cluster import TAG, Cluster

DEMO_MODELS = Path(__file__).parents[3] / "models"
STABLE, CANARY = "tandem-demo-v1.0.0", "tandem-demo-v1.1.0"
SIZES = {"desktop": {"width": 1280, "height": 860}, "phone": {"width": 390, "height": 844}}
READY_S = 60
_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--font-render-hinting=none"),
]
# Sends events with files, as a browser does when a visitor drops or pastes some.
_BRING = """([images, kind, name, types]) => {
    const transfer = new DataTransfer();
    images.forEach((image, index) => {
        const bytes = Uint8Array.from(atob(image), (one) => one.charCodeAt(0));
        transfer.items.add(new File([bytes], `image-${index}.png`, {type: 'image/png'}));
    });
    for (const type of types) {
        const target = document.elementFromPoint(200, 400);
        target.dispatchEvent(new window[kind](type, {bubbles: true, cancelable: true, [name]: transfer}));
    }
}"""


@contextmanager
def running_door(gateway: str, *flags: str) -> Iterator[str]:
    """Yield the address of an HTTP door of a gateway."""
    changed = threading.Condition()
    arguments = ["--listen", "127.0.0.1:0", "--gateway", gateway, "--log-format", "json", *flags]
    log: list[str] = []
    door = ServiceProcess("http", "http_gateway", arguments, lambda _name, line: log.append(line), changed)
    door.start()
    try:
        with changed:
            assert changed.wait_for(lambda: door.ready or door.exit_code is not None, READY_S)
        assert door.ready, log
        yield f"http://127.0.0.1:{door.ready['port']}"
    finally:
        door.kill()


@dataclass
class DemoStack:
    """Addresses of the demo's gateway and door."""

    gateway: str
    url: str


@contextmanager
def running_demo(release: str) -> Iterator[DemoStack]:
    """Yield the demo's services and their door."""
    flags = ["--refresh-s", "0.3", "--rollout-tick-s", "0.1"]
    config = StackConfig(models=DEMO_MODELS, release=release, threads=2, drain_s=2, gateway_flags=flags, http_port=0)
    with Stack(config) as stack:
        yield DemoStack(stack.address, f"http://{stack.address_of('http')}")


@pytest.fixture(scope="session")
def demo() -> Iterator[DemoStack]:
    with running_demo(CANARY) as demo:
        yield demo


@dataclass
class TinyStack:
    """Services that can be killed, and their door.

    Their random model answers long.
    """

    cluster: Cluster
    url: str


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyStack]:
    store = tmp_path_factory.mktemp("long")
    preset = RESAMPLER_PRESETS["tiny"]
    longer = preset.language.model_copy(update={"context_length": 16_384})
    create_checkpoint(store, TAG, preset.model_copy(update={"language": longer}))
    with Cluster(store) as cluster, running_door(cluster.address("gateway-0")) as url:
        yield TinyStack(cluster, url)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Yield a browser.

    For one module: its driver would disturb the event loops of others.
    """
    assert "TANDEM_NODE" in os.environ, "run these tests by `make test-http`, which brings the browser"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that must not complain, nor ask other servers."""

    page: Any
    size: str
    url: str
    complaints: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("console", lambda message: self._note(message))
        self.page.on("request", lambda request: self._check(request.url))

    def ask(self, question: str) -> None:
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")

    def wait_for_answer(self, status: str = "done") -> str:
        """Wait for the last answer's end and return its text."""
        self.page.wait_for_selector(f"#turns > li:last-child[data-status={status}]", timeout=20_000)
        text: str = self.page.inner_text("#turns > li:last-child .answer-text")
        return text

    def wait_until(self, expression: str, within_s: float = 20) -> None:
        """Wait until an expression is true.

        The driver's own wait evaluates strings, which the page forbids.
        """
        end_s = time.monotonic() + within_s
        while not self.page.evaluate(expression):
            assert time.monotonic() < end_s, expression
            self.page.wait_for_timeout(20)

    def levels(self) -> list[str]:
        """Return the cache levels in the last report."""
        badges = self.page.query_selector_all("#turns > li:last-child .report-images .badge")
        return [badge.inner_text() for badge in badges]

    def drop(self, *images: bytes) -> None:
        """Drop images on the page."""
        self._bring(images, "DragEvent", "dataTransfer", ["dragenter", "dragover", "drop"])

    def paste(self, *images: bytes) -> None:
        """Paste images."""
        self._bring(images, "ClipboardEvent", "clipboardData", ["paste"])

    def _bring(self, images: tuple[bytes, ...], kind: str, name: str, types: list[str]) -> None:
        """Send the events of a visitor with images."""
        before = len(self.page.query_selector_all("#attachments li"))
        encoded = [base64.b64encode(image).decode() for image in images]
        self.page.evaluate(_BRING, [encoded, kind, name, types])
        self.page.wait_for_selector(f"#attachments li:nth-child({before + len(images)})")

    def _note(self, message: Any) -> None:
        # A failed call is shown to the visitor. The browser logs it, too.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.complaints.append(f"{message.type}: {message.text}")

    def _check(self, url: str) -> None:
        if not url.startswith((f"{self.url}/", f"blob:{self.url}/")):
            self.complaints.append(f"asked {url}")


Open = Callable[..., Visit]


# For tests that the short form runs at both widths. It runs the others only at that of a desktop.
at_both_widths = pytest.mark.parametrize("size", list(SIZES), indirect=True)


@pytest.fixture(params=["desktop", pytest.param("phone", marks=pytest.mark.slow)])
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def visit(chromium: Any, size: str) -> Iterator[Open]:
    """Return `visit(url, **context)`, which opens a fresh browser."""
    contexts, visits = [], []

    def open_page(url: str, path: str = "/", **options: Any) -> Visit:
        options = {"locale": "en-GB", "reduced_motion": "no-preference", **options}
        phone = {"is_mobile": True, "has_touch": True, "device_scale_factor": 2} if size == "phone" else {}
        context = chromium.new_context(viewport=SIZES[size], **phone, **options)
        contexts.append(context)
        made = Visit(context.new_page(), size, url)
        made.watch()
        visits.append(made)
        made.page.goto(f"{url}{path}")
        return made

    yield open_page
    for context in contexts:
        context.close()
    assert not [complaint for one in visits for complaint in one.complaints]


@pytest.fixture(scope="session")
def make_scene_image() -> Callable[[], bytes]:
    """Return a function that draws images no cache has seen."""
    seeds = iter(HELD_OUT_SEEDS)

    def make() -> bytes:
        file = io.BytesIO()
        draw(make_scene(next(seeds))).save(file, "PNG")
        return file.getvalue()

    return make


class Keep(Protocol):
    """Saves what the browser shows if TANDEM_SCREENS is set."""

    def __call__(self, visit: Visit, name: str, *, full_page: bool = False) -> None: ...


@pytest.fixture
def keep_screen(size: str) -> Keep:
    def keep(visit: Visit, name: str, *, full_page: bool = False) -> None:
        if "TANDEM_SCREENS" in os.environ:
            visit.page.mouse.move(0, 0)
            visit.page.wait_for_timeout(600)  # the end of all motion
            path = Path(os.environ["TANDEM_SCREENS"]) / f"page-{name}-{size}.png"
            visit.page.screenshot(path=path, full_page=full_page)
            Image.open(path).quantize(256).save(path, optimize=True)  # a third of the bytes

    return keep
