"""What a recipe holds: its fields, the range of each, and what follows from them.

The values of the paper stand in paper.py, each with the mark of where it comes from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import get_args, get_type_hints

import numpy as np

# an axis is halved while it stays at least this long; here, for `strides` follows from it
SMALLEST_SIDE = 4  # [paper 2.2]


@dataclass(frozen=True)
class Recipe:
    """What a run may override with `--recipe FILE.json`. Axes are Z Y X."""

    excluded_cases: tuple[int, ...]  # KiTS19 numbers
    spacing_mm: tuple[float, float, float]  # that every scan is resampled to
    window_hu: tuple[float, float]  # clipped to this range after resampling
    mean_hu: float  # subtracted after clipping
    sd_hu: float  # divides what that leaves
    patch: tuple[int, int, int]  # voxels of a network's input
    plain_features: int  # feature maps at the highest resolution
    residual_features: int  # the same of the residual and the pre-activation network
    max_features: int  # at any resolution
    residual_blocks: tuple[int, ...]  # of each stage of the encoder
    stage_strides: tuple[tuple[int, int, int], ...]  # as `strides`; empty: derived from the patch

    epochs: int
    batches_per_epoch: int
    batch_size: int
    validation_batches: int  # per epoch, for the patch Dice
    foreground_share: float  # of a batch: its last samples; the number of the others is rounded
    learning_rate: float  # of the first epoch
    learning_rate_power: float  # of the polynomial decay
    momentum: float  # Nesterov's
    weight_decay: float
    max_gradient_norm: float  # of all weights together; longer gradients are cut to it

    # augmentation; probabilities are per sample
    rotation_probability: float
    rotation_degrees: float  # either way, about each axis
    scaling_probability: float
    scaling_range: tuple[float, float]  # of the coordinates: above 1 zooms out
    noise_probability: float
    noise_sd: tuple[float, float]  # of normalised intensities
    brightness_probability: float
    brightness_range: tuple[float, float]
    contrast_probability: float
    contrast_range: tuple[float, float]
    inverted_gamma_probability: float
    gamma_probability: float
    gamma_range: tuple[float, float]
    mirroring_probability: float  # of each axis

    def __post_init__(self) -> None:
        """Fields take the form of their types, so that equal recipes are the same in every way:
        lists become tuples, and a whole number where a float belongs becomes one. ValueError where
        a value has another form, lies outside its range, or does not fit the others."""
        types = get_type_hints(Recipe)
        for field in fields(self):
            value = _formed_field(self, field, types[field.name])
            _check_range(field.name, value)
            object.__setattr__(self, field.name, value)

        each_once = tuple(sorted(set(self.excluded_cases)))
        object.__setattr__(self, "excluded_cases", each_once)

        _check_ends(self)
        _check_window(self)
        _check_stages(self)

    @property
    def strides(self) -> tuple[tuple[int, int, int], ...]:
        """One stride (Z, Y, X) for each stage, the first (1, 1, 1).

        An axis is halved "until further downsampling would result in a size < 4" [paper 2.2]. Axes
        that are halved less often begin later [nnU-Net v1, the planner of July 2019]; an odd length
        is not halved [ours: it would not come back the same on the way up].

        The paper's patch, from the deepest stage backwards: 80 can be halved four times and 160
        five times, so that of five downsamplings the first leaves Z alone.

            stage   stride     Z    Y    X
            5       2 2 2      5    5    5
            4       2 2 2     10   10   10
            3       2 2 2     20   20   20
            2       2 2 2     40   40   40
            1       1 2 2     80   80   80
            0       1 1 1     80  160  160
        """
        if self.stage_strides:
            return self.stage_strides

        halvings = [_halvings(side) for side in self.patch]
        downsamplings = max(halvings)

        strides = []
        for stage in range(downsamplings + 1):
            # an axis that is halved so often is halved in the last so many stages
            z, y, x = [2 if stage > downsamplings - count else 1 for count in halvings]
            strides.append((z, y, x))
        return tuple(strides)

    def features(self, arch: str) -> tuple[int, ...]:
        """Feature maps of each stage: doubled with each downsampling, up to a maximum [paper 2.2].

        >>> from minikits.paper import PAPER
        >>> PAPER.features("plain")
        (30, 60, 120, 240, 320, 320)
        """
        if arch == "plain":
            first = self.plain_features
        else:
            first = self.residual_features

        stages = range(len(self.strides))
        return tuple(min(first * 2**stage, self.max_features) for stage in stages)

    @property
    def foreground_samples(self) -> int:
        """How many samples at the end of a batch are centred on a foreground voxel."""
        anywhere = round(self.batch_size * (1 - self.foreground_share))
        return self.batch_size - anywhere

    def learning_rate_at(self, epoch: float) -> float:
        """Falls from `learning_rate` to 0 in the course of the epochs; polynomially."""
        left = 1 - epoch / self.epochs
        return self.learning_rate * left**self.learning_rate_power


def _halvings(side: int) -> int:
    """How often a side can be halved and stay whole, and at least SMALLEST_SIDE long."""
    count = 0
    while side % 2 == 0 and side // 2 >= SMALLEST_SIDE:
        side = side // 2
        count += 1
    return count


# --- the form of a field (from here on refusals: skip them on first reading) ----------------------


def _formed_field(recipe, field, kind):
    """A field's value in the form of its type; ValueError where it has another."""
    value = getattr(recipe, field.name)
    try:
        return _formed(value, kind)
    except TypeError:
        form = field.type.replace("tuple", "")  # [int, int, int], as JSON has it
        raise ValueError(f"{field.name} is {value!r:.100}; expected the form of {form}") from None


