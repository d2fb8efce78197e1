"""Each stage of minikits beside the code that the paper stands on, on the same inputs: `make parity`.

nnU-Net v1 (PyPI nnunet) and batchgenerators run as they are; nothing of theirs is copied. One table: stage, what was
compared, number of inputs, largest difference, tolerance, verdict. Exit status 1 if any verdict fails.
"""

import collections
import contextlib
import dataclasses
import io
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy.stats import chi2_contingency, ks_2samp
from torch import nn

with contextlib.redirect_stdout(io.StringIO()):  # they print on import
    from batchgenerators.augmentations import color_augmentations
    from batchgenerators.augmentations.spatial_transformations import augment_spatial
    from nnunet.network_architecture.generic_modular_preact_residual_UNet import FabiansPreActUNet
    from nnunet.network_architecture.generic_modular_residual_UNet import FabiansUNet
    from nnunet.network_architecture.generic_modular_UNet import get_default_network_config
    from nnunet.network_architecture.generic_UNet import Generic_UNet
    from nnunet.network_architecture.initialization import InitWeights_He
    from nnunet.network_architecture.neural_network import SegmentationNetwork
    from nnunet.preprocessing.preprocessing import get_do_separate_z, get_lowres_axis, resample_data_or_seg
    from nnunet.training.dataloading.dataset_loading import DataLoader3D
    from nnunet.training.learning_rate.poly_lr import poly_lr
    from nnunet.training.loss_functions.deep_supervision import MultipleOutputLoss2
    from nnunet.training.loss_functions.dice_loss import DC_and_CE_loss
    from nnunet.utilities.nd_softmax import softmax_helper

from minikits import augmentation as A
from minikits.cases import PreparedCase
from minikits.losses import downsampled, segmentation_loss
from minikits.paper import ARCHITECTURES, PAPER, head_weights
from minikits.phantoms import make_case
from minikits.prediction import importance_map, predict_probabilities, window_starts
from minikits.resampling import labels_on_native_grid, prepare_image, prepare_labels, resampled_shape
from minikits.sampling import draw_start, generator_for
from minikits.unet import build_unet
from minikits.volumes import Volume

ROWS = []


def row(stage, compared, inputs, difference, tolerance):
    verdict = "equal" if difference <= tolerance else "DIFFERS"
    ROWS.append(verdict)
    print(f"| {stage} | {compared} | {inputs} | {difference:.2g} | {tolerance:.2g} | {verdict} |", flush=True)


def preprocessing():
    image_apart, label_apart, back_apart, count = 0, 0, 0, 0
    for seed, shape, spacing in [(1, (60, 90, 100), (1.0, 1.9, 1.9)), (2, (40, 120, 150), (5.0, 1.5, 1.5)),
                                 (3, (24, 150, 130), (3.0, 0.9, 0.9)), (4, (130, 90, 80), (0.5, 2.4, 2.4)),
                                 (5, (30, 180, 190), (3.0, 1.9, 1.9))]:
        voxels, labels, _ = make_case(seed, shape=shape, spacing_mm=spacing)
        scan, reference = (Volume(Path("case"), array, spacing, None, None) for array in (voxels, labels))
        new = resampled_shape(shape, spacing, PAPER)
        apart = get_do_separate_z(np.array(spacing), 3)
        axis = get_lowres_axis(np.array(spacing))
        apart = apart and len(axis) == 1  # as their resample_patient decides it

        def theirs(array, size, is_seg, order, axis=axis, apart=apart):
            with contextlib.redirect_stdout(io.StringIO()):
                return resample_data_or_seg(array, size, is_seg, axis, order, apart, order_z=0)

        image = (np.clip(theirs(voxels[None].astype(float), new, False, 3)[0], -79, 304) - 101) / 76.9
        image_apart = max(image_apart, np.abs(image - prepare_image(scan, PAPER)).max())
        small = prepare_labels(reference, PAPER)
        label_apart += np.count_nonzero(theirs(labels[None].astype(float), new, True, 1)[0] != small)
        hot = torch.nn.functional.one_hot(torch.from_numpy(small).long(), 3).permute(3, 0, 1, 2).float()
        soft = torch.nn.functional.avg_pool3d(hot[None], 3, 1, 1, count_include_pad=False)[0]
        native = theirs(soft.numpy().astype(float), shape, False, 1)
        clear = np.sort(native, axis=0)[-1] - np.sort(native, axis=0)[-2] > 1e-6  # elsewhere two classes tie
        back_apart += np.count_nonzero((native.argmax(0) != labels_on_native_grid(soft, scan)) & clear)
        count += 1
    row("preprocessing", "normalised image, largest difference", count, image_apart, 1e-4)
    row("preprocessing", "labels, voxels that differ", count, label_apart, 0)
    row("export", "labels on the native grid, voxels that differ (ties left out)", count, back_apart, 0)


