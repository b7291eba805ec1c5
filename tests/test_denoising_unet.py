"""The noise-predicting U-Net, part by part, against its formulas written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from coursekit.diffusion import DenoisingUNet, Diffusion, NoiseSchedule
from coursekit.diffusion.unet import ResidualBlock, SelfAttention, sinusoidal_embedding

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def seeded(make, dtype=F64):
    """The module with all its parameters drawn anew, so that no zero or unit weight hides anything."""
    torch.manual_seed(0)
    module = make().to(dtype)
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module


def group_norm(x, weight=None, bias=None):
    """Groups of 8 channels: mean 0 and variance 1 (biased, plus 1e-5) over channels and pixels, written out."""
    groups = x.unflatten(1, (-1, 8)).flatten(2)
    z = ((groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + 1e-5).sqrt()).flatten(1).view_as(x)
    return z if weight is None else z * weight[:, None, None] + bias[:, None, None]


def silu(x):
    return x / (1 + (-x).exp())


@pytest.mark.parametrize("dim", [2, 6, 64])
def test_sinusoidal_embedding(dim):
    t = torch.tensor([0, 1, 7, 50, 1000])
    embedding = sinusoidal_embedding(t, dim)
    assert embedding.shape == (5, dim) and embedding.dtype == F64
    for row, time in zip(embedding, t.tolist(), strict=True):
        angles = [time / 10_000 ** (2 * k / dim) for k in range(dim // 2)]
        assert row.tolist() == pytest.approx([math.sin(a) for a in angles] + [math.cos(a) for a in angles], abs=1e-12)


def test_every_time_has_its_own_embedding():
    embedding = sinusoidal_embedding(torch.arange(1, 1001), 64)
    assert torch.cdist(embedding, embedding).fill_diagonal_(9).min() > 0.5   # in norm √32 each
    gaps = (embedding - embedding[:1]).norm(dim=1)
    assert (gaps[:4].diff() > 0).all()   # neighbours in time are neighbours


@torch.no_grad()
def test_residual_block_is_its_formula():
    block = seeded(lambda: ResidualBlock(24, 5))
    x, embedding = normal(2, 24, 4, 3), normal(2, 5, seed=1)
    scale, shift = (embedding @ block.time.weight.T + block.time.bias)[:, :, None, None].split(24, dim=1)
    h = F.conv2d(silu(group_norm(x, block.norm_1.weight, block.norm_1.bias)), block.conv_1.weight, block.conv_1.bias, padding=1)
    h = F.conv2d(silu(group_norm(h) * (1 + scale) + shift), block.conv_2.weight, block.conv_2.bias, padding=1)
    assert torch.allclose(block(x, embedding), x + h, atol=1e-12)


@torch.no_grad()
def test_attention_is_its_formula():
    attention, x = seeded(lambda: SelfAttention(24)), normal(2, 24, 3, 5)
    tokens = group_norm(x, attention.norm.weight, attention.norm.bias).flatten(2).transpose(1, 2)
    qkv = tokens @ attention.to_qkv.weight[:, :, 0, 0].T + attention.to_qkv.bias
    mixed = []
    for head in range(4):
        q, k, v = (qkv[..., 24 * part + 6 * head : 24 * part + 6 * head + 6] for part in range(3))
        mixed.append((q @ k.transpose(1, 2) / math.sqrt(6)).softmax(-1) @ v)
    out = torch.cat(mixed, -1) @ attention.out.weight[:, :, 0, 0].T + attention.out.bias
    assert torch.allclose(attention(x), x + out.transpose(1, 2).view_as(x), atol=1e-12)


@pytest.mark.parametrize(
    ("dim", "mults", "channels", "height", "width"),
    [(16, (1, 2, 4, 8), 3, 32, 32), (16, (1, 2, 4, 8), 1, 8, 8), (8, (1,), 2, 5, 7), (8, (2, 1, 6), 4, 8, 12), (24, (1, 2), 1, 2, 2)],
)
def test_shapes_and_gradients(dim, mults, channels, height, width):
    network = seeded(lambda: DenoisingUNet(dim, mults, channels))
    x_t = normal(2, channels, height, width).requires_grad_()
    y = network(x_t, torch.tensor([1, 9]))
    assert y.shape == x_t.shape and y.dtype == F64
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in [x_t, *network.parameters()])


@torch.no_grad()
def test_network_is_its_parts():
    network, x_t, t = seeded(lambda: DenoisingUNet(8, (1, 2, 5), 2)), normal(2, 2, 8, 4), torch.tensor([3, 40])
    a, b, gain = network.time[0], network.time[2], network.gain
    embedding = silu(silu(sinusoidal_embedding(t, 32) @ a.weight.T + a.bias) @ b.weight.T + b.bias)
    stem = network.stem(x_t)
    level_1 = network.down[0](network.shrink[0](stem), embedding)
    level_2 = network.down[1](network.shrink[1](level_1), embedding)
    x = network.middle[1](network.attention(network.middle[0](level_2, embedding)), embedding)
    x = F.pixel_shuffle(network.enlarge[1](network.up[1](x + level_2, embedding)), 2)
    x = F.pixel_shuffle(network.enlarge[0](network.up[0](x + level_1, embedding)), 2)
    scales = 1 + embedding @ gain.weight.T + gain.bias
    expected = network.out(scales[:, :, None, None] * torch.cat([x, stem], 1))
    assert torch.allclose(network(x_t, t), expected, atol=1e-12 * expected.abs().max())
    assert (stem.shape, level_1.shape, level_2.shape) == ((2, 8, 8, 4), (2, 32, 4, 2), (2, 40, 2, 1))


@pytest.mark.parametrize(("mults", "widths"), [((1, 2, 4, 8), [16, 64, 64, 128]), ((2, 6, 1), [32, 96, 64]), ((3,), [48])])
def test_widths(mults, widths):
    network = DenoisingUNet(16, mults)
    assert [block.conv_2.out_channels for block in network.down] == widths[1:]
    assert network.stem.out_channels == widths[0]
    assert network.attention.out.out_channels == widths[-1]


def test_parameter_count():
    assert sum(p.numel() for p in DenoisingUNet().parameters()) == 1_762_819   # at most 2.6 million


def test_attention_only_where_fewest_pixels_are_left():
    network, seen = DenoisingUNet(), []
    for module in network.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[2:])))
    network(normal(1, 3, 32, 32, dtype=torch.float32), torch.tensor([3]))
    assert seen == [(4, 4)]


def test_an_untrained_network_predicts_no_noise():
    x_0 = normal(64, 1, 8, 8, dtype=torch.float32).clamp(-1, 1)
    for loss, expected in (("l1", math.sqrt(2 / math.pi)), ("l2", 1.0)):
        diffusion = Diffusion(DenoisingUNet(channels=1), image_size=8, channels=1, schedule=NoiseSchedule.cosine(50), loss=loss)
        assert diffusion(x_0, torch.Generator().manual_seed(0)).item() == pytest.approx(expected, abs=0.06)   # 4 sigma of 4096 draws


@torch.no_grad()
def test_each_image_has_its_own_time():
    network, x_t = seeded(lambda: DenoisingUNet(8, (1, 2), 1)), normal(3, 1, 4, 4)
    together = network(x_t, torch.tensor([1, 20, 50]))
    for i, t in enumerate([1, 20, 50]):
        assert torch.allclose(network(x_t[i : i + 1], torch.tensor([t]))[0], together[i], atol=1e-10)
    same = network(x_t[:1].expand(3, -1, -1, -1), torch.tensor([1, 2, 50]))
    assert min((same[0] - same[1]).abs().max(), (same[0] - same[2]).abs().max()) > 1e-3


@pytest.mark.parametrize("seed", range(2))
def test_learns_one_batch_by_heart(seed):
    torch.manual_seed(seed)
    network, x_0 = DenoisingUNet(8, (1, 2, 2), 1), normal(8, 1, 8, 8, seed=seed, dtype=torch.float32).clamp(-1, 1)
    diffusion = Diffusion(network, image_size=8, channels=1, schedule=NoiseSchedule.cosine(50))
    t, noise = diffusion.draw(8, torch.Generator().manual_seed(seed))
    optimizer, losses = torch.optim.Adam(network.parameters(), lr=3e-3), []
    for _ in range(16):
        loss = diffusion.p_loss(x_0, t, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def call(*shape, t=None, **options):
    return DenoisingUNet(**options)(torch.zeros(shape), torch.ones(shape[0], dtype=torch.long) if t is None else t)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: DenoisingUNet(0), "dim must be a positive multiple of 8, got 0"),
        (lambda: DenoisingUNet(-8), "got -8"),
        (lambda: DenoisingUNet(12), "multiple of 8, got 12"),
        (lambda: DenoisingUNet(16, ()), r"one integer ≥ 1 for each level, got \(\)"),
        (lambda: DenoisingUNet(16, (1, 0)), r"got \(1, 0\)"),
        (lambda: DenoisingUNet(16, (1, 1.5)), r"got \(1, 1.5\)"),
        (lambda: DenoisingUNet(channels=0), "channels must be at least 1, got 0"),
        (lambda: call(2, 1, 32, 32), r"\(B, 3, S, S\), got \(2, 1, 32, 32\)"),
        (lambda: call(3, 32, 32), r"got \(3, 32, 32\)"),
        (lambda: call(2, 3, 32, 12), "multiples of 8, to be halved 3 times"),
        (lambda: call(2, 3, 28, 32), r"got \(2, 3, 28, 32\): resize the images or give fewer dim_mults"),
        (lambda: call(2, 3, 0, 8), "multiples of 8"),
        (lambda: call(2, 3, 8, 8, t=torch.ones(3, dtype=torch.long)), r"shape \(2,\), one time for each image of x_t, got \(3,\)"),
        (lambda: call(2, 3, 8, 8, t=torch.tensor(1)), r"got \(\)"),
        (lambda: sinusoidal_embedding(torch.ones(2, 1), 4), r"t must have shape \(B,\), got \(2, 1\)"),
        (lambda: sinusoidal_embedding(torch.ones(2), 3), "dim must be even and at least 2, got 3"),
        (lambda: sinusoidal_embedding(torch.ones(2), 0), "got 0"),
    ],
)
def test_bad_inputs(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_times_must_be_integers(dtype):
    with pytest.raises(TypeError, match="t must be an integer tensor"):
        call(2, 3, 8, 8, t=torch.ones(2, dtype=dtype))
