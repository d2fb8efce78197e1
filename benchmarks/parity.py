"""Each stage of minikits beside the code that the paper stands on, on the same inputs: `make parity`.

nnU-Net v1 (PyPI nnunet), batchgenerators and, from a checkout of neheller/kits19, the challenge's evaluator run as
they are. One table: stage, what was compared, number of inputs, largest difference, tolerance, verdict; exit status 1
if any verdict fails. A second table gives what the departures do. Where two programs draw at random, "difference" is
-log10 of the p-value of a test that both draw from one distribution.

Real geometry needs the KiTS19 labels (MINIKITS_SHARED, or ../shared, with kits19/case_00011/segmentation.nii.gz ...),
the evaluator KITS19_STARTER_CODE, a checkout; without them their rows say so. `parity.py STAGE ...` runs some stages.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import nnunet_v1 as theirs
import numpy as np
import torch
from scipy.stats import chi2_contingency, ks_2samp, kstest
from skimage.transform import resize

from minikits import augmentation as ours
from minikits.augmentation import generator_for
from minikits.cases import five_folds
from minikits.evaluation import kits_dice
from minikits.losses import downsampled, head_weights, segmentation_loss
from minikits.nifti import read_labels
from minikits.paper import ARCHITECTURES, PAPER
from minikits.phantoms import make_case
from minikits.prediction import importance_map, predict_probabilities, window_starts
from minikits.preprocessing import (
    label_orders,
    labels_on_native_grid,
    prepare_image,
    prepare_labels,
    resampled_shape,
)
from minikits.resampling import resample_labels
from minikits.sampling import PreparedCase, draw_start
from minikits.training import Progress, sgd, train_epoch
from minikits.unet import build_unet
from minikits.volumes import Volume

ROOT = Path(__file__).parent.parent
KITS19 = Path(os.environ.get("MINIKITS_SHARED", ROOT.parent / "shared")) / "kits19"
DRAWS = 20_000
ROWS = []


def row(stage, compared, inputs, difference, tolerance):
    verdict = "equal" if difference <= tolerance else "DIFFERS"
    ROWS.append(verdict)
    print(
        f"| {stage} | {compared} | {inputs:,} | {difference:.2g} | {tolerance:.2g} | {verdict} |",
        flush=True,
    )


def not_run(stage, why):
    print(f"| {stage} | {why} | 0 | - | - | not run |", flush=True)


def small(patch, **fields):
    return dataclasses.replace(
        PAPER, patch=patch, plain_features=6, residual_features=6, max_features=40, **fields
    )


def whole_cases():
    """(name, image, labels, spacing) of cases, one geometry after the other: around real labels, then synthetic."""
    for case, what in (
        ("case_00061", "29 slices of 5 mm"),
        ("case_00011", "5 mm, separate z"),
        ("case_00133", "2.5 mm, no separate z"),
        ("case_00160", "512x796"),
    ):
        if KITS19.is_dir():
            reference = read_labels(KITS19 / case / "segmentation.nii.gz")
            image, labels, spacing = make_case(
                [7], labels=reference.voxels, spacing_mm=reference.spacing_mm
            )
            yield f"{case} ({what})", image, labels, spacing
    for number, (shape, spacing, what) in enumerate(
        [
            ((60, 90, 100), (1.0, 1.9, 1.9), "synthetic, nearly cubes"),
            ((130, 90, 80), (0.5, 2.4, 2.4), "thin slices"),
            ((24, 150, 130), (3.0, 0.9, 0.9), "smaller than the patch"),
            ((30, 180, 190), (3.0, 1.9, 1.9), "coarse"),
        ]
    ):
        image, labels, _ = make_case(number, shape=shape, spacing_mm=spacing)
        yield what, image, labels, spacing


def preprocessing():
    for name, voxels, labels, spacing in whole_cases():
        scan, reference = (
            Volume(Path("case"), array, spacing, None, None) for array in (voxels, labels)
        )
        image, small_labels = theirs.preprocess(voxels, labels, spacing, PAPER)
        row(
            "preprocessing",
            f"{name}: normalised image",
            1,
            np.abs(image - prepare_image(scan, PAPER)).max(),
            1e-4,
        )
        mine = prepare_labels(reference, PAPER)
        row(
            "preprocessing",
            f"{name}: labels, voxels that differ",
            1,
            np.count_nonzero(small_labels != mine),
            0,
        )
        hot = (
            torch.nn.functional.one_hot(torch.from_numpy(mine).long(), 3)
            .permute(3, 0, 1, 2)
            .float()
        )
        soft = torch.nn.functional.avg_pool3d(hot[None], 3, 1, 1, count_include_pad=False)[0]
        native = theirs.to_native_grid(soft.numpy().astype(float), voxels.shape, spacing)
        ordered = np.sort(native, axis=0)
        clear = ordered[-1] - ordered[-2] > 1e-6
        apart = np.count_nonzero((native.argmax(0) != labels_on_native_grid(soft, scan)) & clear)
        row(
            "export",
            f"{name}: native labels, voxels that differ ({np.count_nonzero(~clear):,} ties apart)",
            1,
            apart,
            0,
        )


def networks():
    sets = {
        "the paper's": small((32, 64, 64), stage_strides=PAPER.strides),
        "(16, 32, 32)": small((16, 32, 32)),
        "(8, 64, 32)": small((8, 64, 32)),
        "last axis alone": small(
            (16, 32, 32), stage_strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 2, 2))
        ),
    }
    for arch in ARCHITECTURES:
        for name, recipe in sets.items():
            torch.manual_seed(0)
            mine, yours = (
                build_unet(arch, recipe).double(),
                theirs.network(arch, recipe).double().train(),
            )
            pairs = theirs.matched(mine, yours, recipe.patch)
            x = torch.randn(2, 1, *recipe.patch, dtype=torch.float64)
            heads = list(zip(mine(x), yours(x), strict=True))
            row(
                f"{arch} network",
                f"all heads, float64, strides {name}",
                1,
                max((a - b).abs().max().item() for a, b in heads),
                1e-10,
            )
            for side in (0, 1):
                sum(head[side].square().mean() for head in heads).backward()
            row(
                f"{arch} network",
                f"gradient of every weight, relative, strides {name}",
                1,
                max(
                    (p.grad - q.grad).abs().max().item() / (1e-12 + q.grad.abs().max().item())
                    for one, other in pairs
                    for p, q in zip(one.parameters(), other.parameters())
                ),
                1e-8,
            )
        counts = [
            sum(p.numel() for p in n.parameters())
            for n in (build_unet(arch, PAPER), theirs.network(arch, PAPER))
        ]
        row(
            f"{arch} network",
            f"number of weights at the paper's size, {counts[0]:,}",
            1,
            abs(counts[0] - counts[1]),
            0,
        )


def initial_weights():
    """Every convolution of the paper's size against theirs; norms and biases are to be 1 and 0 in both."""
    for arch in ARCHITECTURES:
        worst, constant, tensors = 0, 0, 0
        torch.manual_seed(3)
        mine, yours = build_unet(arch, PAPER), theirs.network(arch, PAPER)
        for one, other in theirs.matched_fresh(mine, yours):
            for name, value in one.named_parameters():
                a, b = value.detach().flatten(), other.get_parameter(name).detach().flatten()
                if value.ndim == 5:
                    some = torch.randperm(len(a))[:DRAWS]
                    worst = max(
                        worst,
                        -np.log10(max(ks_2samp(a[some].numpy(), b[some].numpy()).pvalue, 1e-300)),
                    )
                    tensors += 1
                else:
                    constant = max(constant, (a - b).abs().max().item(), a.std(correction=0).item())
        row(
            "initial weights",
            f"{arch}: every convolution, -log10 p, Kolmogorov-Smirnov",
            tensors,
            worst,
            5,
        )
        row("initial weights", f"{arch}: norms 1 and 0, biases 0", 1, constant, 0)


