"""Cross-entropy + soft Dice, over the supervised resolutions. [paper 2.3]"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from minikits.paper import DICE_SMOOTH


def soft_dice_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Minus the mean soft Dice. (B, K, Z, Y, X) floats, (B, Z, Y, X) ints -> scalar.

        Dice = (2 * intersection + s) / (prediction + reference + s)

    for each sample and each structure, all but the background: sums over the voxels of a patch,
    where s is DICE_SMOOTH [nnU-Net v1 dice_loss.py]. It decides where a patch lacks a structure:

        what the target and the probabilities hold      intersection  prediction  reference   Dice
        neither holds it                                           0           0          0      1
        100 voxels, claimed with 0.01 each, are none               0           1          0   1e-5
        100 voxels are it, claimed with 0.01 each                  1           1        100   0.02

    ValueError where the shapes do not fit, or the target has a label of no class.

    Of two voxels the first is kidney, and both are claimed with 0.5: 2 * 0.5 / (1 + 1).

    >>> logits = torch.zeros(1, 2, 1, 1, 2)  # background and kidney, equally likely
    >>> round(soft_dice_loss(logits, torch.tensor([1, 0]).reshape(1, 1, 1, 2)).item(), 4)
    -0.5
    """
    _check_target(logits, target)
    classes = logits.shape[1]
    dtype = at_least_float32(logits.dtype)

    probabilities = logits.softmax(dim=1, dtype=dtype)[:, 1:]
    masks = [target == value for value in range(1, classes)]
    truth = torch.stack(masks, dim=1).to(dtype)

    voxels = (2, 3, 4)
    intersection = (probabilities * truth).sum(dim=voxels)  # (B, K - 1)
    prediction = probabilities.sum(dim=voxels)
    reference = truth.sum(dim=voxels)

    dice = (2 * intersection + DICE_SMOOTH) / (prediction + reference + DICE_SMOOTH)
    return -dice.mean()


def segmentation_loss(
    logits: Sequence[torch.Tensor] | torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """The loss of all heads, weighted. (B, K, Z, Y, X) floats each, (B, Z, Y, X) ints -> scalar.

    logits: finest first, or one head alone. Each head is compared with the target at its own
    resolution. ValueError where the finest head does not fit the target, or the target has a label
    of no class.
    """
    heads = [logits] if isinstance(logits, torch.Tensor) else logits
    if not heads:
        raise ValueError("logits of no head, wanted at least one")
    _check_target(heads[0], target)

    loss = torch.zeros((), device=target.device)
    for weight, head in zip(head_weights(len(heads)), heads):
        if weight == 0:
            continue  # not even weight decay reaches such a head [nnU-Net v1 deep_supervision.py]

        head = head.to(at_least_float32(head.dtype))
        head_target = downsampled(target, head.shape[2:])
        cross_entropy = F.cross_entropy(head, head_target.long())
        loss = loss + weight * (cross_entropy + soft_dice_loss(head, head_target))
    return loss


def head_weights(heads: int) -> tuple[float, ...]:
    """Weight of each supervised resolution [paper 2.3], finest first; their sum is 1.

    Halved with each resolution; the coarsest of several has none [nnU-Net v1 nnUNetTrainerV2.py:77].

    >>> head_weights(3)
    (0.6666666666666666, 0.3333333333333333, 0.0)
    """
    weights = [0.5**head for head in range(heads)]
    if heads > 1:
        weights[-1] = 0.0

    total = sum(weights)
    return tuple(weight / total for weight in weights)


def downsampled(target: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(B, Z, Y, X) -> (B, *shape) floats by nearest neighbour.

    Centres of voxels are compared, so a factor of 2 takes index 2i + 1: the centre of the new voxel
    0 lies between the old voxels 0 and 1, and of two as near the upper is taken.

    >>> downsampled(torch.tensor([0, 1, 2, 3]).reshape(1, 1, 1, 4), (1, 1, 2)).flatten().tolist()
    [1.0, 3.0]
    """
    with_channel = target[:, None].float()
    return F.interpolate(with_channel, tuple(shape), mode="nearest-exact")[:, 0]


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The format that losses are summed in: half the precision would not do."""
    return torch.promote_types(dtype, torch.float32)


def _check_target(logits, target):
    """ValueError where logits and target do not fit.

    Labels are looked at on a CPU alone: on a GPU asking would wait for it at each step, and
    cross-entropy refuses them there.
    """
    wanted = (logits.shape[0], *logits.shape[2:])
    if logits.ndim != 5 or logits.shape[1] < 2 or tuple(target.shape) != wanted or 0 in wanted:
        raise ValueError(
            f"logits {tuple(logits.shape)}, target {tuple(target.shape)}, "
            "wanted (B, K, Z, Y, X) and (B, Z, Y, X), of two classes or more"
        )
    if target.device.type != "cpu":
        return

    lowest, highest = target.min().item(), target.max().item()
    if not 0 <= lowest <= highest < logits.shape[1]:
        raise ValueError(
            f"a target with labels from {lowest} to {highest}, wanted 0 to {logits.shape[1] - 1}"
        )
