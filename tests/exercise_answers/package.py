"""The package's own functions in the form of the exercises, where they have one: so that the sheet
asks for what the method does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from minikits import losses, sampling, training
from minikits.evaluation import score_case
from minikits.paper import PAPER
from minikits.preprocessing import prepare_image
from minikits.resampling import axis_matrix
from minikits.unet import PreactivationBlock, shortcut
from minikits.volumes import Volume


def normalise(image_hu, window_hu, mean_hu, sd_hu):
    recipe = replace(PAPER, window_hu=window_hu, mean_hu=mean_hu, sd_hu=sd_hu)
    # at this spacing nothing is resampled
    volume = Volume(Path("scan.nii.gz"), image_hu, recipe.spacing_mm, np.eye(4), None)
    return prepare_image(volume, recipe)


def linear_matrix(size, new_size):
    return axis_matrix(size, new_size, order=1)


def foreground_start(labels, patch, rng):
    voxels = tuple(np.flatnonzero(labels == value) for value in (1, 2))
    case = sampling.PreparedCase("case", torch.empty(0), torch.from_numpy(labels), voxels)
    generator = torch.Generator().manual_seed(int(rng.integers(2**32)))
    return sampling.draw_start(case, patch, generator, forced=True)


def preactivation_block(x, weights, stride=(1, 1, 1)):
    features, channels = weights["conv_1"].shape[:2]
    block = PreactivationBlock(channels, features, stride)
    first_norm, _ = block.activation
    first_conv, second_norm, _, second_conv = block.body
    if weights["shortcut"] is not None:
        block.skip = shortcut(channels, features, stride)  # also where the shape stays

    with torch.no_grad():
        first_norm.weight.copy_(weights["gain_1"])
        first_norm.bias.copy_(weights["offset_1"])
        first_conv.weight.copy_(weights["conv_1"])
        second_norm.weight.copy_(weights["gain_2"])
        second_norm.bias.copy_(weights["offset_2"])
        second_conv.weight.copy_(weights["conv_2"])
        if weights["shortcut"] is not None:
            block.skip.weight.copy_(weights["shortcut"])
    return block(x)


def soft_dice_loss(logits, target):
    return losses.soft_dice_loss(logits, target)


def deep_supervision(target, shapes):
    targets = [losses.downsampled(target, shape) for shape in shapes]
    return losses.head_weights(len(shapes)), targets


def training_step(network, image, target, loss_of, optimizer, max_norm):
    recipe = replace(PAPER, max_gradient_norm=max_norm)
    loss = training.training_step(network, image, target, optimizer, recipe, loss_of=loss_of)
    return loss.item()


def case_scores(prediction, reference):
    scores = score_case("case", prediction, reference)
    return scores.kidney, scores.tumor, scores.composite