def loss():
    torch.manual_seed(1)
    recipe = small((8, 16, 16))
    shape = (2, *recipe.patch)
    for name, target in {
        "mixed": torch.randint(0, 3, shape),
        "no foreground": torch.zeros(shape).long(),
        "all tumor": torch.full(shape, 2),
    }.items():
        mine = [
            head.detach().double().requires_grad_()
            for head in build_unet("plain", recipe)(torch.randn(2, 1, 8, 16, 16))
        ]
        yours = [head.detach().clone().requires_grad_() for head in mine]
        targets = theirs.downsampled(target, recipe)
        row(
            "loss",
            f"{name}: targets of all heads, voxels that differ",
            1,
            sum(
                int((downsampled(target, head.shape[2:]) != t[:, 0]).sum())
                for head, t in zip(mine, targets)
            ),
            0,
        )
        a, b = segmentation_loss(mine, target), theirs.loss(len(yours))(yours, targets)
        a.backward(), b.backward()
        row("loss", f"{name}: value", 1, abs(a.item() - b.item()), 1e-6)
        assert mine[-1].grad is None and yours[-1].grad is None  # the coarsest head weighs nothing
        row(
            "loss",
            f"{name}: gradient",
            1,
            max((p.grad - q.grad).abs().max().item() for p, q in zip(mine[:-1], yours[:-1])),
            1e-8,
        )


