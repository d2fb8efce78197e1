"""Cross-entropy + soft Dice, over the supervised resolutions. [paper 2.3]"""

import torch
import torch.nn.functional as F

from minikits.paper import DICE_SMOOTH


def soft_dice_loss(logits, target):
    """Minus the mean soft Dice over samples and structures. (B, K, Z, Y, X) floats, (B, Z, Y, X) ints -> scalar.
    Per sample; the background is left out [nnU-Net v1 dice_loss.py]. A structure that neither target nor
    probabilities hold counts 1, one that the target alone lacks nearly 0: the smoothing term decides.
    ValueError where the shapes do not fit, or the target has a label of no class."""
    _check_target(logits, target)
    probabilities = logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))[
        :, 1:
    ]
    truth = torch.stack([target == value for value in range(1, logits.shape[1])], dim=1).to(
        probabilities.dtype
    )
    both = (probabilities * truth).sum(dim=(2, 3, 4))
    either = (probabilities + truth).sum(dim=(2, 3, 4))  # = 2 TP + FP + FN
    return -((2 * both + DICE_SMOOTH) / (either + DICE_SMOOTH)).mean()


def segmentation_loss(logits, target):
    """Weighted over the heads. logits: list of (B, K, Z, Y, X), finest first, or one; target: (B, Z, Y, X) ints.
    Each coarser head is compared with the target at its resolution, by nearest neighbour.
    ValueError where the finest head does not fit the target, or the target has a label of no class."""
    logits = [logits] if isinstance(logits, torch.Tensor) else logits
    if not logits:
        raise ValueError("logits of no head, wanted at least one")
    _check_target(logits[0], target)
    loss = 0
    for weight, head in zip(head_weights(len(logits)), logits):
        if (
            weight
        ):  # not even weight decay reaches an unweighted head [nnU-Net v1 deep_supervision.py]
            head, coarse = (
                head.to(torch.promote_types(head.dtype, torch.float32)),
                downsampled(target, head.shape[2:]),
            )
            loss = loss + weight * (
                F.cross_entropy(head, coarse.long()) + soft_dice_loss(head, coarse)
            )
    return loss


def head_weights(heads):
    """Weight of each supervised resolution [paper 2.3], finest first: halved each time, the coarsest (of several) 0,
    sum 1 [nnU-Net v1 nnUNetTrainerV2.py:77]."""
    weights = [0.5**head if head < max(heads - 1, 1) else 0.0 for head in range(heads)]
    return tuple(weight / sum(weights) for weight in weights)


def downsampled(target, shape):
    """(B, Z, Y, X) -> (B, *shape) floats by nearest neighbour, half-pixel centres: a factor of 2 takes index 2i + 1."""
    return F.interpolate(target[:, None].float(), shape, mode="nearest-exact")[:, 0]


def _check_target(logits, target):
    """Labels are looked at on a CPU alone: on a GPU asking would wait for it at each step, and cross-entropy
    refuses them there."""
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
