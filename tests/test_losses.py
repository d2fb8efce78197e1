"""By hand, by a slow witness, and in the degenerate cases."""

import math

import pytest
import torch
import torch.nn.functional as F
from one_page import loss_of_head
from skimage.transform import resize

from minikits.losses import downsampled, head_weights, segmentation_loss, soft_dice_loss


def confident(labels, strength=50.0):
    """Logits that are sure of (B, Z, Y, X) labels."""
    return strength * F.one_hot(labels.long(), 3).movedim(-1, 1).float()


def test_dice_of_four_voxels_by_hand():
    """Probabilities (bg, kidney, tumor) of four voxels; target 0 1 1 2."""
    p = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7]])
    logits = p.log().T.reshape(1, 3, 1, 2, 2)
    target = torch.tensor([0, 1, 1, 2]).reshape(1, 1, 2, 2)

    loss = soft_dice_loss(logits, target).item()

    kidney = 2 * (0.6 + 0.4) / (1.4 + 2)  # sums of probabilities 1.4, of truth 2
    tumor = 2 * 0.7 / (1.1 + 1)
    assert loss == pytest.approx(-(kidney + tumor) / 2, abs=1e-5)


def test_dice_is_per_sample_not_per_batch(generator):
    logits = torch.randn(2, 3, 4, 4, 4, generator=generator)
    target = torch.randint(0, 3, (2, 4, 4, 4), generator=generator)
    each = [soft_dice_loss(logits[i : i + 1], target[i : i + 1]) for i in range(2)]
    assert soft_dice_loss(logits, target).item() == pytest.approx(sum(each).item() / 2)


def test_degenerate_patches():
    empty, full = torch.zeros(1, 4, 4, 4), torch.full((1, 4, 4, 4), 2)

    neither_has_any = soft_dice_loss(confident(empty), empty).item()
    both_are_full = soft_dice_loss(confident(full), full).item()
    tumor_is_missed = soft_dice_loss(confident(empty), full).item()

    assert neither_has_any == pytest.approx(-1)
    assert both_are_full == pytest.approx(-1)
    assert tumor_is_missed == pytest.approx(-0.5, abs=1e-4)  # tumor 0, absent kidney 1


@pytest.mark.parametrize("value", [0, 2])
def test_the_gradient_of_a_degenerate_patch_is_finite(value):
    target = torch.full((1, 4, 4, 4), value)
    logits = torch.randn(1, 3, 4, 4, 4, requires_grad=True)

    segmentation_loss([logits], target).backward()

    assert logits.grad.isfinite().all()


def test_head_weights():
    assert head_weights(5) == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15, 0))
    assert head_weights(1) == (1,)
    assert head_weights(2) == (1, 0)


def resized(labels, shape):
    """(Z, Y, X) labels -> (*shape), by scikit-image's nearest neighbour."""
    options = {"mode": "edge", "anti_aliasing": False, "preserve_range": True}
    return torch.from_numpy(resize(labels.double().numpy(), shape, 0, **options))


def test_all_heads_against_a_slow_witness(generator):
    target = torch.randint(0, 3, (2, 8, 16, 16), generator=generator)
    logits = []
    for shape in [(8, 16, 16), (8, 8, 8), (4, 4, 4)]:
        logits.append(torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64))

    wanted = 0
    for weight, head in zip((2 / 3, 1 / 3, 0), logits):
        coarse = torch.stack([resized(labels, head.shape[2:]) for labels in target])
        wanted += weight * loss_of_head(head, coarse)

    loss = segmentation_loss(logits, target).item()
    assert loss == pytest.approx(wanted.item(), abs=1e-9)


def test_targets_are_taken_at_index_2i_plus_1():
    target = torch.arange(8).reshape(1, 1, 1, 8).expand(1, 4, 4, 8)
    assert downsampled(target, (4, 2, 4))[0, 0, 0].tolist() == [1, 3, 5, 7]
    assert torch.equal(downsampled(target, (4, 4, 8)), target)
    nearest = F.interpolate(target[None].float(), (2, 4, 3), mode="nearest-exact")[0]
    assert torch.equal(downsampled(target, (2, 4, 3)).float(), nearest)


