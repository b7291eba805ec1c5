# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     gpuType: T4
#     provenance: []
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · Finding polyps: a U-Net against a vision transformer
#
# A camera looks into a colon; the network is to colour the pixels that belong to a polyp. That is segmentation: one yes or no for each
# pixel, learned from a few hundred images. After this notebook you can
#
# * split, feed and augment images with their masks without leaking, starving the processor or losing the mask on the way;
# * write the three formulas on which everything rests, cross-entropy, soft Dice and IoU, and avoid the ways in which they are usually wrong;
# * train a U-Net in a loop that survives being stopped, and judge it against baselines, with an interval and with its failures in view;
# * build a vision transformer from parts that equal torch's, and compare it with the U-Net at equal cost.
#
# **Time.** Reading and exercises: about three hours. Running: under 75 seconds on two CPU cores; on a T4: not measured.

# %% tags=["setup"]
import sys
from importlib import util
from pathlib import Path

sys.path += [str(f) for f in (Path("coursekit").resolve(), Path.cwd(), *Path.cwd().parents) if (f / "coursekit/__init__.py").is_file()]
if getattr(util.find_spec("coursekit"), "origin", None) is None:
    raise ModuleNotFoundError("coursekit is not installed. In a checkout, run: pip install -e .\n"
                              "To open notebooks without one, publish them first: make publish REPO=owner/name")

# %% [markdown]
# Every claim below is a line of code that prints ✓ or stops the notebook. The number before a claim is that of its section and, where there is one, of its equation.
# E0.11 and the like are formulas that a handout prints wrong: each is run, seen to fail "as it should", and listed in section 11. The headings *Task 1* to *Task 8* are the tasks of
# one handout's exercise, which is "the handout" below.
#
# The next cell holds everything that differs between the two modes: `fast` draws its images itself and trains small networks, for two CPU cores; `full` takes the real Kvasir-SEG and
# needs a GPU. Full mode has not been run on one. There, what fast mode claims about its data and its networks (a `finding`) is only a number, printed after a dot; what stops the
# notebook is only what must hold wherever nothing is broken.

# %% tags=["parameters"]
import tempfile

import torch

from coursekit import runtime
from coursekit.checks import check
from coursekit.data import KvasirSEG, SyntheticPolyps, data_root


def tell(claim, value, **bounds):
    """The number of a claim whose bound was fixed on other data."""
    print(f"· {claim}: {float(value):.3g}  (fast mode: {', '.join(f'{word} {bound:g}'.replace('_', ' ') for word, bound in bounds.items())})")


settings = {
    "fast": {
        "finding": check, "least_lead": {"U-Net": 0.2, "ViT": 0.03}, "loss_left": {"U-Net": 0.6, "ViT": 0.95, "ViT, as long": 0.85},
        "decode_factor": 5, "feed_share": 0.05,
        "data": lambda: SyntheticPolyps(500, 64), "runs": tempfile.mkdtemp, "half": None, "channels_last": False, "threads": 1,
        "epochs": 13, "vit_epochs": 24, "resnet_epochs": 3, "evaluate_every": 2, "repeats": 5,
        "lr": {"U-Net": 5e-3, "ViT": 3e-3, "ResNet U-Net": 2e-3},
        "unet": {"base_channels": 8}, "vit": {"patch_size": 8, "dim": 64, "depth": 2, "heads": 4},
        "resnet": {"encoder_name": "resnet18", "encoder_weights": None, "encoder_depth": 3, "decoder_channels": (32, 16, 8)},
    },
    "full": {
        "finding": tell, "least_lead": {"U-Net": 0.05, "ViT": 0.0}, "loss_left": {"U-Net": 0.95, "ViT": 0.95, "ViT, as long": 0.95},
        "decode_factor": 1, "feed_share": 0.5,
        "data": lambda: KvasirSEG(size=256), "runs": lambda: data_root() / "runs" / "03_segmentation", "channels_last": True,
        "threads": torch.get_num_threads(), "half": torch.float16 if torch.cuda.is_available() else torch.bfloat16,
        "epochs": 60, "vit_epochs": 120, "resnet_epochs": 60, "evaluate_every": 4, "repeats": 9,
        "lr": {"U-Net": 1e-3, "ViT": 5e-4, "ResNet U-Net": 5e-4},
        "unet": {"base_channels": 64}, "vit": {"patch_size": 8, "dim": 384, "depth": 8, "heads": 6},
        "resnet": {"encoder_name": "resnet34", "encoder_weights": "imagenet"},
    },
}[runtime.mode()]   # fmt: skip
generator, place, finding = runtime.seed_everything(0), runtime.device(), settings["finding"]

# %%
import math
import signal
import time
from collections import defaultdict
from functools import partial

import matplotlib.pyplot as plt
import segmentation_models_pytorch as smp
import torch.nn.functional as F
from matplotlib.patheffects import withStroke
from PIL import Image
from scipy import ndimage
from torch import nn
from torch.distributions import Bernoulli
from torch.utils.data import DataLoader, TensorDataset

from coursekit import figures
from coursekit.checks import check_close, check_equal, check_fails, check_raises, check_true
from coursekit.data import Augment, Batches, DataError, Pairs, near_duplicates, results, split
from coursekit.data.polyps import decode_pair
from coursekit.exercises import segmentation as exercises
from coursekit.explore import ThresholdExplorer
from coursekit.measure import median_seconds, peak_bytes
from coursekit.segmentation import SegmentViT, UNet, bce_dice_loss, confusion_matrix, dice, iou_from_confusion
from coursekit.segmentation.vit import EncoderLayer, MultiHeadAttention, PatchEmbedding, sinusoidal_positions
from coursekit.training import Checkpoints, check_finite, load_weights, save_weights, saved_settings, steps

figures.use_style()
plt.rcParams["figure.dpi"] = 84   # many figures: keep the file small
torch.set_num_threads(settings["threads"])   # for frames so small a second thread gains little, and on a busy machine it is waited for
F64 = torch.float64               # formulas are tested in it: a difference is then a mistake and not rounding

# %% [markdown]
# ## 1  Images and masks
#
# A data set of pairs, an image and the mask that a physician drew on it:
#
# $$\mathcal D = \{(x_n, y_n)\}_{n=1}^{N}, \qquad x_n \in [0, 1]^{3\times S\times S}, \qquad y_n \in \{0, 1\}^{1\times S\times S}. \tag{1.1}$$
#
# The real one is [Kvasir-SEG](https://datasets.simula.no/kvasir-seg/): 1000 frames of colonoscopies. Its masks are JPEGs, so they hold 3 and 251 where 0 and 255 are
# meant; `KvasirSEG` thresholds them at 127. In fast mode we draw the frames ourselves: `SyntheticPolyps` renders a wall with folds and vessels, a lamp, highlights,
# a text box, and one polyp with its exact mask. It has the same interface and no patients.

# %%
data = settings["data"]()
size = data.images.shape[-1]
image, mask = data[0]
check_equal("1.1  shapes of image and mask", (tuple(image.shape), tuple(mask.shape)), ((3, size, size), (1, size, size)))
check_true("1.1  image in [0, 1], mask of zeros and ones", image.min() >= 0 and image.max() <= 1 and mask.unique().tolist() == [0, 1])
share = data.masks.flatten(1).double().mean(1)   # of the frame that the polyp covers
print(f"{len(data)} pairs of {size}×{size} pixels; the polyp covers {share.min():.1%} to {share.max():.0%}, in the median {share.median():.0%}")
print(f"the largest covers {share.max() / share.min():.0f} times as much as the smallest, in whose frame \"no polyp\" is right on {1 - share.min():.1%} of the pixels")


# %%
def show_pair(axes, image, mask, predicted=None, title=""):
    """An image with the outline of its mask (blue) and of a predicted one (white)."""
    axes.imshow(figures.as_picture(image), interpolation="bicubic")
    for outline, colour in ((mask, figures.SKY), (predicted, "white")):
        if outline is not None and 0 < outline.float().mean() < 1:
            lines = axes.contour(outline[0].float().cpu().numpy(), [0.5], colors=colour, linewidths=1.5)
            lines.set(path_effects=[withStroke(linewidth=2.7, foreground="black")])
    axes.set_title(title, fontsize="small")
    axes.set_axis_off()


