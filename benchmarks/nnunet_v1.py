"""nnU-Net v1 (PyPI nnunet) and batchgenerators, called as they are, on arrays and networks of ours.

Adapters only: nothing of theirs is copied. Used by parity.py and golden.py, in the environment of `make parity`.
"""

import collections
import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nibabel as nib
import numpy as np
import torch
from torch import nn

from minikits.phantoms import make_case

for name in ("nnUNet_raw_data_base", "nnUNet_preprocessed", "RESULTS_FOLDER"):
    os.environ.setdefault(name, tempfile.gettempdir())


def quiet():
    return contextlib.redirect_stdout(io.StringIO())


with quiet():  # they print on import
    from batchgenerators.augmentations import (
        color_augmentations,
        noise_augmentations,
        spatial_transformations,
    )
    from batchgenerators.utilities.file_and_folder_operations import save_pickle
    from nnunet.inference.segmentation_export import save_segmentation_nifti_from_softmax
    from nnunet.network_architecture.generic_modular_preact_residual_UNet import FabiansPreActUNet
    from nnunet.network_architecture.generic_modular_residual_UNet import FabiansUNet
    from nnunet.network_architecture.generic_modular_UNet import get_default_network_config
    from nnunet.network_architecture.generic_UNet import Generic_UNet
    from nnunet.network_architecture.initialization import InitWeights_He
    from nnunet.network_architecture.neural_network import SegmentationNetwork
    from nnunet.preprocessing.preprocessing import (
        GenericPreprocessor,
        get_do_separate_z,
        get_lowres_axis,
        resample_data_or_seg,
    )
    from nnunet.training.data_augmentation.data_augmentation_moreDA import get_moreDA_augmentation
    from nnunet.training.data_augmentation.downsampling import downsample_seg_for_ds_transform2
    from nnunet.training.dataloading.dataset_loading import DataLoader3D
    from nnunet.training.learning_rate.poly_lr import poly_lr
    from nnunet.training.loss_functions.deep_supervision import MultipleOutputLoss2
    from nnunet.training.loss_functions.dice_loss import DC_and_CE_loss
    from nnunet.training.network_training.nnUNet_variants.architectural_variants.nnUNetTrainerV2_ResencUNet import (
        nnUNetTrainerV2_ResencUNet,
    )
    from nnunet.training.network_training.nnUNetTrainerV2 import nnUNetTrainerV2
    from nnunet.utilities.nd_softmax import softmax_helper

__all__ = ["DataLoader3D", "SegmentationNetwork", "poly_lr"]  # called as they are


def intensities(recipe):
    low, high = recipe.window_hu
    return {
        0: {
            "mean": recipe.mean_hu,
            "sd": recipe.sd_hu,
            "percentile_00_5": low,
            "percentile_99_5": high,
        }
    }


def preprocess(voxels, labels, spacing_mm, recipe):
    """(image, labels) of a whole case, (Z, Y, X), by their preprocessor for CT."""
    preprocessor = GenericPreprocessor({0: "CT"}, {0: False}, [0, 1, 2], intensities(recipe))
    with quiet():
        image, seg, _ = preprocessor.resample_and_normalize(
            voxels[None].astype(np.float32),
            np.array(recipe.spacing_mm),
            {"original_spacing": np.array(spacing_mm)},
            labels[None].astype(np.float32),
        )
    return image[0], seg[0]


def to_native_grid(probabilities, shape, spacing_mm):
    """Probabilities (K, Z, Y, X) on the native grid, as their export has them before its argmax."""
    axis = get_lowres_axis(np.array(spacing_mm))
    apart = get_do_separate_z(np.array(spacing_mm), 3) and len(axis) == 1
    with quiet():
        return resample_data_or_seg(probabilities, shape, False, axis, 1, apart, order_z=0)


