"""Explorers: sliders over a picture, one file a notebook. Each has ``controls``, ``image``, ``frame()`` and ``snapshot()``."""

from coursekit.explore.base import Explorer
from coursekit.explore.patch import PatchExplorer

__all__ = ["Explorer", "PatchExplorer"]
