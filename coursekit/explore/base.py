"""The base of all explorers: sliders over one picture that is redrawn as they move."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.display import Image as DisplayedImage
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from PIL import Image


class Explorer(widgets.VBox):
    """Controls above a picture. A subclass says what to compute, and which artists show it.

    It builds one figure, once; ``moving`` names the artists that change with the controls, everything else is
    drawn a single time and kept as a background. Then for each move

    * ``compute(**values)`` returns what is to be shown, as numbers: a pure function of the controls' values;
    * ``draw(shown)`` puts these numbers into the moving artists.

    ``controls``: name → widget. ``image``: the ``ipywidgets.Image``. ``shown``: what the picture now shows.
    Only core widgets and PNG are used, so the same code runs on ipywidgets 7.7 and 8, in Colab and in JupyterLab.
    """

    def __init__(self, controls: Mapping[str, widgets.ValueWidget], figure: Figure, moving: Iterable[Artist]) -> None:
        self.controls = dict(controls)
        self._canvas, self._moving = FigureCanvasAgg(figure), list(moving)
        for artist in self._moving:
            artist.set_animated(True)   # left out of the background
        self._canvas.draw()
        figure.set_layout_engine("none")   # the layout found in the first draw stays, so that nothing jumps
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(figure.bbox)
        self.image = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        super().__init__([widgets.HBox(list(self.controls.values()), layout=widgets.Layout(flex_flow="row wrap")), self.image])
        self.add_class("coursekit-explorer")
        self._show()
        for control in self.controls.values():
            control.observe(self._show, names="value")

    def compute(self, *_: Any, **values: Any) -> Any:
        """What the picture shows for these values of the controls. Pure: the same values give the same numbers."""
        raise NotImplementedError

    def draw(self, shown: Any) -> None:
        """Put the numbers that ``compute`` returned into the moving artists."""
        raise NotImplementedError

    @property
    def values(self) -> dict[str, Any]:
        """The controls' present values."""
        return {name: control.value for name, control in self.controls.items()}

    def frame(self, **values: Any) -> bytes:
        """The picture as PNG for these values; controls not named keep theirs. Moves no slider and changes no display.

        Raises ``ValueError`` for a name that is no control and for a value that the control cannot take.
        """
        for name, value in values.items():
            self._refuse_impossible(name, value)
        return self._render(self.compute(**{**self.values, **values}))

    def snapshot(self, **values: Any) -> DisplayedImage:
        """The same picture as an ordinary cell output, for readers who have no kernel."""
        width = int(self._canvas.get_width_height()[0])
        return DisplayedImage(data=self.frame(**values), format="png", width=width)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.controls)})"   # fixed, so that a stored output compares equal

    def _show(self, change: Any = None) -> None:
        self.shown = self.compute(**self.values)
        self.image.value = self._render(self.shown)

    def _render(self, shown: Any) -> bytes:
        self.draw(shown)
        self._canvas.restore_region(self._background)
        for artist in self._moving:
            artist.axes.draw_artist(artist) if artist.axes else artist.draw(self._canvas.get_renderer())
        pixels, file = np.asarray(self._canvas.buffer_rgba())[..., :3], io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "png", compress_level=1)
        return file.getvalue()

    def _refuse_impossible(self, name: str, value: Any) -> None:
        if name not in self.controls:
            raise ValueError(f"{type(self).__name__} has no control {name!r}; its controls are {', '.join(self.controls)}")
        control = self.controls[name]
        if hasattr(control, "options"):
            choices = [choice[1] if isinstance(choice, tuple) else choice for choice in control.options]
            if value not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {value!r}")
        elif hasattr(control, "min"):
            number = Integral if isinstance(control.value, int) else Real
            if isinstance(value, bool) or not isinstance(value, number):
                raise ValueError(f"{name} must be {'an integer' if number is Integral else 'a number'}, got {value!r}")
            if not control.min <= value <= control.max:
                raise ValueError(f"{name} must lie in {control.min} .. {control.max}, got {value!r}")


def row_figure(height: float, width_ratios: list[float], top: float = 1.0) -> tuple[Figure, list[Axes], Text]:
    """A figure 1100 px wide in the workbook's style, a row of axes up to ``top`` of it, and a caption under them."""
    figure = Figure(figsize=(11, height), dpi=100, layout=ConstrainedLayoutEngine(rect=(0, 0.1, 1, top - 0.1)))
    axes = figure.subplots(1, len(width_ratios), width_ratios=width_ratios)
    return figure, list(axes), figure.text(0.5, 0.03, "", ha="center", fontsize="large")