def their_network(arch, recipe):
    strides = [list(stride) for stride in recipe.strides]
    kernels, first = [[3, 3, 3]] * len(strides), recipe.features(arch)[0]
    if arch == "plain":
        return Generic_UNet(1, first, 3, len(strides) - 1, 2, 2, nn.Conv3d, nn.InstanceNorm3d,
                            {"eps": 1e-5, "affine": True}, nn.Dropout3d, {"p": 0, "inplace": True}, nn.LeakyReLU,
                            {"negative_slope": 1e-2, "inplace": True}, True, False, lambda x: x, InitWeights_He(1e-2),
                            strides[1:], kernels, False, True, True, recipe.max_features)
    kind = FabiansUNet if arch == "residual" else FabiansPreActUNet
    return kind(1, first, list(range(1, len(strides) + 1)), 2, strides, kernels,
                get_default_network_config(3, 0, "ReLU", "in"), 3, [1] * (len(strides) - 1), True, False,
                recipe.max_features, InitWeights_He(1e-2))


def in_order(network, x):
    """{kind of module: the modules with weights}, in the order in which they run."""
    seen, hooks = collections.defaultdict(list), []
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d, nn.InstanceNorm3d)):
            kind = (type(module).__name__, module.kernel_size if isinstance(module, nn.Conv3d) else None)
            hooks.append(module.register_forward_hook(lambda m, *_, kind=kind: seen[kind].append(m)))
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return seen


def matched(arch, recipe):
    """(ours, theirs, pairs of modules): both in float64, with the same random weights, norms and biases included."""
    ours, theirs = build_unet(arch, recipe).double(), their_network(arch, recipe).double().train()
    x = torch.randn(1, 1, *recipe.patch, dtype=torch.float64)
    mine, yours = in_order(ours, x), in_order(theirs, x)
    norms = mine[("InstanceNorm3d", None)]
    lazy = [m for skip in ours.skips for m in skip.modules() if isinstance(m, nn.InstanceNorm3d)][::-1]
    late = set(ours.decoder.modules())  # theirs runs the norms of all skips before the decoder
    mine[("InstanceNorm3d", None)] = ([m for m in norms if m not in late and m not in lazy] + lazy
                                      + [m for m in norms if m in late])
    pairs = [pair for kind in yours for pair in zip(mine[kind], yours[kind], strict=True)]
    with torch.no_grad():
        for one, other in pairs:
            if isinstance(other, nn.InstanceNorm3d):
                other.weight.normal_(1, 0.2)
            if other.bias is not None:
                other.bias.normal_(0, 0.1)
            one.load_state_dict(other.state_dict())
    return ours, theirs, pairs


def small(patch):
    return dataclasses.replace(PAPER, patch=patch, plain_features=6, residual_features=6, max_features=40)


