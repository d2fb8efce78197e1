"""Every number of the method, once, each with the mark of where it comes from.

[paper S]          "An attempt at beating the 3D U-Net" (Isensee & Maier-Hein, 2019), section S
[author #N]        its first author in public, issue N of MIC-DKFZ/nnUNet
[nnU-Net v1 FILE]  the default of branch `nnunetv1`, path below `nnunet/`, where the paper is silent
[ours: why]        our choice, with the reason

The constants are what no run may change; a `Recipe` is what a run may, and then says so."""

from dataclasses import asdict, dataclass, fields, replace

import numpy as np

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
SMALLEST_SIDE = 4  # an axis is halved while it stays at least this long [paper 2.2]
# LeakyReLU of the plain network, and of every network's initialisation
NEGATIVE_SLOPE = 0.01  # [paper 4]
DICE_SMOOTH = 1e-5  # in numerator and denominator [nnU-Net v1 dice_loss.py]
WINDOW_STEP = 0.5  # of the patch, at most [nnU-Net v1 neural_network.py:262]
WINDOW_SD = 1 / 8  # of the patch: spread of the importance map [nnU-Net v1 neural_network.py:246]


@dataclass(frozen=True)
class Recipe:
    """What a run may override with `--recipe FILE.json`; the defaults are the paper's. Axes are Z Y X."""

    excluded_cases: tuple = (23, 68, 125, 133)  # KiTS19 numbers [paper 2.4]
    # as printed, rounded from 3.2164 x 1.6153 x 1.6153
    spacing_mm: tuple = (3.22, 1.62, 1.62)  # [paper 2.1]
    window_hu: tuple = (-79.0, 304.0)  # clipped to this range after resampling [paper 2.1]
    mean_hu: float = 101.0  # [paper 2.1]
    sd_hu: float = 76.9  # [paper 2.1]
    patch: tuple = (80, 160, 160)  # voxels [paper 2.3]
    plain_features: int = 30  # at the highest resolution [paper 2.2]
    residual_features: int = 24  # residual and pre-activation [paper 2.2]
    max_features: int = 320  # [paper 2.2]
    # per stage; 1 2 3 4 4 4 in public code of December 2019
    residual_blocks: tuple = (1, 2, 3, 4, 5, 6)  # [paper 2.2]
    # as `strides`; empty: derived from the patch
    stage_strides: tuple = ()  # [ours: imported networks differ]

    epochs: int = 1000  # [paper 2.3]
    batches_per_epoch: int = 250  # [paper 2.3]
    batch_size: int = 2  # [paper 2.3]
    validation_batches: int = 50  # per epoch, for the patch Dice [nnU-Net v1 network_trainer.py]
    # of a batch, from its end; the rest is rounded
    foreground_share: float = 0.33  # [nnU-Net v1 nnUNetTrainer.py:130]
    learning_rate: float = 0.01  # [nnU-Net v1 nnUNetTrainerV2.py:49]
    learning_rate_power: float = 0.9  # of the polynomial decay [nnU-Net v1 poly_lr.py]
    momentum: float = 0.99  # Nesterov [nnU-Net v1 nnUNetTrainerV2.py:164]
    weight_decay: float = 3e-5  # [nnU-Net v1 nnUNetTrainer.py:128]
    max_gradient_norm: float = 12.0  # [nnU-Net v1 nnUNetTrainerV2.py:254]

    # Probabilities are per sample. That there is rotation, scaling, noise, brightness, contrast and gamma is
    # [paper 2.3], mirroring [author #61]; how often and how far is [nnU-Net v1 data_augmentation_moreDA.py:66].
    rotation_probability: float = 0.2  # [nnU-Net v1 default_data_augmentation.py:60]
    # either way, about each axis
    rotation_degrees: float = 30.0  # [nnU-Net v1 nnUNetTrainerV2.py:339]
    scaling_probability: float = 0.2  # [nnU-Net v1 default_data_augmentation.py:53]
    # of the coordinates: above 1 zooms out
    scaling_range: tuple = (0.7, 1.4)  # [nnU-Net v1 nnUNetTrainerV2.py:339]
    noise_probability: float = 0.1  # [nnU-Net v1 data_augmentation_moreDA.py]
    # called a variance there, used as a sd
    noise_sd: tuple = (0.0, 0.1)  # [nnU-Net v1 data_augmentation_moreDA.py]
    brightness_probability: float = 0.15  # [nnU-Net v1 data_augmentation_moreDA.py]
    brightness_range: tuple = (0.75, 1.25)  # [nnU-Net v1 data_augmentation_moreDA.py]
    contrast_probability: float = 0.15  # [nnU-Net v1 data_augmentation_moreDA.py]
    contrast_range: tuple = (0.75, 1.25)  # [nnU-Net v1 data_augmentation_moreDA.py]
    inverted_gamma_probability: float = 0.1  # [nnU-Net v1 data_augmentation_moreDA.py]
    gamma_probability: float = 0.3  # [nnU-Net v1 default_data_augmentation.py:68]
    gamma_range: tuple = (0.7, 1.5)  # [nnU-Net v1 default_data_augmentation.py]
    mirroring_probability: float = 0.5  # of each axis [nnU-Net v1 data_augmentation_moreDA.py]

    def __post_init__(self):
        """Fields take the form of their defaults: lists become tuples, an int where a float belongs
        a float, so that equal recipes are the same in every way. ValueError where a value has
        another form, lies outside its range, or does not fit the others."""
        for field in fields(self):
            value = _formed_field(field.name, getattr(self, field.name), field.default)
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

    def departures(self) -> list[str]:
        """What differs from the paper: lines "field: ours (paper: theirs)"; and what follows from
        them for the patches on foreground."""
        lines = [
            f"{name}: {value} (paper: {getattr(PAPER, name)})"
            for name, value in asdict(self).items()
            if value != getattr(PAPER, name)
        ]

        ours = self.foreground_samples / self.batch_size
        theirs = PAPER.foreground_samples / PAPER.batch_size
        if ours != theirs:
            lines.append(
                f"patches centred on foreground: {self.foreground_samples} of a batch's "
                f"{self.batch_size} (paper: {PAPER.foreground_samples} of "
                f"{PAPER.batch_size})"
            )
        return lines