def test_gradient_equals_finite_differences(generator):
    target = torch.randint(0, 3, (1, 2, 4, 4), generator=generator)
    logits = [
        torch.randn(1, 3, *s, generator=generator, dtype=torch.float64, requires_grad=True)
        for s in ((2, 4, 4), (2, 2, 2))
    ]
    assert torch.autograd.gradcheck(lambda *heads: segmentation_loss(list(heads), target), logits)


def test_a_single_head_weighs_one_and_half_precision_is_summed_in_float32(generator):
    target = torch.randint(0, 3, (1, 4, 4, 4), generator=generator)
    logits = torch.zeros(1, 3, 4, 4, 4)

    loss = segmentation_loss(logits, target).item()

    wanted = math.log(3) + soft_dice_loss(logits, target).item()
    assert loss == pytest.approx(wanted, abs=1e-6)
    assert segmentation_loss(logits.half(), target).dtype == torch.float32
    for dtype in (torch.float16, torch.bfloat16):
        coarse = (5 * torch.randn(1, 3, 4, 4, 4, generator=generator)).to(dtype)
        for loss_of in (segmentation_loss, soft_dice_loss):
            exact = loss_of(coarse.float(), target).item()
            assert loss_of(coarse, target).item() == pytest.approx(exact, abs=1e-6)


def test_the_coarsest_of_several_heads_has_no_weight_at_all(generator):
    """Not even infinity in it counts; the others weigh 8, 4, 2, 1 of 15."""
    target = torch.randint(0, 3, (1, 16, 16, 16), generator=generator)
    heads = [torch.zeros(1, 3, side, side, side, dtype=torch.float64) for side in (16, 8, 4, 2, 1)]

    loss = segmentation_loss(heads, target).item()
    wanted = 0
    for share, head in zip((8 / 15, 4 / 15, 2 / 15, 1 / 15, 0), heads):
        wanted += share * segmentation_loss(head, downsampled(target, head.shape[2:])).item()
    assert loss == pytest.approx(wanted, abs=1e-9)

    heads[-1] += math.inf
    assert segmentation_loss(heads, target).item() == pytest.approx(loss, abs=1e-12)

    wanting = [head.clone().requires_grad_() for head in heads]
    segmentation_loss(wanting, target).backward()
    assert [head.grad is None for head in wanting] == [False, False, False, False, True]