# %% alt="Ten rendered colonoscopy frames in two rows, with a blue outline round each polyp. From the upper left, where the polyp is a speck, to the lower right, where it fills more than half of the frame; some are hardly told from the folds of the wall."
figure, grid = plt.subplots(2, 5, figsize=(7.2, 3.1))
by_share = share.argsort()[:: len(data) // 9][:10]
for axes, i in zip(grid.flat, by_share.tolist(), strict=True):
    show_pair(axes, *data[i], title=f"{share[i]:.1%}")
plt.show()


# %% [markdown]
# Ten pairs, ordered by the share of the frame that is polyp. The sizes lie far apart, and on a small polyp's frame whoever answers "no polyp" is right almost everywhere: the line
# printed above says how far and how often. Colour does not give the polyp away and a fold may look like one; that is the task.
#
# ### Task 1: the split
#
# Training part, validation part (whoever chooses something by trying chooses it here), test part (looked at once for each network): 60, 20 and 20 %.
#
# **Exercise 1.1** (easy, 10 minutes, 2 points). Write the split. It must lose no pair, use none twice, and give the same parts for the same seed.
#
# <details><summary>Hint 1</summary>If the order is drawn once, what more is needed for three parts that share nothing?</details>
# <details><summary>Hint 2</summary>Draw one order with <code>torch.randperm</code> and a generator of your own that starts from the seed; cut it at two places.</details>
# <details><summary>Hint 3</summary>The last part is <code>order[second:]</code>, so that it takes what rounding leaves over.</details>

# %%
def my_split(dataset, fractions, seed):
    """dataset: has a length; fractions: three that add up to 1. Returns three torch.utils.data.Subset."""
    ### BEGIN SOLUTION
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    first = round(fractions[0] * len(dataset))
    second = first + round(fractions[1] * len(dataset))
    return [torch.utils.data.Subset(dataset, part) for part in (order[:first], order[first:second], order[second:])]
    ### END SOLUTION


my_split = exercises.check("1.1", my_split)

# %%
check_equal("1  sizes of your parts", [len(part) for part in my_split(data, (0.6, 0.2, 0.2), 0)], [len(data) * k // 10 for k in (6, 2, 2)])

# %% [markdown]
# The package's `split` goes one step further: it orders the pairs by a hash of seed and **name**. The parts are then the same with every version of torch and
# in whatever order the disk lists the files, and a pair more or less moves few others. We go on with it.

# %%
train, validation, test = split(data, (0.6, 0.2, 0.2), seed=0)
backwards = Pairs(data.images.flip(0), data.masks.flip(0), data.names[::-1])
same = [{data.names[i] for i in a.indices} == {backwards.names[i] for i in b.indices}
        for a, b in zip((train, validation, test), split(backwards, (0.6, 0.2, 0.2), seed=0), strict=True)]
check_true("1  the files in backward order: the same parts", all(same))
check_equal("1  sizes", [len(part) for part in (train, validation, test)], [len(data) * k // 10 for k in (6, 2, 2)])

# %% [markdown]
# ### Twins across the split
#
# Frames of one video look alike. If one of two twins is trained on and the other tested, the test measures memory. `near_duplicates` compares fingerprints from which
# borders, colour and shading are removed. Before we trust it with "none", it has to find a twin that we plant: a frame moved by two pixels and darkened.

# %%
twin = (0.8 * data.images[7].roll((2, 2), (1, 2)).float()).byte()
planted = Pairs(torch.cat([data.images[:40], twin[None]]), torch.cat([data.masks[:40], data.masks[7:8]]), [*data.names[:40], "twin"])
check_true("1  the planted twin is found", (7, 40) in [(i, j) for i, j, _ in near_duplicates(planted)])

# %%
part_of = {i: name for name, part in (("train", train), ("validation", validation), ("test", test)) for i in part.indices}
twins = near_duplicates(data)
across = [(data.names[i], data.names[j]) for i, j, _ in twins if part_of[i] != part_of[j]]
print(f"{len(twins)} pairs of look-alikes, {len(across)} of them across the split: {across[:3]}")


# %% [markdown]
# In fast mode there are none, since every frame is rendered from numbers of its own. In the real data there are some; whoever publishes a number says how many lie across the
# split, as the record in section 10 does.
#
# ## 2  Batches
#
# ### Task 2: batch size and loaders
#
# We take 16 images a step: enough for batch norm, which scales each channel by its mean and spread over the batch, few enough for many steps an epoch.
#
# **Exercise 2.1** (easy, 5 minutes, 2 points). Write a loader with `TensorDataset` and `DataLoader`. Training data is shuffled, anew for each epoch; the others are not.
#
# <details><summary>Hint 1</summary>A <code>TensorDataset</code> wants one tensor of images and one of masks. How do you get them from pairs?</details>
# <details><summary>Hint 2</summary>Take the pairs apart with <code>zip(*part)</code>, stack each half, and hand the loader all that you were given: batch size, shuffle, generator.</details>

# %%
def my_loader(part, batch_size, shuffle, generator):
    """part: a Subset of pairs. Returns a DataLoader of (images, masks), drawn with this generator."""
    ### BEGIN SOLUTION
    images, masks = (torch.stack(tensors) for tensors in zip(*part, strict=True))
    return DataLoader(TensorDataset(images, masks), batch_size, shuffle=shuffle, generator=generator)
    ### END SOLUTION


my_loader = exercises.check("2.1", my_loader)

# %% [markdown]
# That holds every image as floats, four bytes a channel, and cannot augment. Our `Batches` holds bytes, turns 16 images at a time into floats on the device, and moves
# image and mask by **one** random map: flips, turns, scale, shift, and colour for the image alone.

# %%
BATCH_SIZE = 16
batches = Batches(train, BATCH_SIZE, generator=generator, device=place, augment=Augment(degrees=20, scale=1.3), drop_last=True)
both = zip(Batches(validation, 4, shuffle=False), my_loader(validation, 4, False, None), strict=True)
same = [torch.equal(our_masks, your_masks) and torch.allclose(ours, yours) for (ours, our_masks), (yours, your_masks) in both]
check_true("2  unshuffled and not augmented: the same batches as yours", all(same))

# %% alt="The same frame with its blue outline six times: as it is, and five times turned, mirrored, enlarged or reduced, and tinted. The outline follows the polyp; in some of them pieces of its mirror image come in at the border."
i = int(by_share[6])
copies = data[i][0].expand(5, -1, -1, -1), data[i][1].expand(5, -1, -1, -1)
augmented = zip(*batches.augment(*copies, torch.Generator().manual_seed(3)), strict=True)
figure, row = plt.subplots(1, 6, figsize=(8.4, 1.6))
for axes, pair in zip(row, [data[i], *augmented], strict=True):
    show_pair(axes, *pair)
plt.show()

# %%
as_image = data[i][1].expand(8, 3, -1, -1)                  # a mask in the place of the image must stay a mask
still = Augment(brightness=0, contrast=0, saturation=0)
moved, moved_masks = still(as_image, as_image[:, :1], torch.Generator().manual_seed(0))
check_close("2  image and mask move in step: the mask, given as image, thresholded", (moved[:, :1] >= 0.5).float(), moved_masks)


# %% [markdown]
# The outline follows the polyp: image and mask went through the same map. What comes in from outside the frame is its mirror image: a black wedge would tell the network how
# far the frame was turned. The mirror has a limit: the dark corners that a frame brings along are turned with it, and tell as much. And a price: a polyp near the border comes in twice.

# %%
def in_pieces(masks):
    """The share of the masks that consist of several pieces."""
    return sum(ndimage.label(mask[0].numpy())[1] > 1 for mask in masks) / len(masks)


drawn = data.images[:200].float() / 255, data.masks[:200].float()
before, after = in_pieces(drawn[1]), in_pieces(batches.augment(*drawn, torch.Generator().manual_seed(0))[1])
print(f"200 masks, in several pieces: {before:.1%} as they are, {after:.1%} augmented")
finding("2  augmenting adds masks in several pieces, as a share of all", after - before, at_least=0.1)

# %% [markdown]
# ### Feeding without starving
#
# The obvious loader decodes JPEGs, each epoch anew. We write frames of the size that Kvasir-SEG has, about 620 × 530 pixels, and time both ways.

# %% tags=["nbval-ignore-output"]
folder = Path(tempfile.mkdtemp())
files = [(folder / f"{i}.jpg", folder / f"{i}-mask.jpg") for i in range(12)]
for i, (image_file, mask_file) in enumerate(files):
    for pixels, file in ((data.images[i].permute(1, 2, 0), image_file), (255 * data.masks[i, 0], mask_file)):
        Image.fromarray(pixels.numpy()).resize((620, 530)).save(file, quality=95)

network = UNet(3, 1, **settings["unet"]).to(place)
images, masks = next(iter(batches))
calls = {
    "decode": lambda: [decode_pair(image_file, mask_file, size) for image_file, mask_file in files],
    "batches": lambda: list(batches),
    "step": lambda: bce_dice_loss(network(images), masks, 1.0).backward(),
}   # fmt: skip
with runtime.one_thread():   # a loader's worker has one core
    seconds = median_seconds(calls, settings["repeats"])
decode, feed, step = seconds["decode"] / len(files), seconds["batches"] / len(batches) / BATCH_SIZE, seconds["step"] / BATCH_SIZE
print(f"milliseconds an image: decoding {1e3 * decode:.2f}, our batches {1e3 * feed:.2f}, the U-Net forward and back {1e3 * step:.2f}")

# %%
check("2  decoding an image takes longer than taking it from our batches, by a factor of", decode / feed, at_least=settings["decode_factor"])
check("2  feeding as a share of feeding and training step", feed / (feed + step), at_most=settings["feed_share"])

# %% [markdown]
# All of this on one core, and in fast mode with a network that is small on purpose. A GPU takes its step in less time, while its machine goes on decoding at the pace of its
# cores; on a T4 we have not measured it.
#
# ## 3  Loss and metric
#
# The network gives a **logit** $z$ for each pixel, any real number; $p = \sigma(z) = 1/(1+e^{-z})$ is its probability of polyp. How far is $p$ from the mask $y$?
#
# ### Binary cross-entropy
#
# $$\mathrm{BCE}(y, p) = -\frac{1}{HW}\sum_{i,j} \Bigl( y_{ij}\log p_{ij} + (1-y_{ij})\log(1-p_{ij}) \Bigr). \tag{3.1}$$

# %%
z = 2 * torch.randn(3, 1, 12, 20, generator=generator, dtype=F64)
y = (torch.rand(3, 1, 12, 20, generator=generator, dtype=F64) < 0.3).double()
p = z.sigmoid()
terms = -(y * p.log() + (1 - y) * (1 - p).log())
check_close("3.1  is what torch computes", terms.mean(), F.binary_cross_entropy(p, y))
check_close("3.1  at logits 0, whatever the mask: log 2", bce_dice_loss(0 * z, y, 0.0), math.log(2))

# %% [markdown]
# **As printed in the handout** the factor is $1/N^2$. For an image of 12 × 20 pixels, which one is $N$?

# %%
check_fails("E0.15  1/N² with N = 12", terms.mean(), terms.sum() / 3 / 12**2)
check_fails("E0.15  1/N² with N = 20", terms.mean(), terms.sum() / 3 / 20**2)


# %% [markdown]
# The handout also asks for a sigmoid first and `BCELoss` after it. A sure network has $p = 1$ or $0$ in floating point, and the logarithm is lost; torch clamps it at
# −100, and the slope fades much earlier: on the way back torch divides by $p(1-p)$, but by no less than $10^{-12}$, so that below a logit of about −28 the slope fades, and from about −30 on hardly any arrives, although the loss still rises. So one computes both at once, from the logit:
#
# $$-y\log\sigma(z) - (1-y)\log(1-\sigma(z)) = \max(z, 0) - zy + \log\bigl(1+e^{-|z|}\bigr). \tag{3.2}$$
#
# **Exercise 3.1** (medium, 10 minutes, 2 points). Write `bce`: the mean of (3.2) over all pixels, with elementary functions of torch only.
#
# <details><summary>Hint 1</summary>Which three summands has the right side of (3.2), and which function of torch computes each of them for all pixels?</details>
# <details><summary>Hint 2</summary><code>clamp(min=0)</code>, a product, and <code>log1p</code> of an exponential that cannot overflow; then one mean over everything.</details>
# <details><summary>Hint 3</summary>The last summand is <code>(-logits.abs()).exp().log1p()</code>.</details>

# %%
def bce(logits, masks):
    """logits: any numbers, masks: the same shape, in [0, 1]. Returns the mean of (3.2), a scalar, for any finite logits."""
    ### BEGIN SOLUTION
    return (logits.clamp(min=0) - logits * masks + (-logits.abs()).exp().log1p()).mean()
    ### END SOLUTION


bce = exercises.check("3.1", bce)


# %%
def value_and_slope(loss, z):
    """A loss of one foreground pixel and its derivative, at each of the logits z."""
    z = z.clone().requires_grad_()
    values = torch.stack([loss(logit[None], torch.ones(1, dtype=F64)) for logit in z])
    return values.detach(), torch.autograd.grad(values.sum(), z)[0]


ways = {"from the logit": bce, "BCELoss after a sigmoid": lambda z, y: F.binary_cross_entropy(z.sigmoid(), y)}
far = torch.tensor([-200.0], dtype=F64)
(loss, slope), (clamped, flat) = (value_and_slope(way, far) for way in ways.values())
check_close("3.2  logit −200 on a polyp pixel: the loss is 200, the slope −1", torch.cat([loss, slope]), torch.tensor([200.0, -1.0], dtype=F64))
check_fails("E0.16  BCELoss after a sigmoid: its loss", loss, clamped)
check_fails("E0.16  BCELoss after a sigmoid: its slope", slope, flat)
(early,), (faded,) = value_and_slope(ways["BCELoss after a sigmoid"], torch.tensor([-40.0], dtype=F64))
check("E0.16  … at a logit of −40 its loss still rises", early, at_least=39)
check("E0.16  … and its slope has gone", faded.abs(), at_most=1e-5)

# %% alt="Loss of a foreground pixel against the logit. From the logit, a straight line falls from 200 at the left to 0. After a sigmoid the curve follows it, but left of minus 100 it is flat at 100."
figure, axes = plt.subplots(figsize=(5.5, 2.4))
line = torch.linspace(-200, 20, 221, dtype=F64)
for (name, way), style in zip(ways.items(), ("-", "--"), strict=True):
    axes.plot(line.numpy(), value_and_slope(way, line)[0].numpy(), style, label=name)
axes.set(xlabel="logit z of a polyp pixel", ylabel="loss, nats")
axes.legend()
plt.show()

# %% [markdown]
# The dashed loss is flat left of −100, and torch's gradient of it has gone from about −30 on: where the network is most wrong, nothing is learned. In float32, on background, that begins at a logit of 17, where $1 - \sigma(z)$ rounds to 0:

# %%
z_32, background = torch.tensor([[20.0]]), torch.zeros(1, 1)
check_equal("3.2  float32: 1 − σ(z) is 0 at z = 16, at z = 17", (1 - torch.tensor([16.0, 17.0]).sigmoid() == 0).tolist(), [False, True])
check_close("3.2  float32, logit 20 on background: 20", bce(z_32, background), 20.0)
check_fails("E0.16  the same after a sigmoid", 20.0, F.binary_cross_entropy(z_32.sigmoid(), background))


# %% [markdown]
# ### Dice
#
# In a frame that is 2 % polyp, the answer $p = 0.02$ for every pixel finds nothing, and its cross-entropy is only $0.02\log 50 + 0.98\log\frac{1}{0.98} = 0.10$. The Dice loss asks for overlap instead, each image apart:
#
# $$\mathrm{Dice}(y, p) = 1 - \frac{2\sum_{ij} y_{ij}p_{ij} + s}{\sum_{ij}(y_{ij} + p_{ij}) + s}, \qquad s > 0. \tag{3.3}$$
#
# **Exercise 3.2** (medium, 10 minutes, 3 points). Write `dice_loss`: (3.3) for a batch, from logits, as the mean over the images.
#
# <details><summary>Hint 1</summary>Over which axes do the sums of (3.3) run, if every image has a loss of its own?</details>
# <details><summary>Hint 2</summary>One sigmoid, then <code>flatten(1)</code> on both, sums over axis 1, one ratio for each image, and the mean of 1 minus the ratios.</details>
# <details><summary>Hint 3</summary>Above stands <code>2 * (p * y).sum(1) + smoothing</code>; below, the two sums and the same smoothing.</details>

# %%
def dice_loss(logits, masks, smoothing=1e-6):
    """logits and masks: (B, ...). Returns the mean over images of (3.3), a scalar."""
    ### BEGIN SOLUTION
    p, y = logits.sigmoid().flatten(1), masks.flatten(1)
    return (1 - (2 * (p * y).sum(1) + smoothing) / (p.sum(1) + y.sum(1) + smoothing)).mean()
    ### END SOLUTION


dice_loss = exercises.check("3.2", dice_loss)

# %%
pi = y.flatten(1).mean(1)                                     # foreground shares
check_close("3.3  at logits 0: 1 − π/(½ + π), the mean over images", dice_loss(0 * z, y, 1e-12), (1 - pi / (0.5 + pi)).mean())
one = z[:1], y[:1]                                            # on one image, smp's is the same
check_close("3.3  one image: what segmentation-models-pytorch computes", dice_loss(*one, 1e-12), smp.losses.DiceLoss("binary")(*one).double(), tolerance=1e-6)


# %% [markdown]
# Around this small formula stand three traps, all in one exercise of the handout. **First**, it prints $s$ below only. Then an empty frame that is found empty costs 1, and
# gives no gradient either; and perfection is not 0.

# %%
def perfect(masks):
    return torch.where(masks > 0, 1e4, -1e4).to(F64)          # logits without doubt


def printed_dice(logits, masks, smoothing):
    p, y = logits.sigmoid().flatten(1), masks.flatten(1)
    return (1 - 2 * (p * y).sum(1) / (p.sum(1) + y.sum(1) + smoothing)).mean()


empty = torch.zeros(1, 1, 12, 20, dtype=F64)
small = empty.clone()
small[..., 3:6, 3:9] = 1
for name, true in (("an empty frame", empty), ("a small polyp", small)):
    check_close(f"3.3  {name}, found perfectly: loss 0", dice_loss(perfect(true), true, 1.0), 0.0)
    check_fails(f"E0.11  {name}, with s = 1 below only", dice_loss(perfect(true), true, 1.0), printed_dice(perfect(true), true, 1.0))

# %%
doubt = torch.zeros(1, 1, 12, 20, dtype=F64, requires_grad=True)          # p = ½ everywhere, in an empty frame
ours, printed = (torch.autograd.grad(loss(doubt, empty, 1.0), doubt)[0] for loss in (dice_loss, printed_dice))
check("3.3  the gradient in an empty frame says: less", ours.min(), at_least=1e-6)
check_close("E0.11  with s below only it says nothing", printed, torch.zeros_like(empty))

# %% [markdown]
# **Second**, the handout says: apply a sigmoid, then `smp.losses.DiceLoss('binary')`. That class expects logits and applies a sigmoid itself, so that every
# probability ends between 0.5 and 0.73. Even a perfect prediction of a small polyp costs more than a half, and training pushes against a wall: twenty steps of a tiny network show it.

# %%
few = (torch.rand(4, 1, 12, 20, generator=generator) < 0.05).float()
p = perfect(few).sigmoid().float()
once, twice = smp.losses.DiceLoss("binary", from_logits=False), smp.losses.DiceLoss("binary")
check_close("3.3  perfect, from_logits=False", once(p, few), 0.0, tolerance=1e-6)
check_fails("E0.12  perfect, the sigmoid applied twice", 0.0, twice(p, few), by=0.5)


# %%
def loss_after_20(loss_of, images, masks):
    """Twenty steps of a tiny network, trained with a loss that is given probabilities. Returns the last loss."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    optimizer = torch.optim.Adam(network.parameters(), 0.1)
    for _ in range(20):
        loss = loss_of(network(images).sigmoid(), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


noisy = few + 0.3 * torch.randn(few.shape, generator=generator)
check("3.3  pixels in noise, loss after 20 steps, one sigmoid", loss_after_20(once, noisy, few), at_most=0.5)
check("E0.12  the same, two sigmoids", loss_after_20(twice, noisy, few), at_least=0.7)

# %% [markdown]
# **Third**, it says that the loss of one image may be used "for multiple images at once". smp's sums run over the whole batch, where a large polyp outweighs a small one.
# Take one image found perfectly and one whose small polyp is missed: the mean of 0 and 1 is a half.

# %%
two = torch.zeros(2, 1, 8, 9, dtype=F64)
two[0, 0, :7], two[1, 0, 3, 4] = 1, 1
found = perfect(two)
found[1] = -1e4
print(f"mean over images {dice_loss(found, two):.3f}, sums over the batch {smp.losses.DiceLoss('binary')(found, two):.3f}")
check_fails("E0.13  sums over the batch", dice_loss(found, two), smp.losses.DiceLoss("binary")(found, two), by=0.3)

# %% [markdown]
# ### Both
#
# $$L = \mathrm{BCE} + \lambda\,\mathrm{Dice}, \qquad \lambda \ge 0. \tag{3.4}$$

# %%
for weight in (0.0, 0.7):
    check_close(f"3.4  λ = {weight}", bce_dice_loss(z, y, weight), bce(z, y) + weight * dice_loss(z, y))
leaf = z.clone().requires_grad_()
whole, *parts = (torch.autograd.grad(loss, leaf)[0] for loss in (bce_dice_loss(leaf, y, 0.7), bce(leaf, y), dice_loss(leaf, y)))
check_close("3.4  its gradient is the sum of the two", whole, parts[0] + 0.7 * parts[1])


# %% [markdown]
# ### Intersection over union
#
# What we report is a number about **sets** of pixels. Let $P = \{p \ge \tfrac12\}$ and $Y = \{y = 1\}$:
#
# $$J = \frac{|P \cap Y|}{|P \cup Y|}, \qquad J = 1 \text{ where both are empty.} \tag{3.5}$$
#
# **Exercise 3.3** (easy, 10 minutes, 2 points). Write `iou`: (3.5), one value for each image.
#
# <details><summary>Hint 1</summary>A set of pixels is a tensor of true and false. Which operators are intersection and union?</details>
# <details><summary>Hint 2</summary>Compare with the threshold, take <code>masks.bool()</code>, <code>flatten(1)</code>, combine by <code>&amp;</code> and <code>|</code>, count by <code>sum(1)</code>, and divide.</details>
# <details><summary>Hint 3</summary>Where the union is 0 the quotient is not defined: <code>torch.where(union == 0, 1.0, …)</code>.</details>

# %%
def iou(probabilities, masks, threshold=0.5):
    """probabilities in [0, 1] and masks of zeros and ones, (B, ...). Returns (B,)."""
    ### BEGIN SOLUTION
    predicted, true = (probabilities >= threshold).flatten(1), masks.bool().flatten(1)
    union = (predicted | true).sum(1)
    return torch.where(union == 0, 1.0, (predicted & true).sum(1).double() / union)
    ### END SOLUTION


iou = exercises.check("3.3", iou)

# %% [markdown]
# **As printed in the handout**, IoU is taken of the sigmoid's output, without a threshold. Let every pixel be on its right side of ½, with 0.27 and 0.73. The masks
# agree in every pixel; the "soft IoU" does not notice.

# %%
p = 0.27 + 0.46 * y[:1]
soft = (p * y[:1]).sum() / (p + y[:1] - p * y[:1]).sum()
check_close("3.5  every pixel right: 1", iou(p, y[:1]), torch.ones(1, dtype=F64))
check_fails("E0.14  without a threshold", iou(p, y[:1]), soft[None], by=0.3)

# %% [markdown]
# The Dice coefficient $D = 2|P\cap Y|/(|P|+|Y|)$ says the same in another currency, so that a paper's Dice can be turned into IoU for one image (not for a mean over images):
#
# $$D = \frac{2J}{1+J}, \qquad J = \frac{D}{2-D}. \tag{3.6}$$

# %%
p = z.sigmoid()
J, D = iou(p, y), dice(p, y)
check_close("3.6  D from J and J from D", torch.stack([2 * J / (1 + J), D / (2 - D)]), torch.stack([D, J]))

# %% [markdown]
# With several classes one counts a **confusion matrix** $M$ over all images, $M_{kl}$ pixels of class $k$ taken for $l$, and
#
# $$J_c = \frac{M_{cc}}{\sum_l M_{cl} + \sum_k M_{kc} - M_{cc}}. \tag{3.7}$$
#
# Their mean is called **mIoU**. A class that is neither there nor predicted has 0/0 and no say in it.
#
# **As printed in one handout** the sums run over the images $i = 1 \dots C$, but $C$ is the number of classes. Six images of three classes, the last three all wrong:

# %%
target = torch.arange(3).repeat(2)[:, None, None].expand(6, 2, 2)
predicted = torch.cat([target[:3], (target[3:] + 1) % 3])
right = iou_from_confusion(confusion_matrix(predicted, target, 3))
check_close("3.7  each class: half of it found, and as many pixels claimed wrongly", right, torch.full((3,), 1 / 3, dtype=F64))
check_fails("E2.32  the first C images only", right, iou_from_confusion(confusion_matrix(predicted[:3], target[:3], 3)), by=0.5)
with_absent = iou_from_confusion(confusion_matrix(predicted, target, 4))
check_true("3.7  a fourth class that is nowhere: 0/0", with_absent[3].isnan())
check_close("3.7  mIoU over the classes that are there", with_absent.nanmean(), 1 / 3)
binary = iou_from_confusion(confusion_matrix((z >= 0).long(), y.long(), 2))[1]
together = iou(z.sigmoid().reshape(1, -1), y.reshape(1, -1))[0]
check_close("3.7  with two classes: (3.5) on all pixels as if they were one image", binary, together)


# %% [markdown]
# ## 4  The U-Net
#
# An **encoder** halves the image four times and doubles the channels each time (at each size stand two 3×3 convolutions with batch norm and ReLU): it learns *what* is there. A **decoder** doubles the size back. *Where* the edges are was lost on the
# way down, so at each size the encoder's maps are laid beside the decoder's: the **skips**. With $c$ channels at full size, three colours in and one logit out,
#
# $$\#\theta = 7574\,c^2 + 227\,c + 1. \tag{4.1}$$

# %%
def parameters(network):
    return sum(p.numel() for p in network.parameters())


with torch.device("meta"):                                    # shapes without numbers
    check_equal("4.1  UNet(3, 1)", parameters(UNet(3, 1)), 7574 * 64**2 + 227 * 64 + 1)
    check_equal("4.1  our small one", parameters(UNet(3, 1, **settings["unet"])), (lambda c: 7574 * c**2 + 227 * c + 1)(settings["unet"]["base_channels"]))
    check_equal("4  UNet(3, 1), interpolation in place of transposed convolutions", parameters(UNet(3, 1, bilinear=True)), 17_262_977)

# %%
small = UNet(3, 1, base_channels=2).eval()
shapes = {}
for name, module in [*((f"down {i}", m) for i, m in enumerate(small.encoder)), *((f"up {i}", m) for i, m in enumerate(small.decoder))]:
    module.register_forward_hook(lambda module, x, y, name=name: shapes.update({name: tuple(y.shape[1:])}))
with torch.no_grad():
    check_equal("4  logits for an image of 50 × 70 pixels", tuple(small(torch.rand(1, 3, 50, 70)).shape), (1, 1, 50, 70))
print(*(f"{name}: {shape}" for name, shape in shapes.items()), sep="\n")

# %% [markdown]
# The sizes mirror each other, down and up, and an odd one (25 rows) is rounded down and taken from the skip again. Where do the parameters sit?

# %%
with torch.device("meta"):
    whole = UNet(3, 1)
lowest = parameters(whole.encoder[4]), sum(parameters(part) for part in (*whole.encoder[3:], whole.upsampling[3], whole.decoder[3]))
check_equal("4  UNet(3, 1): % of all parameters in the lowest stage, in the two lowest levels", [round(100 * n / parameters(whole), 1) for n in lowest], [45.6, 86.6])

# %% [markdown]
# Nearly half in the lowest stage, and nearly seven in eight in the two lowest levels, where the maps are smallest.
#
# ## 5  Training
#
# ### Task 3: model, loss, optimizer
#
# The knobs have names, and stand in one cell. The three learning rates, one for each kind of network, were set by hand and not searched: another rate may help any of them.
#
# The U-Net's last layer weighs maps that are never negative (ReLU): those with positive weights speak for polyp. In a narrow network the random start has now and then hardly any; the background, which
# is most of each frame, then pushes these down too, and no pixel is ever marked. So half of the weights start positive and half negative, of the sizes that chance gave.

# %%
EPOCHS, LR, EVALUATE_EVERY = settings["epochs"], settings["lr"], settings["evaluate_every"]
LAMBDA_DICE = 1.0
runs = Path(settings["runs"]())
unet = UNet(3, 1, **settings["unet"])
with torch.no_grad():
    unet.head.weight.abs_()[:, ::2].neg_()


# %%
def standardise(images):
    """Each colour to about mean 0 and variance 1, with the numbers that networks trained on ImageNet expect."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = (images - mean) / std
    return images.contiguous(memory_format=torch.channels_last) if settings["channels_last"] else images


def logits_of(network, images):
    with torch.autocast(place.type, settings["half"], enabled=settings["half"] is not None):
        return network(standardise(images)).float()


# %% [markdown]
# Which optimizer? Adam divides each weight's step by the size of its recent gradients; stochastic gradient descent takes one rate for all, and it has to fit. The same small network,
# weights and eight images, twenty steps each:

# %%
def loss_after(make_optimizer, rate, images, masks, count=20):
    torch.manual_seed(0)
    network = UNet(3, 1, base_channels=4).to(place)
    optimizer = make_optimizer(network.parameters(), rate)
    for _ in range(count):
        loss = bce_dice_loss(network(standardise(images)), masks, LAMBDA_DICE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


eight = next(iter(Batches(train, 8, device=place, shuffle=False)))
sgd = partial(torch.optim.SGD, momentum=0.9)
adamw_slow, sgd_slow, sgd_fast = (loss_after(way, rate, *eight) for way, rate in ((torch.optim.AdamW, 5e-3), (sgd, 5e-3), (sgd, 0.1)))
finding("5  rate 0.005: AdamW's loss over that of SGD with momentum", adamw_slow / sgd_slow, at_most=0.95)
finding("5  SGD's loss at rate 0.1 over that at 0.005", sgd_fast / sgd_slow, at_most=0.95)
finding("5  SGD's loss at rate 0.1 over AdamW's at 0.005", sgd_fast / adamw_slow, at_least=0.8, at_most=1.25)


# %% [markdown]
# In fast mode SGD comes near, with a rate twenty times as large. We take AdamW: Adam, with a weight decay that its scaling leaves alone.
#
# ### Task 4: the loop
#
# One epoch, written out. `AdamW` moves the weights, the one-cycle rate rises and falls over the whole run, the gradient's length is cut at 1, and a loss that is not a number stops
# everything before it reaches the weights. `scaler` does nothing unless half precision is on.

# %%
def one_epoch(network, optimizer, rate, scaler, epoch):
    """Every training image once. Returns the mean loss."""
    network.train()
    losses = []
    for images, masks in batches:
        loss = bce_dice_loss(logits_of(network, images), masks, LAMBDA_DICE)
        check_finite(loss, epoch)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        rate.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


# %%
@torch.no_grad()
def predict(network, part):
    """Probabilities and masks of a part, (N, 1, S, S) on the CPU, and the loss."""
    network.eval()
    answers = [(logits_of(network, images).cpu(), masks.cpu()) for images, masks in Batches(part, 50, device=place, shuffle=False)]
    logits, masks = (torch.cat(tensors) for tensors in zip(*answers, strict=True))
    return logits.sigmoid(), masks, bce_dice_loss(logits, masks, LAMBDA_DICE).item()


# %% [markdown]
# And the whole run. `steps` yields the epochs that are still missing and saves everything that changes: weights, optimizer, rate, random numbers, history.

# %%
def placed(network):
    """The network on its device, its weights in the order of the images' channels."""
    return network.to(place, memory_format=torch.channels_last if settings["channels_last"] else torch.preserve_format)


def fit(name, network, epochs, lr):
    """Train, with the validation part looked at every EVALUATE_EVERY epochs; stopped and called again, it goes on. Returns the history."""
    placed(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * len(batches))
    scaler = torch.amp.GradScaler(place.type, enabled=settings["half"] is torch.float16)
    history = {"epoch": [], "loss": [], "validation loss": [], "validation IoU": [], "seconds": 0.0}
    parts = {"network": network, "optimizer": optimizer, "rate": rate, "scaler": scaler, "generator": generator, "history": history}
    for epoch in steps(epochs, Checkpoints(runs / name, parts, {"epochs": epochs, "lr": lr, "lambda": LAMBDA_DICE, "size": size}), EVALUATE_EVERY):
        start = time.perf_counter()
        loss = one_epoch(network, optimizer, rate, scaler, epoch)
        history["seconds"] += time.perf_counter() - start
        if epoch % EVALUATE_EVERY == 0:
            probabilities, masks, validation_loss = predict(network, validation)
            values = {"epoch": epoch, "loss": loss, "validation loss": validation_loss, "validation IoU": iou(probabilities, masks).mean().item()}
            for key, value in values.items():
                history[key].append(value)
    return history


# %% [markdown]
# ### Stop it, run it again
#
# Colab disconnects; somebody presses the stop button. Eight steps of a tiny network: once without a stop, once with Ctrl-C in the middle of step 5, and then the same line again.

# %%
def tiny_run(where, stop_in_step=None):
    """Eight steps; returns all weights in one vector."""
    torch.manual_seed(0)
    network, draws = UNet(3, 1, base_channels=2), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for step in steps(8, Checkpoints(where, {"network": network, "optimizer": optimizer, "draws": draws})):
        x = torch.rand(4, 3, 32, 32, generator=draws)
        optimizer.zero_grad()
        bce_dice_loss(network(x), (x[:, :1] > 0.6).float(), LAMBDA_DICE).backward()
        if step == stop_in_step:
            signal.raise_signal(signal.SIGINT)   # what the stop button sends
        optimizer.step()
    return nn.utils.parameters_to_vector(network.parameters()).detach()


uninterrupted = tiny_run(tempfile.mkdtemp())
where = tempfile.mkdtemp()
check_raises("5  stopped in step 5", KeyboardInterrupt, lambda: tiny_run(where, stop_in_step=5))
check_true("5  stopped, and run again: bit for bit the same weights", torch.equal(tiny_run(where), uninterrupted))

# %% [markdown]
# Step 5 was finished before the run stopped, so no update was lost or made twice. Now the real thing; stop it if you like, and run the cell again.

# %% tags=["nbval-ignore-output"]
history = fit("unet", unet, EPOCHS, LR["U-Net"])
print(f"{history['seconds']:.0f} s of training, {1e3 * history['seconds'] / EPOCHS / len(batches):.0f} ms a step")


# %%
def loss_left(history, part="loss"):
    """The last loss of a run as a share of the first that its curve shows."""
    return history[part][-1] / history[part][0]


check("5  training loss at the end, as a share of its first value shown", loss_left(history), at_most=settings["loss_left"]["U-Net"])
finding("5  validation IoU at the end", history["validation IoU"][-1], at_least=0.5)

# %% [markdown]
# Does it learn its images by heart? The loop's training loss does not say: it is taken from images in changing poses, and while the weights still move. So we take the training
# images as they are, with the final weights.

# %%
finding("5  validation loss over that of the training images, both as they are", history["validation loss"][-1] / predict(unet, train)[2], at_most=1.25)

# %% [markdown]
# What would an answer reach that looks at no image? *Everything is polyp* is one; the **mean mask** is a better one: for every image the same blob, the pixels that are often polyp,
# cut at the threshold that does best in training.

# %%
train_masks, validation_masks = (torch.stack([mask for _, mask in part]) for part in (train, validation))
often = train_masks.mean(0, keepdim=True)
cut = max((k / 20 for k in range(1, 20)), key=lambda k: iou(often.expand_as(train_masks), train_masks, k).mean().item())


def baselines(masks):
    """IoU of the two answers that look at no image, for each of these masks."""
    return {"all foreground": iou(torch.ones_like(masks), masks), "mean mask": iou(often.expand_as(masks), masks, cut)}


# %% alt="Left: training and validation loss fall from about 1.3 to about 0.65. Right: validation IoU starts below the dotted line of the mean-mask baseline, rises past it and ends at about twice its height."
def curves(**histories):
    _, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6))
    for (name, h), colour in zip(histories.items(), figures.COLOURS, strict=False):
        for axes, key, style, label in ((left, "loss", "o-", f"{name}, training"), (left, "validation loss", "s--", f"{name}, validation"), (right, "validation IoU", "s--", name)):
            axes.plot(h["epoch"], h[key], style, color=colour, markersize=3, label=label)
    right.axhline(baselines(validation_masks)["mean mask"].mean(), color="0.4", linestyle=":", label="mean mask")
    left.set(xlabel="epoch", ylabel="BCE + λ Dice", ylim=(0, 2))
    right.set(xlabel="epoch", ylabel="validation IoU", ylim=(0, 1))
    left.legend(fontsize="small", loc="upper right")
    right.legend(fontsize="small")
    plt.show()


curves(**{"U-Net": history})

# %% [markdown]
# In fast mode, training and validation loss both fall, and the loss of the training images as they are is not far below that of the validation images (checked above): there is little learned
# by heart, since each image comes in another pose every epoch. The validation IoU ends far above the dotted line of the baseline.
#
# ## 6  The test
#
# ### Task 5: IoU on the test part
#
# The test part is opened now, and once for each network: section 9 opens it for the others, and nothing is chosen by it. The two answers that look at no image set the scale. A mean
# of so few numbers is itself uncertain; resampling the images with replacement gives its interval, which should agree with the textbook's ($s$ is the standard deviation of the
# $n$ values):
#
# $$\bar J \pm 1.96\, s/\sqrt{n}. \tag{6.1}$$

# %%
probabilities, test_masks, _ = predict(unet, test)
scores, blind = iou(probabilities, test_masks), baselines(test_masks)
draws = torch.randint(len(scores), (10_000, len(scores)), generator=torch.Generator().manual_seed(0))
interval = scores[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=F64))
check("6.1  the bootstrap's interval over the formula's", (interval[1] - interval[0]) / (2 * 1.96 * scores.std() / len(scores) ** 0.5), at_least=0.9, at_most=1.1)

# %% tags=["nbval-ignore-output"]
print(f"test IoU {scores.mean():.3f}, 95 % interval {interval[0]:.3f} to {interval[1]:.3f}, quartiles {scores.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=F64)).tolist()}")
print(*(f"{name}: {values.mean():.3f}" for name, values in blind.items()), sep="\n")

# %%
best_baseline = max(values.mean() for values in blind.values())
finding("6  the better baseline's IoU", best_baseline, at_most=0.45)
finding("6  U-Net's test IoU", scores.mean(), at_least=0.55)
check("6  U-Net's IoU above the better baseline's, at the interval's lower end", interval[0] - best_baseline, at_least=settings["least_lead"]["U-Net"])

# %% alt="Left: histogram of the test images' IoU: the U-Net's pile up around 0.85 with a tail down to 0, the mean mask's lie around 0.3. Right: IoU against the polyp's share of the frame, logarithmic; the smallest polyps have low values, most of the others lie above 0.6, some far below."
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6))
bins = torch.linspace(0, 1, 21).tolist()
left.hist(scores.tolist(), bins, color=figures.BLUE, alpha=0.7, label="U-Net")
left.hist(blind["mean mask"].tolist(), bins, histtype="step", linewidth=2, color=figures.VERMILION, label="mean mask")
left.axvspan(*interval.tolist(), color=figures.SKY, alpha=0.5, label="mean, 95 %")
left.set(xlabel="IoU", ylabel="test images")
left.legend(fontsize="small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), columnspacing=1)
test_share = test_masks.flatten(1).mean(1)
right.semilogx((100 * test_share).tolist(), scores.tolist(), "o", markersize=4, alpha=0.7)
right.minorticks_off()
right.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
right.set(xlabel="polyp's share of the frame, %", ylabel="IoU", ylim=(-0.02, 1))
plt.show()


# %%
def iou_by_size(scores):
    """Mean IoU of the third of the test images with the smallest polyps, of the middle third and of the largest."""
    return [scores[chosen].mean().item() for chosen in test_share.argsort().tensor_split(3)]


thirds = iou_by_size(scores)
finding("6  IoU of the largest third minus that of the smallest", thirds[2] - thirds[0], at_least=0.05)
finding("6  interquartile range of the IoU", scores.quantile(0.75) - scores.quantile(0.25), at_least=0.1)

# %% [markdown]
# The mean hides the shape (left). In fast mode most images are found well, and a tail reaches down to zero. The narrow band is the interval of the mean, the histogram is what one
# patient may meet. Right: the smallest are found badly, and many of them missed altogether. So are some large ones.
#
# ### Good, partial, missed
#
# Pictures chosen by hand prove what one likes. We choose by **rank**: the three best of the test part, the three whose IoU is nearest to ½, and the three worst.

# %% alt="Nine test frames in three rows with the true outline in blue and the predicted one in white. Top row, the best: the outlines coincide. Middle row: they overlap in part. Bottom row, the worst: there is no white outline, or it is a speck, or lies round other places."
order = scores.argsort(descending=True)
ranks = {"good": order[:3], "partial": (scores - 0.5).abs().argsort()[:3], "missed": order[-3:]}
figure, grid = plt.subplots(3, 3, figsize=(5.1, 5.4))
for row, (name, chosen) in zip(grid, ranks.items(), strict=True):
    for axes, i in zip(row, chosen.tolist(), strict=True):
        show_pair(axes, test[i][0], test_masks[i], probabilities[i] >= 0.5, f"{name}: IoU {scores[i]:.2f}")
plt.show()

# %%
finding("6  the best three", scores[ranks["good"]].min(), at_least=0.75)
finding("6  the three nearest to ½", scores[ranks["partial"]].mean(), at_least=0.4, at_most=0.6)
finding("6  the worst three", scores[ranks["missed"]].max(), at_most=0.3)

# %% [markdown]
# Blue the truth, white the prediction. At the top the two lines are one; in the middle row a part of the polyp is found, or the polyp and something else; at the bottom the two
# hardly meet: the network has marked nothing, a speck, or another place, and the polyp is missed.
#
# ### Play with it
#
# The threshold ½ is a choice. Lower it, and more is found and more is claimed: you walk along the curve of **precision** (the share of the marked pixels that are polyp) against **recall** (the share of the polyp pixels that are marked).

# %%
test_images = torch.stack([image for image, _ in test])
explorer = ThresholdExplorer(test_images, probabilities, test_masks)
explorer

# %% alt="Left, a test frame with the true and the predicted outline, and beside it the pixels found, missed and claimed wrongly in three colours. Right, the IoU against the threshold, for this image and in the mean, a broad plateau; and the precision-recall curve with a marker."
explorer.snapshot(threshold=0.3, image=int(order[len(order) // 2]))

# %% [markdown]
# The picture for one threshold and the image of middle rank, for readers without sliders. In fast mode the mean curve is flat over a broad middle: a network that is sure of most pixels does not care much
# where one cuts. Moving the sliders must give what (3.5) gives:

# %%
explorer.controls["threshold"].value, explorer.controls["image"].value = 0.8, 3
check_close("3.5  the explorer's IoU, after two moves", torch.tensor(explorer.shown.iou), iou(probabilities[3:4], test_masks[3:4], 0.8)[0])
check_close("3.5  and its mean over the images", torch.tensor(explorer.shown.mean_iou), iou(probabilities, test_masks, 0.8).mean())
matrix = confusion_matrix((probabilities >= 0.8).long(), test_masks.long(), 2)
check_close("3.7  its precision, from the confusion matrix", torch.tensor(explorer.shown.precision, dtype=F64), matrix[1, 1] / matrix[:, 1].sum().double())

# %% [markdown]
# ### A finished network is a file
#
# Weights are kept as `safetensors`: numbers with names, the settings from which to build the network, and no code that runs when somebody opens them.

# %%
file = runs / "unet.safetensors"
save_weights(unet, file, settings["unet"])
fresh = placed(UNet(3, 1, **saved_settings(file)))
load_weights(fresh, file)
check_true("6  a new network, built and filled from the file alone: the same masks, pixel by pixel", torch.equal(predict(fresh, test)[0] >= 0.5, probabilities >= 0.5))

# %% [markdown]
# ### Task 6: observations and results

# %% tags=["nbval-ignore-output"]
print(f"U-Net with {parameters(unet):,} parameters; {len(train)} training images of {size}×{size}, batch {BATCH_SIZE}; AdamW, one-cycle rate up to {LR['U-Net']},")
print(f"EPOCHS = {EPOCHS}, LAMBDA_DICE = {LAMBDA_DICE}; flips, turns, scale, shift, colour. Test: {len(test)} images, threshold 0.5.")
print(f"Test IoU {scores.mean():.3f}, 95 % interval {interval[0]:.3f} to {interval[1]:.3f}; " + ", ".join(f"{name} {values.mean():.3f}" for name, values in blind.items()))
print(f"The other networks' rates, for section 9: ViT {LR['ViT']}, ResNet U-Net {LR['ResNet U-Net']}.")

# %% [markdown]
# In fast mode, and each checked above:
#
# * **The network is far above knowing nothing.** Its interval's lower end lies at least 0.2 above the better of the two baselines.
# * **The mean is not the patient.** The quarter of the images that does best and the quarter that does worst are at least 0.1 of IoU apart; the worst three are missed.
# * **Small polyps are the hard ones.** The third with the largest polyps does better than the third with the smallest.
# * **It has learned little by heart.** On training images as they are, its loss is not far below that on validation images (section 5), so longer training may help; section 10
#   quotes longer runs.
#
# ## 7  Why cross-entropy
#
# ### Task 7: reasons
#
# **It is a likelihood.** If each pixel is a coin that shows *polyp* with probability $p_{ij}$, the negative logarithm of the probability of the whole mask is
#
# $$-\log \prod_{ij} p_{ij}^{y_{ij}}(1-p_{ij})^{1-y_{ij}} = HW \cdot \mathrm{BCE}(y, p), \tag{7.1}$$
#
# so training by BCE is maximum likelihood for pixels that are independent given the image.

# %%
nll = -Bernoulli(logits=z).log_prob(y).flatten(1).sum(1)
check_close("7.1  negative log-likelihood of each mask = HW · BCE", nll, torch.stack([12 * 20 * bce(zi, yi) for zi, yi in zip(z, y, strict=True)]))

# %% [markdown]
# **Its gradient is the error.** The sigmoid's slope cancels against the logarithm's, and a pixel that is wrong always pulls, the more the wronger it is. The squared error keeps that slope,
# which vanishes exactly where the network is sure and wrong:
#
# $$\frac{\partial\,\mathrm{BCE}}{\partial z_{ij}} = \frac{p_{ij}-y_{ij}}{HW}, \qquad \frac{\partial}{\partial z}(p-y)^2 = 2\,(p-y)\,p\,(1-p). \tag{7.2}$$

# %%
leaf = z.clone().requires_grad_()
p = leaf.sigmoid()
by_bce, by_square = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in (bce(leaf, y), (p - y).square().sum()))
p = p.detach()
check_close("7.2  gradient of BCE", by_bce, (p - y) / y.numel())   # the mean also over the images, so HW times their number
check_close("7.2  gradient of the squared error", by_square, 2 * (p - y) * p * (1 - p))

# %% alt="Absolute gradient of a polyp pixel against its logit. Cross-entropy's is near 1 far to the left, \u00bd at logit 0, and falls to 0 on the right. The squared error's is a small hump around minus 0.7 and vanishes on both sides."
figure, axes = plt.subplots(figsize=(5.5, 2.4))
line = torch.linspace(-8, 8, 161)
p = line.sigmoid()
axes.plot(line.numpy(), (1 - p).numpy(), label="cross-entropy")
axes.plot(line.numpy(), (2 * (1 - p) * p * (1 - p)).numpy(), "--", label="squared error")
axes.set(xlabel="logit of a polyp pixel", ylabel="size of the gradient")
axes.legend()
plt.show()

# %% [markdown]
# To the left the network is sure that the polyp pixel is background. Cross-entropy pulls with full strength, the squared error not at all.
#
# **Its probabilities mean something.** Among all constant answers, BCE is least at the foreground share itself, and Dice at "everything is polyp". That is why Dice
# alone gives bold masks and overconfident probabilities, and why it comes as an addition.

# %%
constant = torch.linspace(0.001, 0.999, 999, dtype=F64)
by_bce = torch.stack([bce(c.logit().expand_as(y), y) for c in constant])
by_dice = torch.stack([dice_loss(c.logit().expand_as(y), y) for c in constant])
check_close("7  best constant answer by BCE: the foreground share", constant[by_bce.argmin()], y.mean(), tolerance=1e-3)
check_close("7  best constant answer by Dice: 1", constant[by_dice.argmin()], 1.0, tolerance=1e-2)

# %% [markdown]
# What speaks against BCE alone: it counts pixels, so that a small polyp is a rounding error; and it takes the pixels to be independent, which the pixels of one
# polyp are not. Dice answers the first.
#
# ## 8  A vision transformer, part by part
#
# ### Patches
#
# The image is cut into $P\times P$ patches side by side, and each becomes a **token** by the same linear map, with $p_n$ the pixels of patch $n$ in one column:
#
# $$t_n = E\,p_n + b, \qquad E \in \mathbb R^{d\times 3P^2}. \tag{8.1}$$
#
# It is the patch-wise map of notebook 01, taken in steps of $P$: a convolution of stride $P$.

# %%
x = torch.randn(2, 3, 8, 12, generator=generator, dtype=F64)
embedding = PatchEmbedding(3, 4, 5).double()
E, b = embedding.project.weight.flatten(1), embedding.project.bias
patches = F.unfold(x, 4, stride=4).transpose(1, 2)            # (2, 6, 48)
check_close("8.1  linear map of each patch = convolution of stride P", patches @ E.T + b, embedding(x))


# %% [markdown]
# **Exercise 8.1** (medium, 10 minutes, 3 points). A mask needs the way back: write `unpatch`, which puts the pixels that tokens hold into their places.
#
# <details><summary>Hint 1</summary>A token's last axis hides three axes, and the axis of tokens two. Which?</details>
# <details><summary>Hint 2</summary><code>unflatten</code> both, bring each axis of pixels next to its axis of patches with <code>permute</code>, and <code>flatten</code> them together.</details>
# <details><summary>Hint 3</summary>From (B, h, w, C, P, P) the order for <code>permute</code> is 0, 3, 1, 4, 2, 5; then two axes at a time become one.</details>

# %%
def unpatch(tokens, patch_size, height):
    """tokens: (B, h*w, C*P*P), each over channels, rows, columns; height: h. Returns (B, C, h*P, w*P)."""
    ### BEGIN SOLUTION
    x = tokens.unflatten(2, (-1, patch_size, patch_size)).unflatten(1, (height, -1))   # (B, h, w, C, P, P)
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    ### END SOLUTION


unpatch = exercises.check("8.1", unpatch)

# %%
check_close("8.1  cut and put back", unpatch(patches, 4, 2), x)


# %% [markdown]
# ### Attention
#
# Every token asks a question $q$, shows a key $k$ and offers a value $v$, three linear maps of it. The answer is a mean of the values, weighted by how well the keys fit.
# With the tokens as the rows of $Y$ (no longer masks) and $d_k$ numbers in a key,
#
# $$\operatorname{attention}(Q, K, V) = \operatorname{softmax}\!\left(\frac{QK^\top}{\sqrt{d_k}}\right) V, \qquad Q = YW_Q,\; K = YW_K,\; V = YW_V. \tag{8.2}$$
#
# **Exercise 8.2** (medium, 10 minutes, 3 points). Write `attention`, the first formula of (8.2).
#
# <details><summary>Hint 1</summary>Scores are (N, N): what does row i hold, and what should it add up to once it holds weights?</details>
# <details><summary>Hint 2</summary>Multiply q with k transposed, divide by the root of d, take a softmax along each row, multiply v.</details>
# <details><summary>Hint 3</summary><code>k.transpose(-2, -1)</code>, <code>q.shape[-1] ** 0.5</code>, <code>softmax(-1)</code>.</details>

# %%
def attention(q, k, v):
    """q, k: (..., N, d); v: (..., N, d_v). Returns (..., N, d_v)."""
    ### BEGIN SOLUTION
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
    return weights @ v
    ### END SOLUTION


attention = exercises.check("8.2", attention)

# %% [markdown]
# **As printed in one handout**, $V = YW_K$: the keys in the place of the values. With three channels in a value and four in a key, not even the shape is right. And its query is
# $q_1 = x_1W_X$, with a matrix that it declares nowhere; read as the other one of that shape, $W_K$, it gives another answer.

# %%
Y, W_Q, W_K, W_V = (torch.randn(*shape, generator=generator, dtype=F64) for shape in ((7, 5), (5, 4), (5, 4), (5, 3)))
right = attention(Y @ W_Q, Y @ W_K, Y @ W_V)
token = torch.softmax((Y[2] @ W_Q) @ (Y @ W_K).T / 2, 0) @ (Y @ W_V)
check_close("8.2  row 2, from the definition", right[2], token)
check_fails("E2.15  V = Y W_K", right, attention(Y @ W_Q, Y @ W_K, Y @ W_K))
check_fails("E2.15  q = x₁ W_X, with W_K for W_X", right, attention(Y @ W_K, Y @ W_K, Y @ W_V))

# %% [markdown]
# Several **heads** do this side by side, on $d/h$ channels each, and a last linear map mixes what they found:
#
# $$\operatorname{MHSA}(Y) = \bigl[\operatorname{attention}_1, \dots, \operatorname{attention}_h\bigr]\, W_O + b_O. \tag{8.3}$$
#
# Ours against torch's with the same weights, and against your `attention`:

# %%
ours, theirs = MultiHeadAttention(12, 3).double(), nn.MultiheadAttention(12, 3, batch_first=True).double()


@torch.no_grad()
def copy_attention(ours, theirs):
    three = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in three]))
    theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in three]))
    theirs.out_proj.load_state_dict(ours.output.state_dict())


