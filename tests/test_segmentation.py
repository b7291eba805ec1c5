"""The U-Net, the losses and the metrics, against sums by hand, torch, segmentation-models-pytorch and scikit-learn."""

import math

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from fitting import fit
from sklearn.metrics import confusion_matrix as confusion_of_sklearn
from sklearn.metrics import jaccard_score
from torch import nn

from coursekit.segmentation import UNet, bce_dice_loss, confusion_matrix, dice, dice_loss, iou, iou_from_confusion

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def masks_and_logits(batch=3, height=5, width=7):
    return normal(batch, 1, height, width, seed=1).gt(0.3).to(F64), 3 * normal(batch, 1, height, width)


# --- the U-Net ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "count"), [((3, 1), 31_037_633), ((3, 1, 64, True), 17_262_977)])
@pytest.mark.parametrize("skips", [True, False])
def test_parameters_are_the_published_number(arguments, count, skips):
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(*arguments, skips=skips).parameters()) == count


def double(stage, x):
    """A stage, spelt out: convolution, batch norm by its formula with this batch's statistics, ReLU; twice."""
    for convolution, norm in ((stage[0], stage[1]), (stage[3], stage[4])):
        x = F.conv2d(x, convolution.weight, padding=1)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
        x = x.clamp(min=0)
    return x


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("bilinear", [True, False])
def test_unet_is_its_figure(bilinear, skips):
    torch.manual_seed(0)
    net = UNet(2, 3, 4, bilinear, skips).to(F64)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    x = normal(2, 2, 48, 32)
    e0 = double(net.encoder[0], x)
    e1 = double(net.encoder[1], F.max_pool2d(e0, 2))
    e2 = double(net.encoder[2], F.max_pool2d(e1, 2))
    e3 = double(net.encoder[3], F.max_pool2d(e2, 2))
    y = double(net.encoder[4], F.max_pool2d(e3, 2))
    assert [e.shape[1] for e in (e0, e1, e2, e3, y)] == [4, 8, 16, 32, 32 if bilinear else 64] and y.shape[2:] == (3, 2)
    for level, skip in ((3, e3), (2, e2), (1, e1), (0, e0)):
        if bilinear:
            y = F.interpolate(y, scale_factor=2, mode="bilinear")
        else:
            y = F.conv_transpose2d(y, net.upsampling[level].weight, net.upsampling[level].bias, stride=2)
        assert y.shape == skip.shape
        y = double(net.decoder[level], torch.cat([skip if skips else 0 * skip, y], 1))
    y = torch.einsum("oi,bihw->bohw", net.head.weight[:, :, 0, 0], y) + net.head.bias[:, None, None]
    assert torch.allclose(net(x), y, atol=1e-11)


@pytest.mark.parametrize("bilinear", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (50, 70), (17, 33), (31, 16), (64, 47)])
def test_any_size_is_kept(size, bilinear):
    net = UNet(1, 2, 2, bilinear)
    assert net(normal(2, 1, *size, dtype=torch.float32)).shape == (2, 2, *size)


def test_an_odd_image_differs_from_its_even_part_at_the_border_only():
    net = UNet(1, 1, 2).to(F64).eval()
    x = normal(1, 1, 209, 32)   # a pixel sees fewer than 160 rows below it
    assert torch.allclose(net(x)[:, :, :40], net(x[:, :, :208])[:, :, :40], atol=1e-12)


def test_without_skips_no_decoder_weight_on_the_encoder_side_is_trained():
    for skips in (True, False):
        torch.manual_seed(0)
        net = UNet(1, 1, 2, skips=skips)
        net(normal(2, 1, 32, 32, dtype=torch.float32)).square().sum().backward()
        for stage in net.decoder:
            first = stage[0].weight.grad
            half = first.shape[1] // 2
            assert first[:, half:].abs().sum() > 0 and bool(first[:, :half].abs().sum() > 0) == skips
    for p in UNet(1, 1, 2).named_parameters():
        assert "bias" not in p[0] or p[1].ndim == 1


def test_skips_change_nothing_but_what_the_decoder_reads():
    nets = []
    for skips in (True, False):
        torch.manual_seed(3)
        nets.append(UNet(1, 1, 4, skips=skips))
    for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    x = normal(2, 1, 32, 32, dtype=torch.float32)
    assert not torch.allclose(nets[0](x), nets[1](x), atol=1e-3)


