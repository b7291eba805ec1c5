import pytest
import torch
import torch.nn.functional as F
from torch import nn

from coursekit.patchwise import (
    PatchwiseMLP,
    as_convnet,
    extract_patches,
    linear_as_convolution,
    multiplications,
    receptive_field,
)

SHAPES = [(1, 1, 1, 5, 7), (2, 2, 3, 5, 5), (3, 3, 1, 3, 11), (2, 4, 2, 9, 4), (1, 5, 3, 12, 17)]


def images(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("batch", "k", "channels", "height", "width"), SHAPES)
def test_patches_are_the_slices(batch, k, channels, height, width):
    x = images(batch, channels, height, width)
    patches = extract_patches(x, k)
    n = width - k + 1
    assert patches.shape == (batch, (height - k + 1) * n, channels * k * k)
    for i in range(height - k + 1):
        for j in range(n):
            assert torch.equal(patches[:, i * n + j], x[:, :, i : i + k, j : j + k].flatten(1))


@pytest.mark.parametrize("layers", range(1, 6))
@pytest.mark.parametrize(("batch", "k", "channels", "height", "width"), SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_mlp_equals_its_definition_and_its_convnet(layers, batch, k, channels, height, width, dtype, tolerance):
    torch.manual_seed(layers)
    mlp = PatchwiseMLP(k, (channels, *[6] * (layers - 1), 2), nn.GELU).to(dtype)
    x = images(batch, channels, height, width, dtype=dtype).requires_grad_()
    y = mlp(x)
    assert y.shape == (batch, 2, height - k + 1, width - k + 1)

    one = x[0, :, -k:, -k:].flatten()  # the last patch, straight through the definition
    for number, layer in enumerate(mlp.layers):
        one = layer(one if number == 0 else F.gelu(one))
    assert torch.allclose(y[0, :, -1, -1], one, atol=tolerance)

    net = as_convnet(mlp)
    assert torch.allclose(net(x), y, atol=tolerance)
    (g,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    assert torch.allclose(torch.autograd.grad(net(x).square().sum(), x)[0], g, atol=100 * tolerance)
    for p, q in zip(mlp.parameters(), net.parameters(), strict=True):
        (gp,) = torch.autograd.grad(mlp(x).square().sum(), p)
        (gq,) = torch.autograd.grad(net(x).square().sum(), q)
        assert torch.allclose(gq.reshape(gp.shape), gp, atol=100 * tolerance, rtol=100 * tolerance)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in mlp.parameters())
    assert [type(m).__name__ for m in net] == ["Conv2d", *["GELU", "Conv2d"] * (layers - 1)]


def test_convnet_copies_weights_activation_type_and_mode():
    mlp = PatchwiseMLP(3, (2, 4, 4, 1), nn.PReLU).to(torch.float64).eval()
    with torch.no_grad():
        mlp.activations[1].weight.fill_(0.7)
    net, x = as_convnet(mlp), images(1, 2, 6, 6)
    before = net(x)
    assert torch.allclose(before, mlp(x), atol=1e-12) and not net.training
    with torch.no_grad():
        for p in mlp.parameters():
            p.add_(1)
    assert torch.equal(net(x), before)
    assert len(list(net.parameters())) == len(list(mlp.parameters()))


def test_each_activation_is_its_own():
    mlp = PatchwiseMLP(3, (2, 4, 4, 1), nn.PReLU)
    assert mlp.activations[0] is not mlp.activations[1]


def test_linear_as_convolution_without_bias_and_on_larger_maps():
    layer = nn.Linear(5 * 36, 7, bias=False).double()
    convolution = linear_as_convolution(layer, 5, 6)
    assert convolution.bias is None
    x = images(1, 5, 8, 8)
    assert convolution(x).shape == (1, 7, 3, 3)
    assert torch.allclose(convolution(x)[0, :, 1, 2], layer(x[0, :, 1:7, 2:8].flatten()), atol=1e-12)


class Constant(nn.Module):
    """A network that never looks at its input."""

    def __init__(self):
        super().__init__()
        self.map = nn.Parameter(torch.ones(8, 1, 3, 3))

    def forward(self, x):
        return self.map


@pytest.mark.parametrize("k", [1, 2, 5])
def test_receptive_field(k):
    assert receptive_field(as_convnet(PatchwiseMLP(k, (2, 8, 8, 3))), 2, 13) == (k, k)
    assert receptive_field(nn.Sequential(nn.Conv2d(2, 3, (k, 3)), nn.Conv2d(3, 1, 3)), 2, 13) == (k + 2, 5)
    with pytest.raises(ValueError, match="no input pixel"):
        dead = nn.Conv2d(1, 1, 3)
        nn.init.zeros_(dead.weight)
        receptive_field(dead, 1, 5)
    with pytest.raises(ValueError, match="no input pixel"):
        receptive_field(Constant(), 1, 5)


def test_receptive_field_leaves_the_network_as_it_was():
    network = as_convnet(PatchwiseMLP(3, (1, 4, 2)))
    receptive_field(network, 1, 7)
    assert all(parameter.grad is None for parameter in network.parameters())
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert receptive_field(network, 1, 13) == (5, 5), "not the whole image, over which batch norm averages in training"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    network[2].eval()
    network[0].register_forward_hook(lambda module, inputs, output: setattr(module, "last", output))   # no copy could be made of that
    assert [receptive_field(network, 1, 13) for _ in range(2)] == [(5, 5)] * 2
    assert [module.training for module in network] == [True, True, False, True]


def test_receptive_field_without_parameters():
    assert receptive_field(nn.AvgPool2d(3, 1), 2, 9) == (3, 3)


def test_multiplications():
    assert multiplications((1, 1), 1, 2, 3) == 6
    assert multiplications((3, 64, 10), 7, 20, 30) == 14 * 24 * (147 * 64 + 64 * 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PatchwiseMLP(0, (1, 1)), "patch_size must be at least 1, got 0"),
        (lambda: PatchwiseMLP(3, (1,)), r"channels must be \(in, hidden…, out\)"),
        (lambda: PatchwiseMLP(3, (1, 0, 2)), "each at least 1"),
        (lambda: PatchwiseMLP(3, (3, 2))(images(1, 1, 8, 8)), "must have 3 channels, got 1"),
        (lambda: PatchwiseMLP(3, (1, 2)).double()(images(1, 8, 8)), r"shape \(B, C, H, W\), got \(1, 8, 8\)"),
        (lambda: PatchwiseMLP(9, (1, 2)).double()(images(1, 1, 8, 12)), "no 9×9 patch fits into an image of 8×12"),
        (lambda: extract_patches(images(1, 1, 4, 4), 0), "no 0×0 patch"),
        (lambda: multiplications((3, 1), 7, 3, 3), "no 7×7 patch fits into an image of 3×3"),
        (lambda: linear_as_convolution(nn.Linear(10, 2), 1, 3), "takes 10 numbers; 1·3² are 9"),
    ],
)
def test_bad_input_is_answered(call, message):
    with pytest.raises(ValueError, match=message):
        call()
