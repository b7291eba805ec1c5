"""Rendered polyps for when the real frames are not at hand: a stand-in with the looks and the interface of Kvasir-SEG.

A frame is a surface seen from the place where the lamp is. Let q(u, v) be its inverse depth along the ray r = (u, v, 1).
With g = ∇ log q the normal is ∝ (g_u, g_v, 1 − u g_u − v g_v), whose product with r is always 1, so that

    cos θ = 1 / (|normal| |r|)      and the light received is      cos θ · q² / |r|².

The colon is a cone in q (a plane is one too, seen from far off its axis); folds, lumps and polyps are added to log q.
Everything is a (N, S, S) map over u = x to the right and v = y downwards, both from −1 to 1, for N frames at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coursekit.data.pairs import Pairs

_BATCH = 16                         # rendered whole, so that a frame's bytes do not depend on how many follow it
_MIN_SIZE = 32                      # below, the smallest polyp has no pixels
_AREA = (0.005, 0.11, 0.60)         # of the frame: least, median, most (Kvasir-SEG at 128 px: 0.005, 0.114, 0.81)
_AREA_SPREAD = 0.85                 # standard deviation of log area, before it is clipped
_STEEPEST = 1.1                     # slope of log q, beyond which a surface turns away, or is no surface but a jump


class SyntheticPolyps(Pairs):
    """``count`` rendered endoscopy frames of ``size``×``size`` pixels with exact polyp masks, made at once.

    ``images``: (count, 3, size, size) uint8; ``masks``: (count, 1, size, size) uint8 in {0, 1}: the polyp's visible pixels,
    not those behind the frame's dark corners or its text box. They cover 0.5 to 60 % of the frame, in the median 11 %.
    Item i depends on (seed, i, size) alone: a longer data set begins with the shorter one, and another ``size`` shows
    the same scenes. Raises ``ValueError`` for a count below 1, a size below 32 or a negative seed.
    """

    def __init__(self, count: int, size: int = 128, seed: int = 0) -> None:
        for name, value, lowest in (("count", count, 1), ("size", size, _MIN_SIZE), ("seed", seed, 0)):
            if not isinstance(value, int) or value < lowest:
                raise ValueError(f"{name} must be an int of at least {lowest}, got {value!r}")
        parts = [render(Draws(seed, range(first, first + _BATCH), size)) for first in range(0, count, _BATCH)]
        images, masks = (torch.cat(part)[:count] for part in zip(*parts, strict=True))
        super().__init__(images, masks, [f"synthetic-{seed}-{i:05d}" for i in range(count)])


class Draws:
    """Random numbers for N frames, each from its own generator, and the pixel grid that they are for."""

    def __init__(self, seed: int, items: range, size: int) -> None:
        self.generators = [np.random.default_rng((seed, i)) for i in items]
        self.size = size
        line = (torch.arange(size) + 0.5) * (2 / size) - 1
        self.x, self.y = line.view(1, 1, -1), line.view(1, -1, 1)

    def uniform(self, low: float, high: float) -> Tensor:
        """(N, 1, 1), uniform in low … high."""
        return torch.tensor([low + (high - low) * g.random() for g in self.generators], dtype=torch.float32).view(-1, 1, 1)

    def normal(self) -> Tensor:
        """(N, 1, 1), standard normal."""
        return torch.tensor([g.standard_normal() for g in self.generators], dtype=torch.float32).view(-1, 1, 1)

    def chance(self, probability: float) -> Tensor:
        """(N, 1, 1), 1 with this probability, else 0."""
        return (self.uniform(0, 1) < probability).float()

    def noise(self, cells: int) -> Tensor:
        """(N, S, S), smooth Gaussian noise of variance 1: random values on a grid of ``cells`` a side, joined by cubic B-splines."""
        values = torch.from_numpy(np.stack([g.standard_normal((cells + 3, cells + 3), dtype=np.float32) for g in self.generators]))
        distance = ((self.x.view(-1, 1) + 1) * (cells / 2) - torch.arange(-1, cells + 2)).abs()
        weights = torch.where(distance < 1, 4 - 6 * distance**2 + 3 * distance**3, (2 - distance).clamp(min=0) ** 3)
        weights = weights / weights.norm(dim=1, keepdim=True)
        return weights @ values @ weights.T

    def grain(self) -> Tensor:
        """(N, S, S), standard normal and independent in each pixel: drawn last, since how much is drawn depends on the size."""
        return torch.from_numpy(np.stack([g.standard_normal((self.size, self.size), dtype=np.float32) for g in self.generators]))


@dataclass
class Polyp:
    """Where the polyp is (``mask``, bool), how high it stands in log q, and ``t``: 0 at its middle, 1 at its rim."""

    mask: Tensor
    height: Tensor
    t: Tensor


def render(draws: Draws) -> tuple[Tensor, Tensor]:
    """N frames, uint8 (N, 3, S, S), and their masks, uint8 (N, 1, S, S)."""
    aperture, box = scope(draws)
    base = colon(draws)
    polyp = place_polyp(draws, (aperture > 0.5) & ~box)
    log_q = torch.where(polyp.mask, flatten_below(base, polyp), base) + polyp.height
    light, glare = illuminate(draws, log_q, polyp, aperture)
    image = develop(draws, tissue(draws, polyp), light, glare)
    image = burn_in(draws, image, aperture, box)
    image = image + draws.grain()[:, None] * 0.006
    return (image.clamp(0, 1) * 255).round().byte(), polyp.mask[:, None].byte()


def scope(draws: Draws) -> tuple[Tensor, Tensor]:
    """What the lens shows, an octagon with rounded sides, and the box that covers its lower left corner in 55 % of the frames."""
    x, y = draws.x, draws.y
    round_, cut = draws.uniform(1.11, 1.19), draws.uniform(1.48, 1.62)
    inside = torch.minimum(round_ - (x**2 + y**2).sqrt(), (cut - x.abs() - y.abs()) / math.sqrt(2))
    aperture = (inside * (draws.size / 2) + 0.5).clamp(0, 1)           # one pixel of soft edge
    width, height = draws.uniform(0.62, 0.76), draws.uniform(0.54, 0.68)
    box = (x < width - 1) & (y > 1 - height) & (draws.chance(0.55) > 0)
    return aperture, box


def colon(draws: Draws) -> Tensor:
    """log q of the wall: a tube that runs towards a vanishing point in or out of sight, with folds, lumps and false polyps."""
    angle, far = draws.uniform(0, 2 * math.pi), draws.chance(0.5)
    away = far * draws.uniform(0.9, 2.5) + (1 - far) * draws.uniform(0.1, 0.9)
    dx, dy = draws.x - away * angle.cos(), draws.y - away * angle.sin()
    bend = draws.noise(2) * 0.25
    rho = ((dx + bend) ** 2 + dy**2 * draws.uniform(0.6, 1.6) + 0.03).sqrt()
    tube = rho + draws.uniform(0.0, 0.35) + far * draws.uniform(0, 1.0)
    log_q = (tube / tube.mean((1, 2), keepdim=True)).log()

    phase = log_q * draws.uniform(0.5, 1.7) + draws.noise(3) * 0.6 + draws.noise(7) * 0.05 + draws.uniform(0, 1)
    step = phase - phase.floor()                                       # folds hide what lies behind: a saw, not a wave
    lip = smoothstep(step / 0.07) * (1 - step) ** 2 * (0.7 + 0.3 * (1 - (1 - step / 0.4).clamp(min=0) ** 2).sqrt())
    log_q = log_q + lip * draws.uniform(0.1, 0.9) * (draws.noise(3) * 3 - 0.5).sigmoid()

    side, _ = rotate(draws, draws.x, draws.y)
    side = side + draws.noise(3) * 0.12 - draws.uniform(0.45, 0.8)     # the wall right before the lens, glaring white
    log_q = log_q + draws.chance(0.35) * (0.4 * smoothstep(side / 0.08) + 1.6 * side.clamp(min=0))

    for cells, amount in ((4, 0.14), (8, 0.05), (18, 0.012)):
        log_q = log_q + draws.noise(cells) * amount * draws.uniform(0.4, 1.3)
    for _ in range(2):
        log_q = log_q + false_polyp(draws)
    return log_q


def false_polyp(draws: Draws) -> Tensor:
    """A piece of a fold that bulges like a polyp but fades into the wall at its ends."""
    u, v = rotate(draws, draws.x - draws.uniform(-0.8, 0.8), draws.y - draws.uniform(-0.8, 0.8))
    width = draws.uniform(0.08, 0.25)
    v = v + u**2 * draws.uniform(-0.6, 0.6)
    return draws.chance(0.6) * draws.uniform(0.1, 0.4) * bell((u / (width * draws.uniform(2, 5))) ** 2 + (v / width) ** 2)


def rotate(draws: Draws, dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The offsets (dx, dy) in axes turned by a random angle, one for each frame."""
    angle = draws.uniform(0, 2 * math.pi)
    return dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()