def noting_norms(work, norms):
    """What work() gives; `norms` takes the norm of each gradient before it is clipped."""
    clip = torch.nn.utils.clip_grad_norm_
    with mock.patch.object(
        torch.nn.utils, "clip_grad_norm_", lambda *given: norms.append(clip(*given))
    ):
        return work()


def training():
    """20 steps of the loop that train.py runs, and of their trainer, from the same weights on the same batches."""
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    recipe = small((8, 16, 16), stage_strides=strides, epochs=4, batches_per_epoch=5)
    for arch in ARCHITECTURES:
        torch.manual_seed(1)
        mine, yours = (
            build_unet(arch, recipe).double(),
            theirs.network(arch, recipe).double().train(),
        )
        pairs = theirs.matched(mine, yours, recipe.patch)
        batches = [
            (torch.randn(2, 1, *recipe.patch).double(), torch.randint(0, 3, (2, *recipe.patch)))
            for _ in range(20)
        ]
        with torch.no_grad():  # so that some gradients are long enough to be clipped
            for head in (*mine.heads, *(other for one, other in pairs if one in [*mine.heads])):
                head.weight.mul_(60)

        optimizer, trainer = sgd(mine, recipe), theirs.trainer(yours, recipe)
        losses, norms = [], []
        for epoch in range(recipe.epochs):
            progress = Progress(epoch * recipe.batches_per_epoch)
            work = partial(
                train_epoch, mine, batches.__getitem__, optimizer, recipe, epoch, progress
            )
            ours_row = noting_norms(work, norms)
            their_loss = trainer.train_epoch(epoch, batches[5 * epoch : 5 * epoch + 5])
            losses.append(abs(ours_row["loss"] - their_loss))
            rate = abs(ours_row["learning_rate"] - trainer.optimizer.param_groups[0]["lr"])
            row(
                "training",
                f"{arch}: learning rate of epoch {epoch + 1} as it was used",
                1,
                rate,
                1e-12,
            )
        clipped = sum(norm > recipe.max_gradient_norm for norm in norms)
        row(
            "training",
            f"{arch}: weights after 20 steps of both loops, {clipped} of them clipped, float64",
            20,
            max(
                (p - q).abs().max().item()
                for a, b in pairs
                for p, q in zip(a.parameters(), b.parameters())
            ),
            1e-7,
        )
        row("training", f"{arch}: mean loss of each epoch", 4, max(losses), 1e-6)
    rates = [
        abs(PAPER.learning_rate_at(e) - theirs.poly_lr(e, 1000, 0.01, 0.9)) for e in range(1000)
    ]
    row("training", "learning rate of every epoch", 1000, max(rates), 1e-12)
    row(
        "training",
        "weights of the five heads",
        1,
        np.abs(np.array(head_weights(5)) - np.array([8, 4, 2, 1, 0]) / 15).max(),
        1e-12,
    )


