"""Every number of the method, once, each with the mark of where it comes from.

[paper S]          "An attempt at beating the 3D U-Net" (Isensee & Maier-Hein, 2019), section S
[author #N]        its first author in public, issue N of MIC-DKFZ/nnUNet
[nnU-Net v1 FILE]  the default of branch `nnunetv1`, path below `nnunet/`, where the paper is silent
[ours: why]        our choice, with the reason

The constants are what no run may change; a `Recipe` is what a run may, and then says so.
"""

from dataclasses import fields, replace
from pathlib import Path

from minikits.recipe import Recipe

ARCHITECTURES = ("plain", "residual", "preactivation")  # [paper 2.2]
CLASSES = ("background", "kidney", "tumor")  # label values 0, 1, 2 [paper 3]
TABLE_1 = {  # kidney, tumor, composite Dice of the cross-validation [paper 3]
    "plain": (97.34, 85.04, 91.19),
    "residual": (97.36, 85.73, 91.54),
    "preactivation": (97.37, 85.13, 91.25),
    "ensemble": (97.43, 85.58, 91.50),
}

FOLDS = 5  # [paper 3]
FOLD_SEED = 12345  # [nnU-Net v1 nnUNetTrainerV2.py:296]
SEPARATE_Z_ABOVE = 3  # largest over smallest native spacing [nnU-Net v1 preprocessing.py:28]
IMAGE_ORDER = 3  # cubic B-spline [nnU-Net v1 preprocessing.py:214]
LABEL_ORDER = 1  # linear, for label masks and probabilities [nnU-Net v1 preprocessing.py:215]
KERNEL = 3  # every convolution but heads, skips and upsampling [paper fig. 1]
# LeakyReLU of the plain network, and of every network's initialisation
NEGATIVE_SLOPE = 0.01  # [paper 4]
DICE_SMOOTH = 1e-5  # in numerator and denominator [nnU-Net v1 dice_loss.py]
WINDOW_STEP = 0.5  # of the patch, at most [nnU-Net v1 neural_network.py:262]
WINDOW_SD = 1 / 8  # of the patch: spread of the importance map [nnU-Net v1 neural_network.py:246]


PAPER = Recipe(
    excluded_cases=(23, 68, 125, 133),  # [paper 2.4]
    # as printed, rounded from 3.2164 x 1.6153 x 1.6153
    spacing_mm=(3.22, 1.62, 1.62),  # [paper 2.1]
    window_hu=(-79.0, 304.0),  # [paper 2.1]
    mean_hu=101.0,  # [paper 2.1]
    sd_hu=76.9,  # [paper 2.1]
    patch=(80, 160, 160),  # [paper 2.3]
    plain_features=30,  # [paper 2.2]
    residual_features=24,  # [paper 2.2]
    max_features=320,  # [paper 2.2]
    # 1 2 3 4 4 4 in public code of December 2019
    residual_blocks=(1, 2, 3, 4, 5, 6),  # [paper 2.2]
    stage_strides=(),  # [ours: imported networks have others]
    epochs=1000,  # [paper 2.3]
    batches_per_epoch=250,  # [paper 2.3]
    batch_size=2,  # [paper 2.3]
    validation_batches=50,  # [nnU-Net v1 network_trainer.py]
    foreground_share=0.33,  # one of two [nnU-Net v1 nnUNetTrainer.py:130]
    learning_rate=0.01,  # [nnU-Net v1 nnUNetTrainerV2.py:49]
    learning_rate_power=0.9,  # [nnU-Net v1 poly_lr.py]
    momentum=0.99,  # [nnU-Net v1 nnUNetTrainerV2.py:164]
    weight_decay=3e-5,  # [nnU-Net v1 nnUNetTrainer.py:128]
    max_gradient_norm=12.0,  # [nnU-Net v1 nnUNetTrainerV2.py:254]
    # That there is rotation, scaling, noise, brightness, contrast and gamma is [paper 2.3],
    # mirroring [author #61]; how often and how far is [nnU-Net v1 data_augmentation_moreDA.py:66].
    rotation_probability=0.2,  # [nnU-Net v1 default_data_augmentation.py:60]
    rotation_degrees=30.0,  # [nnU-Net v1 nnUNetTrainerV2.py:339]
    scaling_probability=0.2,  # [nnU-Net v1 default_data_augmentation.py:53]
    scaling_range=(0.7, 1.4),  # [nnU-Net v1 nnUNetTrainerV2.py:339]
    noise_probability=0.1,  # [nnU-Net v1 data_augmentation_moreDA.py]
    # called a variance there, used as a sd
    noise_sd=(0.0, 0.1),  # [nnU-Net v1 data_augmentation_moreDA.py]
    brightness_probability=0.15,  # [nnU-Net v1 data_augmentation_moreDA.py]
    brightness_range=(0.75, 1.25),  # [nnU-Net v1 data_augmentation_moreDA.py]
    contrast_probability=0.15,  # [nnU-Net v1 data_augmentation_moreDA.py]
    contrast_range=(0.75, 1.25),  # [nnU-Net v1 data_augmentation_moreDA.py]
    inverted_gamma_probability=0.1,  # [nnU-Net v1 data_augmentation_moreDA.py]
    gamma_probability=0.3,  # [nnU-Net v1 default_data_augmentation.py:68]
    gamma_range=(0.7, 1.5),  # [nnU-Net v1 default_data_augmentation.py]
    mirroring_probability=0.5,  # [nnU-Net v1 data_augmentation_moreDA.py]
)

