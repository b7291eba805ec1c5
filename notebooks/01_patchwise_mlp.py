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
# # 01 · A patchwise MLP is a convnet in disguise
#
# Take a small MLP, apply it to every $k\times k$ patch of an image with the same weights, and write each answer where
# the patch was. Nobody said "convolution"; yet that is what you have built. After this notebook you can
#
# * write any such MLP as a convnet with the same outputs, the same gradients and the same number of parameters;
# * say which details matter: the order of the pixels in a patch, a kernel that is *not* flipped, where the activation $\sigma$ stands;
# * recognise the same trick in a classifier's last layers, in a vision transformer's patch embedding and its feed-forward block;
# * explain why, for larger patches, the convnet needs less time and memory although it multiplies exactly as often.
#
# **Time.** Reading and exercises: about an hour. Running: under 30 seconds on two CPU cores; on a T4: not measured.

# %% tags=["setup"]
import sys
from importlib import util
from pathlib import Path

sys.path += [str(f) for f in (Path("coursekit").resolve(), Path.cwd(), *Path.cwd().parents) if (f / "coursekit/__init__.py").is_file()]
if getattr(util.find_spec("coursekit"), "origin", None) is None:
    raise ModuleNotFoundError("coursekit is not installed. In a checkout, run: pip install -e .\n"
                              "To open notebooks without one, publish them first: make publish REPO=owner/name")

# %% [markdown]
# Every claim below is a line of code that prints ✓ or stops the notebook. The number before a claim is that of its section and,
# where there is one, of its equation. E0.1 and the like are formulas that a handout prints wrong: each is run, seen to fail "as
# it should", and listed in section 8. The next cell holds everything that differs between the two modes: `fast` for two CPU
# cores, `full` for a GPU.

# %% tags=["parameters"]
from coursekit import runtime

settings = {
    "fast": {"image_sizes": (32, 64, 128, 256), "cost_size": 256, "repeats": 9, "train_steps": 300},
    "full": {"image_sizes": (64, 128, 256, 512), "cost_size": 256, "repeats": 15, "train_steps": 1000},
}[runtime.mode()]
generator = runtime.seed_everything(0)

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from scipy.signal import convolve2d
from torch import nn

from coursekit import figures
from coursekit.checks import check, check_close, check_equal, check_fails, check_raises, check_true
from coursekit.data import photograph
from coursekit.exercises import patchwise as exercises
from coursekit.explore import PatchExplorer
from coursekit.explore.patch import example_filters
from coursekit.measure import median_seconds, peak_bytes
from coursekit.patchwise import PatchwiseMLP, multiplications

figures.use_style()
torch.set_num_threads(1)   # for so few numbers a second thread gains little, and on a busy machine it is waited for
photo = photograph("china").double()   # (3, H, W) in [0, 1]

# %% alt="Colour photograph of a tall pavilion with four curved roofs on a wooded hill, above a lake in haze."
figures.show_images([photo], ["the photograph"], height=2.4)
plt.show()

# %% [markdown]
# A pavilion above a lake: a real photograph, 427 pixels high and 640 wide, which scikit-learn bundles
# ([danielbuechele](https://www.flickr.com/photos/danielbuechele/6061409035), [CC BY 2.0](https://creativecommons.org/licenses/by/2.0/)).
# Formulas are tested on it and on random tensors of awkward shapes, mostly in float64, so that a difference is a mistake and
# not rounding.

# %%
check_equal("1  channels, height, width", tuple(photo.shape), (3, 427, 640))


# %% [markdown]
# ## 1  Patches and their index set
#
# For an image $x$ with $H$ rows and $W$ columns, the patch at $(i, j)$ and its vector are
#
# $$P_{ij} = x[i : i+k,\; j : j+k] \in \mathbb R^{k\times k}, \qquad p_{ij} = \operatorname{vec}(P_{ij}) \in \mathbb R^{k^2},
# \qquad 0 \le i \le H-k,\quad 0 \le j \le W-k. \tag{1.1}$$
#
# There are $(H-k+1)(W-k+1)$ of them. The slices are Python's: the end is left out. With several channels, a patch holds
# the $k\times k$ square of each channel, one channel after the other.
#
# **Exercise 1.1** (easy, 5 minutes, 2 points). Write `extract_patches`: all patches of a batch of images, as vectors.
#
# <details><summary>Hint 1</summary>How many rows may a corner have, if a patch of k rows has to end inside the image?</details>
# <details><summary>Hint 2</summary>Two loops over corners, i outside and j inside; flatten each patch from its channels on, then stack the vectors along a new axis 1.</details>
# <details><summary>Hint 3</summary>One patch is <code>x[:, :, i : i + k, j : j + k].flatten(1)</code>, and i runs over <code>range(x.shape[2] - k + 1)</code>.</details>