def test_unet_learns_and_channels_last_computes_the_same():
    torch.manual_seed(0)
    net = UNet(1, 1, 4)
    x = normal(4, 1, 32, 32, dtype=torch.float32)
    y = (F.avg_pool2d(x, 3, 1, 1) > 0).float()
    losses = fit(net, lambda: bce_dice_loss(net(x), y, 1.0), 30)
    assert losses[-1] < 0.7 * losses[0]
    plain = net.eval()(x)
    last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UNet(3, 1, 8.0), "base_channels must be an int of at least 1, got 8.0"),
        (lambda: UNet(0, 1), "in_channels must be an int of at least 1, got 0"),
        (lambda: UNet(3, 0), "classes must be an int of at least 1, got 0"),
        (lambda: UNet(3, 1, 0), "base_channels must be an int of at least 1, got 0"),
        (lambda: UNet(3, 1, 3, bilinear=True), "must be even .* got 3"),
        (lambda: UNet(3, 1, 1)(torch.zeros(2, 1, 32, 32)), r"\(B, 3, H, W\), got \(2, 1, 32, 32\)"),
        (lambda: UNet(3, 1, 1)(torch.zeros(3, 32, 32)), r"\(B, 3, H, W\), got \(3, 32, 32\)"),
        (lambda: UNet(3, 1, 1)(torch.zeros(2, 3, 15, 32)), r"at least 16 pixels, got \(2, 3, 15, 32\)"),
        (lambda: UNet(3, 1, 1)(torch.zeros(2, 3, 32, 15)), r"at least 16 pixels"),
    ],
)
def test_bad_networks_and_images_are_answered(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [1e-6, 0.7])
def test_dice_loss_is_its_formula_image_by_image(smoothing):
    masks, logits = masks_and_logits()
    masks = masks * 0.8 + 0.1 * masks.roll(1, -1)   # soft masks are allowed
    found = []
    for z, y in zip(logits, masks, strict=True):
        both = above = 0.0
        for zi, yi in zip(z.flatten().tolist(), y.flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-zi))
            both, above = both + p + yi, above + p * yi
        found.append(1 - (2 * above + smoothing) / (both + smoothing))
    assert dice_loss(logits, masks, smoothing).item() == pytest.approx(sum(found) / 3, abs=1e-14)


def test_losses_at_zero_logits_have_a_closed_form():
    masks, logits = masks_and_logits()
    share = masks.mean((1, 2, 3))
    expected = (1 - share / (0.5 + share)).mean().item()
    assert dice_loss(0 * logits, masks).item() == pytest.approx(expected, abs=1e-7)
    assert bce_dice_loss(0 * logits, masks, 0).item() == pytest.approx(math.log(2), abs=1e-14)
    assert bce_dice_loss(0 * logits, masks, 2.5).item() == pytest.approx(math.log(2) + 2.5 * expected, abs=1e-6)


def test_bce_dice_is_the_sum_and_so_is_its_gradient():
    masks, logits = masks_and_logits()
    logits.requires_grad_()
    p = logits.sigmoid()
    bce = -(masks * p.log() + (1 - masks) * (1 - p).log()).mean()
    assert bce_dice_loss(logits, masks, 0).item() == pytest.approx(bce.item(), abs=1e-13)
    (gradient,) = torch.autograd.grad(bce_dice_loss(logits, masks, 0.3), logits)
    by_hand = (p - masks) / masks.numel() + 0.3 * torch.autograd.grad(dice_loss(logits, masks), logits)[0]
    assert torch.allclose(gradient, by_hand, atol=1e-14)


def test_dice_loss_equals_smp_for_each_image():
    masks, logits = masks_and_logits()
    theirs = smp.losses.DiceLoss("binary", smooth=1e-6)
    one_by_one = sum(theirs(z[None], y[None]) for z, y in zip(logits, masks, strict=True)) / 3
    assert dice_loss(logits, masks).item() == pytest.approx(one_by_one.item(), abs=1e-6)
    masks[0, :, 1:] = 0
    assert abs(dice_loss(logits, masks) - theirs(logits, masks)) > 1e-2   # theirs pools the batch


def test_perfect_and_empty_masks_cost_nothing():
    masks, _ = masks_and_logits()
    masks[0] = 0
    perfect = torch.where(masks > 0, 1e4, -1e4)
    for dtype in (torch.float32, F64):
        for smoothing in (1e-6, 1.0):
            assert dice_loss(perfect.to(dtype), masks, smoothing) == 0
        assert bce_dice_loss(perfect.to(dtype), masks, 1.0) == 0
        assert bce_dice_loss(-perfect.to(dtype), masks, 1.0).item() == pytest.approx(1e4 + 1, rel=1e-6)