def networks():
    for arch in ARCHITECTURES:
        output, gradient = 0, 0
        for patch in ((16, 32, 32), (32, 32, 32), (8, 64, 32)):
            torch.manual_seed(0)
            ours, theirs, pairs = matched(arch, small(patch))
            x = torch.randn(2, 1, *patch, dtype=torch.float64)
            heads = list(zip(ours(x), theirs(x), strict=True))
            output = max(output, *((a - b).abs().max().item() for a, b in heads))
            for side in (0, 1):
                sum(head[side].square().mean() for head in heads).backward()
            gradient = max(gradient, *((p.grad - q.grad).abs().max().item() / (1e-12 + q.grad.abs().max().item())
                                       for one, other in pairs for p, q in zip(one.parameters(), other.parameters())))
        row(f"{arch} network", "all heads, float64, three sets of strides", 3, output, 1e-10)
        row(f"{arch} network", "gradient of every weight, relative", 3, gradient, 1e-8)
        counts = [sum(p.numel() for p in n.parameters()) for n in (build_unet(arch, PAPER), their_network(arch, PAPER))]
        row(f"{arch} network", f"weights of the paper's size, {counts[0]:,}", 1, abs(counts[0] - counts[1]), 0)


def their_loss(heads):
    weights = np.array([0.5**i for i in range(heads)])
    weights[-1] = 0
    return MultipleOutputLoss2(DC_and_CE_loss({"batch_dice": False, "smooth": 1e-5, "do_bg": False}, {}),
                               weights / weights.sum())


def loss_and_steps():
    torch.manual_seed(1)
    value, gradient = 0, 0
    targets = [torch.randint(0, 3, (2, 8, 16, 16)), torch.zeros(2, 8, 16, 16).long(), torch.full((2, 8, 16, 16), 2)]
    for target in targets:
        shapes = ((8, 16, 16), (8, 8, 8), (4, 4, 4))
        ours = [torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
        theirs = [head.detach().clone().requires_grad_() for head in ours]
        mine = segmentation_loss(ours, target)
        yours = their_loss(3)(theirs, [downsampled(target, head.shape[2:])[:, None].float() for head in theirs])
        mine.backward()
        yours.backward()
        value = max(value, abs(mine.item() - yours.item()))
        assert ours[-1].grad is None and theirs[-1].grad is None  # the coarsest head weighs nothing
        gradient = max(gradient, *((a.grad - b.grad).abs().max().item() for a, b in zip(ours[:-1], theirs[:-1])))
    row("loss", "value; mixed, empty and all-tumor patches", len(targets), value, 1e-6)
    row("loss", "gradient", len(targets), gradient, 1e-8)

    recipe = small((16, 32, 32))
    ours, theirs, pairs = matched("residual", recipe)
    optimizers = [torch.optim.SGD(n.parameters(), PAPER.learning_rate, PAPER.momentum, nesterov=True,
                                  weight_decay=PAPER.weight_decay) for n in (ours, theirs)]
    for step in range(1, 11):
        x, target = torch.randn(2, 1, *recipe.patch, dtype=torch.float64), torch.randint(0, 3, (2, *recipe.patch))
        heads = theirs(x)
        losses = (segmentation_loss(ours(x), target),
                  their_loss(len(heads))(heads, [downsampled(target, h.shape[2:])[:, None].float() for h in heads]))
        for network, optimizer, loss in zip((ours, theirs), optimizers, losses):
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), PAPER.max_gradient_norm)
            optimizer.step()
        if step in (1, 10):
            apart = max((p - q).abs().max().item() for a, b in pairs for p, q in zip(a.parameters(), b.parameters()))
            row("training", f"weights after {step} steps, float64", step, apart, 1e-7)
    rates = [abs(PAPER.learning_rate_at(e) - poly_lr(e, 1000, 0.01, 0.9)) for e in range(1000)]
    row("training", "learning rate of every epoch", 1000, max(rates), 1e-12)
    heads = np.abs(np.array(head_weights(5)) - np.array([8, 4, 2, 1, 0]) / 15)
    row("training", "weights of the five heads", 1, heads.max(), 1e-12)