# %%
def extract_patches(x, k):
    """x: (B, C, H, W). Returns (B, (H-k+1)*(W-k+1), C*k*k): i outside, j inside; channels, rows, columns inside a patch."""
    ### BEGIN SOLUTION
    height, width = x.shape[-2:]
    corners = [(i, j) for i in range(height - k + 1) for j in range(width - k + 1)]
    return torch.stack([x[:, :, i : i + k, j : j + k].flatten(1) for i, j in corners], dim=1)
    ### END SOLUTION


extract_patches = exercises.check("1.1", extract_patches)   # until it is right, goes on with the package's own function

# %%
x = torch.randn(2, 3, 9, 14, generator=generator, dtype=torch.float64)
patches = extract_patches(x, 4)
check_equal("1.1  number and length of the patches", tuple(patches.shape), (2, (9 - 4 + 1) * (14 - 4 + 1), 3 * 4 * 4))
check_close("1.1  patch number 25 is the one at (2, 3)", patches[:, 25], x[:, :, 2:6, 3:7].flatten(1))
check_close("1.1  torch's unfold makes the same patches in the same order", patches, F.unfold(x, 4).transpose(1, 2))

# %% [markdown]
# **As printed in one handout**, the patch is `x[i:i+k-1, j:j+k-1]`. That is right where the end of a range is included,
# as in a formula; in Python it makes the patch one pixel too small. For $k=3$:

# %%
check_equal("1.1  shape of x[i:i+k, j:j+k]", tuple(x[0, 0, 2 : 2 + 3, 3 : 3 + 3].shape), (3, 3))
check_fails("E0.1  x[i:i+k-1, j:j+k-1]", x[0, 0, 2 : 2 + 3, 3 : 3 + 3], x[0, 0, 2 : 2 + 3 - 1, 3 : 3 + 3 - 1])


# %% [markdown]
# ## 2  The first layer is a k×k convolution
#
# The MLP's first layer makes $D$ numbers of a patch, $z_{ij} = W_1 p_{ij} + b_1$, with the same $W_1 \in \mathbb R^{D\times k^2}$ for every
# patch (of one channel). Row $d$ of $W_1$, written back as a square $\widetilde W_d[l, m] = W_1[d,\, lk+m]$, gives
#
# $$z_{ij}[d] = \sum_{n=0}^{k^2-1} W_1[d, n]\, p_{ij}[n] + b_1[d] = \sum_{l=0}^{k-1}\sum_{m=0}^{k-1} \widetilde W_d[l, m]\; x[i+l,\, j+m] + b_1[d]. \tag{2.1}$$
#
# The right side is what `nn.Conv2d` computes with kernel $\widetilde W_d$. So one reshape turns the layer into a convolution.
#
# **Exercise 2.1** (medium, 10 minutes, 3 points). Write `linear_as_convolution`: the `nn.Conv2d` that does with an image what the
# `nn.Linear` does with each of its patches.
#
# <details><summary>Hint 1</summary>Row d of the weight and output channel d of a convolution hold the same numbers: in which order does each of them run?</details>
# <details><summary>Hint 2</summary>Make an <code>nn.Conv2d</code> of the layer's dtype, and copy weight and bias into it inside <code>torch.no_grad()</code>.</details>
# <details><summary>Hint 3</summary>The kernel is <code>layer.weight.reshape(convolution.weight.shape)</code>: nothing is transposed and nothing flipped.</details>

# %%
def linear_as_convolution(layer, in_channels, kernel_size):
    """layer: nn.Linear from in_channels * kernel_size**2 numbers to D. Returns an nn.Conv2d of the same dtype."""
    ### BEGIN SOLUTION
    convolution = nn.Conv2d(in_channels, layer.out_features, kernel_size, dtype=layer.weight.dtype)
    with torch.no_grad():
        convolution.weight.copy_(layer.weight.reshape(convolution.weight.shape))
        convolution.bias.copy_(layer.bias)
    return convolution
    ### END SOLUTION


linear_as_convolution = exercises.check("2.1", linear_as_convolution)

# %%
k, D = 5, 6
layer = nn.Linear(3 * k * k, D).double()
convolution = linear_as_convolution(layer, 3, k)

x = photo[None, :, 100:160, 200:290]                     # a crop, 60 × 90
z = layer(extract_patches(x, k))                         # (1, patches, D)
z = z.transpose(1, 2).unflatten(2, (60 - k + 1, 90 - k + 1))
check_close("2.1  shared linear layer = k×k convolution, on the photograph", z, convolution(x))

