"""What a recipe holds: its fields, the range of each, and what follows from them.

The values of the paper stand in paper.py, each with the mark of where it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import get_args, get_type_hints

import numpy as np

# an axis is halved while it stays at least this long; here, for `strides` follows from it
SMALLEST_SIDE = 4  # [paper 2.2]


@dataclass(frozen=True)
class Recipe:
    """What a run may override with `--recipe FILE.json`. Axes are Z Y X."""

    excluded_cases: tuple[int, ...]  # KiTS19 numbers
    spacing_mm: tuple[float, float, float]
    window_hu: tuple[float, float]  # clipped to this range after resampling
    mean_hu: float
    sd_hu: float
    patch: tuple[int, int, int]  # voxels
    plain_features: int  # at the highest resolution
    residual_features: int  # residual and pre-activation
    max_features: int
    residual_blocks: tuple[int, ...]  # per stage
    stage_strides: tuple[tuple[int, int, int], ...]  # as `strides`; empty: derived from the patch

    epochs: int
    batches_per_epoch: int
    batch_size: int
    validation_batches: int  # per epoch, for the patch Dice
    foreground_share: float  # of a batch, from its end; the rest is rounded
    learning_rate: float
    learning_rate_power: float  # of the polynomial decay
    momentum: float  # Nesterov's
    weight_decay: float
    max_gradient_norm: float

    # augmentation; probabilities are per sample
    rotation_probability: float
    rotation_degrees: float  # either way, about each axis
    scaling_probability: float
    scaling_range: tuple[float, float]  # of the coordinates: above 1 zooms out
    noise_probability: float
    noise_sd: tuple[float, float]
    brightness_probability: float
    brightness_range: tuple[float, float]
    contrast_probability: float
    contrast_range: tuple[float, float]
    inverted_gamma_probability: float
    gamma_probability: float
    gamma_range: tuple[float, float]
    mirroring_probability: float  # of each axis

    def __post_init__(self):
        """Fields take the form of their types: lists become tuples, an int where a float belongs
        a float, so that equal recipes are the same in every way. ValueError where a value has
        another form, lies outside its range, or does not fit the others."""
        types = get_type_hints(Recipe)
        for field in fields(self):
            value = _formed_field(self, field, types[field.name])
            _check_range(field.name, value)
            object.__setattr__(self, field.name, value)
        object.__setattr__(self, "excluded_cases", tuple(sorted({*self.excluded_cases})))
        _check_relations(self)

    @property
    def strides(self):
        """One stride per stage, first (1, 1, 1). "Until further downsampling would result in a size < 4" [paper 2.2].
        Axes that are halved less often begin later [nnU-Net v1, the planner of July 2019]; an odd length is not halved
        [ours: it would not come back the same on the way up]."""
        if self.stage_strides:
            return self.stage_strides
        halvings = [
            max(
                (
                    n
                    for n in range(side.bit_length())
                    if side % 2**n == 0 and side // 2**n >= SMALLEST_SIDE
                ),
                default=0,
            )
            for side in self.patch
        ]
        deepest = max(halvings)
        return tuple(
            tuple(2 if stage > deepest - n else 1 for n in halvings) for stage in range(deepest + 1)
        )

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


def _formed_field(recipe, field, kind):
    """A field's value in the form of its type; ValueError where it has another."""
    value = getattr(recipe, field.name)
    try:
        return _formed(value, kind)
    except TypeError:
        form = field.type.replace("tuple", "")  # [int, int, int], as JSON has it
        raise ValueError(f"{field.name} is {value!r:.100}; expected the form of {form}") from None


def _formed(value, kind):
    """`value` in the form of a type, lists as tuples, ints as floats; else a TypeError."""
    if kind not in (int, float):
        return _formed_tuple(value, get_args(kind))
    if type(value) not in (kind, int) or not abs(value) < 1e300:  # NaN and infinity are not
        raise TypeError
    return kind(value)


def _formed_tuple(values, kinds):
    if not isinstance(values, (list, tuple)):
        raise TypeError
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(values)
    if len(values) != len(kinds):
        raise TypeError
    return tuple(_formed(value, kind) for value, kind in zip(values, kinds))


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
_ASCENDING = ("window_hu", "noise_sd", "brightness_range")  # the first not above the second
_AROUND_1 = ("scaling_range", "contrast_range", "gamma_range")  # half of the draws on either side


def _check_range(name, value):
    """ValueError where a field, or an item of it, lies outside its range."""
    low, high = _RANGES[name]
    for item in np.ravel(value):
        if not low <= item <= high:
            each = "each " if isinstance(value, tuple) else ""
            raise ValueError(f"{name} is {value!s:.100}, wanted {each}{low:g} to {high:g}")


def _check_relations(recipe):
    """ValueError where the fields of a recipe, each in its range, do not fit each other."""
    for name in (*_ASCENDING, *_AROUND_1):
        low, high = getattr(recipe, name)
        if low > high:
            raise ValueError(f"{name} is {(low, high)}, wanted the lower number first")
        if name in _AROUND_1 and not low <= 1 <= high:
            raise ValueError(f"{name} is {(low, high)}, wanted at most 1, then at least 1")

    low, high = recipe.window_hu
    normalised = [(value - recipe.mean_hu) / recipe.sd_hu for value in recipe.window_hu]
    if low == high or max(map(abs, normalised)) > 1000:  # prepared images are float16
        raise ValueError(
            f"window_hu is {recipe.window_hu}, wanted two ends that differ and lie, less mean_hu "
            f"{recipe.mean_hu} and divided by sd_hu {recipe.sd_hu}, within -1000 to 1000"
        )

    if np.prod(recipe.patch, dtype=float) >= 1e8:
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
