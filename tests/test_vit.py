"""The vision transformer, part by part, against torch's own with copied weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from fitting import fit
from torch import nn

from coursekit.segmentation import SegmentViT, bce_dice_loss
from coursekit.segmentation.vit import (
    DenseHead,
    EncoderLayer,
    FeedForward,
    MultiHeadAttention,
    PatchEmbedding,
    sinusoidal_positions,
    unpatch,
)

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def seeded(make):
    """The module in float64, all its parameters drawn anew, so that no zero bias or unit weight hides anything."""
    torch.manual_seed(0)
    module = make().to(F64)
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    return module


def copy_attention(ours, theirs):
    three = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in three]))
    theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in three]))
    theirs.out_proj.load_state_dict(ours.output.state_dict())


@torch.no_grad()
def as_torch_encoder(ours, dim, heads, hidden):
    """The same layers and final norm from torch, with ours' weights."""
    layer = nn.TransformerEncoderLayer(dim, heads, hidden, dropout=0, activation="gelu", batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, len(ours) - 1, nn.LayerNorm(dim), enable_nested_tensor=False).to(F64)
    theirs.norm.load_state_dict(ours[-1].state_dict())
    for a, b in zip(ours, theirs.layers, strict=False):
        copy_attention(a.attention, b.self_attn)
        b.norm1.load_state_dict(a.norm_1.state_dict())
        b.norm2.load_state_dict(a.norm_2.state_dict())
        b.linear1.load_state_dict(a.feed_forward[0].state_dict())
        b.linear2.load_state_dict(a.feed_forward[2].state_dict())
    return theirs


@pytest.mark.parametrize(("dim", "heads"), [(12, 3), (8, 1), (6, 6)])
def test_attention_equals_torch_and_its_formula(dim, heads):
    ours, x = seeded(lambda: MultiHeadAttention(dim, heads)), normal(2, 7, dim).requires_grad_()
    theirs = nn.MultiheadAttention(dim, heads, batch_first=True).to(F64)
    with torch.no_grad():
        copy_attention(ours, theirs)
    expected = theirs(x, x, x, need_weights=False)[0]
    assert torch.allclose(ours(x), expected, atol=1e-12)
    ours_gradient, their_gradient = (torch.autograd.grad(y.sin().sum(), x)[0] for y in (ours(x), expected))
    assert torch.allclose(ours_gradient, their_gradient, atol=1e-11)

    d, out = dim // heads, []
    q, k, v = (layer(x) for layer in (ours.query, ours.key, ours.value))
    for h in range(heads):
        own = slice(h * d, (h + 1) * d)
        weights = (q[..., own] @ k[..., own].mT / math.sqrt(d)).softmax(-1)
        assert torch.allclose(weights.sum(-1), torch.ones(2, 7, dtype=F64))
        out.append(weights @ v[..., own])
    assert torch.allclose(ours(x), ours.output(torch.cat(out, -1)), atol=1e-12)


@pytest.mark.parametrize("layers", [1, 3])
def test_encoder_equals_torch(layers):
    ours = seeded(lambda: nn.Sequential(*[EncoderLayer(8, 2, 1.5) for _ in range(layers)], nn.LayerNorm(8)))
    x = normal(3, 5, 8)
    assert torch.allclose(ours(x), as_torch_encoder(ours, 8, 2, 12)(x), atol=1e-12)


def test_a_whole_model_equals_torch():
    ours, x = seeded(lambda: SegmentViT(12, 4, 8, 2, 4, 2, 3, 3)), normal(2, 2, 12, 12)
    tokens = F.unfold(x, 4, stride=4).mT @ ours.embedding.project.weight.flatten(1).T + ours.embedding.project.bias
    tokens = as_torch_encoder(ours.encoder, 8, 4, 24)(tokens + ours.positions)
    assert torch.allclose(ours(x), ours.head(tokens, 3), atol=1e-11)


def test_feed_forward_is_two_convolutions():
    layer, x = seeded(lambda: FeedForward(6, 10)), normal(2, 5, 6)
    y = F.gelu(F.conv1d(x.mT, layer[0].weight[:, :, None], layer[0].bias))
    assert torch.allclose(layer(x), F.conv1d(y, layer[2].weight[:, :, None], layer[2].bias).mT, atol=1e-12)