def sampler():
    """Starts of patches, padding included: half of the 20,000 draws uniform, half forced to the foreground."""
    patch = (8, 12, 12)
    for name, shape in (
        ("larger than the patch", (20, 18, 30)),
        ("smaller than the patch", (5, 9, 30)),
    ):
        labels = np.zeros(shape, dtype=np.uint8)
        labels[1:3, 2:9, 3:20], labels[3:5, 5:8, 20:28] = 1, 2
        case = PreparedCase(
            "case",
            None,
            torch.from_numpy(labels),
            tuple(np.flatnonzero(labels == v) for v in (1, 2)),
        )
        yours = their_starts(labels, patch)
        for kind, forced in enumerate((False, True)):
            mine = np.array(
                [
                    draw_start(case, patch, generator_for(0, i, forced), forced=forced)
                    for i in range(DRAWS)
                ]
            )
            for axis in range(3):
                values = np.union1d(mine[:, axis], yours[kind][:, axis])
                counts = [
                    [np.count_nonzero(x[:, axis] == v) for v in values] for x in (mine, yours[kind])
                ]
                p = chi2_contingency(counts).pvalue if len(values) > 1 else 1
                row(
                    "sampler",
                    f"{'forced' if forced else 'uniform'} starts along {'ZYX'[axis]}, case {name}: -log10 p, "
                    "chi-square",
                    DRAWS,
                    -np.log10(max(p, 1e-300)),
                    5,
                )


def their_starts(labels, patch):
    """(uniform, forced): starts (draws, 3) of their loader's patches. Voxels hold their own index, so that it shows."""
    index = np.stack(np.meshgrid(*[np.arange(1, n + 1) for n in labels.shape], indexing="ij"))
    found = [[], []]
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/case.npy", np.concatenate([index, labels[None]]).astype(np.float32))
        source = {
            "data_file": f"{folder}/case.npz",
            "properties": {"class_locations": {v: np.argwhere(labels == v) for v in (1, 2)}},
        }
        loader = theirs.DataLoader3D(
            {"case": source},
            patch,
            patch,
            2,
            False,
            oversample_foreground_percent=0.33,
            pad_mode="constant",
            memmap_mode="r",
        )  # as nnUNetTrainerV2 calls it
        np.random.seed(0)
        for _ in range(DRAWS):
            for kind, data in enumerate(loader.generate_train_batch()["data"]):
                first = np.argwhere(data[0] > 0)[0]
                found[kind].append(
                    [int(data[(axis, *first)]) - 1 - first[axis] for axis in range(3)]
                )
    return np.array(found)


def augmentation():
    """change_x against batchgenerators with the same draw."""
    random = np.random.default_rng(0)
    x, labels = (
        random.normal(size=(30, 40, 36)).astype(np.float32),
        random.integers(0, 3, (30, 40, 36)).astype(np.uint8),
    )
    mine, inner = torch.from_numpy(x), (slice(10, -10), slice(14, -14), slice(12, -12))
    for angles, scale in [((0.3, -0.2, 0.4), 1.0), ((0, 0, 0), 1.25), ((0.1, 0.2, -0.5), 0.8)]:
        image, seg = theirs.turn(x, labels, angles, scale, order=1)
        turned, turned_labels = ours.change_geometry(mine, torch.from_numpy(labels), angles, scale)
        what, apart = (
            f"rotation {angles}, scale {scale}",
            np.abs(image - turned.numpy())[inner].max(),
        )
        row("augmentation", f"{what}: image, linear, away from the border", 1, apart, 1e-4)
        row(
            "augmentation",
            f"{what}: labels, voxels that differ",
            1,
            np.count_nonzero((seg != turned_labels.numpy())[inner]),
            0,
        )
    for factor in (0.8, 1.3):
        for name, change in (
            ("gamma", ours.change_gamma),
            ("contrast", ours.change_contrast),
            ("brightness", ours.change_brightness),
            ("inverted gamma", lambda image, f: ours.change_gamma(image, f, inverted=True)),
        ):
            row(
                "augmentation",
                f"{name} {factor}",
                1,
                np.abs(theirs.colour(name, x, factor) - change(mine, factor).numpy()).max(),
                1e-5,
            )
    noisy = [
        ours.change_noise(torch.zeros(60, 60, 60), 0.07, seed=0).numpy(),
        theirs.noise(np.zeros((60, 60, 60), dtype=np.float32), 0.07),
    ]
    for who, noise in zip(("ours", "theirs"), noisy):
        row(
            "augmentation",
            f"noise of 0.07, {who}: -log10 p of a normal with that sd, Kolmogorov-Smirnov",
            noise.size,
            -np.log10(max(kstest(noise.ravel() / 0.07, "norm").pvalue, 1e-300)),
            5,
        )
    flips = 0
    for axes in ((), (0,), (1, 2), (0, 1, 2)):
        a, b = ours.change_mirroring(mine, torch.from_numpy(labels), axes)
        image, seg = theirs.mirror(x, labels, axes)
        flips += np.count_nonzero(a.numpy() != image) + np.count_nonzero(b.numpy() != seg)
    row("augmentation", "mirroring: voxels of image and labels that differ", 4, flips, 0)


