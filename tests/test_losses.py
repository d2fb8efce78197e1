"""By hand, by a slow witness, and in the degenerate cases."""

import math

import pytest
import torch
import torch.nn.functional as F
from skimage.transform import resize

from minikits.losses import downsampled, segmentation_loss, soft_dice_loss


def confident(labels, strength=50.0):
    """Logits that are sure of (B, Z, Y, X) labels."""
    return strength * F.one_hot(labels.long(), 3).movedim(-1, 1).float()


def test_dice_of_four_voxels_by_hand():
    """Probabilities (bg, kidney, tumor) of four voxels; target 0 1 1 2."""
    p = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7]])
    logits = p.log().T.reshape(1, 3, 1, 2, 2)
    target = torch.tensor([0, 1, 1, 2]).reshape(1, 1, 2, 2)
    kidney = 2 * (0.6 + 0.4) / (1.4 + 2)
    tumor = 2 * 0.7 / (1.1 + 1)
    assert soft_dice_loss(logits, target).item() == pytest.approx(-(kidney + tumor) / 2, abs=1e-5)


def test_dice_is_per_sample_not_per_batch(generator):
    logits = torch.randn(2, 3, 4, 4, 4, generator=generator)
    target = torch.randint(0, 3, (2, 4, 4, 4), generator=generator)
    each = [soft_dice_loss(logits[i:i + 1], target[i:i + 1]) for i in range(2)]
    assert soft_dice_loss(logits, target).item() == pytest.approx(sum(each).item() / 2)


def test_degenerate_patches():
    empty, full = torch.zeros(1, 4, 4, 4), torch.full((1, 4, 4, 4), 2)
    assert soft_dice_loss(confident(empty), empty).item() == pytest.approx(-1)  # neither has any: perfect
    assert soft_dice_loss(confident(full), full).item() == pytest.approx(-1)
    assert soft_dice_loss(confident(empty), full).item() == pytest.approx(-0.5, abs=1e-4)  # tumor 0, kidney absent 1
    for target in (empty, full):
        logits = torch.randn(1, 3, 4, 4, 4, requires_grad=True)
        segmentation_loss([logits], target).backward()
        assert logits.grad.isfinite().all()


def test_all_heads_against_a_slow_witness(generator):
    target = torch.randint(0, 3, (2, 8, 16, 16), generator=generator)
    shapes = [(8, 16, 16), (8, 8, 8), (4, 4, 4)]
    logits = [torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    wanted = 0
    for weight, head in zip((2 / 3, 1 / 3, 0), logits):
        small = torch.stack([torch.from_numpy(resize(t.double().numpy(), head.shape[2:], 0, mode="edge",
                                                     anti_aliasing=False, preserve_range=True)) for t in target])
        p = head.exp() / head.exp().sum(1, keepdim=True)
        entropy, dice = 0, 0
        for b in range(2):
            for value in range(3):
                truth = (small[b] == value).double()
                entropy -= (truth * p[b, value].log()).sum() / small.numel()
                if value:
                    tp, fp, fn = (p[b, value] * truth).sum(), (p[b, value] * (1 - truth)).sum(), (
                        (1 - p[b, value]) * truth).sum()
                    dice += (2 * tp + 1e-5) / (2 * tp + fp + fn + 1e-5) / 4
        wanted += weight * (entropy - dice)
    assert segmentation_loss(logits, target).item() == pytest.approx(wanted.item(), abs=1e-9)


def test_targets_are_taken_at_index_2i_plus_1():
    target = torch.arange(8).reshape(1, 1, 1, 8).expand(1, 4, 4, 8)
    assert downsampled(target, (4, 2, 4))[0, 0, 0].tolist() == [1, 3, 5, 7]
    assert torch.equal(downsampled(target, (4, 4, 8)), target)
    nearest = F.interpolate(target[None].float(), (2, 4, 3), mode="nearest-exact")[0]
    assert torch.equal(downsampled(target, (2, 4, 3)).float(), nearest)


def test_gradient_equals_finite_differences(generator):
    target = torch.randint(0, 3, (1, 2, 4, 4), generator=generator)
    logits = [torch.randn(1, 3, *s, generator=generator, dtype=torch.float64, requires_grad=True)
              for s in ((2, 4, 4), (2, 2, 2))]
    assert torch.autograd.gradcheck(lambda *heads: segmentation_loss(list(heads), target), logits)


def test_a_single_head_weighs_one_and_half_precision_is_summed_in_float32(generator):
    target = torch.randint(0, 3, (1, 4, 4, 4), generator=generator)
    logits = torch.zeros(1, 3, 4, 4, 4)
    assert segmentation_loss(logits, target).item() == pytest.approx(
        math.log(3) + soft_dice_loss(logits, target).item(), abs=1e-6)
    assert segmentation_loss(logits.half(), target).dtype == torch.float32