def test_layer_norm_is_its_formula():
    layer, x = seeded(lambda: EncoderLayer(6, 2)).norm_1, normal(2, 5, 6)
    y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(layer(x), y * layer.weight + layer.bias, atol=1e-12)


def test_patch_embedding_is_one_linear_map_of_each_patch():
    embedding, x = seeded(lambda: PatchEmbedding(2, 3, 5)), normal(2, 2, 6, 9)
    tokens = embedding(x)
    assert tokens.shape == (2, 6, 5)
    weight, bias = embedding.project.weight.flatten(1), embedding.project.bias
    for i in range(2):
        for j in range(3):
            patch = x[:, :, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].flatten(1)
            assert torch.allclose(tokens[:, 3 * i + j], patch @ weight.T + bias, atol=1e-12)


def test_unpatch_undoes_the_cut():
    x = normal(2, 3, 8, 12)
    assert torch.equal(unpatch(F.unfold(x, 4, stride=4).mT, 4, 2), x)


def test_dense_head_keeps_each_token_to_its_patch_and_the_seams():
    head, tokens = seeded(lambda: DenseHead(6, 4, 2)), normal(1, 9, 6)
    other = tokens.clone()
    other[0, 4] += 1   # the middle patch: pixels 4 … 7, and two more on each side that the 3×3 convolutions reach
    change = (head(tokens, 3) - head(other, 3)).abs()[0].amax(0) > 1e-9
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[2:10, 2:10] = True
    assert change.shape == (12, 12) and torch.equal(change, expected)


# --- positions ---------------------------------------------------------------------------------------------------------


def test_sinusoidal_positions_are_their_formula():
    table = sinusoidal_positions(30, 10)
    assert table.shape == (30, 10) and table.dtype == F64
    for p in (0, 1, 29):
        for i in range(5):
            angle = p / 10000 ** (2 * i / 10)
            assert table[p, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-13)
            assert table[p, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-13)


def test_a_shift_of_the_position_is_linear():
    table = sinusoidal_positions(40, 8)
    for k in (1, 7):
        matrix = torch.linalg.lstsq(table[:-k], table[k:]).solution
        assert torch.allclose(table[:-k] @ matrix, table[k:], atol=1e-9)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "none"])
