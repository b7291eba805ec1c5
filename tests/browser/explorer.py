"""Explorers as a reader uses them: every control of every `.coursekit-explorer` on a page, by keyboard and by mouse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

from .lab import NotebookPage

if TYPE_CHECKING:
    from playwright.sync_api import ElementHandle, Locator

CHANGE_TIMEOUT = 20.0  # seconds for a picture to change; a fault takes this long to be seen, a success only what it needs


Kind = Literal["slider", "dropdown", "checkbox"]

# Integer, float and selection sliders alike hold a noUiSlider.
KINDS: dict[Kind, str] = {
    "slider": ".widget-slider",
    "dropdown": ".widget-dropdown",
    "checkbox": ".widget-checkbox",
}


@dataclass(frozen=True)
class Latency:
    """Times from key press to changed picture, in milliseconds, measured in the page."""

    control: str
    samples: tuple[float, ...]

    def __str__(self) -> str:
        ordered = sorted(self.samples)
        return f"{self.control}: median {median(ordered):.0f} ms, worst {ordered[-1]:.0f} ms, {len(ordered)} key presses"


@dataclass(frozen=True)
class Control:
    """One control of an explorer, named by the label beside it."""

    label: str
    kind: Kind
    element: Locator


class Explorer:
    """One explorer on the page: its controls and the picture that they change."""

    def __init__(self, notebook: NotebookPage, root: Locator) -> None:
        self.notebook = notebook
        self.root = root
        root.scroll_into_view_if_needed()
        pictures = root.locator("img")
        if pictures.count() != 1:
            raise AssertionError(f"an explorer shows {pictures.count()} <img>, expected one")
        handle = pictures.element_handle()
        assert handle is not None
        self.image: ElementHandle = handle
        self.controls = self._find_controls()

    def _find_controls(self) -> list[Control]:
        """The controls in reading order. Raises AssertionError on one that this module cannot drive: it would go untested."""
        found = [
            Control(self._label(element, f"{kind} {number}"), kind, element)
            for kind, selector in KINDS.items()
            for number, element in enumerate(self.root.locator(selector).all(), 1)
        ]
        inputs = "input, select, button, textarea, .noUi-target"
        unknown = self.root.locator(inputs).count() - sum(control.element.locator(inputs).count() for control in found)
        if unknown:
            raise AssertionError(f"an explorer has {unknown} controls that tests/browser/explorer.py cannot drive; add their kind there")
        if not found:
            raise AssertionError("an explorer has no controls")
        return found

    @staticmethod
    def _label(element: Locator, otherwise: str) -> str:
        labels = [text.strip(" \n\u200b") for text in element.locator(".widget-label, .widget-label-basic").all_inner_texts()]
        return next((text for text in labels if text), otherwise)

    def drive(self, timeout: float = CHANGE_TIMEOUT) -> None:
        """Use each control in each way that a reader has; after each the picture must be another one and nothing may have failed."""
        for control in self.controls:
            for action, act in self._actions(control).items():
                self._change(control, action, act, timeout)

    def _actions(self, control: Control) -> dict[str, Callable[[Control], None]]:
        if control.kind == "slider":
            return {"an arrow key": self._press, "a click on the track": self._click_track, "dragging the handle": self._drag}
        if control.kind == "dropdown":
            return {"choosing another option": self._choose}
        return {"a click": lambda control: control.element.locator("input").click()}

    def latency(self, control: Control, presses: int = 24, timeout: float = CHANGE_TIMEOUT) -> Latency:
        """Walk a slider by arrow keys, each pressed when the kernel is at rest, and time each picture."""
        page = self.notebook.page
        handle = control.element.locator(".noUi-handle").element_handle()
        watch = page.evaluate_handle("([handle, image]) => coursekit.stopwatch(handle, image)", [handle, self.image])
        key = "ArrowRight"
        for done in range(presses):
            self.notebook.settle()
            key = self._key_with_room(control, key)
            control.element.locator(".noUi-handle").press(key)
            page.wait_for_function("([watch, done]) => watch.samples.length > done", arg=[watch, done], timeout=timeout * 1000)
        samples = watch.evaluate("watch => watch.stop()")
        return Latency(control.label, tuple(samples))

    def _change(self, control: Control, action: str, act: Callable[[Control], None], timeout: float) -> None:
        from playwright.sync_api import TimeoutError as PlaywrightTimeout

        self.notebook.settle()
        source, before = self.image.evaluate("image => image.src"), self._fingerprint()
        act(control)
        problem = ""
        try:
            self.notebook.page.wait_for_function(
                "([image, source]) => image.src !== source", arg=[self.image, source], timeout=timeout * 1000
            )
        except PlaywrightTimeout:
            problem = f"{action} on {control.label!r} did not change the picture within {timeout:g} s"
        self.notebook.settle()
        if not problem and self._fingerprint() == before:
            problem = f"{action} on {control.label!r} redrew the same picture"
        errors = self.notebook.errors()
        if errors and not problem:
            problem = f"{action} on {control.label!r} caused an error"
        if problem:
            raise AssertionError("\n".join([problem, *errors]))

    def _fingerprint(self) -> str:
        return str(self.image.evaluate("image => coursekit.fingerprint(image)"))

    def _position(self, control: Control) -> tuple[float, float, float]:
        """Lowest, highest and present value of a slider, on its own scale."""
        handle = control.element.locator(".noUi-handle")
        low, high, now = (float(handle.get_attribute(f"aria-value{name}") or "nan") for name in ("min", "max", "now"))
        return low, high, now

    def _key_with_room(self, control: Control, preferred: str) -> str:
        low, high, now = self._position(control)
        if now >= high:
            return "ArrowLeft"
        return "ArrowRight" if now <= low else preferred

    def _press(self, control: Control) -> None:
        handle = control.element.locator(".noUi-handle")
        handle.focus()
        handle.press(self._key_with_room(control, "ArrowRight"))

    def _track_point(self, control: Control) -> tuple[float, float]:
        """A point on the track on the far side of its middle as seen from the handle, in page coordinates."""
        track = control.element.locator(".noUi-base")
        track.scroll_into_view_if_needed()
        box = track.bounding_box()
        assert box is not None
        low, high, now = self._position(control)
        far = 0.85 if now < (low + high) / 2 else 0.15
        return box["x"] + far * box["width"], box["y"] + box["height"] / 2

    def _click_track(self, control: Control) -> None:
        self.notebook.page.mouse.click(*self._track_point(control))

    def _drag(self, control: Control) -> None:
        mouse = self.notebook.page.mouse
        control.element.locator(".noUi-handle").hover()  # waits until the handle has come to rest: a click on the track makes it glide
        mouse.down()
        mouse.move(*self._track_point(control), steps=5)
        mouse.up()

    def _choose(self, control: Control) -> None:
        select = control.element.locator("select")
        count = select.locator("option").count()
        if count < 2:
            raise AssertionError(f"dropdown {control.label!r} has {count} options, nothing to choose")
        select.select_option(index=(int(select.evaluate("select => select.selectedIndex")) + 1) % count)


def explorers(notebook: NotebookPage) -> Iterator[Explorer]:
    """All explorers that the page shows, from top to bottom."""
    for root in notebook.page.locator(".coursekit-explorer").all():
        yield Explorer(notebook, root)