# The same method at a size for two CPU cores and a few minutes [ours: a demonstration, no claim].
# Learning rate and momentum: the same step in the long run, a memory that suits a short one. A
# gradient that stays the same is summed up to 1 / (1 - momentum) times itself, and
# learning_rate / (1 - momentum) is 1 in both.
DEMO = replace(
    PAPER,
    spacing_mm=(5.0, 3.2, 3.2),
    patch=(32, 48, 48),
    plain_features=8,
    residual_features=8,
    max_features=64,
    epochs=12,
    batches_per_epoch=60,
    validation_batches=4,
    learning_rate=0.1,
    momentum=0.9,
)


def recipe_from(values: dict, source: str | Path = "recipe") -> Recipe:
    """A Recipe from plain data (JSON, a checkpoint); what is not named is the paper's.

    ValueError, which begins with `source`, for unknown fields and for values that do not fit.
    """
    if not isinstance(values, dict):
        raise ValueError(
            f"{source}: expected an object of recipe fields, found {type(values).__name__}"
        )

    known = [field.name for field in fields(Recipe)]
    for name in values:
        if name not in known:
            raise ValueError(
                f"{source}: {name!r} is no field of a recipe; the fields are {', '.join(known)}"
            )

    try:
        return replace(PAPER, **values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def departures(recipe: Recipe) -> list[str]:
    """What differs from the paper: lines "field: ours (paper: theirs)"; and what follows from
    them for the patches on foreground."""
    lines = []
    for field in fields(recipe):
        ours, theirs = getattr(recipe, field.name), getattr(PAPER, field.name)
        if ours != theirs:
            lines.append(f"{field.name}: {ours} (paper: {theirs})")

    our_share = recipe.foreground_samples / recipe.batch_size
    their_share = PAPER.foreground_samples / PAPER.batch_size
    if our_share != their_share:
        lines.append(
            f"patches centred on foreground: {recipe.foreground_samples} of a batch's "
            f"{recipe.batch_size} (paper: {PAPER.foreground_samples} of {PAPER.batch_size})"
        )
    return lines


def code_departures() -> list[str]:
    """What differs in every run of this code from the paper, or from nnU-Net v1 where the paper is
    silent: lines "what: here (theirs)". docs/paper.md has the reasons and the measured effects."""
    return [
        "axes: by the affine, to KiTS19's own (nnU-Net v1: as the file has them)",
        "labels of cases 15 and 37: the data's, today KiTS19's corrections (paper: predictions)",
        "blocks per stage of the residual networks: one more each stage (later code: others)",
        "crop to what is not zero: none (nnU-Net v1: crops)",
        "image under rotation and scaling: linear (nnU-Net v1: cubic spline)",
        "what rotation and scaling bring in: the patient (nnU-Net v1: a larger patch, beyond it 0)",
        "labels where three meet: the largest mask (nnU-Net v1 of 2019: a mask of at least 1/2)",
        "blur, low resolution: left out (nnU-Net v1: in; paper: not named)",
        "prepared images: kept as float16 (nnU-Net v1: float32)",
        "sides of odd length: not halved (nnU-Net v1: enlarges the patch)",
        "initial weights and draws: by --seed (nnU-Net of 2019: by 12345; later: not seeded)",
        "patch Dice while training: the same held-out patches each epoch (nnU-Net v1: new ones)",
        "patch Dice still 0 at epoch 100: nothing happens (nnU-Net v1: starts anew)",
        "checkpoint used: the last (2019: the best by patch Dice)",
    ]


def run_departures(
    *, precision: str, device: str, processes: int, fold: str, folds_file: str | None, cases: int
) -> list[str]:
    """What differs from the paper by how a run is started, beside its recipe, as such lines too.
    precision: a dtype's name; device: its kind; cases: how many are trained on or held out."""
    lines = []
    if precision != "float32":
        lines.append(f"number format while training: {precision} (paper: float32)")
    if device != "cuda":
        lines.append(f"device: {device}, which rounds otherwise (paper: one GPU)")
    if processes > 1:
        lines.append(f"processes that share a batch: {processes} (paper: 1)")
    if fold == "all":
        lines.append("fold: all, nothing is held out (paper: trained on four fifths)")
    elif folds_file:
        lines.append(f"folds: those of {folds_file} (nnU-Net v1: five, shuffled with its seed)")
    if cases != 206:  # 210 less the excluded ones [paper 2.4]
        lines.append(f"cases: {cases} (paper: 206 of KiTS19)")
    return lines
