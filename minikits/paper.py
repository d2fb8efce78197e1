"""Every number of the method, once, each with the mark of where it comes from.

[paper S]          "An attempt at beating the 3D U-Net" (Isensee & Maier-Hein, 2019), section S
[author #N]        its first author in public, issue N of MIC-DKFZ/nnUNet
[nnU-Net v1 FILE]  the default of branch `nnunetv1`, path below `nnunet/`, where the paper is silent
[ours: why]        our choice, with the reason

The constants are what no run may change; a `Recipe` is what a run may, and then says so."""

from dataclasses import asdict, dataclass, fields, replace
from math import inf

import numpy as np

ARCHITECTURES = ("plain", "residual", "preactivation")  # [paper 2.2]
CLASSES = ("background", "kidney", "tumor")  # label values 0, 1, 2 [paper 3]
TABLE_1 = {  # kidney, tumor, composite Dice of the cross-validation [paper 3]
    "plain": (97.34, 85.04, 91.19), "residual": (97.36, 85.73, 91.54), "preactivation": (97.37, 85.13, 91.25),
    "ensemble": (97.43, 85.58, 91.50)}

FOLDS = 5  # [paper 3]
FOLD_SEED = 12345  # [nnU-Net v1 nnUNetTrainer.py]
SEPARATE_Z_ABOVE = 3  # largest over smallest native spacing [nnU-Net v1 preprocessing.py:28]
IMAGE_ORDER = 3  # cubic B-spline [nnU-Net v1 preprocessing.py:126]
LABEL_ORDER = 1  # linear, for label masks and probabilities [nnU-Net v1 preprocessing.py:126]
KERNEL = 3  # every convolution that is not a head or a skip [paper fig. 1]
SMALLEST_SIDE = 4  # an axis is halved while it stays at least this long [paper 2.2]
NEGATIVE_SLOPE = 0.01  # LeakyReLU of the plain network, and of every network's initialisation [paper 4]
DICE_SMOOTH = 1e-5  # in numerator and denominator [nnU-Net v1 dice_loss.py]
WINDOW_STEP = 0.5  # of the patch, at most [nnU-Net v1 neural_network.py:262]
WINDOW_SD = 1 / 8  # of the patch: spread of the importance map [nnU-Net v1 neural_network.py:246]