def draws():
    """How often and how far: each transform of theirs and random_x of ours, 20,000 times, told from what comes out."""
    transforms = theirs.transforms((6, 6, 6))
    names = [name for name, _ in transforms]
    wanted = [
        "SpatialTransform",
        "GaussianNoiseTransform",
        "BrightnessMultiplicativeTransform",
        "ContrastAugmentationTransform",
        "GammaTransform",
        "GammaTransform",
        "MirrorTransform",
    ]
    row(
        "draws",
        "order of the transforms that both have, places that differ",
        len(wanted),
        sum(a != b for a, b in zip([n for n in names if n in wanted], wanted, strict=True)),
        0,
    )
    table = [transform for name, transform in transforms if name in wanted]
    ramp = np.linspace(0, 1, 6**3, dtype=np.float32).reshape(6, 6, 6)
    places = np.stack(np.meshgrid(*[np.arange(24.0)] * 3, indexing="ij")).astype(np.float32) - 11.5
    here, start = (2, 3, 2), (9, 9, 9)
    near = [here, *[tuple(h + (a == axis) for a, h in enumerate(here)) for axis in range(3)]]

    def spread(x):
        return {"sd": x.std()}

    def bent(x, before=ramp):  # does not change under the rescaling that follows
        return {"exponent": np.log((x[2, 3, 2] - x.min()) / np.ptp(x)) / np.log(before[2, 3, 2])}

    def turned(channels):  # a resampled ramp of places tells the matrix
        points = np.array([[float(c[n]) for n in near] for c in channels])
        matrix = points[:, 1:] - points[:, :1]
        scale = np.cbrt(np.linalg.det(matrix))
        a = matrix / scale
        return {
            "scale": scale,
            "angle 1": np.arctan2(a[1, 2], a[2, 2]),
            "angle 2": np.arcsin(-np.clip(a[0, 2], -1, 1)),
            "angle 3": np.arctan2(a[0, 1], a[0, 0]),
        }

    def geometry(generator):
        angles, scale = drawn_geometry(generator)
        return [
            ours.change_geometry(
                torch.from_numpy(c),
                torch.zeros(c.shape, dtype=torch.uint8),
                angles,
                scale,
                start=start,
                patch=ramp.shape,
            )[0].numpy()
            for c in places
        ]

    def drawn_geometry(generator):
        kept, change = [], ours.change_geometry
        ours.change_geometry = lambda image, labels, angles, scale, **_: (
            kept.append((angles, scale)) or (image, labels)
        )
        try:
            ours.random_geometry(None, None, PAPER, generator, start=start, patch=ramp.shape)
        finally:
            ours.change_geometry = change
        return kept[0]

    def plain(function, x, **arguments):
        return lambda generator: function(
            torch.from_numpy(x), PAPER, generator, **arguments
        ).numpy()

    zeros, ones = np.zeros((6, 6, 6), np.float32), np.ones((6, 6, 6), np.float32)
    corners = np.arange(8, dtype=np.float32).reshape(2, 2, 2)

    def mirrored(generator):
        return ours.random_mirroring(
            torch.from_numpy(corners), torch.from_numpy(corners), PAPER, generator
        )[0].numpy()

    for name, transform, x, mine, tell in (
        ("rotation and scaling", table[0], places, geometry, turned),
        ("noise", table[1], zeros, plain(ours.random_noise, zeros), spread),
        (
            "brightness",
            table[2],
            ones,
            plain(ours.random_brightness, ones),
            lambda x: {"factor": x[0, 0, 0]},
        ),
        (
            "contrast",
            table[3],
            ramp,
            plain(ours.random_contrast, ramp),
            lambda x: {"factor": (x[3, 0, 0] - x.mean()) / (ramp[3, 0, 0] - 0.5)},
        ),
        (
            "inverted gamma",
            table[4],
            ramp,
            plain(ours.random_gamma, ramp, inverted=True),
            lambda x: bent(-x, 1 - ramp),
        ),
        ("gamma", table[5], ramp, plain(ours.random_gamma, ramp, inverted=False), bent),
        ("mirroring", table[6], corners, mirrored, lambda x: {"corner": x[0, 0, 0]}),
    ):
        compare_draws(name, transform, x, mine, tell)


