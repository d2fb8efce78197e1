"""Preparing, augmenting and training beside nnU-Net v2, MONAI, torchio, scipy and SimpleITK: `make bench`.

    python benchmarks/training.py [augment] [prepare [case_00011 ...]] [step]

Each figure is taken in a process of its own (so that its peak memory is its own), the tools in turn, several times; the
median counts. Needs the packages of benchmarks/bench.txt, and for `prepare` the KiTS19 labels (see parity.py).
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from minikits.devices import claim_memory, pick_precision
from minikits.paper import CLASSES, PAPER

ROOT = Path(__file__).parent.parent
KITS19 = Path(os.environ.get("MINIKITS_SHARED", ROOT.parent / "shared")) / "kits19"
CASES = {
    "case_00151": "1059 slices",
    "case_00000": "611 slices of 0.5 mm",
    "case_00011": "80 slices of 5 mm",
    "case_00200": "103 slices of 4 mm, the median shape",
}
TARGET = PAPER.spacing_mm


def case_arrays(case):
    from minikits.nifti import read_labels

    reference = read_labels(KITS19 / case / "segmentation.nii.gz")
    labels = np.ascontiguousarray(reference.voxels)
    random = np.random.default_rng(0)
    image = (
        random.integers(-100, 200, labels.shape[1:], dtype=np.int16)[None]
        + labels.astype(np.int16) * 50
    )
    return image, labels, reference.spacing_mm


def prepare_minikits(image, labels, spacing, shape):
    from minikits.preprocessing import prepare_image, prepare_labels
    from minikits.volumes import Volume

    scan, reference = (Volume(None, array, spacing, None, None) for array in (image, labels))
    return prepare_image(scan, PAPER), prepare_labels(reference, PAPER)


def normalised(image):
    return (np.clip(image, *PAPER.window_hu) - PAPER.mean_hu) / PAPER.sd_hu


def prepare_nnunet(image, labels, spacing, shape):
    from nnunetv2.preprocessing.resampling.default_resampling import (
        resample_data_or_seg_to_shape as resample,
    )

    small = resample(image[None].astype(np.float32), shape, spacing, TARGET, False, 3, 0, None)[0]
    return normalised(small), resample(labels[None], shape, spacing, TARGET, True, 1, 0, None)[0]


def prepare_nnunet_torch(image, labels, spacing, shape):
    from nnunetv2.preprocessing.resampling.resample_torch import (
        resample_torch_fornnunet as resample,
    )

    small = resample(image[None].astype(np.float32), shape, spacing, TARGET, False, 2)[0]
    return normalised(np.asarray(small)), np.asarray(
        resample(labels[None], shape, spacing, TARGET, True, 2)[0]
    )


def prepare_scipy(image, labels, spacing, shape):
    from scipy.ndimage import zoom

    factor = [new / old for new, old in zip(shape, image.shape)]
    small = zoom(image.astype(np.float32), factor, order=3, mode="nearest", grid_mode=True)
    masks = [
        zoom((labels == v).astype(np.float32), factor, order=1, mode="nearest", grid_mode=True)
        for v in range(3)
    ]
    return normalised(small), np.argmax(masks, 0)


def prepare_simpleitk(image, labels, spacing, shape):
    import SimpleITK as sitk

    def resampled(array, how):
        volume = sitk.GetImageFromArray(array)
        volume.SetSpacing([float(s) for s in spacing[::-1]])
        new = [s * n / m for s, n, m in zip(spacing, array.shape, shape)]
        origin = [(b - a) / 2 for a, b in zip(spacing, new)]
        return sitk.GetArrayFromImage(
            sitk.Resample(
                volume,
                [int(n) for n in shape[::-1]],
                sitk.Transform(),
                how,
                origin[::-1],
                new[::-1],
                volume.GetDirection(),
            )
        )

    masks = [resampled((labels == value).astype(np.float32), sitk.sitkLinear) for value in range(3)]
    return normalised(resampled(image.astype(np.float32), sitk.sitkBSpline)), np.argmax(masks, 0)


def memory_gib(what):
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)
    )
    return int(line.split()[1]) / 2**20


def measure_prepare(tool, case):
    from minikits.preprocessing import resampled_shape

    image, labels, spacing = case_arrays(case)
    shape = resampled_shape(image.shape, spacing, PAPER)
    corner = (
        slice(0, 16),
        slice(0, 64),
        slice(0, 64),
    )  # once in small first: imports and the like are no case's cost
    globals()[f"prepare_{tool}"](image[corner], labels[corner], spacing, (20, 30, 30))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (Linux)
    before = memory_gib("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    globals()[f"prepare_{tool}"](image, labels, spacing, shape)
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak_gib": memory_gib("VmHWM") - before,
    }


def a_case():
    """Noise (float16) and the real labels (uint8) of case 00200 on the resampled grid, and a voxel of its kidneys."""
    from minikits.nifti import read_labels
    from minikits.preprocessing import prepare_labels

    labels = torch.from_numpy(
        prepare_labels(read_labels(KITS19 / "case_00200" / "segmentation.nii.gz"), PAPER)
    )
    found = labels.nonzero()
    return torch.randn(labels.shape).half(), labels, found[len(found) // 2].tolist()


def a_patch(size):
    """The same, cut to `size` around that voxel: float32 (1, Z, Y, X) and uint8."""
    from minikits.geometry import cut

    image, labels, voxel = a_case()
    start = [v - s // 2 for v, s in zip(voxel, size)]
    return cut(image, start, size)[None].float(), cut(labels, start, size)[None]


def augment_minikits(patch):
    """From a whole case in memory; the others get a patch cut large enough for their rotation beforehand."""
    from minikits.augmentation import augment, generator_for

    image, labels, voxel = a_case()
    start = [v - p // 2 for v, p in zip(voxel, patch)]
    where = {"start": start, "patch": patch, "values": range(len(CLASSES))}
    return lambda number: augment(image, labels, PAPER, generator_for(0, number), **where)


def nnunet_transforms(patch, left_out=()):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    limit = 30 / 360 * 2 * np.pi
    composed = nnUNetTrainer.get_training_transforms(patch, (-limit, limit), None, (0, 1, 2), False)
    composed.transforms = [
        t for t in composed.transforms if type(getattr(t, "transform", t)).__name__ not in left_out
    ]
    return composed


def augment_nnunet(patch, left_out=()):
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size

    limit = 30 / 360 * 2 * np.pi
    size = [
        int(n)
        for n in get_patch_size(
            patch, (-limit, limit), (-limit, limit), (-limit, limit), (0.85, 1.25)
        )
    ]
    (image, labels), transforms = a_patch(size), nnunet_transforms(patch, left_out)
    return lambda number: transforms(image=image.clone(), segmentation=labels.to(torch.int16))


def augment_nnunet_alike(patch):
    return augment_nnunet(patch, ("GaussianBlurTransform", "SimulateLowResolutionTransform"))


def augment_monai(patch):
    from monai import transforms as M

    keys, limit = ["image", "label"], 30 / 360 * 2 * np.pi
    chain = M.Compose(
        [
            M.RandAffined(
                keys,
                prob=0.36,
                rotate_range=(limit,) * 3,
                scale_range=((-0.3, 0.4),) * 3,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
                spatial_size=patch,
                cache_grid=True,
            ),
            M.RandGaussianNoised(["image"], prob=0.1, std=0.1),
            M.RandScaleIntensityd(["image"], factors=0.25, prob=0.15),
            M.RandAdjustContrastd(["image"], prob=0.15, gamma=(0.75, 1.25)),
            M.RandAdjustContrastd(
                ["image"], prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True
            ),
            M.RandAdjustContrastd(["image"], prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            *[M.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)],
        ]
    )
    image, labels = a_patch(patch)
    data = {"image": image, "label": labels.float()}
    return lambda number: chain({key: value.clone() for key, value in data.items()})


def augment_torchio(patch):
    import torchio as T

    chain = T.Compose(
        [
            T.RandomAffine(scales=(0.7, 1.4), degrees=30, isotropic=True, p=0.36),
            T.RandomNoise(std=(0, 0.1), p=0.1),
            T.RandomGamma(log_gamma=(-0.35, 0.4), p=0.4),
            *[T.RandomFlip(axes=axis) for axis in range(3)],
        ]
    )
    image, labels = a_patch(patch)
    subject = T.Subject(image=T.ScalarImage(tensor=image), label=T.LabelMap(tensor=labels))
    return lambda number: chain(subject)


def measure_augment(tool, count):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    one = globals()[f"augment_{tool}"](PAPER.patch)
    for number in range(3):
        one(number)
    began = time.perf_counter()
    for number in range(int(count)):
        one(number)
    return {"patches_per_s": int(count) / (time.perf_counter() - began)}


def step_minikits(arch):
    from minikits.losses import segmentation_loss
    from minikits.unet import build_unet

    network = build_unet(arch, PAPER).train()

    def step(image, target):
        segmentation_loss(network(image), target).backward()

    return step


def step_nnunet(arch):
    """Its plain or residual network with these features, its loss, and memory as it has it."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    norm = {
        "norm_op": torch.nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "conv_bias": True,
        "nonlin": torch.nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": True,
    }
    kind, blocks, depth = (
        (PlainConvUNet, "n_conv_per_stage", 2)
        if arch == "plain"
        else (ResidualEncoderUNet, "n_blocks_per_stage", PAPER.residual_blocks)
    )
    network = kind(
        1,
        6,
        PAPER.features(arch),
        torch.nn.Conv3d,
        3,
        PAPER.strides,
        **{blocks: depth},
        num_classes=3,
        n_conv_per_stage_decoder=2 if arch == "plain" else 1,
        **norm,
    ).train()
    weights = np.array([1 / 2**i for i in range(5)])
    weights[-1] = 0
    loss = DeepSupervisionWrapper(
        DC_and_CE_loss(
            {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False},
            {},
            weight_ce=1,
            weight_dice=1,
            dice_class=MemoryEfficientSoftDiceLoss,
        ),
        weights / weights.sum(),
    )
    shrink = np.cumprod(np.array(PAPER.strides), 0)[:5]

    def step(image, target):
        targets = [target[:, None, :: int(a), :: int(b), :: int(c)].float() for a, b, c in shrink]
        loss(network(image), targets).backward()

    return step