copy_attention(ours, theirs)
Y = torch.randn(2, 7, 12, generator=generator, dtype=F64)
q, k, v = (layer(Y).unflatten(2, (3, 4)).transpose(1, 2) for layer in (ours.query, ours.key, ours.value))
check_close("8.3  ours = nn.MultiheadAttention", ours(Y), theirs(Y, Y, Y, need_weights=False)[0])
check_close("8.3  your attention, head by head", ours.output(attention(q, k, v).transpose(1, 2).flatten(2)), ours(Y))

# %% [markdown]
# ### The rest of a layer
#
# **Layer norm** brings each token, by itself, to mean 0 and variance 1; the **feed-forward** part treats each token alike, which makes it two convolutions of size one:
#
# $$\operatorname{LN}(y) = \gamma\,\frac{y - \operatorname{mean}(y)}{\sqrt{\operatorname{var}(y) + \epsilon}} + \beta, \tag{8.4}$$
# $$\operatorname{FFN}(y) = W_2\,\operatorname{GELU}(W_1 y + b_1) + b_2. \tag{8.5}$$
#
# Here $\gamma$ and $\beta$ are learned, and $\epsilon$ is tiny. In the **pre-norm** order, which is easier to train (Xiong and others), the layer is
#
# $$h = y + \operatorname{MHSA}(\operatorname{LN}(y)), \qquad \text{layer}(y) = h + \operatorname{FFN}(\operatorname{LN}(h)), \tag{8.6}$$
#
# and one more $\operatorname{LN}$ stands after the last layer. The original transformer had them after each sum, the **post-norm** order: $h = \operatorname{LN}(y +
# \operatorname{MHSA}(y))$, $\text{layer}(y) = \operatorname{LN}(h + \operatorname{FFN}(h))$.