def bell(square: Tensor) -> Tensor:
    """About exp(−square), but exactly 0 from 4 on, and much quicker to compute."""
    return (1 - square / 4).clamp(min=0).square().square()


def smoothstep(x: Tensor) -> Tensor:
    """0 up to 0, 1 from 1 on, and 3x² − 2x³ in between."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def place_polyp(draws: Draws, visible: Tensor) -> Polyp:
    """One polyp a frame: flat, sessile or on a stalk, with lobes, sometimes cut by the border.

    Its outline is a level of a distance map. The level is the one that encloses the wanted number of *visible* pixels,
    so the area is exact, also for a polyp that the border cuts.
    """
    low, median, high = _AREA
    area = (median * (draws.normal() * _AREA_SPREAD).exp()).clamp(low, high)
    radius = 2 * (area / math.pi).sqrt()
    edge, angle = draws.chance(0.10), draws.uniform(0, 2 * math.pi)
    off = edge * 0.95 + (1 - edge) * draws.uniform(0, 1).sqrt() * 0.5
    dx, dy = rotate(draws, draws.x - 0.08 - off * angle.cos(), draws.y - off * angle.sin())

    kind = draws.uniform(0, 1)
    flat, stalked = (kind < 0.3).float(), (kind > 0.82).float()
    distance = outline(draws, dx / radius, dy / radius, stalked)
    wanted = (area * draws.size**2).ceil().long()
    candidates = distance.masked_fill(~visible, torch.inf).flatten(1)
    level = torch.stack([row.kthvalue(int(k)).values for row, k in zip(candidates, wanted, strict=True)]).view(-1, 1, 1)
    t = distance / level
    dome = (1 - t.clamp(0, 1) ** 2).sqrt() ** (1 + 0.5 * flat)
    rise = radius.clamp(max=0.7) * (flat * draws.uniform(0.1, 0.35) + (1 - flat) * draws.uniform(0.7, 1.5)) + 0.12 * (1 - flat)
    lobes = draws.noise(9) * draws.uniform(0, 0.06) + draws.noise(26) * draws.uniform(0, 0.015)
    rise = rise * (1 - 0.5 * stalked * (dx / radius).clamp(0, 1.5))     # the stalk sinks into the wall
    return Polyp((distance <= level) & visible, (rise * dome + lobes * smoothstep((1 - t) * 3)) * (t < 1), t)


def outline(draws: Draws, dx: Tensor, dy: Tensor, stalked: Tensor) -> Tensor:
    """The distance map, about 1 at the outline: a head with lobes and, for some, a bent stalk to one side or a twin on the other."""
    aspect = draws.uniform(1, 1.75)
    theta = torch.atan2(dy, dx)
    wobble = torch.stack([draws.normal() * (0.13 / k) * (k * theta + draws.uniform(0, 2 * math.pi)).cos() for k in (2, 3, 4, 5)]).sum(0)
    head = (dx**2 * aspect + dy**2 / aspect).sqrt() * wobble.exp()
    along = dx.clamp(0, 1.5)
    stalk = ((dx - along) ** 2 + (dy - draws.uniform(-0.25, 0.25) * along**2) ** 2).sqrt() / draws.uniform(0.45, 0.7)
    twin = ((dx + 2.3) ** 2 + dy**2).sqrt() / 0.6
    parts = torch.stack([head, stalk + 10 * (1 - stalked), twin + 10 * (1 - draws.chance(0.06))])
    return -(-8 * parts).logsumexp(0) / 8 + draws.noise(10) * 0.04     # a minimum without creases


def flatten_below(log_q: Tensor, polyp: Polyp) -> Tensor:
    """The wall beneath the polyp, mostly replaced by its mean: a polyp has a shape of its own."""
    area = polyp.mask.sum((1, 2), keepdim=True)
    mean = (log_q * polyp.mask).sum((1, 2), keepdim=True) / area
    return log_q + 0.85 * (mean - log_q) * smoothstep((1 - polyp.t) * 2)


def illuminate(draws: Draws, log_q: Tensor, polyp: Polyp, aperture: Tensor) -> tuple[Tensor, Tensor]:
    """Diffuse light, with exposure set by its mean as a camera does, and mirror-like glare, both (N, S, S)."""
    fine = draws.noise(40) * 0.004 + draws.noise(64) * 0.002
    light = cosine(draws, log_q + fine) * (2 * log_q).exp() / (1 + draws.x**2 + draws.y**2)
    # little light reaches the crease around the polyp
    light = light * (1 - draws.uniform(0.1, 0.9) * draws.noise(3).sigmoid() * bell(((polyp.t - 1) / 0.12) ** 2))
    mean = (light.clamp(max=4) * aperture).sum((1, 2), keepdim=True) / aperture.sum((1, 2), keepdim=True)
    light = light / mean * (draws.normal() * 0.3).exp()

    wet = (draws.noise(5) - draws.uniform(0.3, 1.8)).clamp(0, 1)
    ripples = draws.noise(14) * 0.012 + (draws.noise(32) * 0.014 + draws.noise(64) * 0.009) * (0.3 + wet)
    sheen = cosine(draws, log_q + ripples)
    glare = smoothstep((sheen - draws.uniform(0.975, 0.999)) / 0.012) * (0.2 + light).clamp(max=1)
    return light, glare


def cosine(draws: Draws, log_q: Tensor) -> Tensor:
    """cos θ between the surface normal and the ray to the camera."""
    g_y, g_x = torch.gradient(log_q, spacing=2 / draws.size, dim=(1, 2))
    visible = (1 + (g_x**2 + g_y**2) / _STEEPEST**2).rsqrt()
    g_x, g_y = g_x * visible, g_y * visible
    normal = g_x**2 + g_y**2 + (1 - draws.x * g_x - draws.y * g_y) ** 2
    return (normal * (1 + draws.x**2 + draws.y**2)).rsqrt()


def tissue(draws: Draws, polyp: Polyp) -> Tensor:
    """Reflectance (N, 3, S, S): mucosa, vessels, blotches, residue, and the polyp, whose colour may be that of the mucosa."""
    blood = 1 + draws.normal() * 0.14 + draws.noise(3) * 0.10 + draws.noise(9) * 0.07 + draws.noise(30) * 0.05
    yellow = 1 + draws.normal() * 0.32 + draws.noise(2) * 0.12 + draws.noise(6) * 0.06

    inside = smoothstep((1.03 - polyp.t) * 12)
    differs = 1 - draws.chance(0.4)
    grains = draws.noise(20) * draws.uniform(0, 0.1) + draws.noise(48) * draws.uniform(0, 0.12)
    blood = blood + inside * (differs * draws.normal() * 0.2 + grains)
    yellow = yellow + inside * differs * draws.normal() * 0.25

    strength = draws.chance(0.7) * draws.uniform(0.2, 0.9) * (1 - 0.8 * inside)
    for cells, width in ((6, 0.05), (12, 0.09)):
        course = (draws.noise(cells) + 0.25 * draws.noise(3 * cells)).abs()
        blood = blood + strength * bell((course / width) ** 2) * (draws.noise(5) * 1.5).sigmoid()

    residue = smoothstep((draws.noise(5) + 0.6 * draws.noise(20) - draws.uniform(1.6, 4)) * 1.5)
    yellow = yellow + 0.7 * residue
    blood = (blood * (1 - 0.5 * residue)).clamp(min=0.5)
    absorbed = torch.stack([0.37 * blood, 1.45 * blood + 0.1 * yellow, 1.3 * blood + 0.8 * yellow], 1)
    return (-absorbed).exp()


def develop(draws: Draws, reflectance: Tensor, light: Tensor, glare: Tensor) -> Tensor:
    """The camera: saturation, gamma, glare and focus. (N, 3, S, S) in 0 … 1."""
    exposed = 1 - (-reflectance * light[:, None] * 1.6).exp()
    image = exposed.sqrt() * exposed.sqrt().sqrt()                     # exposed ** 0.75
    image = image + (0.98 - image) * glare[:, None]
    sigma = draws.uniform(0.002, 0.004) + draws.chance(0.12) * draws.uniform(0.004, 0.011)
    return blur(image, sigma * draws.size)


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of ``image`` (N, C, S, S) with a standard deviation of its own for each frame, ``sigma`` (N, 1, 1), in pixels."""
    place = torch.arange(image.shape[-1])
    weights = (-0.5 * ((place - place[:, None]) / sigma) ** 2).exp()
    weights = (weights / weights.sum(2, keepdim=True))[:, None]
    return weights @ image @ weights.transpose(2, 3)