def code_departures() -> list[str]:
    """What differs in every run of this code from the paper, or from nnU-Net v1 where the paper is
    silent: lines "what: here (theirs)". docs/paper.md has the reasons and the measured effects."""
    return [
        "axes: by the affine, to KiTS19's own (nnU-Net v1: as the file has them)",
        "labels of cases 15 and 37: the data's, today KiTS19's corrections (paper: predictions)",
        "blocks per stage of the residual networks: one more each stage (later code: others)",
        "image under rotation and scaling: linear (nnU-Net v1: cubic spline)",
        "what rotation and scaling bring in: the patient (nnU-Net v1: a larger patch, beyond it 0)",
        "labels where three meet: the largest mask (nnU-Net v1 of 2019: a mask of at least 1/2)",
        "blur, low resolution, elastic deformation: left out (nnU-Net v1: in; paper: not named)",
        "prepared images: kept as float16 (nnU-Net v1: float32)",
        "sides of odd length: not halved (nnU-Net v1: enlarges the patch)",
        "initial weights and draws: by --seed (nnU-Net v1: not seeded)",
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


def head_weights(heads):
    """Weight of each supervised resolution [paper 2.3], finest first: halved each time, the coarsest (of several) 0,
    sum 1 [nnU-Net v1 nnUNetTrainerV2.py:77]."""
    weights = [0.5**head if head < max(heads - 1, 1) else 0.0 for head in range(heads)]
    return tuple(weight / sum(weights) for weight in weights)


def recipe_from(values, source="recipe"):
    """A Recipe from plain data (JSON, a checkpoint); what is not named is the paper's. Refuses what does not fit."""
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
        return Recipe(**values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _formed_field(name, value, default):
    """A field's value in the form of its default; ValueError where it has another."""
    model = default
    of_any_length = {"excluded_cases": 0, "residual_blocks": 0, "stage_strides": (0, 0, 0)}
    if name in of_any_length and isinstance(value, (list, tuple)):
        model = (of_any_length[name],) * len(value)
    try:
        return _formed(value, model)
    except TypeError:
        raise ValueError(f"{name} is {value!r:.100}; expected the form of {model!r}") from None


def _formed(value, model):
    """`value` in the form of `model`, lists as tuples, ints as floats; else a TypeError."""
    if isinstance(model, tuple):
        if not isinstance(value, (list, tuple)) or len(value) != len(model):
            raise TypeError
        return tuple(_formed(*pair) for pair in zip(value, model))
    if type(value) not in (type(model), int) or not abs(value) < 1e300:  # NaN and infinity are not
        raise TypeError
    return type(model)(value)


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


PAPER = Recipe()

# The same method at a size for two CPU cores and a few minutes [ours: a demonstration, no claim]. Learning rate and
# momentum: the same step in the long run, a memory that suits a short one.
DEMO = replace(
    PAPER,
    spacing_mm=(5.0, 3.2, 3.2),
    patch=(32, 48, 48),
    plain_features=8,
    residual_features=8,
    max_features=64,
    epochs=14,
    batches_per_epoch=60,
    validation_batches=4,
    learning_rate=0.1,
    momentum=0.9,
)
