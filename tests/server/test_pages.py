"""The documentation pages in a real browser: they render, ask nobody but us, and run operations.

``SCREENSHOTS=docs/images`` in the environment keeps the picture that the documentation shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from playwright.async_api import Browser, FloatRect, Page, async_playwright, expect

from tests.programs import ROOT, Fleet

ASSETS = ROOT / "src" / "reemote" / "server" / "assets"
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 20_000  # milliseconds: a busy machine renders slowly
LISTEN_TO_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", event =>
    window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`));
"""

pytestmark = pytest.mark.xdist_group("pages")  # a browser and a server are started once

in_browser = pytest.mark.asyncio(loop_scope="module")
needs_chromium = pytest.mark.skipif(
    not shutil.which(CHROMIUM) and "CI" not in os.environ, reason=f"there is no {CHROMIUM}"
)


class Seen(NamedTuple):
    """What a page did that a person does not see."""

    requests: list[str]
    complaints: list[str]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("server104", "server105") as hosts:
        yield hosts


@pytest.fixture(scope="module")
def url(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a process of its own, which all tests call."""
    inventory, home = fleet.write(tmp_path_factory.mktemp("server")), tmp_path_factory.mktemp("home")
    command = [sys.executable, "-m", "reemote", "serve", "--port", "0", "--inventory", str(inventory)]
    environment = {name: os.environ[name] for name in os.environ if not name.startswith(("XDG_", "REEMOTE_", "SSH_"))}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**environment, "HOME": str(home)}
    ) as process:
        assert process.stdout is not None
        try:
            match = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            assert match is not None, "the server did not start"
            yield match[0]
        finally:
            process.terminate()
            process.wait(10)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One browser; each test has a window of its own in it, with nothing kept from others."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    context = await browser.new_context(viewport={"width": 1280, "height": 1000}, service_workers="block")
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page = await context.new_page()
    await page.add_init_script(LISTEN_TO_VIOLATIONS)
    yield page
    await context.close()


@pytest.fixture
def seen(page: Page) -> Seen:
    seen = Seen([], [])
    page.context.on("request", lambda request: seen.requests.append(request.url))
    page.on("console", lambda message: seen.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("requestfailed", lambda request: seen.complaints.append(f"{request.url}: {request.failure}"))
    return seen


async def check(page: Page, seen: Seen, url: str) -> None:
    """Nobody else was asked, and nothing went wrong behind the scenes."""
    elsewhere = [each for each in seen.requests if not each.startswith((f"{url}/", "data:", f"blob:{url}/"))]
    assert elsewhere == []
    assert f"{url}/openapi.json" in seen.requests
    assert seen.complaints == []
    assert await page.evaluate("window.violations") == []


async def open_shell(page: Page, url: str) -> Any:
    """Open the operation Shell on the page of operations."""
    await page.goto(f"{url}/docs")
    operation = page.locator("#operations-host-host_shell")
    await operation.locator(".opblock-summary-control").click()
    await expect(operation.locator(".try-out__btn")).to_be_visible()
    return operation


async def take_picture(page: Page, path: Path, operation: Any, answer: Any) -> None:
    """Take a picture of an operation, from its top to its answer."""
    await operation.locator("textarea.body-param__text").evaluate("area => { area.style.minHeight = '70px'; }")
    top, bottom = await operation.bounding_box(), await answer.bounding_box()
    scrolled = await page.evaluate("window.scrollY")
    height = bottom["y"] + bottom["height"] + 12 - top["y"]
    clip = FloatRect(x=top["x"], y=top["y"] + scrolled, width=top["width"], height=height)
    await page.screenshot(path=path, clip=clip, full_page=True)


@pytest.mark.slow
@needs_chromium
@in_browser
async def test_the_page_of_operations_shows_all_of_them(page: Page, seen: Seen, url: str) -> None:
    await page.goto(f"{url}/docs")
    await expect(page.locator(".info .title")).to_contain_text("Reemote")
    document = await (await page.request.get(f"{url}/openapi.json")).json()
    expected = [details["summary"] for methods in document["paths"].values() for details in methods.values()]
    await expect(page.locator(".opblock-summary-description")).to_have_count(len(expected))
    assert sorted(await page.locator(".opblock-summary-description").all_text_contents()) == sorted(expected)
    assert await page.locator(".errors-wrapper").count() == 0
    await check(page, seen, url)


@pytest.mark.slow
@needs_chromium
@in_browser
async def test_the_reference_page_shows_all_of_them(page: Page, seen: Seen, url: str) -> None:
    await page.goto(f"{url}/redoc")
    await expect(page.get_by_role("heading", name=re.compile("Reemote"))).to_be_visible()
    for heading in ("Run a shell command on the host", "Get the context of the host", "Add a host"):
        await expect(page.locator("h2", has_text=heading)).to_have_count(1)
    await check(page, seen, url)


@pytest.mark.slow
@needs_chromium
@in_browser
async def test_an_operation_can_be_tried_out(page: Page, seen: Seen, url: str, tmp_path: Path, fleet: Fleet) -> None:
    operation = await open_shell(page, url)
    await operation.locator(".try-out__btn").click()
    await operation.locator('tr[data-param-name="cmd"] input').fill("echo Hello World! | tee said")
    await operation.locator(".execute").click()
    answer = operation.locator(".live-responses-table .response-col_description pre").first
    await expect(answer).to_be_visible()

    responses = json.loads(await answer.inner_text())
    assert [(each["host"], each["value"]["stdout"]) for each in responses] == [
        ("server104", "Hello World!\n"),
        ("server105", "Hello World!\n"),
    ]
    for name in ("server104", "server105"):
        assert (fleet.home(name) / "said").read_text() == "Hello World!\n", "it ran on the host"
    await check(page, seen, url)

    picture = Path(os.environ.get("SCREENSHOTS", tmp_path)) / "docs-shell.png"
    await take_picture(page, picture, operation, answer)
    assert picture.stat().st_size < 300_000


@pytest.mark.slow
@needs_chromium
@in_browser
async def test_a_refused_request_shows_why(page: Page, url: str) -> None:
    operation = await open_shell(page, url)
    await operation.locator(".try-out__btn").click()
    await operation.locator('tr[data-param-name="cmd"] input').fill("true")
    await operation.locator("textarea.body-param__text").fill('{"connection": {"proxy_command": "true"}}')
    await operation.locator(".execute").click()
    answers = operation.locator(".live-responses-table")
    await expect(answers.locator(".response-col_status").nth(1)).to_contain_text("422")
    await expect(answers).to_contain_text("proxy_command may not be given over HTTP")


def test_the_assets_are_those_that_were_fetched() -> None:
    manifest = json.loads((ASSETS / "manifest.json").read_text())
    ours = {"manifest.json", "swagger-start.js", "redoc-start.js"}
    assert {file.name for file in ASSETS.iterdir()} == manifest.keys() | ours
    for name, entry in manifest.items():
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == entry["sha256"], name


def test_each_asset_of_others_has_its_licence() -> None:
    manifest = json.loads((ASSETS / "manifest.json").read_text())
    for name, entry in manifest.items():
        licences = [
            other
            for other, each in manifest.items()
            if each["package"] == entry["package"] and other.endswith("LICENSE.txt")
        ]
        assert licences, name
        assert all("licen" in (ASSETS / licence).read_text().lower() for licence in licences)


def test_the_assets_name_no_address_that_a_page_would_load_from() -> None:
    for file in ASSETS.glob("*.js"):
        assert "cdn.redoc.ly" not in file.read_text(), file.name
        assert "sourceMappingURL=" not in "".join(line[:40] for line in file.read_text().splitlines()), file.name