@dataclass(frozen=True)
class Recipe:
    """What a run may override with `--recipe FILE.json`; the defaults are the paper's. Axes are Z Y X."""
    excluded_cases: tuple = (23, 68, 125, 133)  # KiTS19 numbers [paper 2.4]
    spacing_mm: tuple = (3.22, 1.62, 1.62)  # as printed, rounded from 3.2164 x 1.6153 x 1.6153 [paper 2.1]
    window_hu: tuple = (-79.0, 304.0)  # clipped to this range after resampling [paper 2.1]
    mean_hu: float = 101.0  # [paper 2.1]
    sd_hu: float = 76.9  # [paper 2.1]
    patch: tuple = (80, 160, 160)  # voxels [paper 2.3]
    plain_features: int = 30  # at the highest resolution [paper 2.2]
    residual_features: int = 24  # residual and pre-activation [paper 2.2]
    max_features: int = 320  # [paper 2.2]
    residual_blocks: tuple = (1, 2, 3, 4, 5, 6)  # per stage; 1 2 3 4 4 4 in public code of December 2019 [paper 2.2]
    stage_strides: tuple = ()  # as `strides`; empty: derived from the patch [ours: imported networks differ]

    epochs: int = 1000  # [paper 2.3]
    batches_per_epoch: int = 250  # [paper 2.3]
    batch_size: int = 2  # [paper 2.3]
    validation_batches: int = 50  # per epoch, for the patch Dice [nnU-Net v1 network_trainer.py]
    foreground_share: float = 0.33  # of a batch, from its end; the rest is rounded [nnU-Net v1 dataset_loading.py:204]
    learning_rate: float = 0.01  # [nnU-Net v1 nnUNetTrainerV2.py:49]
    learning_rate_power: float = 0.9  # of the polynomial decay [nnU-Net v1 poly_lr.py]
    momentum: float = 0.99  # Nesterov [nnU-Net v1 nnUNetTrainerV2.py:164]
    weight_decay: float = 3e-5  # [nnU-Net v1 nnUNetTrainerV2.py:164]
    max_gradient_norm: float = 12.0  # [nnU-Net v1 nnUNetTrainerV2.py]

    # Probabilities are per sample. That there is rotation, scaling, noise, brightness, contrast and gamma is
    # [paper 2.3], mirroring [author #61]; how often and how far is [nnU-Net v1 data_augmentation_moreDA.py:66].
    rotation_probability: float = 0.2  # [nnU-Net v1 nnUNetTrainerV2.py:339]
    rotation_degrees: float = 30.0  # either way, about each axis [nnU-Net v1 nnUNetTrainerV2.py:339]
    scaling_probability: float = 0.2  # [nnU-Net v1 nnUNetTrainerV2.py:339]
    scaling_range: tuple = (0.7, 1.4)  # of the coordinates: above 1 zooms out [nnU-Net v1 nnUNetTrainerV2.py:339]
    noise_probability: float = 0.1  # [nnU-Net v1 data_augmentation_moreDA.py]
    noise_sd: tuple = (0.0, 0.1)  # called a variance there, used as a sd [nnU-Net v1 data_augmentation_moreDA.py]
    brightness_probability: float = 0.15  # [nnU-Net v1 data_augmentation_moreDA.py]
    brightness_range: tuple = (0.75, 1.25)  # [nnU-Net v1 data_augmentation_moreDA.py]
    contrast_probability: float = 0.15  # [nnU-Net v1 data_augmentation_moreDA.py]
    contrast_range: tuple = (0.75, 1.25)  # [nnU-Net v1 data_augmentation_moreDA.py]
    inverted_gamma_probability: float = 0.1  # [nnU-Net v1 data_augmentation_moreDA.py]
    gamma_probability: float = 0.3  # [nnU-Net v1 data_augmentation_moreDA.py]
    gamma_range: tuple = (0.7, 1.5)  # [nnU-Net v1 default_data_augmentation.py]
    mirroring_probability: float = 0.5  # of each axis [nnU-Net v1 data_augmentation_moreDA.py]

    def __post_init__(self):
        for name in ("spacing_mm", "patch", "sd_hu", "batch_size", "epochs", "batches_per_epoch", "plain_features",
                     "residual_features", "max_features"):
            if np.min(value := getattr(self, name)) <= 0 or np.prod(value, dtype=float) >= 1e8:
                raise ValueError(f"recipe: {name} is {value}, wanted it positive, and less than 1e8 in all")
        strides, shrunk = self.strides, np.prod(self.strides, axis=0)
        if strides[0] != (1, 1, 1) or np.min(strides) < 1 or np.any(self.patch % shrunk):
            raise ValueError(f"recipe: strides {strides}, wanted (1, 1, 1) first; all divide the patch {self.patch}")
        if not 2 <= len(strides) <= len(self.residual_blocks) < 100 or {*self.residual_blocks} - {*range(1, 100)}:
            raise ValueError(f"recipe: {len(strides)} stages of patch {self.patch}, blocks {self.residual_blocks}, "
                             f"wanted 2 or more, with sides of {2 * SMALLEST_SIDE} n, and 1 to 99 blocks in each")

    @property
    def strides(self):
        """One stride per stage, first (1, 1, 1). "Until further downsampling would result in a size < 4" [paper 2.2].
        Axes that are halved less often begin later [nnU-Net v1, the planner of July 2019]; an odd length is not halved
        [ours: it would not come back the same on the way up]."""
        if self.stage_strides:
            return self.stage_strides
        halvings = [max((n for n in range(side.bit_length()) if side % 2**n == 0 and side // 2**n >= SMALLEST_SIDE),
                        default=0) for side in self.patch]
        deepest = max(halvings)
        return tuple(tuple(2 if stage > deepest - n else 1 for n in halvings) for stage in range(deepest + 1))

    def features(self, arch):
        """Feature maps of each stage: doubled with each downsampling, up to the maximum [paper 2.2]."""
        first = self.plain_features if arch == "plain" else self.residual_features
        return tuple(min(first * 2**stage, self.max_features) for stage in range(len(self.strides)))

    @property
    def foreground_samples(self):
        """How many samples at the end of a batch are centred on a foreground voxel."""
        return self.batch_size - round(self.batch_size * (1 - self.foreground_share))

    def learning_rate_at(self, epoch):
        return self.learning_rate * (1 - epoch / self.epochs) ** self.learning_rate_power

    def departures(self):
        """What differs from the paper: lines "field: ours (paper: theirs)"."""
        return [f"{name}: {value} (paper: {getattr(PAPER, name)})"
                for name, value in asdict(self).items() if value != getattr(PAPER, name)]


def head_weights(heads):
    """Weight of each supervised resolution [paper 2.3], finest first: halved each time, the coarsest (of several) 0,
    sum 1 [nnU-Net v1 nnUNetTrainerV2.py:77]."""
    weights = [0.5**head if head < max(heads - 1, 1) else 0.0 for head in range(heads)]
    return tuple(weight / sum(weights) for weight in weights)


def recipe_from(values, source="recipe"):
    """A Recipe from plain data (JSON, a checkpoint); what is not named is the paper's. Refuses what does not fit."""
    if not isinstance(values, dict):
        raise ValueError(f"{source}: expected an object of recipe fields, found {type(values).__name__}")
    known = {field.name: field.default for field in fields(Recipe)}
    any_length = {"excluded_cases": 0, "residual_blocks": 0, "stage_strides": (0, 0, 0)}  # the form of one item
    checked = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{source}: {name!r} is no field of a recipe; the fields are {', '.join(known)}")
        several = name in any_length and isinstance(value, (list, tuple))
        model = (any_length[name],) * len(value) if several else known[name]
        try:
            checked[name] = _formed(value, model)
        except TypeError:
            raise ValueError(f"{source}: {name} is {value!r}; expected the form of {model!r}") from None
    try:
        return Recipe(**checked)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _formed(value, model):
    """`value`, its lists as tuples, where it has the form of `model`; else a TypeError."""
    if isinstance(model, tuple) and isinstance(value, (list, tuple)) and len(value) == len(model):
        return tuple(_formed(*pair) for pair in zip(value, model))
    if type(value) not in (type(model), int) or type(model) is tuple or not abs(value) < inf:
        raise TypeError
    return value


PAPER = Recipe()

# The same method at a size for two CPU cores and a few minutes [ours: a demonstration, no claim]. Learning rate and
# momentum: the same step in the long run, a memory that suits a short one.
DEMO = replace(PAPER, spacing_mm=(5.0, 3.2, 3.2), patch=(32, 48, 48), plain_features=8, residual_features=8,
               max_features=64, epochs=14, batches_per_epoch=60, validation_batches=4, learning_rate=0.1, momentum=0.9)