def sampler():
    """20,000 starts of two cases, half ours; uniform and forced. Here "difference" is -log10 of the p-value."""
    draws, patch = 10_000, (8, 12, 12)
    for name, shape in (("larger than the patch", (20, 18, 30)), ("smaller than the patch", (5, 9, 30))):
        labels = np.zeros(shape, dtype=np.uint8)
        labels[1:3, 2:9, 3:20], labels[3:5, 5:8, 20:28] = 1, 2
        foreground = tuple(np.flatnonzero(labels == value) for value in (1, 2))
        case = PreparedCase("case", None, torch.from_numpy(labels), foreground)
        index = np.stack(np.meshgrid(*[np.arange(1, n + 1) for n in shape], indexing="ij"))
        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/case.npy", np.concatenate([index, labels[None]]).astype(np.float32))
            where = {v: np.argwhere(labels == v) for v in (1, 2)}
            source = {"data_file": f"{folder}/case.npz", "properties": {"class_locations": where}}
            loader = DataLoader3D({"case": source}, patch, patch, 2, False, oversample_foreground_percent=0.33,
                                  pad_mode="constant", memmap_mode="r")  # as nnUNetTrainerV2 calls it
            np.random.seed(0)
            theirs = [[], []]
            for _ in range(draws):
                for kind, data in enumerate(loader.generate_train_batch()["data"]):
                    # voxels hold their own index: where the first one that is not padding lies tells the start
                    first = np.argwhere(data[0] > 0)[0]
                    theirs[kind].append([int(data[(axis, *first)]) - 1 - first[axis] for axis in range(3)])
        for kind, forced in enumerate((False, True)):
            ours = np.array([draw_start(case, patch, generator_for(0, i, forced), forced=forced) for i in range(draws)])
            yours = np.array(theirs[kind])
            worst = 0
            for axis in range(3):
                values = np.union1d(ours[:, axis], yours[:, axis])
                a, b = ([np.count_nonzero(x[:, axis] == v) for v in values] for x in (ours, yours))
                p = ks_2samp(ours[:, axis], yours[:, axis]).pvalue if forced else chi2_contingency([a, b]).pvalue
                worst = max(worst, -np.log10(max(p, 1e-300)))
            row("sampler", f"{'forced' if forced else 'uniform'} starts, case {name}: -log10 p, "
                f"{'Kolmogorov-Smirnov' if forced else 'chi-square'}", 2 * draws, worst, 5)


