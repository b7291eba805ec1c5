"""The two photographs that scikit-learn bundles: real pictures without a download."""

from __future__ import annotations

from numbers import Integral

import torch
import torchvision.transforms.v2.functional as transforms
from sklearn.datasets import load_sample_image
from torch import Tensor

_LICENCE = "CC BY 2.0, https://creativecommons.org/licenses/by/2.0/"
# As in scikit-learn's images/README.txt. The page that it links for the flower is, by its address, another photographer's: vultilion.
CREDITS: dict[str, str] = {
    "china": "Some rights reserved by danielbuechele, "
    f"https://www.flickr.com/photos/danielbuechele/6061409035/sizes/z/in/photostream/, {_LICENCE}",
    "flower": "Some rights reserved by danielbuechele, "
    f"https://www.flickr.com/photos/vultilion/6056698931/sizes/z/in/photostream/, {_LICENCE}",
}


def photograph(name: str = "china", size: int | tuple[int, int] | None = None) -> Tensor:
    """A real photograph: float32 (3, H, W) in [0, 1]. ``name``: ``"china"`` or ``"flower"``, each 427×640 pixels.

    ``size``: (height, width), or one int for a square: the photograph is scaled (antialiased) to cover it and cropped
    at the centre. Raises ``ValueError`` for another name or a size below 1.
    """
    if name not in CREDITS:
        raise ValueError(f"there is no photograph {name!r}; there are {', '.join(CREDITS)}")
    image = torch.tensor(load_sample_image(f"{name}.jpg")).permute(2, 0, 1).float() / 255
    if size is None:
        return image
    height, width = size if isinstance(size, tuple) and len(size) == 2 else (size, size)
    if not all(isinstance(side, Integral) and side >= 1 for side in (height, width)):
        raise ValueError(f"size must be an int or (height, width), each at least 1 pixel, got {size!r}")
    scale = max(height / image.shape[1], width / image.shape[2])
    covering = [max(height, round(image.shape[1] * scale)), max(width, round(image.shape[2] * scale))]
    return transforms.center_crop(transforms.resize(image, covering, antialias=True), [height, width]).clamp(0, 1)