def burn_in(draws: Draws, image: Tensor, aperture: Tensor, box: Tensor) -> Tensor:
    """Dark corners, the box, and to the left the lines of text and the row of little squares that the recorder writes."""
    image = image * aperture[:, None]
    teal = torch.tensor([0.1, 0.6, 0.5]).view(3, 1, 1) * draws.chance(0.05)[:, None]
    image = torch.where(box[:, None], teal, image)

    x = draws.x[..., : draws.size // 5]
    start, lines, length = draws.uniform(-0.65, -0.4), draws.uniform(3, 11).floor(), draws.uniform(8, 20)
    row, column = (draws.y - start) / 0.045, (x + 0.99) / 0.0156
    shown = (row >= 0) & (row < lines) & (row % 1 < 0.55) & (column >= 0) & (column < length)
    bits = torch.from_numpy(np.stack([g.random((12, 20), dtype=np.float32) for g in draws.generators]))
    frame = torch.arange(len(bits)).view(-1, 1, 1)
    text = bits[frame, row.long().clamp(0, 11), column.long().clamp(0, 19)] * shown * draws.chance(0.8) * 0.5
    place = (x + 0.98) / 0.045
    squares = (place > 0) & (place < 7) & (place % 1 < 0.6) & ((draws.y - draws.uniform(0.2, 0.3)).abs() < 0.018)
    ink = torch.maximum(text, squares * draws.chance(0.6) * 0.8)[:, None]
    left = image[..., : draws.size // 5]
    left += (0.9 - left) * ink
    return image