def measure_step(tool, arch):
    """The second step of a process. tool: a name and how it runs where that is not as the tool does by itself on this
    CPU: a number format, "kept" (glibc keeps what is freed, as for train.py)."""
    name, *options = tool.split()
    if name == "minikits" or "kept" in options:
        claim_memory(torch.device("cpu"))
    precision = next(
        (option for option in options if option != "kept"), "auto" if name == "minikits" else "fp32"
    )
    dtype = pick_precision(precision, torch.device("cpu"))
    torch.manual_seed(0)
    image, target = torch.randn(1, 1, *PAPER.patch), torch.randint(0, 3, (1, *PAPER.patch))
    step = globals()[f"step_{name}"](arch)
    for _ in range(2):
        began = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            step(image, target)
    return {
        "seconds": time.perf_counter() - began,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def measured(*what):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "measure", *map(str, what)],
        capture_output=True,
        text=True,
        check=False,
    )
    return (
        json.loads(done.stdout.splitlines()[-1])
        if done.returncode == 0
        else {"failed": done.stderr[-300:]}
    )


def compare(title, tools, repeats, *what):
    """A table: the medians of each figure, the tools in turn, and the ratio to ours."""
    found = {tool: [] for tool in tools}
    for _ in range(repeats):
        for tool in tools:
            found[tool].append(measured(what[0], tool, *what[1:]))
    figures = [name for name in found["minikits"][0] if name != "failed"]
    print(
        f"\n{title}, median of {repeats}\n\n| tool | {' | '.join(figures)} | "
        f"{' | '.join(f'{f}, of ours' for f in figures)} |\n"
        f"|{'---|' * (1 + 2 * len(figures))}"
    )
    ours = {name: statistics.median(run[name] for run in found["minikits"]) for name in figures}
    for tool, runs in found.items():
        if any("failed" in run for run in runs):
            print(f"| {tool} | failed: {runs[0].get('failed', '')[-120:]!r} |", flush=True)
            continue
        values = [statistics.median(run[name] for run in runs) for name in figures]
        print(
            f"| {tool} | {' | '.join(f'{v:.3g}' for v in values)} | "
            f"{' | '.join(f'{v / ours[name]:.2f}' for name, v in zip(figures, values))} |",
            flush=True,
        )


