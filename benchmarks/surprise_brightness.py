"""A scan that is brighter: what changes in the three networks?

    python benchmarks/surprise_brightness.py

A patch of a phantom, normalised, is multiplied by a factor. How far do the logits and the weights'
gradients move, and how many voxels change their class? Each network is of the demo's recipe, with
random weights, biases, gains and offsets, so that nothing cancels by being 0. Half a minute on two
cores.

"eps" is the 1e-5 that instance norm adds to the variance before it takes the root."""

import argparse
import copy
from dataclasses import replace

import torch
from torch import nn

from minikits.augmentation import change_contrast, cut_patch
from minikits.losses import segmentation_loss
from minikits.paper import ARCHITECTURES, DEMO, PAPER
from minikits.phantoms import make_case
from minikits.preprocessing import prepare_image, prepare_labels
from minikits.recipe import Recipe
from minikits.unet import build_unet
from minikits.volumes import KITS19_AFFINE, Volume

FACTORS = (0.75, 1.25, 1.5, 2.0)  # brightness augmentation draws from the first to the second
RECIPE = replace(DEMO, patch=(16, 32, 32))


def patch_of_phantom(recipe: Recipe, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, 1, Z, Y, X) image and (1, Z, Y, X) labels: a patch about a kidney of a phantom."""
    voxels, labels, spacing_mm = make_case(seed)
    scan = Volume(None, voxels, spacing_mm, KITS19_AFFINE, None)
    reference = replace(scan, voxels=labels)
    image = torch.from_numpy(prepare_image(scan, recipe))
    target = torch.from_numpy(prepare_labels(reference, recipe))

    centre = target.nonzero()[0].tolist()  # of a kidney's upper pole
    start = tuple(place - side // 2 for place, side in zip(centre, recipe.patch))
    image, target = cut_patch(image, target, start, recipe.patch)
    return image[None, None], target[None]


def random_network(arch: str, recipe: Recipe, seed: int = 0) -> nn.Module:
    """A network in float64 whose biases, gains and offsets are random too."""
    torch.manual_seed(seed)
    network = build_unet(arch, recipe).double()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.5)
    return network


def without_eps(network: nn.Module) -> nn.Module:
    """The same network, whose norms divide by the standard deviation alone."""
    network = copy.deepcopy(network)
    for layer in network.modules():
        if isinstance(layer, nn.InstanceNorm3d):
            layer.eps = 0.0
    return network


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def logits_of(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Those of the finest head, in the format of the image."""
    with torch.inference_mode():
        return network.eval().to(image.dtype)(image)


def change_of_logits(network: nn.Module, image: torch.Tensor, factor: float) -> float:
    """How far the logits of the brighter image are from the image's."""
    return apart(logits_of(network, factor * image), logits_of(network, image))


def voxels_changed(network: nn.Module, image: torch.Tensor, factor: float) -> float:
    """The share of voxels that get another class in the brighter image."""
    ours = logits_of(network, factor * image).argmax(dim=1)
    theirs = logits_of(network, image).argmax(dim=1)
    return float((ours != theirs).double().mean())


def gradients_of(network: nn.Module, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """All weights' gradients of the training's loss, in a row; what the coarsest head gets is 0."""
    network.train().to(image.dtype)
    network.zero_grad()
    segmentation_loss(network(image), target).backward()
    return torch.cat(
        [p.grad.flatten() for p in network.parameters() if p.grad is not None]  # coarsest: None
    )


def change_of_gradients(
    network: nn.Module, image: torch.Tensor, target: torch.Tensor, factor: float
) -> float:
    """The distance of the gradients with the brighter image, relative to their length."""
    ours = gradients_of(network, factor * image, target)
    theirs = gradients_of(network, image, target)
    return float((ours - theirs).norm() / theirs.norm())


COLUMNS = ("network", "times", "logits", "eps 0", "float32", "bfloat16", "gradients", "other class")


def row(network: nn.Module, image: torch.Tensor, target: torch.Tensor, factor: float) -> list[str]:
    """The cells of a network and a factor: relative changes of the logits in float64, the same
    without eps, in float32 and in bfloat16; of the gradients in float64; and the share of voxels
    that get another class."""
    exact = image.double()
    changes = [
        change_of_logits(copy.deepcopy(network), exact, factor),
        change_of_logits(without_eps(network), exact, factor),
        change_of_logits(copy.deepcopy(network), image.float(), factor),
        change_of_logits(copy.deepcopy(network), image.bfloat16(), factor),
        change_of_gradients(copy.deepcopy(network), exact, target, factor),
    ]
    cells = [f"{change:.0e}" for change in changes]
    return [*cells, f"{voxels_changed(network, exact, factor):.1%}"]


def behind_the_first_norm(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """What the plain network's first convolution and norm make of an image."""
    convolution, norm, _ = network.encoder[0][0][0]
    with torch.inference_mode():
        return norm(convolution(image))


def spread_apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The root mean square of the difference, over the standard deviation of the second."""
    return float((ours - theirs).square().mean().sqrt() / theirs.std())


def contrast_row(network: nn.Module, image: torch.Tensor, factor: float) -> list[str]:
    """How far a contrast moves what comes out of the first norm: without its clip, the same inside
    the patch, with it, the same inside."""
    as_it_is = behind_the_first_norm(network, image)
    inside = (..., slice(1, -1), slice(1, -1), slice(1, -1))

    cells = []
    for changed in ((image - image.mean()) * factor + image.mean(), change_contrast(image, factor)):
        found = behind_the_first_norm(network, changed)
        cells.append(f"{spread_apart(found, as_it_is):.1%}")
        cells.append(f"{spread_apart(found[inside], as_it_is[inside]):.1%}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description="What a brighter scan changes in the networks.")
    parser.add_argument("--contrast", action="store_true", help="contrast, and the first norm")
    if parser.parse_args().contrast:
        image, _ = patch_of_phantom(PAPER)
        network = random_network("plain", replace(PAPER, plain_features=8)).float()
        for factor in PAPER.contrast_range:
            print(f"| {factor:g} | " + " | ".join(contrast_row(network, image, factor)) + " |")
        return

    image, target = patch_of_phantom(RECIPE)
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for arch in ARCHITECTURES:
        network = random_network(arch, RECIPE)
        for factor in FACTORS:
            cells = [arch, f"{factor:g}", *row(network, image, target, factor)]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