# %% [markdown]
# ### What "convolution" means here
#
# Equation (2.1) has plus signs, $x[i+l, j+m]$. In signal processing that is a **cross-correlation**; a convolution has
# minus signs and so flips the kernel in both directions. PyTorch, like every deep-learning library, computes the first
# and calls it the second. To see it, we hand one row of $W_1$ (its numbers for the first channel)
# to SciPy's `convolve2d`, which does flip.

# %%
image, row = x[0, 0].numpy(), layer.weight[0, : k * k].detach().reshape(k, k).numpy()
correlation = F.conv2d(torch.tensor(image)[None, None], torch.tensor(row)[None, None])[0, 0]

check_close("2.1  a true convolution agrees after flipping the row", convolve2d(image, row[::-1, ::-1].copy(), mode="valid"), correlation)
check_fails("E0.2  a true convolution with the row as it is", correlation, convolve2d(image, row, mode="valid"))

# %% [markdown]
# **As printed in one handout**, the rows of $W_1$ are "filter impulse responses". Feed in an impulse and look at what comes
# out: it is the row *flipped*, in both directions.

# %%
impulse = torch.zeros(1, 1, 2 * k - 1, 2 * k - 1, dtype=torch.float64)
impulse[0, 0, k - 1, k - 1] = 1
response = F.conv2d(impulse, torch.tensor(row)[None, None])[0, 0]
check_close("2.1  the impulse response is the flipped row", response, torch.tensor(row).flip(0, 1))
check_fails("E0.2  the impulse response is the row", response, torch.tensor(row))

# %% alt="Two 5 by 5 squares of red and blue pixels; the right one is the left one turned by 180 degrees."
figures.show_images([torch.tensor(row), response], ["row of $W_1$, first channel", "its impulse response"], signed=True, height=2.4)
plt.show()

# %% [markdown]
# Left the row, right the response: the same pixels, turned by half a turn. Red is positive, blue negative, white zero.
#
# ### The order of the pixels
#
# "$\operatorname{vec}$ with the appropriate ordering" hides a choice. Equation (2.1) reads $P_{ij}$ **row by row**, as `flatten` and
# `unfold` do. The usual $\operatorname{vec}$ of linear algebra stacks **columns**. With it, the same reshape gives a transposed kernel:

# %%
columnwise = x.unfold(2, k, 1).unfold(3, k, 1)                       # (1, 3, rows, columns, l, m)
columnwise = columnwise.transpose(4, 5).permute(0, 2, 3, 1, 4, 5).flatten(3)
z_columnwise = layer(columnwise).permute(0, 3, 1, 2)
check_fails("E0.3  patches read column by column, kernel reshaped row by row", z, z_columnwise)

transposed = F.conv2d(x, convolution.weight.transpose(2, 3), convolution.bias)
check_close("2.1  patches read column by column = convolution with transposed kernels", z_columnwise, transposed)

# %% [markdown]
# ### Play with it
#
# Move the patch over the photograph and choose a filter, that is a row of $W_1$. The weights multiply the patch, pixel by
# pixel; the products add up to one number, and this number is the pixel of the map on the right.

# %%
explorer = PatchExplorer()
explorer

# %% alt="Photograph in grey with a small square on it; the patch, the weights and their product as squares; and the map of the filter's response with the same place marked."
explorer.snapshot(row=17, column=52, filter="level edges")

# %% [markdown]
# The picture for one position, for readers without sliders. The square sits on the edge of the topmost roof, bright sky above,
# dark tiles below. The weights are negative above and positive below, so the sky wins: the sum is negative, a blue pixel in the
# map. Moving the sliders must give what the convolution gives, so we move them and compare.

# %%
at_the_roof = explorer.compute(row=17, column=52, filter="level edges").pixel
check("2.1  the pixel at the edge of the roof is negative", at_the_roof, at_most=-0.1)
explorer.controls["row"].value, explorer.controls["column"].value = 17, 88
explorer.controls["filter"].value = "spots"
kernel = example_filters(9)["spots"][None, None]
by_convolution = F.conv2d(explorer.photo, kernel)[0, 0, 17, 88]
check_close("2.1  the explorer's pixel, after three moves", explorer.shown.pixel, by_convolution)

# %% [markdown]
# ## 3  The second layer is a 1×1 convolution
#
# After the activation, the patch at $(i, j)$ has become $D$ numbers $a_{ij} = \sigma(z_{ij})$, a column of $D$ channels at one pixel. The
# second layer mixes them and looks at no other pixel:
#
# $$y_{ij}[c] = \sum_{d=0}^{D-1} W_2[c, d]\, a_{ij}[d] + b_2[c]. \tag{3.1}$$
#
# That is a convolution with a $1\times1$ kernel. `nn.Linear` acts on the last axis and `nn.Conv2d` on the second, so only the
# axes move.

