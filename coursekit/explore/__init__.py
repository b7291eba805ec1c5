"""Explorers: sliders over a picture, one file a notebook. Each has ``controls``, ``image``, ``frame()`` and ``snapshot()``."""

from coursekit.explore.base import Explorer
from coursekit.explore.diffusion_1d import ReverseKernelExplorer, ScheduleExplorer
from coursekit.explore.latent import LatentExplorer
from coursekit.explore.patch import PatchExplorer
from coursekit.explore.sampling import SamplingExplorer
from coursekit.explore.threshold import ThresholdExplorer
from coursekit.explore.trajectories import TrajectoryExplorer

__all__ = [
    "Explorer",
    "LatentExplorer",
    "PatchExplorer",
    "ReverseKernelExplorer",
    "SamplingExplorer",
    "ScheduleExplorer",
    "ThresholdExplorer",
    "TrajectoryExplorer",
]