def compare_draws(name, transform, x, mine, tell):
    np.random.seed(0)
    theirs.seed(0)
    channels = x if x.ndim == 4 else x[None]
    still = tell(x)
    samples = {key: ([], []) for key in still}
    for draw in range(DRAWS):
        out = transform(
            data=channels[None].copy(), seg=np.zeros((1, 1, *channels.shape[1:]), np.float32)
        )["data"][0]
        for side, result in enumerate(
            (mine(generator_for(1, draw)), out if x.ndim == 4 else out[0])
        ):
            for key, value in tell(result).items():
                samples[key][side].append(value)
    for key, (a, b) in samples.items():
        a, b = np.array(a), np.array(b)
        changed = [np.abs(v - still[key]) > 1e-5 for v in (a, b)]
        counts = [[np.count_nonzero(c), np.count_nonzero(~c)] for c in changed]
        if name == "mirroring":
            counts = [[np.count_nonzero(v == corner) for corner in range(8)] for v in (a, b)]
        row(
            "draws",
            f"{name}: how often the {key} changes, {counts[0][0] / DRAWS:.3f} and {counts[1][0] / DRAWS:.3f}: "
            "-log10 p, chi-square",
            DRAWS,
            -np.log10(max(chi2_contingency(counts).pvalue, 1e-300)),
            5,
        )
        if name != "mirroring":
            a, b = a[changed[0]], b[changed[1]]
            ranges = " and ".join(f"{v.min():.3f}..{v.max():.3f}" for v in (a, b))
            row(
                "draws",
                f"{name}: {key} where it changes, {ranges}: -log10 p, Kolmogorov-Smirnov",
                len(a),
                -np.log10(max(ks_2samp(a, b).pvalue, 1e-300)),
                5,
            )


def prediction():
    sizes = [
        ((128, 248, 248), (80, 160, 160)),
        ((93, 290, 291), (80, 160, 160)),
        ((81, 161, 170), (80, 160, 160)),
    ]
    wrong = sum(
        theirs.SegmentationNetwork._compute_steps_for_sliding_window(patch, size, 0.5)
        != [window_starts(n, p) for n, p in zip(size, patch)]
        for size, patch in sizes
    )
    row("prediction", "starts of the windows, sizes that differ", len(sizes), wrong, 0)
    gaussian = theirs.SegmentationNetwork._get_gaussian(PAPER.patch, 1 / 8)
    row(
        "prediction",
        "importance map",
        1,
        np.abs(gaussian - importance_map(PAPER.patch).numpy()).max(),
        1e-6,
    )
    recipe = small((16, 32, 32))
    for arch in ARCHITECTURES:
        torch.manual_seed(2)
        network = build_unet(arch, recipe).eval()
        for what, shape in (
            ("smaller than", (10, 20, 31)),
            ("equal to", (16, 32, 32)),
            ("larger than", (23, 50, 70)),
        ):
            image = np.random.default_rng(3).normal(size=shape).astype(np.float32)
            yours = theirs.SlidingWindow(network).predict(image, recipe)
            row(
                "prediction",
                f"{arch}: mirrored, weighted probabilities of a volume {what} the patch",
                1,
                np.abs(yours - predict_probabilities([network], image, recipe).numpy()).max(),
                1e-5,
            )