# %%
a = torch.randn(2, D, 11, 7, generator=generator, dtype=torch.float64)
second = nn.Linear(D, 4).double()
by_linear = second(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
check_close("3.1  a linear layer at every pixel = 1×1 convolution", by_linear, linear_as_convolution(second, D, 1)(a))


# %% [markdown]
# ## 4  L layers
#
# For an MLP with $L$ layers, $z^{(1)} = W_1 p + b_1$ and
#
# $$z^{(\ell+1)} = W_{\ell+1}\,\sigma\!\left(z^{(\ell)}\right) + b_{\ell+1}, \qquad \ell = 1, \dots, L-1. \tag{4.1}$$
#
# Layer by layer: one $k\times k$ convolution, then $L-1$ convolutions of size $1\times1$, with $\sigma$ *between* them, $L-1$ times in all.
#
# **Exercise 4.1** (medium, 10 minutes, 3 points). Write `as_convnet`: the convnet of a `PatchwiseMLP`, the package's own patchwise MLP.
# That has `layers` (the linear ones), `activations` (one fewer), `channels` (those of the image first) and `patch_size`.
#
# <details><summary>Hint 1</summary>After the first layer, of how many pixels does a layer see the numbers?</details>
# <details><summary>Hint 2</summary>Collect modules in a list: the convolution of the first layer, then for each further layer its activation and a convolution.</details>
# <details><summary>Hint 3</summary>A later layer is <code>linear_as_convolution(layer, layer.in_features, 1)</code>; the activation before it comes from <code>mlp.activations</code>.</details>

# %%
def as_convnet(mlp):
    """mlp: PatchwiseMLP. Returns an nn.Sequential with the same outputs."""
    ### BEGIN SOLUTION
    modules = [linear_as_convolution(mlp.layers[0], mlp.channels[0], mlp.patch_size)]
    for activation, layer in zip(mlp.activations, mlp.layers[1:], strict=True):
        modules += [activation, linear_as_convolution(layer, layer.in_features, 1)]
    return nn.Sequential(*modules)
    ### END SOLUTION


as_convnet = exercises.check("4.1", as_convnet)

# %% [markdown]
# One to five layers, several patch sizes and channel counts, images that are not square, two precisions:

# %%
for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
    gaps = []
    for L in range(1, 6):
        for k, in_channels, (height, width) in ((1, 3, (6, 5)), (3, 1, (9, 14)), (4, 2, (4, 21)), (7, 3, (30, 23))):
            mlp = PatchwiseMLP(k, (in_channels, *[8] * (L - 1), 2), activation=nn.GELU).to(dtype)
            x = torch.randn(2, in_channels, height, width, generator=generator, dtype=dtype)
            gaps.append((mlp(x) - as_convnet(mlp)(x)).abs().max().item())
    check(f"4.1  MLP = convnet, {len(gaps)} networks with 1 to 5 layers, {dtype}", max(gaps), at_most=tolerance)

# %% [markdown]
# **As printed in one handout**, the later layers are "a $1\times1$ convolution followed by $\sigma$". By (4.1) it is the other way round:
# $\sigma$ acts on what enters a layer, and nothing follows $W_L$.

# %%
mlp = PatchwiseMLP(5, (3, 8, 8, 16), activation=nn.ReLU).double()   # with 16 outputs, some are negative whatever the seed
convnet = as_convnet(mlp)
x = photo[None, :, :48, :64]
check_fails("E0.4  σ after every layer, the last one too", mlp(x), torch.relu(convnet(x)))

first, *rest = [module for module in convnet if isinstance(module, nn.Conv2d)]
wrong = first(x)
for layer in rest:
    wrong = torch.relu(layer(wrong))                     # 1×1 convolution, then σ
check_fails("E0.4  each 1×1 convolution followed by σ", mlp(x), wrong)

# %% [markdown]
# ### Gradients, parameters, receptive field
#
# Equal outputs for all weights mean equal gradients. We differentiate the same loss through both forms.

# %%
x_mlp, x_conv = (photo[None, :, :48, :64].clone().requires_grad_() for _ in range(2))
mlp(x_mlp).square().sum().backward()
convnet(x_conv).square().sum().backward()

check_close("4.1  gradients with respect to the image", x_mlp.grad, x_conv.grad)
pairs = list(zip(mlp.parameters(), convnet.parameters(), strict=True))
gap = max(((p.grad - q.grad.reshape(p.shape)).abs().max() / p.grad.abs().max()).item() for p, q in pairs)
check("4.1  gradients with respect to all weights and biases, largest relative difference", gap, at_most=1e-12)
check_equal("4.1  parameters of the convnet, as of the MLP", sum(q.numel() for _, q in pairs), sum(p.numel() for p, _ in pairs))


# %% [markdown]
# **Exercise 4.2** (medium, 10 minutes, 3 points). How much of the image does one output pixel see? Ask the gradient: write
# `receptive_field`, the height and width of the box of input pixels that move the output pixel in the middle.
#
# <details><summary>Hint 1</summary>If an input pixel does not move the output, what is the derivative of the output with respect to it?</details>
# <details><summary>Hint 2</summary>Call <code>.requires_grad_()</code> on random input of the network's dtype, take the output pixels in the middle, sum them over channels and images, and call <code>.backward()</code>.</details>
# <details><summary>Hint 3</summary><code>x.grad.abs().sum((0, 1)).nonzero(as_tuple=True)</code> gives the rows and columns of the box. Several images: a ReLU may be off in one of them.</details>

# %%
def receptive_field(network, in_channels, size):
    """Returns (height, width) of that box, for input of shape (B, in_channels, size, size)."""
    ### BEGIN SOLUTION
    dtype = next(network.parameters()).dtype
    x = torch.randn(8, in_channels, size, size, dtype=dtype).requires_grad_()   # eight images: a ReLU may be off in one
    y = network(x)
    y[:, :, y.shape[2] // 2, y.shape[3] // 2].sum().backward()
    rows, columns = x.grad.abs().sum((0, 1)).nonzero(as_tuple=True)
    return (rows.max() - rows.min() + 1).item(), (columns.max() - columns.min() + 1).item()
    ### END SOLUTION


receptive_field = exercises.check("4.2", receptive_field)

# %%
for k in (1, 3, 8):
    convnet_k = as_convnet(PatchwiseMLP(k, (3, 8, 8, 8, 2)))
    check_equal(f"4  receptive field of the convnet with four layers, k = {k}", receptive_field(convnet_k, 3, 21), (k, k))

# %% [markdown]
# However deep it is, the disguised convnet sees $k\times k$ pixels and no more: its $1\times1$ layers never look sideways. Real convnets
# stack kernels larger than one, and so see further with every layer.
#
# ## 5  The same trick elsewhere
#
# ### A classifier slides over a larger image
#
# One set of slides writes `nn.Linear(4096, 1000) == nn.Conv2D(4096, 1000, kernel_size=1, stride=1)`. The idea is right, the line is not:
# the class is `nn.Conv2d`, two different modules are never `==`, the weights must be copied, and the input needs two more axes.

# %%
linear, conv = nn.Linear(4096, 1000), nn.Conv2d(4096, 1000, kernel_size=1, stride=1)
check_raises("E1.1  nn.Conv2D", AttributeError, lambda: nn.Conv2D)
check_true("E1.1  two modules compare unequal", not (linear == conv))

features = torch.randn(2, 4096, generator=generator)
check_raises("E1.1  a 1×1 convolution of a (2, 4096) input", RuntimeError, lambda: conv(features))
check_fails("E1.1  without copying the weights", linear(features), conv(features[:, :, None, None]).flatten(1))

conv = linear_as_convolution(linear, 4096, 1)
check_close("5  with copied weights and input (2, 4096, 1, 1)", conv(features[:, :, None, None]).flatten(1), linear(features))

# %% [markdown]
# In AlexNet, for example, the *first* fully connected layer reads a $256\times6\times6$ block: it is a $6\times6$ convolution, not a
# $1\times1$ one. Made a convolution, it takes larger images, and answers with a map instead of one vector. We use 64 channels in place of 256.

# %%
fc6 = nn.Linear(64 * 6 * 6, 128)
fc6_as_convolution = linear_as_convolution(fc6, 64, 6)
block, larger = torch.randn(1, 64, 6, 6, generator=generator), torch.randn(1, 64, 8, 8, generator=generator)
check_close("5  on a 6×6 block: one vector, the linear layer's", fc6_as_convolution(block).flatten(1), fc6(block.flatten(1)))
check_equal("5  on an 8×8 block: a map", tuple(fc6_as_convolution(larger).shape), (1, 128, 3, 3))
check_close("5  whose corner is the layer at that corner", fc6_as_convolution(larger)[:, :, 2, 2], fc6(larger[:, :, 2:, 2:].flatten(1)))

# %% [markdown]
# ### A vision transformer's patch embedding and its feed-forward block
#
# A vision transformer cuts the image into patches of $P\times P$ pixels that do **not** overlap, and maps each to an embedding with one
# matrix. Equation (2.1) with $i$ and $j$ in steps of $P$: a convolution with kernel $P$ and stride $P$.

# %%
P, embedding = 16, 32
project = nn.Linear(3 * P * P, embedding).double()
x = photo[None, :, :416, :640]                           # 26 × 40 patches
tokens = project(F.unfold(x, P, stride=P).transpose(1, 2))
strided = F.conv2d(x, project.weight.reshape(embedding, 3, P, P), project.bias, stride=P)
check_equal("5  tokens", tuple(tokens.shape), (1, 26 * 40, embedding))
check_close("5  patch embedding = convolution with stride P", tokens, strided.flatten(2).transpose(1, 2))

# %% [markdown]
# In each of the blocks that follow, a feed-forward network treats every token alike, $\operatorname{FFN}(y) = W_2\,\sigma(W_1 y + b_1) + b_2$. A sequence is an
# image with one row, so that is (4.1) with $k=1$: two one-dimensional convolutions with kernels of size one.

# %%
up, down = nn.Linear(embedding, 64).double(), nn.Linear(64, embedding).double()
by_tokens = down(F.gelu(up(tokens)))
hidden = F.gelu(F.conv1d(tokens.transpose(1, 2), up.weight[:, :, None], up.bias))
by_convolutions = F.conv1d(hidden, down.weight[:, :, None], down.bias).transpose(1, 2)
check_close("5  feed-forward block = two convolutions of size one", by_tokens, by_convolutions)


# %% [markdown]
# ## 6  Training in either form
#
# Equal outputs and equal gradients: then gradient descent from the same weights takes the same steps. We let both forms learn
# to clean a noisy photograph and keep their losses. The loop is the whole method.

# %%
def noisy_crops(count, size=40):
    """Pairs of crops of the photograph, (count, 3, size, size): with noise of standard deviation 0.2, and clean."""
    top = torch.randint(0, photo.shape[1] - size, (count,), generator=generator)
    left = torch.randint(0, photo.shape[2] - size, (count,), generator=generator)
    clean = torch.stack([photo[:, i : i + size, j : j + size] for i, j in zip(top, left, strict=True)])
    return clean + 0.2 * torch.randn(clean.shape, generator=generator, dtype=clean.dtype), clean


batches = [noisy_crops(4) for _ in range(settings["train_steps"])]

# %%
mlp = PatchwiseMLP(7, (3, 24, 3)).double()
networks = {"patchwise MLP": mlp, "convnet": as_convnet(mlp)}      # the weights are copied before the first step
losses = {}
for name, network in networks.items():
    optimizer, losses[name] = torch.optim.Adam(network.parameters(), lr=3e-3), []
    for noisy, clean in batches:
        loss = F.mse_loss(network(noisy), clean[:, :, 3:-3, 3:-3])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[name].append(loss.item())

# %%
loss_mlp, loss_conv = (torch.tensor(losses[name], dtype=torch.float64) for name in networks)
check_close("6  the same loss at every step", loss_mlp, loss_conv, tolerance=1e-8)
check("6  the loss has fallen to less than half", loss_conv[-5:].mean() / loss_conv[0], at_most=0.5)

# %% alt="Training loss against step: two curves, one drawn thick and one dashed on top of it, coincide and fall."
figure, axes = plt.subplots(figsize=(6, 2.8))
axes.semilogy(loss_mlp, linewidth=5, alpha=0.4, label="patchwise MLP")
axes.semilogy(loss_conv, "--", color=figures.VERMILION, label="convnet")
axes.set(xlabel="step", ylabel="mean squared error", title="One run, two forms")
axes.legend()
plt.show()

# %% [markdown]
# The dashed curve lies on the broad one from the first step to the last: two programs, one training run. What the run has
# learned, on a part of the photograph that the crops came from, with new noise:

# %% alt="Three times the same part of the pavilion: speckled with noise, cleaned but softer, and the original."
clean = photo[None, :, 190:290, 60:240]
noisy = clean + 0.2 * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
with torch.no_grad():
    cleaned = networks["convnet"](noisy)
pictures = [noisy[0, :, 3:-3, 3:-3], cleaned[0], clean[0, :, 3:-3, 3:-3]]
figures.show_images(pictures, ["noisy", "cleaned", "clean"], height=1.7)
plt.show()

# %%
before, after = (F.mse_loss(picture, pictures[2]) for picture in pictures[:2])
check("6  error after cleaning, as a share of the error before", after / before, at_most=0.5)

# %% [markdown]
# Less speckle, softer edges, duller colours: seven by seven pixels are enough to average noise away and not enough to know what a roof is.
#
# ## 7  What it costs
#
# Both forms multiply equally often,
#
# $$M = (H-k+1)(W-k+1)\,\bigl(C k^2 D + D\,C_{\text{out}}\bigr) \tag{7.1}$$
#
# for $C$ channels in, one hidden layer of width $D$ and $C_{\text{out}}$ channels out. PyTorch's own counter agrees (it counts a multiplication and an addition as two):

# %%
from torch.utils.flop_counter import FlopCounterMode


def counted(network, x):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops()


mlp = PatchwiseMLP(7, (3, 64, 3))
formula = 2 * multiplications((3, 64, 3), 7, 60, 80)
check_equal("7.1  operations of the MLP, counted", counted(mlp, torch.rand(1, 3, 60, 80)), formula)
check_equal("7.1  operations of the convnet, counted", counted(as_convnet(mlp), torch.rand(1, 3, 60, 80)), formula)


# %% [markdown]
# They differ in what they *move*. The patchwise form writes every pixel down about $k^2$ times before it multiplies, a matrix of
# $(H-k+1)(W-k+1)\,k^2C$ numbers, and a training step keeps it until the gradients are done. The convolution has no such matrix.
# We measure both forms on the CPU over patch sizes and image sizes: the time of a forward pass, and the most memory that
# tensors take at once in a training step (what a library's kernel borrows and returns inside itself is not seen).

# %%
def cost(k, size):
    """Seconds of a forward pass and bytes of a training step for (MLP, convnet), one image of size × size pixels."""
    mlp, x = PatchwiseMLP(k, (3, 64, 3)), torch.rand(1, 3, size, size)
    forms = {"mlp": mlp, "conv": as_convnet(mlp)}
    with torch.no_grad():
        seconds = median_seconds({name: lambda form=form: form(x) for name, form in forms.items()}, settings["repeats"])
    memory = [peak_bytes(lambda form=form: form(x).square().mean().backward()) for form in forms.values()]
    return [*seconds.values(), *memory]


patch_sizes = (1, 3, 5, 7, 9, 11)
over_patches = np.array([cost(k, settings["cost_size"]) for k in patch_sizes])
over_images = np.array([cost(9, size) for size in settings["image_sizes"]])

# %% alt="Four panels, MLP against convnet. Over patch size, from 3 on, the MLP's time and memory climb steeply, the convnet's time climbs gently and its memory does not climb. Over image size both climb, the MLP's lie above."
figure, panels = plt.subplots(1, 4, figsize=(11, 2.7))
xs = (patch_sizes, patch_sizes, settings["image_sizes"], settings["image_sizes"])
ys = (over_patches[:, :2] * 1e3, over_patches[:, 2:] / 2**20, over_images[:, :2] * 1e3, over_images[:, 2:] / 2**20)
for number, (axes, values, measured) in enumerate(zip(panels, xs, ys, strict=True)):
    axes.plot(values, measured[:, 0], "o-", color=figures.BLUE, label="patchwise MLP")
    axes.plot(values, measured[:, 1], "s--", color=figures.VERMILION, label="convnet")
    axes.set(ylabel=("forward pass, ms", "training step, MiB")[number % 2], ylim=(0, None))
    axes.set(xlabel="patch size k" if number < 2 else "image size, pixels", xticks=values if number < 2 else values[1:])
panels[0].legend()
plt.show()

# %%
time_ratio, memory_ratio = over_patches[:, 1] / over_patches[:, 0], over_patches[:, 3] / over_patches[:, 2]
check("7.1  convnet's time as a share of the MLP's, k = 7, 9, 11 together", np.exp(np.log(time_ratio[3:]).mean()), at_most=1.0)
check("7.1  convnet's memory as a share of the MLP's, every k from 3 on", memory_ratio[1:].max(), at_most=0.95)
check("7.1  convnet's memory as a share of the MLP's, k = 11", memory_ratio[-1], at_most=0.5)
check("7.1  convnet's memory as a share of the MLP's, every image size, k = 9", (over_images[:, 3] / over_images[:, 2]).max(), at_most=0.5)
check("7.1  convnet's memory at any k as a share of that at k = 1", over_patches[:, 3].max() / over_patches[0, 3], at_most=1.0)


# %% [markdown]
# Left, an image of fixed size: from $k = 3$ on the MLP's time and memory climb steeply; the convnet's time climbs less, and its
# memory does not climb at all, since it holds the image and the feature maps and neither grows with $k$. Right, $k = 9$: at every
# image size the convnet needs less than half the memory. For $k = 1$ there is nothing to write down, and the two need about the same memory.
#
# Where does the MLP's time go? We take its first layer apart, into writing the patches down and multiplying them.

# %%
def first_layer(k, size):
    """Seconds for: writing the patches down, multiplying them by W₁, and the convolution that does both."""
    layer, x = nn.Linear(3 * k * k, 64), torch.rand(1, 3, size, size)
    convolution, ready = linear_as_convolution(layer, 3, k), F.unfold(x, k).transpose(1, 2)
    with torch.no_grad():
        parts = {"write": lambda: F.unfold(x, k), "multiply": lambda: layer(ready), "both": lambda: convolution(x)}
        return list(median_seconds(parts, settings["repeats"]).values())


parts = np.array([first_layer(k, settings["cost_size"]) for k in patch_sizes])

# %% alt="Left: multiplications against patch size, one rising curve that both forms share. Right: time of the MLP's first layer, split into writing the patches down and multiplying them, with the convolution's time as a line: above the bar at k = 1, far below the bars for large patches, where writing takes a large part."
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.7))
size = settings["cost_size"]
left.plot(patch_sizes, [multiplications((3, 64, 3), k, size, size) / 1e9 for k in patch_sizes], "D-", color=figures.GREEN)
left.set(xlabel="patch size k", ylabel="multiplications, 10⁹", title="both forms", xticks=patch_sizes, ylim=(0, None))
right.bar(patch_sizes, parts[:, 0] * 1e3, color=figures.SKY, label="MLP: write the patches down", hatch="//", edgecolor="white")
right.bar(patch_sizes, parts[:, 1] * 1e3, bottom=parts[:, 0] * 1e3, color=figures.BLUE, label="MLP: multiply them")
right.plot(patch_sizes, parts[:, 2] * 1e3, "s--", color=figures.VERMILION, label="convolution")
right.set(xlabel="patch size k", ylabel="ms", title="first layer", xticks=patch_sizes, ylim=(0, 1.5e3 * parts[:, :2].sum(1).max()))
right.legend(loc="upper left")
plt.show()

