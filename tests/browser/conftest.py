"""Fixtures of the browser tests: Chromium, a JupyterLab server, and pages in it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from .explorer import Explorer, Latency
from .lab import REPOSITORY, LabServer, NotebookPage

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).parent
SCREENSHOTS = REPOSITORY / "build" / "browser"
PAGES = pytest.StashKey[list[NotebookPage]]()
LATENCIES = pytest.StashKey[list[str]]()
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]  # a container has no user namespaces, shared memory or GPU


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests in this folder, and leave them out of a plain `pytest`: they take minutes and need a browser."""
    named = [Path(config.invocation_params.dir, argument.split("::")[0]).resolve() for argument in config.args]
    asked = any(HERE in (path, *path.parents) for path in named) or "browser" in (config.option.markexpr or "")
    mine = [item for item in items if HERE in item.path.parents]
    for item in mine:
        item.add_marker(pytest.mark.browser)
    if not asked and mine:
        items[:] = [item for item in items if item not in mine]
        config.hook.pytest_deselected(items=mine)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Beside a failure, show the end of JupyterLab's log and save what each page of the test looked like."""
    report = yield
    if report.failed and report.when != "teardown":
        pages: list[NotebookPage] = item.stash.get(PAGES, [])
        for number, page in enumerate(pages, 1):
            file = SCREENSHOTS / (re.sub(r"[^\w.-]+", "-", item.name).strip("-") + (f"-{number}" if number > 1 else "") + ".png")
            try:
                page.screenshot(file)
                report.sections.append(("Screenshot", str(file.relative_to(REPOSITORY))))
            except Exception as error:  # a page that has crashed must not hide the failure itself
                report.sections.append(("Screenshot", f"none: {error}"))
        server = getattr(item, "funcargs", {}).get("lab_server")
        if isinstance(server, LabServer):
            report.sections.append(("JupyterLab log, last lines", "\n".join(server.log().splitlines()[-60:])))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the latencies, which are reported and never asserted."""
    lines = config.stash.get(LATENCIES, [])
    if lines:
        terminalreporter.section("explorers: key press to changed picture")
        for line in lines:
            terminalreporter.write_line(line)


def unavailable(reason: str) -> NoReturn:
    """Skip, or fail on CI: there a browser that has gone missing must be noticed."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (CI is set, so this is a failure and not a skip)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium_path() -> Path:
    """The Chromium to drive: `COURSEKIT_CHROMIUM`, else the first on PATH."""
    named = os.environ.get("COURSEKIT_CHROMIUM")
    if named:
        if not os.access(named, os.X_OK):
            unavailable(f"COURSEKIT_CHROMIUM={named} is not an executable; point it at a Chromium, or unset it to search PATH")
        return Path(named)
    names = ("chromium", "chromium-browser", "google-chrome")
    for found in filter(None, map(shutil.which, names)):
        return Path(found)
    unavailable(f"none of {', '.join(names)} is on PATH; install one (Debian: apt install chromium) or set COURSEKIT_CHROMIUM to its path")


@pytest.fixture(scope="session")
def browser(chromium_path: Path) -> Iterator[Browser]:
    """One headless Chromium for all tests."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("Playwright is not installed: pip install 'playwright>=1.45,<2' (its own browsers are not needed)")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def lab_server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """A JupyterLab that serves copies of the notebooks. Asks for the browser first: without one no server is started."""
    try:
        import ipywidgets  # noqa: F401
        import jupyterlab  # noqa: F401
    except ImportError as error:
        unavailable(f"{error.name} is not installed: pip install -e '.[lab,test]'")
    server = LabServer(tmp_path_factory.mktemp("jupyterlab"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def open_notebook(request: pytest.FixtureRequest, browser: Browser, lab_server: LabServer) -> Iterator[Callable[..., NotebookPage]]:
    """Opens a notebook in a fresh browser profile: `open_notebook(path)`; its kernel ends with the test."""
    pages: list[NotebookPage] = request.node.stash.setdefault(PAGES, [])

    def open_(path: str, mode: str = "doc") -> NotebookPage:
        page = NotebookPage(lab_server, browser.new_context(viewport={"width": 1280, "height": 1000}))
        pages.append(page)
        page.open(path, "lab" if mode == "lab" else "doc")
        return page

    yield open_
    for page in pages:
        page.close()


@pytest.fixture
def report_latency(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[[str, Explorer], None]:
    """Times every slider of an explorer and adds the medians to the report; asserts nothing about them."""

    def report(name: str, explorer: Explorer) -> None:
        lines = request.config.stash.setdefault(LATENCIES, [])
        for control in explorer.controls:
            if control.kind == "slider":
                latency: Latency = explorer.latency(control)
                record_property(f"latency_ms {name} {control.label}", [round(sample, 1) for sample in latency.samples])
                lines.append(f"{name}, {latency}")
                print(lines[-1])

    return report
