"""Notebooks 02 and 05: diffusion, from the noise schedule to exact reversal."""

from coursekit.diffusion.kernels import posterior
from coursekit.diffusion.mixture import GaussianMixture
from coursekit.diffusion.schedule import NoiseSchedule

__all__ = ["GaussianMixture", "NoiseSchedule", "posterior"]