# %%
check("7.1  writing the patches down, as a share of the MLP's first layer, k = 11", parts[-1, 0] / parts[-1, :2].sum(), at_least=0.15)

# %% [markdown]
# The multiplications (left) grow about as $k^2$, and for both forms alike. The bars (right) split the MLP's first layer: for large
# patches a good part of its time goes into writing them down (hatched), work that no one needs for the result. A convolution written
# for the purpose reads the pixels where they are. For the smallest patch that need not be faster, as the dashed line shows; for large ones
# it is, and by how much depends on the library that PyTorch was built with. So the check of the times, above, asks only that the
# convnet be ahead for $k = 7$, 9 and 11 together.

# %% [markdown]
# ## 8  Errata in the handouts
#
# | | printed | right | shown in |
# |---|---|---|---|
# | E0.1 | patch `x[i:i+k-1, j:j+k-1]` | `x[i:i+k, j:j+k]` in Python | 1 |
# | E0.2 | rows of $W_1$ are impulse responses of a convolution | they are the kernels of a cross-correlation, whose impulse response is the flipped row | 2 |
# | E0.3 | $\operatorname{vec}$ with "appropriate" order | row by row; column by column transposes the kernels | 2 |
# | E0.4 | $1\times1$ convolution followed by $\sigma$ | $\sigma$, then the $1\times1$ convolution; none after the last | 4 |
# | E1.1 | `nn.Linear(4096, 1000) == nn.Conv2D(…, 1)` | `nn.Conv2d` with copied weights on (B, 4096, 1, 1); the first such layer is $6\times6$ | 5 |
#
# ## 9  What to take home
#
# * Sharing weights over patches *is* convolution. A first layer with kernel $k$, then $1\times1$ layers, $\sigma$ between them.
# * Libraries correlate; they do not flip. It matters as soon as a kernel is copied from somewhere else.
# * A linear layer that reads a $k\times k$ block is a $k\times k$ convolution and will run on larger images.
# * Same arithmetic does not mean same cost: for larger patches the convnet wins, by not writing them down.
#
# **To read.** J. Long, E. Shelhamer and T. Darrell, *Fully convolutional networks for semantic segmentation*, CVPR 2015 (classifiers as
# convolutions). M. Lin, Q. Chen and S. Yan, *Network in network*, ICLR 2014 (a small MLP at every pixel). A. Dosovitskiy and others, *An image is
# worth 16×16 words*, ICLR 2021 (patches as tokens). V. Dumoulin and F. Visin, *A guide to convolution arithmetic for deep learning*, 2016.