def test_an_empty_mask_is_felt_through_the_smoothing():
    z = torch.full((1, 1, 4, 5), -3.0, dtype=F64, requires_grad=True)
    dice_loss(z, torch.zeros(1, 1, 4, 5), 1.0).backward()
    p = 1 / (1 + math.exp(3))
    assert z.grad[0, 0, 2, 3].item() == pytest.approx(p * (1 - p) / (20 * p + 1) ** 2, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    masks, logits = masks_and_logits(2, 60, 70)
    loss = bce_dice_loss(logits.to(dtype), masks.bool(), 1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(bce_dice_loss(logits.to(dtype).double(), masks, 1.0).item(), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert bce_dice_loss(logits, masks.float(), 1.0).dtype == F64
        assert bce_dice_loss(logits.to(dtype), masks.byte(), 1.0) == loss


def test_nan_reaches_the_training_loop():
    masks, logits = masks_and_logits()
    logits[1, 0, 2, 2] = math.nan
    assert dice_loss(logits, masks).isnan() and bce_dice_loss(logits, masks, 0).isnan()


MASK, ZERO = torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)


@pytest.mark.parametrize("loss", [dice_loss, lambda z, y: bce_dice_loss(z, y, 1.0)])
@pytest.mark.parametrize(
    ("logits", "masks", "message"),
    [
        (ZERO, MASK[:1], r"got \(2, 1, 4, 4\) and \(1, 1, 4, 4\)"),
        (ZERO, MASK[:, 0], "share a shape"),
        (ZERO[0, 0, 0], MASK[0, 0, 0], r"got \(4,\)"),
        (ZERO[:0], MASK[:0], "not empty"),
        (ZERO, 255 * MASK, r"\[0, 1\], got 255 … 255; divide"),
        (ZERO, 1.01 * MASK, r"\[0, 1\], got 1.01 … 1.01"),
        (ZERO, MASK - 1.01, r"masks must lie in \[0, 1\]"),
        (ZERO, math.nan * MASK, "got nan … nan"),
    ],
)
def test_bad_masks_are_answered(loss, logits, masks, message):
    with pytest.raises(ValueError, match=message):
        loss(logits, masks)


def test_two_axes_are_enough():
    assert dice_loss(torch.zeros(1, 1), torch.ones(1, 1)).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("weight", [-1e-9, math.nan, math.inf])
def test_a_weight_below_zero_is_refused(weight):
    with pytest.raises(ValueError, match="dice_weight must be a number ≥ 0"):
        bce_dice_loss(ZERO, MASK, weight)


@pytest.mark.parametrize("smoothing", [0, -1.0, math.nan, math.inf])
def test_a_smoothing_not_above_zero_is_refused(smoothing):
    with pytest.raises(ValueError, match="smoothing must be a positive number"):
        dice_loss(ZERO, MASK, smoothing)


# --- metrics -----------------------------------------------------------------------------------------------------------


def test_known_masks():
    true = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]])
    guess = torch.tensor([[0.1, 0.9, 0.8, 0.2], [0, 0.1, 0, 0], [0, 0, 0, 0.9], [0, 0, 0.3, 0], [1, 1, 1, 0]])
    assert iou(guess, true).tolist() == [1 / 3, 1, 0, 0, 1]
    assert dice(guess, true).tolist() == [1 / 2, 1, 0, 0, 1]
    assert iou(guess, true).dtype == dice(guess, true).dtype == F64


@pytest.mark.parametrize("threshold", [0, 0.3, 0.5, 1])
def test_the_threshold_itself_is_foreground(threshold):
    p = torch.tensor([[threshold, max(threshold - 1e-3, 0)]], dtype=F64)
    assert iou(p, torch.tensor([[1, 0]]), threshold).item() == (1 if threshold else 0.5)


def test_metrics_against_sklearn_and_smp():
    masks, logits = masks_and_logits(4)
    p = logits.sigmoid()
    ours = iou(p, masks, 0.4)
    for value, guess, true in zip(ours, p, masks, strict=True):
        assert value.item() == pytest.approx(jaccard_score(true.flatten().numpy(), guess.flatten().numpy() >= 0.4), abs=1e-15)
    stats = smp.metrics.get_stats(p, masks.long(), mode="binary", threshold=0.4)
    assert torch.allclose(ours, smp.metrics.iou_score(*stats)[:, 0].double(), atol=1e-6)
    assert torch.allclose(dice(p, masks, 0.4), smp.metrics.f1_score(*stats)[:, 0].double(), atol=1e-6)
    assert torch.allclose(dice(p, masks, 0.4), 2 * ours / (1 + ours), atol=1e-15)