@pytest.mark.parametrize(
    "heads, weights",
    [(1, (1,)), (2, (1, 0)), (3, (2 / 3, 1 / 3, 0)), (4, (4 / 7, 2 / 7, 1 / 7, 0))],
)
def test_each_head_has_its_weight(heads, weights):
    """By the gradient that reaches it, as a share of what reaches a single head."""

    def no_opinion(side):
        return torch.zeros(1, 3, side, side, side, dtype=torch.float64, requires_grad=True)

    target = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    logits = [no_opinion(8 // 2**level) for level in range(heads)]
    alone = no_opinion(8)

    segmentation_loss(logits, target).backward()
    segmentation_loss(alone, target).backward()

    of_alone = alone.grad[:, 0].sum().item()
    for head, weight in zip(logits, weights):
        share = head.grad[:, 0].sum().item() / of_alone if weight else 0
        assert share == pytest.approx(weight, rel=1e-4)


def test_cross_entropy_is_a_mean_over_voxels_and_samples():
    """Two samples of four voxels; one voxel is wrong by a factor of e^2."""
    logits = torch.zeros(2, 3, 1, 2, 2, dtype=torch.float64)
    logits[0, 1, 0, 0, 0] = 2
    target = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    wrong = math.log(2 + math.e**2)
    entropy = (7 * math.log(3) + wrong) / 8
    dice = soft_dice_loss(logits, target).item()
    assert segmentation_loss(logits, target).item() == pytest.approx(entropy + dice, abs=1e-12)


def test_the_loss_falls_to_minus_one_where_all_is_right(generator):
    target = torch.randint(0, 3, (2, 4, 4, 4), generator=generator)
    right, wrong = confident(target), confident((target + 1) % 3)
    assert soft_dice_loss(right, target).item() == pytest.approx(-1, abs=1e-5)
    assert segmentation_loss(right, target).item() == pytest.approx(-1, abs=1e-5)
    assert soft_dice_loss(wrong, target).item() == pytest.approx(0, abs=1e-5)
    assert segmentation_loss(wrong, target).item() == pytest.approx(50, abs=1e-4)


def test_smoothing_stands_in_numerator_and_denominator():
    """An empty structure with probabilities p in all: 1e-5 / (p + 1e-5)."""
    target = torch.zeros(1, 1, 1, 2, dtype=torch.uint8)
    probabilities = torch.tensor(
        [[1 - 3e-5, 1e-5, 2e-5], [1 - 3e-5, 1e-5, 2e-5]], dtype=torch.float64
    )
    logits = probabilities.log().T.reshape(1, 3, 1, 1, 2)
    assert soft_dice_loss(logits, target).item() == pytest.approx(-(1 / 3 + 1 / 5) / 2, abs=1e-9)


def test_background_has_no_dice():
    """Of a patch without structures, taken for what it is in one half and for kidney in the other:
    kidney 0, tumor 1; the background's own 2/3 is left out."""
    target = torch.zeros(1, 2, 4, 4, dtype=torch.uint8)
    taken = target.clone()
    taken[:, 0] = 1

    assert soft_dice_loss(confident(taken), target).item() == pytest.approx(-0.5, abs=1e-5)


def test_dice_of_two_classes_is_that_of_the_one_structure():
    probabilities = torch.tensor([0.25, 0.75], dtype=torch.float64)  # of class 1, in two voxels
    logits = torch.stack([1 - probabilities, probabilities]).log().reshape(1, 2, 1, 1, 2)
    target = torch.tensor([0, 1]).reshape(1, 1, 1, 2)
    assert soft_dice_loss(logits, target).item() == pytest.approx(-2 * 0.75 / (1 + 1), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32])
def test_targets_of_any_type_weigh_the_same(dtype, generator):
    target = torch.randint(0, 3, (2, 4, 8, 8), generator=generator)
    logits = [torch.randn(2, 3, *shape, generator=generator) for shape in ((4, 8, 8), (2, 4, 4))]

    loss = segmentation_loss(logits, target).item()

    assert segmentation_loss(logits, target.to(dtype)).item() == loss
    assert segmentation_loss(tuple(logits), target).item() == loss


def test_targets_of_thin_and_odd_sizes():
    target = torch.arange(5).reshape(1, 1, 1, 5)
    assert downsampled(target, (1, 1, 2))[0, 0, 0].tolist() == [1, 3]
    assert downsampled(target, (1, 1, 1))[0, 0, 0].tolist() == [2]
    both = torch.arange(64).reshape(1, 4, 4, 4)
    assert downsampled(both, (2, 2, 2)).flatten().tolist() == [
        16 * z + 4 * y + x for z in (1, 3) for y in (1, 3) for x in (1, 3)
    ]


LOGITS = torch.zeros(2, 3, 4, 4, 4)
TARGET = torch.zeros(2, 4, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    "logits, target, complaint",
    [
        (LOGITS[:, :1], TARGET, "two classes or more"),
        (LOGITS, TARGET[:1], "wanted"),
        (LOGITS, TARGET[0], "wanted"),
        (LOGITS, TARGET[:, :, :, :2], "wanted"),
        (LOGITS, TARGET[:, None], "wanted"),
        (LOGITS[0], TARGET[:1], "wanted"),
        (LOGITS, TARGET + 3, "labels from 3 to 3, wanted 0 to 2"),
        (LOGITS, TARGET.int() - 1, "from -1"),
        (LOGITS[:0], TARGET[:0], "wanted"),
        (LOGITS[..., 0], TARGET[..., 0], "wanted"),
        (LOGITS, torch.arange(128).reshape(2, 4, 4, 4) % 4, "labels from 0 to 3"),
        (LOGITS, torch.arange(128).reshape(2, 4, 4, 4) % 4 - 1, "labels from -1 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(logits, target, complaint):
    for loss in (soft_dice_loss, segmentation_loss):
        with pytest.raises(ValueError, match=complaint):
            loss(logits, target)


def test_heads_of_another_target_are_refused():
    with pytest.raises(ValueError, match="wanted"):
        segmentation_loss([LOGITS[:, :, ::2], LOGITS[:, :, ::4]], TARGET)
    with pytest.raises(ValueError, match="at least one"):
        segmentation_loss([], TARGET)
