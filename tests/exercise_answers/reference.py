"""Answers to the exercises, as plain as can be: for lecturers, and for the tests of the checks."""

from itertools import product

import numpy as np
import torch
import torch.nn.functional as F


def normalise(image_hu, window_hu, mean_hu, sd_hu):
    lowest, highest = window_hu
    clipped = np.clip(image_hu.astype(np.float32), lowest, highest)
    return (clipped - mean_hu) / sd_hu


def linear_matrix(size, new_size):
    matrix = np.zeros((new_size, size))
    for row in range(new_size):
        position = (row + 0.5) * size / new_size - 0.5
        position = min(max(position, 0), size - 1)

        below = int(position)
        above = min(below + 1, size - 1)
        fraction = position - below
        matrix[row, below] += 1 - fraction
        matrix[row, above] += fraction
    return matrix


def resample_labels(labels, matrices):
    masks = []
    for value in (0, 1, 2):
        mask = (labels == value).astype(float)
        masks.append(np.einsum("zyx, Zz, Yy, Xx -> ZYX", mask, *matrices))
    return np.argmax(masks, axis=0)


def downsampling_plan(patch):
    halvings = []
    for side in patch:
        count = 0
        while side % 2 == 0 and side // 2 >= 4:
            side = side // 2
            count += 1
        halvings.append(count)

    plan = []
    for left in range(max(halvings), -1, -1):
        stage = []
        for count in halvings:
            is_first = len(plan) == 0
            stage.append(2 if count > left and not is_first else 1)
        plan.append(tuple(stage))
    return plan


def foreground_start(labels, patch, rng):
    there = [value for value in (1, 2) if (labels == value).any()]
    structure = rng.choice(there)
    voxels = np.argwhere(labels == structure)
    voxel = rng.choice(voxels)

    start = []
    for place, length in zip(voxel, patch):
        start.append(max(0, int(place) - length // 2))
    return tuple(start)


def preactivation_block(x, weights, stride=(1, 1, 1)):
    active = F.relu(F.instance_norm(x, weight=weights["gain_1"], bias=weights["offset_1"]))
    y = F.conv3d(active, weights["conv_1"], stride=stride, padding=1)
    y = F.relu(F.instance_norm(y, weight=weights["gain_2"], bias=weights["offset_2"]))
    y = F.conv3d(y, weights["conv_2"], padding=1)

    if weights["shortcut"] is None:
        return y + x
    return y + F.conv3d(active, weights["shortcut"], stride=stride)


def soft_dice_loss(logits, target):
    probabilities = logits.softmax(dim=1)
    dice = []
    for sample in range(logits.shape[0]):
        for structure in range(1, logits.shape[1]):
            p = probabilities[sample, structure]
            truth = (target[sample] == structure).to(p.dtype)
            dice.append((2 * (p * truth).sum() + 1e-5) / (p.sum() + truth.sum() + 1e-5))
    return -torch.stack(dice).mean()


def deep_supervision(target, shapes):
    weights = [0.5**head for head in range(len(shapes))]
    if len(shapes) > 1:
        weights[-1] = 0
    weights = [weight / sum(weights) for weight in weights]

    targets = []
    for shape in shapes:
        smaller = target
        for axis, new in enumerate(shape, start=1):
            old = target.shape[axis]
            places = torch.tensor([int((i + 0.5) * old / new) for i in range(new)])
            smaller = smaller.index_select(axis, places)
        targets.append(smaller)
    return weights, targets


def training_step(network, image, target, loss_of, optimizer, max_norm):
    loss = loss_of(network(image), target)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm)
    optimizer.step()
    return loss.item()


def window_starts(size, side):
    if size == side:
        return [0]
    steps = int(np.ceil((size - side) / (side / 2)))
    return [round((size - side) / steps * step) for step in range(steps + 1)]


@torch.no_grad()
def blend_windows(network, image, weight):
    starts = [window_starts(size, side) for size, side in zip(image.shape, weight.shape)]
    total, weights = 0, torch.zeros(image.shape)
    for start in product(*starts):
        window = tuple(slice(first, first + side) for first, side in zip(start, weight.shape))
        softmax = network(image[window][None, None])[0].softmax(dim=0)

        part = torch.zeros(len(softmax), *image.shape)
        part[:, *window] = softmax * weight
        total = total + part
        weights[window] += weight
    return total / weights


@torch.no_grad()
def mirrored_mean(network, image):
    total = 0
    for axes in ((), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)):
        softmax = network(image.flip(axes)).softmax(dim=1)
        total = total + softmax.flip(axes)
    return total / 8


def dice_of(ours, theirs):
    voxels = ours.sum() + theirs.sum()
    if voxels == 0:
        return float("nan")
    return 2 * (ours & theirs).sum() / voxels


def case_scores(prediction, reference):
    kidney = dice_of(prediction > 0, reference > 0)
    tumor = dice_of(prediction == 2, reference == 2)
    return kidney, tumor, (kidney + tumor) / 2