def folds():
    ids = [f"case_{number:05d}" for number in range(210) if number not in PAPER.excluded_cases]
    row(
        "folds",
        "cases in another fold",
        len(ids),
        sum(
            len(set(mine) ^ set(yours))
            for (_, mine), yours in zip(five_folds(ids), theirs.folds(ids), strict=True)
        ),
        0,
    )


def evaluation():
    if "KITS19_STARTER_CODE" not in os.environ or not KITS19.is_dir():
        return not_run("evaluation", "needs KITS19_STARTER_CODE and the KiTS19 labels")
    evaluate = theirs.kits19_evaluator(os.environ["KITS19_STARTER_CODE"])
    apart, count = 0, 0
    for path in sorted(KITS19.glob("case_*/segmentation.nii.gz"), key=lambda p: p.stat().st_size)[
        :12
    ]:
        reference = read_labels(path).voxels
        shifted = np.roll(reference, (1, 4, -3), axis=(0, 1, 2))
        for mask in (reference, shifted, np.minimum(shifted, 1), np.zeros_like(reference)):
            apart = max(
                apart,
                np.abs(np.subtract(kits_dice(mask, reference), evaluate(mask, reference))).max(),
            )
            count += 1
    row(
        "evaluation",
        "kidney and tumor Dice of real labels, moved, without tumor, empty",
        count,
        apart,
        1e-12,
    )
    empty, kidney = np.zeros((2, 3, 4), np.uint8), np.ones((2, 3, 4), np.uint8)
    pairs = [
        (empty, empty),
        (kidney, kidney),
        (kidney, empty),
        (empty, kidney),
        (2 * kidney, kidney),
    ]
    row(
        "evaluation",
        "degenerate cases, NaN where both are empty",
        len(pairs),
        sum(
            not np.array_equal(kits_dice(*pair), evaluate(*pair), equal_nan=True) for pair in pairs
        ),
        0,
    )


def importer():
    """Checkpoints that their trainer wrote, imported and used from the command line as the README says."""
    recipe = dataclasses.replace(
        PAPER,
        spacing_mm=(8.0, 6.0, 6.5),
        patch=(16, 32, 24),
        plain_features=8,
        residual_features=8,
        max_features=32,
    )
    cases = {
        "seen": theirs.easy_case(1, (40, 64, 70), (6.0, 5.5, 5.5)),
        "unseen": theirs.easy_case(2, (36, 60, 75), (6.0, 5.0, 5.2)),
        "thick slices": theirs.easy_case(3, (20, 90, 96), (12.0, 3.9, 3.9)),
    }
    with tempfile.TemporaryDirectory() as folder:
        for arch, axes in zip(ARCHITECTURES, ("ZYX", "ZYX", "ZXY")):
            found = theirs.trained_and_predicted(
                arch, Path(folder) / arch, cases, recipe, axes=axes
            )
            model, run, scans = found["model"], Path(folder) / arch / "run", found["scans"]
            (Path(folder) / "geometry.json").write_text(found["geometry"])
            for command in (
                [
                    "-m",
                    "minikits.nnunet",
                    model,
                    "--arch",
                    arch,
                    "--geometry",
                    f"{folder}/geometry.json",
                    "--out",
                    run / "fold0" / "checkpoint.pt",
                ],
                [
                    "predict.py",
                    "--in",
                    scans,
                    "--out",
                    run / "masks",
                    "--model",
                    run,
                    "--precision",
                    "fp32",
                ],
            ):
                subprocess.run(
                    [sys.executable, *map(str, command)],
                    check=True,
                    cwd=ROOT,
                    stdout=subprocess.DEVNULL,
                )
            for name, mask in found["masks"].items():
                a, b = (
                    read_labels(path).voxels for path in (run / "masks" / f"{name}.nii.gz", mask)
                )
                dice = [score for score in kits_dice(a, b) if not np.isnan(score)]
                row(
                    "import",
                    f"{arch}, axes {axes}, {name}: 1 - Dice of the masks, {np.count_nonzero(b):,} voxels of "
                    f"foreground, {np.count_nonzero(a != b)} differ",
                    1,
                    1 - min(dice, default=0),
                    1e-3,
                )