def augmentations():
    x = np.random.default_rng(0).normal(size=(30, 40, 36)).astype(np.float32)
    ours, uniform, apart = torch.from_numpy(x), np.random.uniform, 0
    draws = [((0.3, -0.2, 0.4), 1.0), ((0, 0, 0), 1.25), ((0.1, 0.2, -0.5), 0.8)]
    for angles, scale in draws:
        def drawn(low=0.0, high=1.0, size=None, scale=scale):  # theirs draws the scale even where it is given
            return scale if scale != 1 and scale in (low, high) else uniform(low, high, size)
        np.random.uniform = drawn
        try:
            turned, _ = augment_spatial(
                x[None, None], None, x.shape, None, do_elastic_deform=False, do_rotation=any(angles),
                angle_x=(angles[0],) * 2, angle_y=(angles[1],) * 2, angle_z=(angles[2],) * 2, do_scale=scale != 1,
                scale=(scale, scale), border_mode_data="constant", border_cval_data=0, order_data=1, random_crop=False,
                p_el_per_sample=0, p_scale_per_sample=1, p_rot_per_sample=1)
        finally:
            np.random.uniform = uniform
        mine, _ = A.change_geometry(ours, torch.zeros(x.shape, dtype=torch.uint8), angles, scale)
        inner = (slice(10, -10), slice(14, -14), slice(12, -12))
        apart = max(apart, np.abs(turned[0, 0] - mine.numpy())[inner].max())
    row("augmentation", "rotation and scaling, linear, away from the border", len(draws), apart, 1e-4)
    for name, theirs, mine in (
        ("gamma", lambda f: color_augmentations.augment_gamma(x[None].copy(), (f, f), retain_stats=True),
         lambda f: A.change_gamma(ours, f)),
        ("gamma of the inverted image",
         lambda f: color_augmentations.augment_gamma(x[None].copy(), (f, f), invert_image=True, retain_stats=True),
         lambda f: A.change_gamma(ours, f, inverted=True)),
        ("contrast", lambda f: color_augmentations.augment_contrast(x[None].copy(), (f, f)),
         lambda f: A.change_contrast(ours, f)),
        ("brightness", lambda f: color_augmentations.augment_brightness_multiplicative(x[None].copy(), (f, f)),
         lambda f: A.change_brightness(ours, f)),
    ):
        worst = 0
        for factor in (0.8, 1.3):
            np.random.uniform = lambda low=0.0, high=1.0, size=None, f=factor: f if f in (low, high) else uniform(
                low, high, size)
            try:
                worst = max(worst, np.abs(theirs(factor)[0] - mine(factor).numpy()).max())
            finally:
                np.random.uniform = uniform
        row("augmentation", name, 2, worst, 1e-5)


class TheirPrediction(SegmentationNetwork):
    """Their sliding window around one of our networks."""

    def __init__(self, network):
        super().__init__()
        self.network, self.conv_op, self.num_classes = network, nn.Conv3d, 3
        self.inference_apply_nonlin, self.input_shape_must_be_divisible_by = softmax_helper, [1, 1, 1]

    def forward(self, x):
        return self.network(x)


def prediction():
    sizes = [((128, 248, 248), (80, 160, 160)), ((93, 290, 291), (80, 160, 160)), ((81, 161, 170), (80, 160, 160))]
    wrong = sum(SegmentationNetwork._compute_steps_for_sliding_window(patch, size, 0.5)
                != [window_starts(n, p) for n, p in zip(size, patch)] for size, patch in sizes)
    row("prediction", "starts of the windows, sizes that differ", len(sizes), wrong, 0)
    theirs = SegmentationNetwork._get_gaussian(PAPER.patch, 1 / 8)
    row("prediction", "importance map", 1, np.abs(theirs - importance_map(PAPER.patch).numpy()).max(), 1e-6)
    torch.manual_seed(2)
    recipe, apart, shapes = small((16, 32, 32)), 0, [(10, 20, 31), (16, 32, 32), (23, 50, 70)]
    network = build_unet("residual", recipe).eval()
    for shape in shapes:
        image = np.random.default_rng(3).normal(size=shape).astype(np.float32)
        with contextlib.redirect_stdout(io.StringIO()):
            _, wanted = TheirPrediction(network).eval().predict_3D(
                image[None], True, (0, 1, 2), True, 0.5, recipe.patch, None, True, all_in_gpu=False, verbose=False,
                mixed_precision=False)
        apart = max(apart, np.abs(wanted - predict_probabilities([network], image, recipe).numpy()).max())
    row("prediction", "mirrored, weighted probabilities; volumes below, at and above the patch", 3, apart, 1e-5)


def main():
    print(f"nnunet {version('nnunet')}, batchgenerators {version('batchgenerators')}, torch {torch.__version__}, "
          f"numpy {np.__version__}\n\n| stage | compared | inputs | largest difference | tolerance | verdict |\n"
          "|---|---|---|---|---|---|", flush=True)
    for stage in (preprocessing, networks, loss_and_steps, sampler, augmentations, prediction):
        stage()
    sys.exit(1 if "DIFFERS" in ROWS else 0)


if __name__ == "__main__":
    main()