# %%
layer = EncoderLayer(12, 3, mlp_ratio=2).double()
for parameter in layer.parameters():
    nn.init.normal_(parameter, std=0.5, generator=generator)
norm, (up, _, down) = layer.norm_1, layer.feed_forward
centred = Y - Y.mean(-1, keepdim=True)
check_close("8.4  layer norm", centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias, norm(Y))
hidden = F.gelu(F.conv1d(Y.mT, up.weight[:, :, None], up.bias))
check_close("8.5  feed-forward = two convolutions of size one", F.conv1d(hidden, down.weight[:, :, None], down.bias).mT, layer.feed_forward(Y))

# %%
torchs = nn.TransformerEncoderLayer(12, 3, 24, dropout=0, activation="gelu", batch_first=True, norm_first=True).double()
copy_attention(layer.attention, torchs.self_attn)
for mine, other in ((layer.norm_1, torchs.norm1), (layer.norm_2, torchs.norm2), (up, torchs.linear1), (down, torchs.linear2)):
    other.load_state_dict(mine.state_dict())
check_close("8.6  our layer = nn.TransformerEncoderLayer(norm_first=True)", layer(Y), torchs(Y))
torchs.norm_first = False
h = layer.norm_1(Y + layer.attention(Y))
check_close("8  post-norm, from our parts = norm_first=False", layer.norm_2(h + layer.feed_forward(h)), torchs(Y))
torchs.norm_first = True

