"""Small outputs of nnU-Net v1, batchgenerators and the challenge's evaluator, kept for the tests: `make golden`.

`make parity` runs them beside minikits, but takes too long for every change; tests/test_golden.py holds minikits to
what is written here, into tests/golden: arrays (golden.npz, inputs beside outputs), the versions that made them
(about.json), and for each architecture a checkpoint that nnU-Net's trainer wrote, two scans and its masks of them.
"""

import dataclasses
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import nnunet_v1 as theirs
import numpy as np
import torch

from minikits.nifti import read_labels
from minikits.paper import ARCHITECTURES, PAPER
from minikits.phantoms import make_case
from minikits.unet import build_unet

OUT = Path(__file__).parent.parent / "tests" / "golden"
SMALL = dataclasses.replace(
    PAPER,
    spacing_mm=(8.0, 6.0, 6.5),
    patch=(16, 32, 24),
    plain_features=3,
    residual_features=3,
    max_features=6,
)


def preprocessing(keep):
    for name, shape, spacing in (
        ("cubes", (16, 30, 33), (8.0, 7.1, 7.1)),
        ("thick", (9, 40, 44), (20.0, 6.1, 6.1)),
    ):
        voxels, labels, _ = make_case(3, shape=shape, spacing_mm=spacing)
        image, small = theirs.preprocess(voxels, labels, spacing, SMALL)
        soft = (
            np.random.default_rng(0)
            .dirichlet((1, 1, 1), size=small.shape)
            .transpose(3, 0, 1, 2)
            .astype(np.float32)
        )
        native = theirs.to_native_grid(soft.astype(float), shape, spacing)
        ordered = np.sort(native, axis=0)
        kept = np.where(ordered[-1] - ordered[-2] > 1e-6, native.argmax(0), 255)  # 255: a tie
        keep(
            f"{name}_",
            spacing=spacing,
            voxels=voxels,
            labels=labels,
            image=image.astype(np.float32),
            small_labels=small.astype(np.uint8),
            probabilities=soft,
            native=kept.astype(np.uint8),
        )


def augmentation(keep):
    random = np.random.default_rng(1)
    x, labels = (
        random.normal(size=(16, 18, 17)).astype(np.float32),
        random.integers(0, 3, (16, 18, 17)).astype(np.uint8),
    )
    keep("augmentation_", image=x, labels=labels)
    for number, (angles, scale) in enumerate(
        [((0.3, -0.2, 0.4), 1.0), ((0, 0, 0), 1.25), ((0.1, 0.2, -0.5), 0.8)]
    ):
        image, seg = theirs.turn(x, labels, angles, scale, order=1)
        keep(f"turn{number}_", draw=[*angles, scale], image=image, labels=seg.astype(np.uint8))
    for name in ("gamma", "inverted gamma", "contrast", "brightness"):
        keep(
            f"{name.replace(' ', '_')}_",
            low=theirs.colour(name, x[:8, :8, :8], 0.8),
            high=theirs.colour(name, x[:8, :8, :8], 1.3),
        )


def loss(keep):
    torch.manual_seed(1)
    recipe = dataclasses.replace(SMALL, patch=(8, 8, 16))
    for name, target in {
        "mixed": torch.randint(0, 3, (2, 8, 8, 16)),
        "empty": torch.zeros((2, 8, 8, 16)).long(),
        "tumor": torch.full((2, 8, 8, 16), 2),
    }.items():
        heads = [
            head.detach().double().requires_grad_()
            for head in build_unet("plain", recipe)(torch.randn(2, 1, *recipe.patch))
        ]
        targets = theirs.downsampled(target, recipe)
        value = theirs.loss(len(heads))(heads, targets)
        value.backward()
        keep(
            f"loss_{name}_",
            target=target.numpy().astype(np.uint8),
            value=value.item(),
            **{f"head{i}": head.detach().numpy() for i, head in enumerate(heads)},
            **{
                f"gradient{i}": head.grad.numpy()
                for i, head in enumerate(heads)
                if head.grad is not None
            },
        )