def main():
    if "--help" in sys.argv[1:] or "-h" in sys.argv[1:]:
        print(__doc__)
        return
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(globals()[f"measure_{sys.argv[2]}"](*sys.argv[3:])))
        return
    packages = (
        "nnunetv2",
        "batchgeneratorsv2",
        "monai",
        "torchio",
        "SimpleITK",
        "scipy",
        "torch",
        "numpy",
    )
    print(
        f"{', '.join(f'{name} {version(name)}' for name in packages)}; {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"
    )
    stages = sys.argv[1:] or ["augment", "prepare", "step"]
    if "augment" in stages:
        compare(
            "Augmentation on one core, 80x160x160",
            ["minikits", "nnunet", "nnunet_alike", "monai", "torchio"],
            3,
            "augment",
            40,
        )
    if "prepare" in stages:
        for case, what in CASES.items():
            if not set(stages).isdisjoint(CASES) and case not in stages:
                continue
            tools = ["minikits", "nnunet", "nnunet_torch", "scipy", "simpleitk"]
            compare(f"Preparing {case} ({what}), image and labels", tools, 3, "prepare", case)
    if "step" in stages:
        for arch in ("plain", "residual"):
            compare(
                f"Forward and backward of one patch 80x160x160, {arch}, CPU",
                ["minikits", "nnunet", "minikits fp32", "nnunet bf16 kept"],
                3,
                "step",
                arch,
            )


if __name__ == "__main__":
    main()