# %% [markdown]
# **As printed in one handout**, the queries are normalised and the tokens that they look at are not, $\operatorname{MHSA}_H(\operatorname{LN}(h_j))$ for
# $\operatorname{MHSA}_{\operatorname{LN}(H)}(\operatorname{LN}(h_j))$: another layer.

# %%
with torch.no_grad():
    h = Y + torchs.self_attn(torchs.norm1(Y), Y, Y, need_weights=False)[0]
    check_fails("E2.17  keys and values without the norm", torchs(Y), h + layer.feed_forward(layer.norm_2(h)))

# %% [markdown]
# ### Positions
#
# Nothing in a layer knows where a token came from: shuffle the tokens, and the answers are shuffled alike. With $\Pi$ a permutation,
#
# $$\text{layer}(\Pi Y) = \Pi\,\text{layer}(Y). \tag{8.7}$$

# %%
shuffle = torch.randperm(7, generator=generator)
check_close("8.7  shuffled tokens, shuffled answers", layer(Y[:, shuffle]), layer(Y)[:, shuffle])

# %% [markdown]
# So a vector that depends on the place is added to each token. It may be learned, or fixed: at place $p$, with frequencies $\omega_i = 10000^{-2i/d}$, $i = 0, \dots, d/2-1$,
#
# $$\mathrm{PE}(p)_{2i} = \sin(\omega_i\, p), \qquad \mathrm{PE}(p)_{2i+1} = \cos(\omega_i\, p), \tag{8.8}$$
#
# whose point is that a shift by $k$ is a **linear** map, a rotation of each pair that does not depend on $p$:
#
# $$\mathrm{PE}(p+k)_{2i,\,2i+1} = \begin{pmatrix}\cos\omega_i k & \sin\omega_i k\\ -\sin\omega_i k & \cos\omega_i k\end{pmatrix} \mathrm{PE}(p)_{2i,\,2i+1}. \tag{8.9}$$