def network(arch, recipe):
    strides = [list(stride) for stride in recipe.strides]
    kernels, first = [[3, 3, 3]] * len(strides), recipe.features(arch)[0]
    if arch == "plain":
        return Generic_UNet(
            1,
            first,
            3,
            len(strides) - 1,
            2,
            2,
            nn.Conv3d,
            nn.InstanceNorm3d,
            {"eps": 1e-5, "affine": True},
            nn.Dropout3d,
            {"p": 0, "inplace": True},
            nn.LeakyReLU,
            {"negative_slope": 1e-2, "inplace": True},
            True,
            False,
            lambda x: x,
            InitWeights_He(1e-2),
            strides[1:],
            kernels,
            False,
            True,
            True,
            recipe.max_features,
        )
    kind = FabiansUNet if arch == "residual" else FabiansPreActUNet
    return kind(
        1,
        first,
        list(recipe.residual_blocks[: len(strides)]),
        2,
        strides,
        kernels,
        get_default_network_config(3, 0, "ReLU", "in"),
        3,
        [1] * (len(strides) - 1),
        True,
        False,
        recipe.max_features,
        InitWeights_He(1e-2),
    )


def modules_in_order(net, x):
    """{kind of module: the modules with weights}, in the order in which they run."""
    seen, hooks = collections.defaultdict(list), []
    for module in net.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d, nn.InstanceNorm3d)):
            kind = (
                type(module).__name__,
                module.kernel_size if isinstance(module, nn.Conv3d) else None,
            )
            hooks.append(
                module.register_forward_hook(lambda m, *_, kind=kind: seen[kind].append(m))
            )
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return seen


def matched(ours, theirs, patch):
    """Pairs (module of ours, module of theirs) with the same random weights, norms and biases included; float64."""
    x = torch.randn(1, 1, *patch, dtype=torch.float64)
    mine, yours = modules_in_order(ours, x), modules_in_order(theirs, x)
    norms = mine[("InstanceNorm3d", None)]
    lazy = [m for skip in ours.skips for m in skip.modules() if isinstance(m, nn.InstanceNorm3d)][
        ::-1
    ]
    late = set(ours.decoder.modules())  # theirs runs the norms of all skips before the decoder
    mine[("InstanceNorm3d", None)] = (
        [m for m in norms if m not in late and m not in lazy]
        + lazy
        + [m for m in norms if m in late]
    )
    pairs = [pair for kind in yours for pair in zip(mine[kind], yours[kind], strict=True)]
    with torch.no_grad():
        for one, other in pairs:
            if isinstance(other, nn.InstanceNorm3d):
                other.weight.normal_(1, 0.2)
            if other.bias is not None:
                other.bias.normal_(0, 0.1)
            one.load_state_dict(other.state_dict())
    return pairs


def matched_fresh(ours, theirs):
    """Pairs of modules of two fresh networks, by kind and shape of weights; nothing is changed."""

    def kinds(net):
        found = collections.defaultdict(list)
        for module in net.modules():  # each once
            if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d, nn.InstanceNorm3d)):
                shape = tuple(module.weight.shape)
                found[(type(module).__name__, shape)].append(module)
        return found

    mine, yours = kinds(ours), kinds(theirs)
    assert {k: len(v) for k, v in mine.items()} == {k: len(v) for k, v in yours.items()}
    return [pair for kind in yours for pair in zip(mine[kind], yours[kind])]


def loss(heads):
    weights = np.array([0.5**i for i in range(heads)])
    weights[-1] = 0
    return MultipleOutputLoss2(
        DC_and_CE_loss({"batch_dice": False, "smooth": 1e-5, "do_bg": False}, {}),
        weights / weights.sum(),
    )


def trainer(net, recipe):
    """Their trainer's optimiser, learning rate and iteration around a network of theirs: train_epoch(number, batches),
    batches of (image, target); returns the mean loss. Momentum and clipping are written in their code."""
    pieces = SimpleNamespace(
        network=net,
        loss=loss(len(recipe.strides) - 1),
        initial_lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_num_epochs=recipe.epochs,
        fp16=False,
        print_to_log_file=lambda *_: None,
    )
    nnUNetTrainerV2.initialize_optimizer_and_scheduler(pieces)

    def train_epoch(number, batches):
        nnUNetTrainerV2.maybe_update_lr(pieces, number)
        generator = (
            {"data": image, "target": downsampled(target, recipe)} for image, target in batches
        )
        return np.mean([nnUNetTrainerV2.run_iteration(pieces, generator) for _ in batches])

    pieces.train_epoch = train_epoch
    return pieces


