"""Notebooks 02 and 05: diffusion, from the noise schedule to exact reversal, and to images made of noise."""

from coursekit.diffusion.kernels import posterior
from coursekit.diffusion.mixture import GaussianMixture
from coursekit.diffusion.process import Diffusion
from coursekit.diffusion.schedule import NoiseSchedule
from coursekit.diffusion.unet import DenoisingUNet

__all__ = ["DenoisingUNet", "Diffusion", "GaussianMixture", "NoiseSchedule", "posterior"]