# %%
table, k = sinusoidal_positions(60, 8), 7
p, omega = torch.arange(60, dtype=F64)[:, None], 10000 ** (-torch.arange(0, 8, 2, dtype=F64) / 8)
check_close("8.8  sines and cosines", table, torch.stack([(omega * p).sin(), (omega * p).cos()], -1).flatten(1))
sin, cos = table[:-k, 0::2], table[:-k, 1::2]
turned = torch.stack([sin * (omega * k).cos() + cos * (omega * k).sin(), cos * (omega * k).cos() - sin * (omega * k).sin()], -1)
check_close("8.9  a shift by 7 is a rotation of each pair", table[k:], turned.flatten(1))

# %% [markdown]
# ### What it costs
#
# Why patches and not pixels? One attention matrix has $N^2$ entries. A handout works it out for an image of 224 × 224 pixels, each a token, in half precision, with 12 layers
# of 8 heads:
#
# $$N = 224^2, \qquad N^2 = 2.52\cdot10^9 \text{ entries} = 5.04\text{ GB}, \qquad 12 \cdot 8 \cdot 5.04\text{ GB} = 483\text{ GB}. \tag{8.10}$$

# %%
N = 224**2
entries, gigabytes = N**2, 2 * N**2 / 1e9
print(f"{entries:.3g} entries, {gigabytes:.3g} GB, {12 * 8 * gigabytes:.3g} GB; with patches of 16 × 16: {12 * 8 * 2 * (N // 256) ** 2 / 1e6:.2g} MB")
ratios = torch.tensor([entries / 2.52e9, gigabytes / 5.04, 12 * 8 * gigabytes / 483])
check_close("8.10  entries and gigabytes over the three numbers", ratios, torch.ones(3), tolerance=2e-3)