def downsampled(target, recipe):
    """The targets of all heads, finest first, as their loader makes them: (B, Z, Y, X) -> list of (B, 1, z, y, x)."""
    scales = [[1, 1, 1], *(1 / np.cumprod(np.vstack(recipe.strides[1:]), axis=0))[:-1].tolist()]
    return [
        torch.from_numpy(t).float()
        for t in downsample_seg_for_ds_transform2(target[:, None].numpy(), scales)
    ]


def transforms(patch):
    """Their training transforms, by name of class, as the trainer sets them up: what we leave out is in it too."""
    trainer = SimpleNamespace(
        net_num_pool_op_kernel_sizes=[[2, 2, 2]] * 2,
        threeD=True,
        do_dummy_2D_aug=False,
        patch_size=np.array(patch),
        use_mask_for_norm={0: False},
    )
    nnUNetTrainerV2.setup_DA_params(trainer)
    augmenter, _ = get_moreDA_augmentation(
        None, None, trainer.patch_size, trainer.data_aug_params, pin_memory=False
    )
    return [(type(transform).__name__, transform) for transform in augmenter.transform.transforms]


def seed(number):
    random.seed(number)  # batchgenerators draws the noise's sd from Python's generator


@contextlib.contextmanager
def drawing(value):
    """numpy's uniform gives `value` where it is one of the bounds: batchgenerators draws even what is given."""
    uniform = np.random.uniform
    np.random.uniform = lambda low=0.0, high=1.0, size=None: (
        value if value in (low, high) else uniform(low, high, size)
    )
    try:
        yield
    finally:
        np.random.uniform = uniform


def turn(image, labels, angles, scale, order):
    """(image, labels), (Z, Y, X), rotated by `angles` and scaled; `order` of the image's spline."""
    with drawing(scale if scale != 1 else None):
        turned, seg = spatial_transformations.augment_spatial(
            image[None, None],
            labels[None, None].astype(np.float32),
            image.shape,
            None,
            do_elastic_deform=False,
            do_rotation=any(angles),
            angle_x=(angles[0],) * 2,
            angle_y=(angles[1],) * 2,
            angle_z=(angles[2],) * 2,
            do_scale=scale != 1,
            scale=(scale, scale),
            border_mode_data="constant",
            border_cval_data=0,
            order_data=order,
            border_mode_seg="constant",
            border_cval_seg=0,
            order_seg=1,
            random_crop=False,
            p_el_per_sample=0,
            p_scale_per_sample=1,
            p_rot_per_sample=1,
        )
    return turned[0, 0], seg[0, 0]


def colour(name, image, factor):
    x = image[None].copy()
    with drawing(factor):
        if name == "contrast":
            return color_augmentations.augment_contrast(x, (factor, factor))[0]
        if name == "brightness":
            return color_augmentations.augment_brightness_multiplicative(x, (factor, factor))[0]
        inverted = name == "inverted gamma"
        return color_augmentations.augment_gamma(
            x, (factor, factor), invert_image=inverted, retain_stats=True
        )[0]


def noise(image, sd):
    np.random.seed(0)
    return noise_augmentations.augment_gaussian_noise(image[None].copy(), (sd, sd))[0]


def mirror(image, labels, axes):
    uniform, flips = np.random.uniform, iter([0.0 if axis in axes else 1.0 for axis in range(3)])
    np.random.uniform = lambda *_: next(flips)
    try:
        flipped, seg = spatial_transformations.augment_mirroring(
            image[None].copy(), labels[None].copy()
        )
    finally:
        np.random.uniform = uniform
    return flipped[0], seg[0]


class SlidingWindow(SegmentationNetwork):
    """Their prediction around one of our networks."""

    def __init__(self, net):
        super().__init__()
        self.net, self.conv_op, self.num_classes = net, nn.Conv3d, 3
        self.inference_apply_nonlin, self.input_shape_must_be_divisible_by = (
            softmax_helper,
            [1, 1, 1],
        )

    def forward(self, x):
        return self.net(x)

    def predict(self, image, recipe, mirroring=True):
        with quiet():
            return self.eval().predict_3D(
                image[None],
                mirroring,
                (0, 1, 2),
                True,
                0.5,
                recipe.patch,
                None,
                True,
                all_in_gpu=False,
                verbose=False,
                mixed_precision=False,
            )[1]


