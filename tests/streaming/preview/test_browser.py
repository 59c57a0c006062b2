"""The page in a real browser: what it shows, and what a page of another origin can do with it."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcmoe_det.streaming.preview import PreviewServer
from tests.streaming.preview.made import TOKEN, committee_record, request, result, summary

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.skipif(
        CHROMIUM is None or CHROMEDRIVER is None, reason="chromium and chromedriver are not installed"
    ),
]

# A page of another origin that tries what it can; what came of each attempt is in ``window.results``.
ATTACK = """<!doctype html><title>elsewhere</title><iframe id="frame" src="{url}"></iframe><script>
window.results = {{}};
const note = (name, text) => {{ window.results[name] = text; }};
for (const path of ["metrics", "state", "healthz", "picture", ""]) {{
  fetch("{url}" + path, {{credentials: "include"}})
    .then((answer) => answer.text()).then((text) => note("read " + path, "read: " + text), () => note("read " + path, "refused"));
  fetch("{url}" + path, {{mode: "no-cors", credentials: "include"}})
    .then((answer) => answer.text()).then((text) => note("blind " + path, text ? "read: " + text : "refused"), () => note("blind " + path, "refused"));
}}
const image = new Image();
image.onload = () => note("image", "shown"); image.onerror = () => note("image", "refused"); image.src = "{url}picture";
const script = document.createElement("script");
script.onload = () => note("script", "ran"); script.onerror = () => note("script", "refused");
script.src = "{url}charts.js"; document.head.append(script);
</script>"""  # noqa: E501
ATTEMPTS = 12


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",  # a container has no user name spaces; the pages are our own
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--window-size=1280,1000",
        "--host-resolver-rules=MAP rebound.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, "
        "EXCLUDE localhost",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=CHROMEDRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(30)
    yield driver
    driver.quit()


class MovingStream:
    """A server with one stream whose pictures, numbers and experts change until it is left."""

    def __init__(self, **options: Any) -> None:
        self.shift = 0
        self.grey = 60
        self.server = PreviewServer(
            0,
            summaries=lambda: [summary("street", dropped={"replaced_by_newer": 4})],
            committee=self._committee,
            **options,
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _committee(self) -> dict[str, Any]:
        record = committee_record(layers=4, experts=32, resident=16)
        for layer in record["layers"]:
            layer["resident"] = [(expert + self.shift) % 32 for expert in range(16)]
            layer["incoming"] = [(16 + self.shift) % 32]
        return record

    def _run(self) -> None:
        sink = self.server.sink("street")
        index = 0
        while not self._ended.wait(0.02):
            picture = np.full((48, 64, 3), self.grey, np.uint8) if sink.needs_picture else None
            sink.write(result(index, total_ms=40.0), picture)
            index += 1

    def __enter__(self) -> MovingStream:
        self.server.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)
        self.server.close()


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline_seconds = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline_seconds, what
        time.sleep(0.05)
    return found


def grey_shown(browser: Any) -> float:
    return browser.execute_script(
        "const shown = document.querySelector('canvas');"
        "if (!shown || shown.width !== 64) return -1;"
        "const copy = new OffscreenCanvas(64, 48).getContext('2d', {willReadFrequently: true});"
        "copy.drawImage(shown, 0, 0);"
        "return copy.getImageData(30, 20, 1, 1).data[0];"
    )


def text_of(browser: Any, selector: str) -> str:
    found = browser.find_elements("css selector", selector)
    return found[0].text if found else ""


def complaints(browser: Any) -> list[dict[str, Any]]:
    return [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


@contextmanager
def other_origin(folder: Path) -> Iterator[int]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(10)


def test_the_page_shows_the_stream_as_it_changes(browser: Any) -> None:
    browser.get_log("browser")
    with MovingStream() as stream:
        browser.get(stream.server.url)
        wait_for(lambda: abs(grey_shown(browser) - 60) < 4, "the picture shows")
        stream.grey = 200
        wait_for(lambda: abs(grey_shown(browser) - 200) < 4, "the picture changes")
        assert text_of(browser, ".stream h2") == "street"
        assert text_of(browser, "#status") == "ok"
        assert "4 replaced by newer" in text_of(browser, ".events")

        def frames() -> int:
            return int(text_of(browser, ".tiles div:nth-child(4) dd") or 0)

        before = wait_for(frames, "frames are counted")
        wait_for(lambda: frames() > before, "the count goes on")
        wait_for(lambda: text_of(browser, ".tiles div:nth-child(2) dd").startswith("40"), "latency is shown")
        wait_for(lambda: float(text_of(browser, ".tiles dd").strip("-") or 0) > 1, "a rate is shown")
        curve = "return document.querySelector('.rate .curve').getAttribute('d').split('L').length"
        wait_for(lambda: browser.execute_script(curve) >= 2, "the curve grows")

        cells = "return document.querySelectorAll('#grid .cell').length"
        assert browser.execute_script(cells) == 4 * 32
        classes = "return [...document.querySelectorAll('#grid .cells')[3].children].map(c => c.className)"
        first = wait_for(lambda: browser.execute_script(classes), "experts are shown")
        assert [("resident" in name) for name in first] == [True] * 16 + [False] * 16
        assert "used" in first[0]
        assert "used" in first[31]
        assert "incoming" in first[16]
        stream.shift = 4
        wait_for(
            lambda: (
                ["resident" in name for name in browser.execute_script(classes)]
                == [False] * 4 + [True] * 16 + [False] * 12
            ),
            "the grid follows the committee",
        )
        assert "3.0 MiB of 4.0 MiB budget" in text_of(browser, "#memory-text")
        assert text_of(browser, "#committee-tiles div:nth-child(3) dd").startswith("400")
        assert complaints(browser) == []
    wait_for(lambda: "does not answer" in text_of(browser, "#notice"), "the end is shown")


def test_nothing_is_wider_than_a_phone(browser: Any) -> None:
    with MovingStream() as stream:
        browser.get(stream.server.url)
        wait_for(lambda: grey_shown(browser) > 0, "the picture shows")
        metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        try:
            assert browser.execute_script("return document.documentElement.scrollWidth") == 360
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_without_a_committee_there_is_no_grid(browser: Any) -> None:
    with PreviewServer(0, summaries=list, committee=lambda: None) as server:
        browser.get(server.url)
        wait_for(lambda: "No stream yet" in text_of(browser, "#notice"), "the page says that it waits")
        server.sink("<img src=x onerror=alert(1)>").write(result(), None)
        wait_for(lambda: text_of(browser, ".stream h2") == "<img src=x onerror=alert(1)>", "names are text")
        assert not browser.find_element("css selector", "#committee").is_displayed()


def test_a_page_of_another_origin_can_neither_read_nor_embed(browser: Any, tmp_path: Path) -> None:
    with MovingStream() as stream, other_origin(tmp_path) as port:
        (tmp_path / "index.html").write_text(ATTACK.format(url=stream.server.url))
        browser.get(stream.server.url)  # as somebody who has the page open, too
        wait_for(lambda: grey_shown(browser) > 0, "the picture shows")
        for host in ("127.0.0.1", "localhost"):  # the same site by another port, and another site
            browser.get(f"http://{host}:{port}/")
            wait_for(
                lambda: browser.execute_script(f"return Object.keys(results).length === {ATTEMPTS}"), host
            )
            results = browser.execute_script("return results")
            assert set(results.values()) == {"refused"}, results
            browser.switch_to.frame("frame")
            assert "Committee" not in browser.page_source
            browser.switch_to.default_content()
        # The attempts themselves are sound: from the server's own origin the same read works.
        browser.get(stream.server.url)
        own = "return fetch('metrics').then(answer => answer.text())"
        assert "pcmoe_results_total" in browser.execute_script(own)


def test_a_name_that_was_rebound_to_this_machine_is_refused(browser: Any) -> None:
    with MovingStream() as stream:
        browser.get(f"http://rebound.example:{stream.server.port}/metrics")
        assert "not known under that name" in browser.page_source
        assert "pcmoe_" not in browser.page_source


def test_the_token_is_asked_for_once(browser: Any) -> None:
    with MovingStream(token=TOKEN) as stream:
        browser.get(stream.server.url)
        assert "needs its token" in browser.page_source
        browser.get(f"{stream.server.url}?token={TOKEN}")
        assert browser.current_url == stream.server.url
        wait_for(lambda: grey_shown(browser) > 0, "the picture shows")
        assert browser.execute_script("return document.cookie") == ""
        assert request(stream.server.port, "/state").status == 401