def numbers(keep):
    sizes, patches = (128, 248, 93, 290, 81, 10, 160), (80, 160, 80, 160, 80, 16, 160)
    steps = theirs.SegmentationNetwork._compute_steps_for_sliding_window
    keep(
        "windows_",
        sizes=sizes,
        patches=patches,
        **{
            f"starts{i}": steps((p,), (max(n, p),), 0.5)[0]
            for i, (n, p) in enumerate(zip(sizes, patches))
        },
    )
    keep(
        "importance_",
        patch=(8, 12, 10),
        map=theirs.SegmentationNetwork._get_gaussian((8, 12, 10), 1 / 8),
    )
    keep(
        "rates_",
        epochs=[0, 1, 10, 500, 999],
        values=[theirs.poly_lr(e, 1000, 0.01, 0.9) for e in (0, 1, 10, 500, 999)],
    )
    ids = [f"case_{number:05d}" for number in range(210) if number not in PAPER.excluded_cases]
    keep("folds_", **{f"validation{i}": found for i, found in enumerate(theirs.folds(ids))})


def evaluation(keep):
    if "KITS19_STARTER_CODE" not in os.environ:
        sys.exit(
            "golden.py: set KITS19_STARTER_CODE to a checkout of neheller/kits19, whose evaluator is not on PyPI"
        )
    evaluate = theirs.kits19_evaluator(os.environ["KITS19_STARTER_CODE"])
    random = np.random.default_rng(2)
    pairs = [random.integers(0, 3, (2, 4, 5, 6)) for _ in range(4)] + [
        np.stack([np.full((4, 5, 6), a), np.full((4, 5, 6), b)]) for a in range(3) for b in range(3)
    ]
    keep(
        "evaluation_",
        pairs=np.array(pairs, dtype=np.uint8),
        scores=[evaluate(*pair.astype(np.uint8)) for pair in pairs],
    )


def networks(keep):
    """Their masks of a scan that they did not train on; the axes of the last architecture's are not Z Y X."""
    cases = {
        "seen": theirs.easy_case(5, (26, 40, 44), (8.0, 7.5, 8.0)),
        "unseen": theirs.easy_case(6, (24, 36, 46), (8.5, 8.0, 7.5)),
    }
    for arch, axes in zip(ARCHITECTURES, ("ZYX", "ZYX", "ZXY")):
        with tempfile.TemporaryDirectory() as folder:
            found = theirs.trained_and_predicted(
                arch, Path(folder), cases, SMALL, axes=axes, steps=250
            )
            (OUT / f"{arch}.model").write_bytes(found["model"].read_bytes())
            (OUT / f"{arch}.json").write_text(found["geometry"] + "\n")
            (OUT / f"scan_{axes}.nii.gz").write_bytes(
                (found["scans"] / "unseen.nii.gz").read_bytes()
            )
            keep(f"{arch}_", mask=read_labels(found["masks"]["unseen"]).voxels)
        print(
            f"{arch}: loss from {found['losses'][0]:.2f} to {found['losses'][-1]:.2f}", flush=True
        )


def main():
    if "--help" in sys.argv[1:] or "-h" in sys.argv[1:]:
        print(__doc__)
        return
    OUT.mkdir(exist_ok=True)
    kept = {}

    def keep(prefix, **arrays):
        kept.update({prefix + name: np.asarray(array) for name, array in arrays.items()})

    for stage in (preprocessing, augmentation, loss, numbers, evaluation, networks):
        stage(keep)
    np.savez_compressed(OUT / "golden.npz", **kept)
    packages = ("nnunet", "batchgenerators", "torch", "numpy", "scipy", "scikit-image")
    about = {
        "made by": "benchmarks/golden.py",
        **{name: version(name) for name in packages},
        "evaluator": "neheller/kits19, starter_code/evaluation.py",
    }
    (OUT / "about.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