def folds(case_ids):
    """The validation cases of each fold, as their trainer splits."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for fold in range(5):
            trainer = SimpleNamespace(
                dataset={id: {} for id in case_ids},
                dataset_directory=folder,
                fold=fold,
                print_to_log_file=lambda *_: None,
            )
            nnUNetTrainerV2.do_split(trainer)
            found.append([str(id) for id in trainer.dataset_val])
    return found


class TrainedNetwork:
    """A network of theirs, trained by their trainer's step on whole files and saved by its own `save_checkpoint`."""

    def __init__(self, arch, recipe, folder):
        self.recipe, self.folder = recipe, Path(folder)
        base = nnUNetTrainerV2 if arch == "plain" else nnUNetTrainerV2_ResencUNet

        class Trainer(base):
            def initialize_network(self):
                self.network = network(arch, recipe)
                self.network.inference_apply_nonlin = softmax_helper

        strides = [list(stride) for stride in recipe.strides]
        stage = {
            "batch_size": 2,
            "num_pool_per_axis": [2, 2, 2],
            "patch_size": list(recipe.patch),
            "do_dummy_2D_data_aug": False,
            "current_spacing": np.array(recipe.spacing_mm),
            "pool_op_kernel_sizes": strides[1:] if arch == "plain" else strides,
            "conv_kernel_sizes": [[3, 3, 3]] * len(strides),
        }
        plans = {
            "plans_per_stage": {0: stage},
            "dataset_properties": {"intensityproperties": intensities(recipe)},
            "normalization_schemes": {0: "CT"},
            "base_num_features": recipe.features(arch)[0],
            "num_modalities": 1,
            "num_classes": 2,
            "all_classes": [1, 2],
            "use_mask_for_norm": {0: False},
            "keep_only_largest_region": None,
            "min_region_size_per_class": None,
            "data_identifier": "data",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "conv_per_stage": 2,
            "preprocessor_name": "GenericPreprocessor",
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        save_pickle(plans, str(self.folder / "plans.pkl"))
        with quiet():
            self.trainer = Trainer(
                str(self.folder / "plans.pkl"),
                0,
                str(self.folder),
                str(self.folder),
                False,
                0,
                False,
                True,
                False,
            )
            self.trainer.initialize(False)

    def train(self, scan, labels, steps, learning_rate):
        """`steps` of their iteration on patches around the foreground of one case; saves; returns the losses."""
        trainer, recipe = self.trainer, self.recipe
        preprocessor = GenericPreprocessor({0: "CT"}, {0: False}, [0, 1, 2], intensities(recipe))
        with quiet():
            data, seg, _ = preprocessor.preprocess_test_case(
                [str(scan)], np.array(recipe.spacing_mm), str(labels)
            )
        seg = np.maximum(seg, 0)
        chance, places = np.random.default_rng(0), np.argwhere(seg[0] > 0)

        def patches():
            while True:
                batch = []
                for _ in range(2):
                    centre = places[chance.integers(len(places))]
                    start = [
                        int(np.clip(c - p // 2, 0, n - p))
                        for c, p, n in zip(centre, recipe.patch, seg[0].shape)
                    ]
                    box = tuple(slice(s, s + p) for s, p in zip(start, recipe.patch))
                    batch.append((data[(slice(None), *box)], seg[(slice(None), *box)]))
                images, targets = (np.stack(arrays) for arrays in zip(*batch))
                yield {
                    "data": images,
                    "target": downsampled(torch.from_numpy(targets[:, 0]), recipe),
                }

        for group in trainer.optimizer.param_groups:
            group["lr"] = learning_rate
        generator = patches()
        losses = [float(trainer.run_iteration(generator)) for _ in range(steps)]
        trainer.all_tr_losses.append(np.mean(np.float32(losses)))
        trainer.all_val_eval_metrics.append(np.float64(0.5))
        with quiet():
            trainer.save_checkpoint(str(self.folder / "model_final_checkpoint.model"))
        return losses

    def predict(self, scan, out):
        """The mask of a scan, by their preprocessing, prediction and export."""
        with quiet():
            data, _, properties = self.trainer.preprocess_patient([str(scan)])
            softmax = self.trainer.predict_preprocessed_data_return_seg_and_softmax(
                data, do_mirroring=True, mirror_axes=(0, 1, 2), mixed_precision=False, verbose=False
            )[1]
            save_segmentation_nifti_from_softmax(
                softmax, str(out), properties, interpolation_order_z=0, verbose=False
            )
        return softmax


def write_nifti(path, voxels, spacing_mm, axes="ZYX"):
    """(Z, Y, X) voxels as a file that SimpleITK gives back in the order `axes`; towards inferior, posterior, left."""
    order = ["ZYX".index(axis) for axis in axes[::-1]]  # of the file: SimpleITK turns them round
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, axis in enumerate(order):
        affine[2 - axis, column] = -spacing_mm[axis]
    nib.save(nib.Nifti1Image(np.transpose(voxels, order), affine), path)


def easy_case(seed, shape, spacing_mm):
    """A phantom whose kidneys are much brighter and tumors darker, so that a few steps of training find something."""
    image, labels, _ = make_case(seed, shape=shape, spacing_mm=spacing_mm)
    return (image + 150 * (labels > 0) - 250 * (labels == 2)).astype(np.int16), labels, spacing_mm


def trained_and_predicted(arch, folder, cases, recipe, *, axes="ZYX", steps=150):
    """A network that their trainer trained on the first of some phantoms, and its masks of them all.

    cases: {name: (image, labels, spacing_mm)}; axes: how nnU-Net sees their files. Gives {"model", "geometry" (JSON),
    "scans" (folder), "masks": {name: file}, "losses"}.
    """
    turn = ["ZYX".index(axis) for axis in axes]
    own = dataclasses.replace(
        recipe,
        **{name: tuple(getattr(recipe, name)[a] for a in turn) for name in ("spacing_mm", "patch")},
        stage_strides=tuple(tuple(stride[a] for a in turn) for stride in recipe.strides),
    )
    torch.manual_seed(0)
    trained = TrainedNetwork(arch, own, folder / "nnunet")
    scans = folder / "scans"
    scans.mkdir(parents=True)
    for name, (image, labels, spacing) in cases.items():
        write_nifti(scans / f"{name}.nii.gz", image, spacing, axes)
        write_nifti(folder / f"{name}_labels.nii.gz", labels, spacing, axes)
    first = next(iter(cases))
    losses = trained.train(
        scans / f"{first}.nii.gz", folder / f"{first}_labels.nii.gz", steps, 0.01
    )
    masks = {name: folder / f"{name}_mask.nii.gz" for name in cases}
    for name, mask in masks.items():
        trained.predict(scans / f"{name}.nii.gz", mask)
    geometry = {
        name: getattr(own, name)
        for name in ("spacing_mm", "patch", "window_hu", "mean_hu", "sd_hu")
    }
    return {
        "model": folder / "nnunet" / "model_final_checkpoint.model",
        "scans": scans,
        "geometry": json.dumps(geometry | ({"axes": axes} if axes != "ZYX" else {})),
        "masks": masks,
        "losses": losses,
    }


def kits19_evaluator(folder):
    """The challenge's own `evaluate(case_id, predictions)`, from a checkout of neheller/kits19; takes two arrays."""
    held = {}
    utils = ModuleType("starter_code.utils")
    utils.load_segmentation = lambda case_id: SimpleNamespace(get_data=lambda: held["reference"])
    package = ModuleType("starter_code")
    package.__path__ = []
    sys.modules.update({"starter_code": package, "starter_code.utils": utils})
    spec = importlib.util.spec_from_file_location(
        "kits19_evaluation", Path(folder) / "starter_code" / "evaluation.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def evaluate(prediction, reference):
        held["reference"] = reference
        with np.errstate(invalid="ignore"):
            return module.evaluate(0, prediction)

    return evaluate