def test_only_positions_tell_an_order(positions):
    net = seeded(lambda: SegmentViT(12, 4, 8, 2, 2, positions=positions))
    tokens, order = normal(2, 9, 8), torch.randperm(9, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(net.encoder(tokens)[:, order], net.encoder(tokens[:, order]), atol=1e-12)

    x = normal(1, 3, 12, 12)
    shuffled = unpatch(F.unfold(x, 4, stride=4).mT[:, order], 4, 3)
    seen = []
    net.encoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    net(x), net(shuffled)
    assert torch.allclose(seen[0][:, order], seen[1], atol=1e-9) == (positions == "none")


def test_which_positions_are_trained_and_stored():
    count = {p: sum(q.numel() for q in SegmentViT(8, 2, 8, 1, 2, positions=p).parameters()) for p in ("learned", "sinusoidal", "none")}
    assert count["learned"] - 16 * 8 == count["sinusoidal"] == count["none"]
    net = SegmentViT(8, 2, 8, 1, 2, positions="sinusoidal", head="class")
    assert torch.equal(net.positions, sinusoidal_positions(17, 8).float())
    assert "positions" not in net.state_dict() and net.half().positions.dtype == torch.float16


@pytest.mark.parametrize("head", ["dense", "class"])
def test_tokens_and_positions_start_small(head):
    torch.manual_seed(0)
    net = SegmentViT(32, 4, 64, 1, 2, head=head)
    assert net.positions.shape == (64 + (head == "class"), 64)
    assert net.positions.std().item() == pytest.approx(0.02, rel=0.1)
    if head == "class":
        assert net.class_token.std().item() == pytest.approx(0.02, rel=0.4) and abs(net.class_token.mean().item()) < 0.01


# --- the whole model ---------------------------------------------------------------------------------------------------


def test_shapes_of_both_heads():
    x = normal(2, 1, 16, 16, dtype=torch.float32)
    assert SegmentViT(16, 4, 8, 1, 2, 1, 3)(x).shape == (2, 3, 16, 16)
    assert SegmentViT(16, 4, 8, 1, 2, 1, 3, head="class")(x).shape == (2, 3)
    assert SegmentViT(16, 16, 8, 1, 2, 1)(x).shape == (2, 1, 16, 16)
    assert SegmentViT(1, 1, 1, 1, 1, 1)(x[:, :, :1, :1]).shape == (2, 1, 1, 1)
    net = SegmentViT(16, 4, 8, 3, 2)
    assert len(net.encoder) == 4 and net.encoder[0].feed_forward[0].out_features == 32


def test_the_class_token_stands_first_and_hears_the_patches():
    net, x = seeded(lambda: SegmentViT(8, 4, 8, 2, 2, classes=3, head="class")), normal(2, 3, 8, 8)
    tokens = torch.cat([net.class_token.expand(2, 1, 8), net.embedding(x)], 1) + net.positions
    assert torch.allclose(net(x), net.encoder(tokens)[:, 0] @ net.head.weight.T + net.head.bias, atol=1e-12)


def test_class_token_overfits_a_toy_set():
    torch.manual_seed(0)
    net = SegmentViT(8, 4, 16, 1, 2, 1, 3, head="class")
    x, labels = normal(12, 1, 8, 8, dtype=torch.float32), torch.arange(12) % 3
    fit(net, lambda: F.cross_entropy(net(x), labels), 60)
    assert torch.equal(net(x).argmax(1), labels)


def test_dense_head_learns_a_mask():
    torch.manual_seed(0)
    net = SegmentViT(16, 4, 16, 2, 2, 1)
    x = normal(6, 1, 16, 16, dtype=torch.float32)
    y = (F.avg_pool2d(x, 5, 1, 2) > 0).float()
    losses = fit(net, lambda: bce_dice_loss(net(x), y, 1.0), 60)
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SegmentViT(16, 5, 8, 1, 2), "image_size must be a multiple of patch_size, got 16 and 5"),
        (lambda: MultiHeadAttention(8, 0), "dim must be a multiple of heads, got 8 and 0"),
        (lambda: PatchEmbedding(1, 4, 2)(torch.zeros(1, 1, 9, 8)), "multiples of the patch size 4, got 9×8"),
        (lambda: unpatch(torch.zeros(1, 6, 4), 2, 4), "divide the number of tokens, got 4 for 6"),
        (lambda: SegmentViT(16, 4, 8, 1, 2, mlp_ratio=0), "mlp_ratio must leave at least one hidden channel, got 0 for dim = 8"),
        (lambda: SegmentViT(16, 4, 8, 1, 3), "dim must be a multiple of heads, got 8 and 3"),
        (lambda: SegmentViT(16, 4, 9, 1, 3, positions="sinusoidal"), "dim must be even"),
        (lambda: SegmentViT(16, 4, 8, 0, 2, classes=0), "depth = 0, classes = 0"),
        (lambda: SegmentViT(16, 4, 8, 1, 2, positions="learnt"), "got 'learnt' and 'dense'"),
        (lambda: SegmentViT(16, 4, 8, 1, 2, head="mask"), "got 'learned' and 'mask'"),
        (lambda: SegmentViT(16, 4, 8, 1, 2)(torch.zeros(2, 3, 16, 12)), r"\(B, 3, 16, 16\), got \(2, 3, 16, 12\); resize"),
        (lambda: SegmentViT(16, 4, 8, 1, 2)(torch.zeros(2, 1, 16, 16)), r"got \(2, 1, 16, 16\)"),
        (lambda: SegmentViT(16, 4, 8, 1, 2)(torch.zeros(3, 16, 16)), r"got \(3, 16, 16\)"),
    ],
)
def test_bad_models_and_images_are_answered(call, message):
    with pytest.raises(ValueError, match=message):
        call()