def departures():
    """What we do otherwise on purpose, measured on cases with real labels where they are."""
    print("\n| departure | measured on | effect |\n|---|---|---|")
    cubic, label, count = [], [], 0
    for name, voxels, labels, spacing in whole_cases():
        if "512x796" in name:
            continue
        scan, reference = (
            Volume(Path("case"), array, spacing, None, None) for array in (voxels, labels)
        )
        image, small_labels = prepare_image(scan, PAPER), prepare_labels(reference, PAPER)
        for angles, scale in (((0.3, -0.2, 0.25), 1.0), ((0, 0, 0), 0.8), ((-0.1, 0.2, 0.5), 1.3)):
            wanted, _ = theirs.turn(image, small_labels, angles, scale, order=3)
            mine, _ = ours.change_geometry(
                torch.from_numpy(image), torch.from_numpy(small_labels), angles, scale
            )
            inside, _ = theirs.turn(np.ones_like(image), small_labels, angles, scale, order=1)
            apart = np.abs(wanted - mine.numpy())[inside > 0.999] * PAPER.sd_hu
            cubic.append([apart.mean(), np.percentile(apart, 99)])
        count += 1
    mean, high = np.mean(cubic, axis=0)
    print(
        f"| linear, not cubic, in rotation and scaling | {count} cases, 3 draws each | mean absolute difference "
        f"{mean:.1f} HU, 99th percentile {high:.0f} HU (scanner's noise included) |",
        flush=True,
    )
    if not KITS19.is_dir():
        return
    for path in sorted(KITS19.glob("case_*/segmentation.nii.gz")):
        reference = read_labels(path)
        new = resampled_shape(reference.voxels.shape, reference.spacing_mm, PAPER)
        if reference.voxels.size > 130_000_000 or new == reference.voxels.shape:
            continue
        orders = label_orders(reference.spacing_mm)
        voxels = reference.voxels
        if 0 in orders:
            voxels = resample_labels(voxels, (new[0], *voxels.shape[1:]), 0)
        half = np.zeros(new, dtype=np.uint8)
        for value in (
            1,
            2,
        ):  # nearest along the thick axis beforehand, so that one linear resize is left
            half[
                resize(
                    (voxels == value).astype(np.float32), new, 1, mode="edge", anti_aliasing=False
                )
                >= 0.5
            ] = value
        mine = prepare_labels(reference, PAPER)
        label.append(
            [
                np.count_nonzero(half != mine),
                np.count_nonzero(mine),
                *(1 - np.array(kits_dice(half, mine))),
            ]
        )
    changed, foreground, kidney, tumor = np.array(label).T
    share = changed.sum() / foreground.sum()
    print(
        f"| the largest mask, not each mask of at least 1/2, in labels | {len(label)} cases of KiTS19 | "
        f"{int(changed.sum()):,} of {int(foreground.sum()):,} foreground voxels ({share:.3%}); Dice between both at "
        f"least {1 - kidney.max():.5f} kidney, {1 - np.nanmax(tumor):.5f} tumor |",
        flush=True,
    )


STAGES = (
    preprocessing,
    networks,
    initial_weights,
    loss,
    training,
    sampler,
    augmentation,
    draws,
    prediction,
    folds,
    evaluation,
    importer,
    departures,
)


def main():
    if "--help" in sys.argv[1:] or "-h" in sys.argv[1:]:
        print(__doc__)
        return
    print(
        f"nnunet {version('nnunet')}, batchgenerators {version('batchgenerators')}, torch {torch.__version__}, "
        f"numpy {np.__version__}\n\n| stage | compared | inputs | largest difference | tolerance | verdict |\n"
        "|---|---|---|---|---|---|",
        flush=True,
    )
    for stage in STAGES:
        if len(sys.argv) == 1 or stage.__name__ in sys.argv[1:]:
            began = time.monotonic()
            stage()
            print(f"{stage.__name__}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    sys.exit(1 if "DIFFERS" in ROWS else 0)


if __name__ == "__main__":
    main()