def test_metrics_take_any_type_of_mask():
    masks, logits = masks_and_logits()
    p = logits.sigmoid()
    for kind in (torch.bool, torch.uint8, torch.int64, torch.float32):
        assert torch.equal(iou(p, masks.to(kind)), iou(p, masks))
        assert torch.equal(iou((p >= 0.5).to(kind), masks), iou(p, masks))


def test_confusion_matrix_against_sklearn():
    generator = torch.Generator().manual_seed(0)
    true, guess = (torch.randint(0, 4, (3, 8, 9), generator=generator) for _ in range(2))
    matrix = confusion_matrix(guess, true, 5)
    assert matrix.dtype == torch.int64 and matrix.shape == (5, 5)
    flat = true.flatten().numpy(), guess.flatten().numpy()
    assert torch.equal(matrix, torch.tensor(confusion_of_sklearn(*flat, labels=list(range(5)))))
    assert torch.equal(matrix, sum(confusion_matrix(g, t, 5) for g, t in zip(guess.byte(), true, strict=True)))
    values = iou_from_confusion(matrix)
    assert values[4].isnan() and values.dtype == F64
    scores = jaccard_score(*flat, labels=list(range(4)), average=None)
    assert torch.allclose(values[:4], torch.tensor(scores), atol=1e-15)


def test_confusion_matrix_of_two_classes_is_the_iou():
    masks, logits = masks_and_logits(1)
    guess = logits.sigmoid() >= 0.5
    assert torch.equal(iou_from_confusion(confusion_matrix(guess, masks.bool(), 2))[1:], iou(logits.sigmoid(), masks))
    never_predicted = iou_from_confusion(torch.tensor([[3, 0], [2, 0]]))
    assert never_predicted.tolist() == [3 / 5, 0]


def test_one_class_alone_is_counted():
    assert confusion_matrix(torch.tensor([1, 1]), torch.tensor([1, 1]), 2).tolist() == [[0, 0], [0, 2]]


def test_no_pixels_give_an_empty_matrix():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(confusion_matrix(nothing, nothing, 2), torch.zeros(2, 2, dtype=torch.int64))


LABELS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iou(ZERO, MASK[:1]), r"got \(2, 1, 4, 4\) and \(1, 1, 4, 4\)"),
        (lambda: dice(ZERO[:0], MASK[:0]), "not empty"),
        (lambda: iou(ZERO[0, 0, 0], MASK[0, 0, 0]), r"got \(4,\)"),
        (lambda: iou(MASK + 0.01, MASK), r"probabilities must lie in \[0, 1\]; give logits through a sigmoid"),
        (lambda: iou(ZERO - 0.01, MASK), "probabilities must lie"),
        (lambda: dice(ZERO * math.nan, MASK), "look for NaN"),
        (lambda: iou(ZERO, MASK / 2), "masks must hold 0 and 1 alone"),
        (lambda: iou(ZERO, MASK, -0.1), r"threshold must lie in \[0, 1\], got -0.1"),
        (lambda: dice(ZERO, MASK, 1.1), "got 1.1"),
        (lambda: dice(ZERO, MASK, math.nan), "got nan"),
        (lambda: confusion_matrix(LABELS, LABELS[:2], 3), r"share a shape, got \(3,\) and \(2,\)"),
        (lambda: confusion_matrix(LABELS.float(), LABELS, 3), "predicted must hold class numbers .* torch.float32"),
        (lambda: confusion_matrix(LABELS, LABELS.double(), 3), "target must hold class numbers"),
        (lambda: confusion_matrix(LABELS, LABELS, 2), "predicted must lie in 0 … 1, got 0 … 2"),
        (lambda: confusion_matrix(LABELS, LABELS - 1, 3), "target must lie in 0 … 2, got -1 … 1"),
        (lambda: iou_from_confusion(torch.ones(2, 3)), r"\(classes, classes\), got \(2, 3\)"),
        (lambda: iou_from_confusion(torch.ones(3)), r"got \(3,\)"),
    ],
)
def test_bad_metrics_are_answered(call, message):
    with pytest.raises(ValueError, match=message):
        call()
