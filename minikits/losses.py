"""Cross-entropy + soft Dice, over the supervised resolutions. [paper 2.3]"""

import torch
import torch.nn.functional as F

from minikits.paper import DICE_SMOOTH, head_weights


def soft_dice_loss(logits, target):
    """Minus the mean soft Dice over samples and structures. (B, K, Z, Y, X) floats, (B, Z, Y, X) ints -> scalar.
    Per sample; the background is left out [nnU-Net v1 dice_loss.py]. A structure that neither target nor
    probabilities hold counts 1, one that the target alone lacks nearly 0: the smoothing term decides."""
    probabilities = logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))[:, 1:]
    truth = torch.stack([target == value for value in range(1, logits.shape[1])], dim=1).to(probabilities.dtype)
    both = (probabilities * truth).sum(dim=(2, 3, 4))
    either = (probabilities + truth).sum(dim=(2, 3, 4))  # = 2 TP + FP + FN
    return -((2 * both + DICE_SMOOTH) / (either + DICE_SMOOTH)).mean()


def segmentation_loss(logits, target):
    """Weighted over the heads. logits: list of (B, K, Z, Y, X), finest first, or one; target: (B, Z, Y, X) ints.
    Each coarser head is compared with the target at its resolution, by nearest neighbour."""
    logits = [logits] if isinstance(logits, torch.Tensor) else logits
    loss = 0
    for weight, head in zip(head_weights(len(logits)), logits):
        if weight:  # not even weight decay reaches an unweighted head [nnU-Net v1 deep_supervision.py]
            head, coarse = head.to(torch.promote_types(head.dtype, torch.float32)), downsampled(target, head.shape[2:])
            loss = loss + weight * (F.cross_entropy(head, coarse.long()) + soft_dice_loss(head, coarse))
    return loss


def downsampled(target, shape):
    """(B, Z, Y, X) -> (B, *shape) floats by nearest neighbour, half-pixel centres: a factor of 2 takes index 2i + 1."""
    return F.interpolate(target[:, None].float(), shape, mode="nearest-exact")[:, 0]