def _formed(value, kind):
    """A value in the form of a type: lists as tuples, ints as floats. TypeError where it has none."""
    if kind in (int, float):
        return _formed_number(value, kind)
    if not isinstance(value, (list, tuple)):
        raise TypeError

    kinds = get_args(kind)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise TypeError
    return tuple(_formed(item, item_kind) for item, item_kind in zip(value, kinds))


def _formed_number(value, kind):
    if type(value) not in (kind, int):  # a bool is none either
        raise TypeError
    if not abs(value) < 1e300:  # nor are NaN and infinity
        raise TypeError
    return kind(value)


# --- the range of a field, and how fields fit -----------------------------------------------------

# What a field may be, and each item of a tuple: from the first number to the second, both included
# [ours: wide enough for any sensible run; what is divided by is not 0].
_RANGES = {
    "excluded_cases": (0, 99_999),
    "spacing_mm": (0.01, 1000),
    "window_hu": (-100_000, 100_000),
    "mean_hu": (-100_000, 100_000),
    "sd_hu": (0.01, 100_000),
    "patch": (1, 10_000),
    "plain_features": (1, 100_000),
    "residual_features": (1, 100_000),
    "max_features": (1, 100_000),
    "residual_blocks": (1, 99),
    "stage_strides": (1, 10_000),
    "epochs": (1, 10_000_000),
    "batches_per_epoch": (1, 10_000_000),
    "batch_size": (1, 100_000),
    "validation_batches": (0, 10_000_000),
    "foreground_share": (0, 1),
    "learning_rate": (1e-12, 1000),
    "learning_rate_power": (0, 100),
    "momentum": (1e-6, 0.999999),  # Nesterov's has to be above 0; of 1 nothing is ever forgotten
    "weight_decay": (0, 1),
    "max_gradient_norm": (1e-12, 1e12),
    "rotation_probability": (0, 1),
    "rotation_degrees": (0, 180),
    "scaling_probability": (0, 1),
    "scaling_range": (0.01, 100),
    "noise_probability": (0, 1),
    "noise_sd": (0, 1000),
    "brightness_probability": (0, 1),
    "brightness_range": (0.01, 1000),
    "contrast_probability": (0, 1),
    "contrast_range": (0.01, 1000),
    "inverted_gamma_probability": (0, 1),
    "gamma_probability": (0, 1),
    "gamma_range": (0.01, 100),
    "mirroring_probability": (0, 1),
}
_LOWER_FIRST = (
    *("window_hu", "noise_sd", "brightness_range"),
    *("scaling_range", "contrast_range", "gamma_range"),
)
# half of what is drawn lies on either side of 1
_ONE_INSIDE = ("scaling_range", "contrast_range", "gamma_range")


def _check_range(name, value):
    """ValueError where a field, or a number in it, lies outside its range."""
    low, high = _RANGES[name]
    for number in np.ravel(value):
        if not low <= number <= high:
            each = "each " if isinstance(value, tuple) else ""
            raise ValueError(f"{name} is {value!s:.100}, wanted {each}{low:g} to {high:g}")


def _check_ends(recipe):
    """ValueError where the two ends of what is drawn from, or clipped to, are the wrong way round."""
    for name in _LOWER_FIRST:
        low, high = getattr(recipe, name)
        if low > high:
            raise ValueError(f"{name} is {(low, high)}, wanted the lower number first")

    for name in _ONE_INSIDE:
        low, high = getattr(recipe, name)
        if not low <= 1 <= high:
            raise ValueError(f"{name} is {(low, high)}, wanted at most 1, then at least 1")


def _check_window(recipe):
    """ValueError where prepared images, which are float16, could not tell intensities apart."""
    low, high = recipe.window_hu
    normalised = [(end - recipe.mean_hu) / recipe.sd_hu for end in (low, high)]
    largest = max(abs(end) for end in normalised)
    if low == high or largest > 1000:
        raise ValueError(
            f"window_hu is {recipe.window_hu}, wanted two ends that differ and lie, less mean_hu "
            f"{recipe.mean_hu} and divided by sd_hu {recipe.sd_hu}, within -1000 to 1000"
        )


def _check_stages(recipe):
    """ValueError where patch, strides and blocks make no network."""
    if math.prod(recipe.patch) >= 1e8:
        raise ValueError(f"patch is {recipe.patch}, wanted less than 1e8 voxels")

    strides = recipe.strides
    shrunk = np.prod(strides, axis=0, dtype=float)
    if strides[0] != (1, 1, 1) or np.any(recipe.patch % shrunk):
        raise ValueError(
            f"strides {strides!s:.200}, wanted (1, 1, 1) first; all divide the patch {recipe.patch}"
        )
    if not 2 <= len(strides) <= len(recipe.residual_blocks) < 100:
        raise ValueError(
            f"{len(strides)} stages of patch {recipe.patch}, blocks {recipe.residual_blocks}, "
            f"wanted 2 or more, with sides of {2 * SMALLEST_SIDE} n, and 1 to 99 blocks in each"
        )