# %% [markdown]
# Right for memory (fused attention, as in our layer, never stores the matrix). Further on, **that handout says** that a ViT's operations depend heavily on the length of the sequence
# "due to the quadratic complexity" of attention. At usual sizes another part is larger. A layer of width $d$ multiplies
#
# $$12\,N d^2 + 2\,N^2 d \tag{8.11}$$
#
# times: the linear part leads until $N \approx 6d$. For ViT-B/16, $d = 768$, at four image sizes:

# %%
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def counted(tokens, width):
    """Multiplications of one layer, by torch's counter (which counts a multiplication and an addition as two)."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        EncoderLayer(width, 12)(torch.empty(1, tokens, width))
    return counter.get_total_flops() // 2


check_equal("8.11  multiplications of a layer, counted", counted(197, 768), 12 * 197 * 768**2 + 2 * 197**2 * 768)
for pixels in (224, 384, 1024, 2048):
    n = (pixels // 16) ** 2 + 1
    print(f"{pixels:4} px, {n:5} tokens: quadratic part {n / (n + 6 * 768):.3f}")

# %%
check_fails("E2.19  twice the tokens, four times the work, at 224 px", counted(394, 768) / counted(197, 768), 4.0, by=0.5)


# %% [markdown]
# ### A class token
#
# The original vision transformer classifies: one more token, learned, goes first, and its answer is read. Smallest possible test: 24 images, each with a bright square in one of four corners,
# learned by heart.

# %%
def corners(count):
    """Noise with a bright corner, (count, 3, 16, 16), and which of the four it is."""
    images, labels = torch.rand(count, 3, 16, 16, generator=generator), torch.arange(count) % 4
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 8 * (label // 2) :, 8 * (label % 2) :][:, :8, :8] += 0.5
    return images - 0.5, labels


images, labels = corners(24)
classifier = SegmentViT(16, 4, dim=32, depth=2, heads=4, classes=4, head="class")
optimizer = torch.optim.Adam(classifier.parameters(), 3e-3)
for _ in range(60):
    optimizer.zero_grad()
    loss = F.cross_entropy(classifier(images), labels)
    loss.backward()
    optimizer.step()
check_equal("8  logits of the class token", tuple(classifier(images).shape), (24, 4))
check("8  cross-entropy after 60 steps (a guess has log 4)", loss.item(), at_most=0.1)

# %% [markdown]
# ## 9  The transformer finds polyps
#
# ### Task 8: the same steps
#
# `SegmentViT` is these parts in a row, with a head that turns each token into $P\times P$ pixels and blends the seams with two small convolutions. Same split, batches, loss and
# loop. First with as many **steps** as the U-Net had.

# %%
vit = SegmentViT(size, **settings["vit"])
with torch.no_grad():
    check_equal("9  logits", tuple(vit(torch.rand(2, 3, size, size)).shape), (2, 1, size, size))

# %% tags=["nbval-ignore-output"]
histories = {"ViT": fit("vit", vit, EPOCHS, LR["ViT"])}
print(f"{histories['ViT']['seconds']:.0f} s of training")

# %%
check("9  ViT: training loss at the end, as a share of its first value shown", loss_left(histories["ViT"]), at_most=settings["loss_left"]["ViT"])


# %% [markdown]
# In fast mode its step takes less time than the U-Net's (section 10 measures both). So, second, as much **time**: more epochs, with the schedule stretched to fit. And third, what a practitioner
# would do in an afternoon: a U-Net whose encoder is a ResNet. In full mode it has weights from ImageNet; in fast mode it starts from nothing, has three levels instead of five, and less time.

# %%
def resnet_unet(encoder_name, encoder_weights, **sizes):
    """smp.Unet; where its ImageNet weights cannot be fetched, it says so and takes random ones."""
    try:
        return smp.Unet(encoder_name, encoder_weights=encoder_weights, **sizes)
    except OSError as error:
        print(f"no ImageNet weights for {encoder_name}, so random ones: {error}")
        return smp.Unet(encoder_name, encoder_weights=None, **sizes)


networks = {"U-Net": unet, "ViT": vit, "ViT, as long": SegmentViT(size, **settings["vit"]), "ResNet U-Net": resnet_unet(**settings["resnet"])}

# %% tags=["nbval-ignore-output"]
histories |= {
    "U-Net": history,
    "ViT, as long": fit("vit-longer", networks["ViT, as long"], settings["vit_epochs"], LR["ViT"]),
    "ResNet U-Net": fit("resnet", networks["ResNet U-Net"], settings["resnet_epochs"], LR["ResNet U-Net"]),
}
print(*(f"{name}: {histories[name]['seconds']:.0f} s" for name in networks), sep="\n")

# %%
longer = histories["ViT, as long"]
check("9  ViT, as long: training loss at the end, as a share of its first value shown", loss_left(longer), at_most=settings["loss_left"]["ViT, as long"])
finding("9  ViT, as long: the same of its validation loss", loss_left(longer, "validation loss"), at_most=0.9)

# %% alt="Left: training and validation losses of the U-Net and the longer-trained ViT over the epochs; the ViT's lie above. Right: validation IoU; the U-Net climbs fast and high, the ViT slowly although it has nearly twice the epochs; a dotted line marks the mean mask."
curves(**{name: histories[name] for name in ("U-Net", "ViT, as long")})

# %%
outputs = {name: predict(network, test)[0] for name, network in networks.items()}
ious = {name: iou(p, test_masks) for name, p in outputs.items()}
difference = ious["U-Net"] - ious["ViT, as long"]              # image by image
error = difference.std() / len(difference) ** 0.5
check("9  ViT, as long: test IoU above the better baseline's", ious["ViT, as long"].mean() - best_baseline, at_least=settings["least_lead"]["ViT"])
finding("9  U-Net's IoU minus the ViT's at equal steps", (ious["U-Net"] - ious["ViT"]).mean(), at_least=0.15)
finding("9  U-Net's IoU minus the ViT's at equal time", difference.mean(), at_least=0.15)
finding("9  the same in standard errors of the paired difference", difference.mean() / error, at_least=5)
finding("9  the ViT's IoU after the longer training minus that after the shorter", (ious["ViT, as long"] - ious["ViT"]).mean(), at_least=0)

# %% [markdown]
# In fast mode the U-Net is ahead at equal steps and at equal time, and the difference is many times its standard error, image by image. Where does the transformer lose? These are the three
# images on which it is furthest behind.

# %% alt="Three test frames, twice, with the true outline in blue. Above, the U-Net's outline in white lies close to it. Below, on the same frames, the ViT's hardly meets it."
furthest = difference.argsort(descending=True)[:3]
figure, grid = plt.subplots(2, 3, figsize=(5.1, 3.7))
for row, name in zip(grid, ("U-Net", "ViT, as long"), strict=True):
    for axes, i in zip(row, furthest.tolist(), strict=True):
        show_pair(axes, test[i][0], test_masks[i], outputs[name][i] >= 0.5, f"{name}: IoU {ious[name][i]:.2f}")
plt.show()

# %%
finding("9  these three: the U-Net's worst IoU", ious["U-Net"][furthest].min(), at_least=0.6)
finding("9  these three: the ViT's best IoU", ious["ViT, as long"][furthest].max(), at_most=0.35)

# %% [markdown]
# Above the U-Net, below the transformer, on the same frames. In fast mode its largest losses are no ragged rims: where the U-Net finds the polyp, it marks other places and little of the polyp.
#
# ### ViT observations and results
#
# In fast mode, and each checked above:
#
# * **It learns**: above both baselines, with training and validation loss falling.
# * **It learns slowly**, far behind the U-Net after equal steps. The usual explanation: a convolution knows from the start that neighbours belong together and that a polyp is a polyp
#   anywhere in the frame; a transformer has to find both in a few hundred images.
# * **Time helps and does not suffice.** With about the U-Net's time it improves on itself and stays behind.
#
# ### What positions do, what skips do
#
# Two quick surgeries on trained networks. We shuffle the ViT's position vectors, so that tokens keep their content and lie about their place. And we feed the U-Net's
# decoder zeros where the skips were.

# %%
trained_vit = networks["ViT, as long"]
kept = trained_vit.positions.detach().clone()
with torch.no_grad():
    trained_vit.positions.copy_(kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))])
ious["ViT, positions shuffled"] = iou(predict(trained_vit, test)[0], test_masks)
with torch.no_grad():
    trained_vit.positions.copy_(kept)
unet.skips = False
ious["U-Net, skips cut"] = iou(predict(unet, test)[0], test_masks)
unet.skips = True

# %%
for name, of in (("ViT, positions shuffled", "ViT, as long"), ("U-Net, skips cut", "U-Net")):
    finding(f"9  {name}: IoU over that of the whole network", ious[name].mean() / ious[of].mean(), at_most=0.6)

# %% [markdown]
# In fast mode both networks rely on what we took. That is not yet the ablation that one wants, since a network *trained* without skips or positions may find another way; those runs stand in the
# record of the next section.
#
# ## 10  The comparison
#
# Equal what? Equal epochs flatter the network whose steps are dear. Equal parameters mean little: a transformer's are used once per token, a convolution's once per pixel of its map.
# We give the ViT both budgets, the U-Net's steps and about its time, and say what each step costs. *Trained* are the parameters to which a step brings a gradient.

# %% tags=["nbval-ignore-output"]
images, truth = next(iter(batches))


def training_step(network):
    network.train()
    bce_dice_loss(logits_of(network, images), truth, LAMBDA_DICE).backward()


seconds = median_seconds({name: partial(training_step, network) for name, network in networks.items() if name != "ViT"}, settings["repeats"])
memory = {name: peak_bytes(partial(training_step, network), place) for name, network in networks.items() if name != "ViT"}
trained = {name: sum(p.numel() for p in networks[name].parameters() if p.grad is not None) for name in seconds}
epochs = {"U-Net": EPOCHS, "ViT": EPOCHS, "ViT, as long": settings["vit_epochs"], "ResNet U-Net": settings["resnet_epochs"]}
print(f"{'':14} {'trained':>11} {'ms a step':>10} {'MiB':>6} {'epochs':>7} {'test IoU':>9}   small  medium  large")
for name in networks:
    cost = name if name in seconds else "ViT, as long"
    sizes = "   ".join(f"{value:.2f}" for value in iou_by_size(ious[name]))
    print(f"{name:14} {trained[cost]:11,} {1e3 * seconds[cost]:10.0f} {memory[cost] / 2**20:6.0f} {epochs[name]:7} {ious[name].mean():9.3f}   {sizes}")

# %%
print(*(f"{name}: {parameters(networks[name]):,} parameters, {count:,} trained" for name, count in trained.items()), sep="\n")
times = {name: seconds[name] * epochs[name] / (seconds["U-Net"] * EPOCHS) for name in seconds}
finding("10  the longer ViT's training time over the U-Net's", times["ViT, as long"], at_least=0.5, at_most=2)
finding("10  the ResNet U-Net's training time over the U-Net's", times["ResNet U-Net"], at_least=0.3, at_most=1)
finding("10  a ViT step's memory over a U-Net step's", memory["ViT, as long"] / memory["U-Net"], at_most=1.0)
ahead = [a - b for a, b in zip(iou_by_size(ious["U-Net"]), iou_by_size(ious["ViT, as long"]), strict=True)]
finding("10  IoU by size: the U-Net leads the ViT in each third, at least by", min(ahead), at_least=0)
finding("10  U-Net's IoU minus that of the ResNet U-Net", (ious["U-Net"] - ious["ResNet U-Net"]).mean(), at_least=0)

# %% [markdown]
# The table is of one seed, and in fast mode of seconds of training. Its third line is the fair one for the transformer. In fast mode the last line is no contest but
# an orientation: a ResNet without the usual weights from ImageNet, trained for less time than the U-Net, ends behind it; most of its parameters lie in stages that three levels do not use. One seed says little about a difference of a few hundredths, so larger claims are left to the **record**: longer runs, on rendered frames with three seeds and on real ones. The next cells make their tables from
# these files and from nothing else.

# %%
records = results("polyps")


def mean_and_spread(values):
    """Mean and, from three values on, standard deviation."""
    values = torch.tensor(values, dtype=F64)
    return f"{values.mean():.3f}" + (f" ± {values.std():.3f}" if len(values) >= 3 else "")


def record_line(model, pixels, epochs, device, same):
    """One network, all its seeds together."""
    minutes = sum(entry["training_cpu_minutes"] for entry in same) / len(same)   # of all cores: what else ran there does not count
    sizes = "  ".join(f"{sum(entry['test_iou_by_size'][part] for entry in same) / len(same):.2f}" for part in ("small", "medium", "large"))
    return (f"  {model:21} {same[0]['parameters'] / 1e6:5.2f} M {pixels:4} px {epochs:4} epochs {minutes:6.1f} CPU min on {device.replace('1 CPU cores', 'one core')}: "
            f"IoU {mean_and_spread([entry['test_iou'] for entry in same])}, n = {len(same)};  {sizes}")


for name in ("built-in", "Kvasir-SEG"):
    groups = defaultdict(list)
    for key, entry in records.items():
        if entry["data"] == name:
            groups[key.split(", ")[0], entry["size"], entry["epochs"], entry["device"]].append(entry)
    print(f"{name}:", *([record_line(*group, same) for group, same in sorted(groups.items())] or ["  not run here"]), sep="\n")

# %% [markdown]
# How much of it may be memory? For the data in which look-alikes were counted, how many pairs there are, how many lie across the split, and each run's test IoU with all images and without
# those that have a look-alike in another part:

# %%
counted_twins = {key: entry for key, entry in records.items() if entry.get("look_alikes")}
for key, entry in counted_twins.items():
    print(f"{key}: {entry['look_alikes']} pairs, {entry['look_alikes_across']} across; IoU {entry['test_iou']:.3f}, without {entry['test_iou_without_look_alikes']:.3f}")
if not counted_twins:
    print("not run here")

# %% [markdown]
# And what a fused optimizer and, with it, another order of the channels bring to the large U-Net (the processor has no half precision): speed and memory over those of the plain way, and the mean loss of the last ten of 50 steps. Beside it
# stands the plain step's share of the rate at which the same machine multiplies matrices; its inverse is the most that float32 can gain while the multiplications stay the same:

# %%
try:
    unet_steps = results("unet_step")
except DataError:
    unet_steps = {}
for name, entry in unet_steps.items():
    print(f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in entry.items() if isinstance(value, float)))
if not unet_steps:
    print("not run here")

# %% [markdown]
# Read it as follows. `smp` is the library's U-Net on a ResNet-18 with random weights; the last three numbers of a line are the IoU of the small, the medium and the large polyps. The spread over seeds is the smallest difference worth a sentence. Lines with equal epochs compare at equal steps; the minutes say at what price. "Without skips" and
# "without positions" are networks trained that way, the fair ablation: the same layers and cost, only the information missing. For comparison, numbers collected from papers and
# repositories, on other splits of the real data, so that a hundredth means nothing: U-Nets trained from scratch reach an IoU of .61 to .69 in 20 epochs at 256 pixels and about .75 with long training;
# with encoders from ImageNet, TransNetR .80 (Jha and others, MIDL 2023) and PraNet .84 (Fan and others, MICCAI 2020). For a small vision transformer from scratch we found none.
#
# ## 11  Errata in the handouts
#
# | | printed | right | shown in |
# |---|---|---|---|
# | E0.11 | Dice with $\epsilon$ below only | $s$ above and below | 3 |
# | E0.12 | a sigmoid, then `smp.losses.DiceLoss('binary')` | logits, or `from_logits=False` | 3 |
# | E0.13 | the loss of one image "for multiple images" | the mean over images; smp's sums run over the batch | 3 |
# | E0.14 | IoU of the sigmoid's output | threshold first; empty and empty: 1 | 3 |
# | E0.15 | $1/N^2$ | $1/(HW)$ | 3 |
# | E0.16 | `BCELoss` after a sigmoid | `BCEWithLogitsLoss`: no clamp, a slope everywhere | 3 |
# | E2.15 | $V = YW_K$, $q = x_1W_X$ | $V = YW_V$, $q = x_1W_Q$ | 8 |
# | E2.17 | $\operatorname{MHSA}_H(\operatorname{LN}(h_j))$ | $\operatorname{MHSA}_{\operatorname{LN}(H)}(\operatorname{LN}(h_j))$, and a last LN | 8 |
# | E2.19 | FLOPs depend heavily on the length "due to the quadratic complexity" | $12Nd^2 + 2N^2d$: linear part first, up to $N \approx 6d$ | 8 |
# | E2.32 | $\mathrm{IoU}_c$ summed over $i = 1 \dots C$ | over all images | 3 |
#
# ## 12  What to take home
#
# * Losses take logits. One sigmoid, inside the loss; a threshold only in the metric.
# * Say over what you sum: pixels, images or the batch. Dice and IoU differ for each, and small polyps live in that difference.
# * A baseline that looks at no image, an interval, and the worst cases by rank: without these a mean IoU says little.
# * With a few hundred images the convolution's prior is worth more than attention's freedom. Compare at equal cost before saying so.
# * A training run is a thing that gets interrupted. Save all of its state, or lose all of its time.
#
# **To read.** O. Ronneberger, P. Fischer and T. Brox, *U-Net*, MICCAI 2015. D. Jha and others, *Kvasir-SEG: a segmented polyp dataset*, MMM 2020. F. Milletari, N. Navab and S. Ahmadi,
# *V-Net*, 3DV 2016 (the Dice loss). A. Vaswani and others, *Attention is all you need*, NeurIPS 2017. A. Dosovitskiy and others, *An image is worth 16×16 words*, ICLR 2021. R. Xiong and
# others, *On layer normalization in the transformer architecture*, ICML 2020 (pre-norm). A. Reinke and others, *Understanding metric-related pitfalls in image analysis validation*, Nature Methods 2024.
