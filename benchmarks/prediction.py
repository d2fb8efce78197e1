"""Predicting and evaluating beside nnU-Net v2, MONAI and the challenge's evaluator.

    python benchmarks/prediction.py [export] [whole [case_00200 ...]] [network] [evaluate] [--out FILE.md]

Each figure is taken in a process of its own (so that its peak memory is its own), the tools in turn, several times; the
median counts. Needs the packages of benchmarks/bench.txt and the KiTS19 labels (see parity.py); scans are phantoms
around these. Export and whole are done once in small first: imports and the like are no case's cost. added_gib: the
peak (VmHWM) above what the process held before; process_gib: its whole peak, with its libraries and inputs.
"""

import argparse
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from training import KITS19, ROOT, memory_gib

from minikits.checkpoints import load_checkpoint, load_network, save_checkpoint
from minikits.devices import claim_memory, pick_precision
from minikits.evaluation import kits_dice
from minikits.files import write_text
from minikits.nifti import read_labels, read_volume, write_image, write_labels
from minikits.paper import CLASSES, PAPER
from minikits.phantoms import make_case
from minikits.prediction import predict_probabilities
from minikits.preprocessing import labels_on_native_grid, prepare_image
from minikits.resampling import resample
from minikits.unet import build_unet
from minikits.volumes import Volume

STAGES = ("export", "whole", "network", "evaluate")
CASES = {
    "case_00200": "103 slices of 4 mm, the median shape",
    "case_00151": "1059 slices of 0.5 mm",
}
COARSE, NATIVE = (128, 248, 248), (602, 512, 512)  # of export
NATIVE_SPACING = tuple(mm * n / m for mm, n, m in zip(PAPER.spacing_mm, COARSE, NATIVE))
SMALL = replace(
    PAPER, plain_features=4, max_features=4, stage_strides=((1, 1, 1), (2, 2, 2))
)  # all else shows
LINES = []


def say(*lines):
    LINES.extend(lines)
    print(*lines, sep="\n", flush=True)


def measure(work, *arguments):
    """(What work gives, {the seconds and the peak memory that it took})."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (Linux)
    before, wall, cpu = memory_gib("VmRSS"), time.perf_counter(), time.process_time()
    result = work(*arguments)
    return result, {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "added_gib": memory_gib("VmHWM") - before,
        "process_gib": memory_gib("VmHWM"),
    }


class Clock(torch.nn.Module):
    """A network that notes the seconds spent in it, and the windows. softmax: it ends in one, as nnU-Net v1's."""

    def __init__(self, network, softmax=False):
        super().__init__()
        self.network, self.softmax, self.seconds, self.windows = network, softmax, 0.0, 0

    def forward(self, x):
        began = time.perf_counter()
        out = self.network(x)
        self.seconds, self.windows = (
            self.seconds + time.perf_counter() - began,
            self.windows + len(x),
        )
        return out.softmax(1) if self.softmax else out


def nnunet_network(network, recipe):
    """nnU-Net v2's PlainConvUNet with the weights of our plain network; biases that ours has not are 0."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    theirs = PlainConvUNet(
        1,
        len(recipe.strides),
        recipe.features("plain"),
        torch.nn.Conv3d,
        3,
        recipe.strides,
        2,
        len(CLASSES),
        2,
        True,
        torch.nn.InstanceNorm3d,
        {"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    for their, our, biases in (
        ("encoder", "encoder", True),
        ("decoder.stages", "decoder", True),
        ("decoder.transpconvs", "upsampling", False),
        ("decoder.seg_layers", "heads", False),
    ):
        ours = [value for name, value in network.named_parameters() if name.startswith(f"{our}.")]
        for name, parameter in theirs.named_parameters():
            if name.startswith(f"{their}."):
                parameter.data.copy_(
                    ours.pop(0) if biases or not name.endswith(".bias") else torch.zeros(())
                )
        assert not ours
    return theirs.eval()


def nnunet_plans(recipe, tool):
    """(PlansManager, dataset.json): the recipe's spacing, patch and intensities; KiTS19's axes as ours, Z Y X."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resampling, linear = {}, tool == "nnunet_torch"
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        options = {"num_threads": os.cpu_count()} if linear else {"order": order, "order_z": 0}
        resampling[f"resampling_fn_{what}"] = (
            "resample_torch_fornnunet" if linear else "resample_data_or_seg_to_shape"
        )
        resampling[f"resampling_fn_{what}_kwargs"] = {
            "is_seg": what == "seg",
            "force_separate_z": None,
            **options,
        }
    plans = {
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": [2, 1, 0],
        "transpose_backward": [2, 1, 0],
        "foreground_intensity_properties_per_channel": {
            "0": {
                "mean": recipe.mean_hu,
                "std": recipe.sd_hu,
                "percentile_00_5": recipe.window_hu[0],
                "percentile_99_5": recipe.window_hu[1],
            }
        },
        "configurations": {
            "3d": {
                "preprocessor_name": "DefaultPreprocessor",
                "architecture": {},
                "patch_size": list(recipe.patch),
                "spacing": list(recipe.spacing_mm),
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                **resampling,
            }
        },
    }
    return PlansManager(plans), {
        "channel_names": {"0": "CT"},
        "file_ending": ".nii.gz",
        "labels": {name: value for value, name in enumerate(CLASSES)},
    }


def nnunet_predictor(tool, network, recipe):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    plans, dataset = nnunet_plans(recipe, tool)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        network,
        plans,
        plans.get_configuration("3d"),
        [network.state_dict()],
        dataset,
        "nnUNetTrainer",
        None,
    )
    return predictor


def export(tool, probabilities, shape, out):
    affine = -np.diag([*NATIVE_SPACING, -1.0])[[2, 1, 0, 3]]
    scan = np.zeros(shape, dtype=np.int16, order="F")  # as a file is read
    volume = Volume(None, scan, NATIVE_SPACING, affine, nib.Nifti1Image(scan, affine).header)
    if tool == "minikits":
        return write_labels(f"{out}.nii.gz", labels_on_native_grid(probabilities, volume), volume)
    from nnunetv2.inference.export_prediction import export_prediction_from_logits

    plans, dataset = nnunet_plans(PAPER, tool)
    properties = {
        "spacing": NATIVE_SPACING[::-1],
        "shape_before_cropping": shape,
        "shape_after_cropping_and_before_resampling": shape,
        "bbox_used_for_cropping": [[0, n] for n in shape],
        "sitk_stuff": {
            "spacing": NATIVE_SPACING,
            "origin": (0, 0, 0),
            "direction": np.eye(3).ravel().tolist(),
        },
    }
    export_prediction_from_logits(
        probabilities, properties, plans.get_configuration("3d"), plans, dataset, str(out)
    )


def measure_export(tool, probabilities, out):
    probabilities = np.load(probabilities)
    export(tool, probabilities[:, :16, :32, :32], (40, 64, 64), f"{out}_little")
    return measure(export, tool, probabilities, NATIVE, out)[1]


def measure_whole(tool, checkpoint, scan, little, out):
    """NIfTI to NIfTI. rest: without the network's forward passes. The last figures, of ours: its stages."""
    content, stages = load_checkpoint(checkpoint), {}
    recipe = content["recipe"]
    network = load_network(content, checkpoint).eval()
    if tool == "minikits":
        clock = Clock(network)

        def predict(scan, out):
            began = time.perf_counter()
            volume = read_volume(scan)
            read = time.perf_counter()
            image = prepare_image(volume, recipe)
            prepared = time.perf_counter()
            probabilities = predict_probabilities([clock], image, recipe, False)
            seen = time.perf_counter()
            labels = labels_on_native_grid(probabilities, volume)
            back = time.perf_counter()
            write_labels(out, labels, volume)
            stages.update(
                read=read - began,
                prepare=prepared - read,
                windows=seen - prepared - clock.seconds,
                back=back - seen,
                write=time.perf_counter() - back,
            )
    else:
        clock = Clock(nnunet_network(network, recipe), softmax=tool == "nnunet_softmax")
        predictor = nnunet_predictor(tool, clock, recipe)

        def predict(scan, out):
            predictor.predict_from_files_sequential([[scan]], [out.removesuffix(".nii.gz")])

    predict(little, f"{out}_little.nii.gz")
    clock.seconds = clock.windows = 0
    _, figures = measure(predict, scan, f"{out}.nii.gz")
    return {
        **figures,
        "network": clock.seconds,
        "rest": figures["seconds"] - clock.seconds,
        **stages,
    }


def measure_script(script, *arguments):
    """A script of ours as a user runs it, from its first import of minikits to its end."""

    def run():
        with suppress(SystemExit):
            runpy.run_path(script, run_name="__main__")

    sys.argv = [script, *arguments]
    return measure(run)[1]


def measure_network(tool, out):
    """Two windows of the paper's plain network; the class of the largest mean probability goes into `out`.

    tool: a name, and a number format where it is not the one that predict.py takes by itself on this CPU."""
    tool, _, precision = tool.partition(" ")
    precision = pick_precision(precision or "auto", torch.device("cpu"))
    torch.manual_seed(0)
    network, image = build_unet("plain", PAPER).eval(), torch.randn(80, 160, 240)
    if tool == "minikits":
        clock = Clock(network)
        work = partial(predict_probabilities, [clock], image, PAPER, False, precision=precision)
    elif tool == "nnunet":
        clock = Clock(nnunet_network(network, PAPER), softmax=True)
        work = partial(
            nnunet_predictor(tool, clock, PAPER).predict_logits_from_preprocessed_data, image[None]
        )
    else:
        from monai.inferers import SlidingWindowInferer

        clock = Clock(nnunet_network(network, PAPER), softmax=True)
        work = partial(
            SlidingWindowInferer(PAPER.patch, 1, 0.5, "gaussian", 1 / 8), image[None, None], clock
        )
    probabilities, figures = measure(torch.inference_mode()(work))
    np.save(out, probabilities.squeeze(0).argmax(0).numpy().astype(np.uint8))
    return {
        "seconds_a_window": figures["seconds"] / clock.windows,
        "in_network": clock.seconds / clock.windows,
        **figures,
    }


def kits19_dice(prediction, reference):
    """The challenge's evaluator, by its description: boolean volumes of the kidney with its tumor, and of the tumor."""
    scores = []
    for above in (0, 1):
        ours, theirs = np.greater(prediction, above), np.greater(reference, above)
        scores.append(2 * np.logical_and(ours, theirs).sum() / (ours.sum() + theirs.sum()))
    return scores


def measure_evaluate(tool, masks, references):
    """Masks against references, files to scores; then counting again, alone, of arrays that are in memory."""
    counting, masks, references = 0.0, Path(masks), Path(references)
    pairs = [
        (path, references / path.name.split(".")[0] / "segmentation.nii.gz")
        for path in sorted(masks.iterdir())
    ]
    if tool == "minikits":
        sys.path.insert(0, str(ROOT))
        from evaluate import evaluate
        from minikits.reading import Reading

        scoring = partial(evaluate, masks, references, Reading(), allow_missing=True)
        (cases, _), figures = measure(scoring)
        scores = [(one.dice.kidney, one.dice.tumor) for one in cases.values()]
    else:
        scores, figures = measure(lambda: [kits19_dice(*map(voxels, pair)) for pair in pairs])
    for arrays in (list(map(voxels, pair)) for pair in pairs):
        began = time.perf_counter()
        (kits_dice if tool == "minikits" else kits19_dice)(*arrays)
        counting += time.perf_counter() - began
    return {**figures, "counting": counting, "mean_dice": float(np.nanmean(scores))}


def voxels(path):
    return np.asanyarray(nib.load(path).dataobj)


def make_scan(case, arguments, path):
    """A phantom around real labels; all but kidneys is darkened, so that a very small network finds them."""
    reference = read_labels(arguments.kits19 / case / "segmentation.nii.gz")
    image, labels, spacing = make_case(
        [0], labels=reference.voxels, spacing_mm=reference.spacing_mm
    )
    for hu, values in zip(image, labels):
        np.minimum(hu, -20, out=hu, where=values == 0)
    write_image(path, image, spacing)


def write_model(path, recipe):
    """A checkpoint of a plain network, at random; of SMALL, one that takes means, and two thresholds of them."""
    torch.manual_seed(0)
    network = build_unet("plain", recipe)
    if recipe is SMALL:
        for parameter in (value for value in network.parameters() if value.ndim == 5):
            parameter.data.fill_(1 / parameter[0].numel())
        kidney, tumor = 3.5, 6  # standard deviations above a window's mean
        last = network.decoder[-1][-1][1]
        last.weight.data.copy_(torch.tensor([-2, 2, 2, -2]))
        last.bias.data.copy_(2 * torch.tensor([kidney, -kidney, -tumor, tumor]))
        classes = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, -1]])
        network.heads[-1].weight.data.copy_(classes.reshape(3, 4, 1, 1, 1))
    save_checkpoint(
        path / "fold0" / "checkpoint.pt",
        arch="plain",
        recipe=asdict(recipe),
        fold="0",
        seed=0,
        cases={"train": [], "validation": []},
        epoch=recipe.epochs,
        network=network.state_dict(),
        optimizer={},
        log=[],
    )


def measured(*what):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "measure", *map(str, what)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "nnUNet_def_n_proc": str(os.cpu_count())},
    )
    return (
        json.loads(done.stdout.splitlines()[-1])
        if done.returncode == 0
        else {"failed": done.stderr[-300:]}
    )


def compare(title, tools, repeats, what, *arguments):
    """A table of the medians, the tools in turn, in brackets the ratio to ours. arguments: {} becomes the tool."""
    found = {tool: [] for tool in tools}
    for _ in range(repeats):
        for tool in tools:
            found[tool].append(
                measured(what, tool, *(str(argument).format(tool) for argument in arguments))
            )
    done = {tool: runs for tool, runs in found.items() if not any("failed" in run for run in runs)}
    medians = {
        tool: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for tool, runs in done.items()
    }
    ours = medians["minikits"]
    shared = [name for name in ours if all(name in values for values in medians.values())]
    say(
        "",
        f"{title}: {f'median of {repeats}' if repeats > 1 else 'once'}, in brackets of ours",
        "",
        f"| tool | {' | '.join(shared)} |",
        f"|{'---|' * (1 + len(shared))}",
    )
    for tool in tools:
        cells = (
            [
                f"{medians[tool][name]:.3g} ({medians[tool][name] / ours[name]:.2f})"
                for name in shared
            ]
            if (tool in done)
            else [f"failed: {found[tool][0].get('failed')!r}"]
        )
        say(f"| {tool} | {' | '.join(cells)} |")
    if only := [name for name in ours if name not in shared]:
        say(
            "",
            "Seconds of ours by stage: " + ", ".join(f"{name} {ours[name]:.3g}" for name in only),
        )


def say_differences(tools, masks, read):
    ours, *others = (read(str(masks).format(tool)) for tool in tools)
    for tool, theirs in zip(tools[1:], others):
        dice = " and ".join(f"{dice:.5f}" for dice in kits_dice(ours, theirs))
        say(
            "",
            f"minikits and {tool}: {np.count_nonzero(ours != theirs):,} of {ours.size:,} voxels differ, where "
            f"{np.count_nonzero(ours):,} are not background; Dice of kidney and tumor {dice}",
        )


def run_export(folder, arguments):
    """The labels of a case on the resampled grid and smooth noise make the probabilities."""
    labels = read_labels(arguments.kits19 / "case_00000" / "segmentation.nii.gz").voxels[
        : NATIVE[0]
    ]
    noise = torch.randn(1, 3, *(n // 4 for n in COARSE), generator=torch.Generator().manual_seed(0))
    noise = torch.nn.functional.interpolate(noise, COARSE, mode="trilinear")[0]
    masks = torch.stack(
        [torch.from_numpy(resample(labels == value, COARSE, 1)) for value in range(3)]
    )
    np.save(folder / "probabilities.npy", (6 * masks + noise).softmax(0).numpy())
    tools = ["minikits", "nnunet", "nnunet_torch"]
    compare(
        "Probabilities 3x128x248x248 to a mask 602x512x512 on disk",
        tools,
        arguments.repeats,
        "export",
        folder / "probabilities.npy",
        folder / "export_{}",
    )
    say_differences(tools, folder / "export_{}.nii.gz", voxels)


def run_whole(folder, arguments):
    image, _, spacing = make_case(0, shape=(20, 60, 60), spacing_mm=(5.0, 4.0, 4.0))
    write_image(folder / "little.nii.gz", image, spacing)
    write_model(folder / "small", SMALL)
    write_model(folder / "paper", PAPER)
    for case in arguments.cases:
        scan, large = folder / f"{case}.nii.gz", case == "case_00151"
        make_scan(case, arguments, scan)
        tools = ["minikits", "nnunet", "nnunet_softmax", *([] if large else ["nnunet_torch"])]
        compare(
            f"All but the network, {case} ({CASES.get(case, '')})",
            tools,
            1 if large else arguments.repeats,
            "whole",
            folder / "small" / "fold0" / "checkpoint.pt",
            scan,
            folder / "little.nii.gz",
            folder / f"{case}_{{}}",
        )
        say_differences(tools, folder / f"{case}_{{}}.nii.gz", voxels)
        for model in ("small", "paper") if large else ("small",):
            found = measured(
                "script",
                ROOT / "predict.py",
                "--in",
                scan,
                "--out",
                folder / f"by_{model}",
                "--model",
                folder / model,
                "--no-mirroring",
                "--device",
                "cpu",
            )
            say(
                "",
                f"predict.py, {case}, the {model} plain network, without mirroring, once: "
                + ", ".join(
                    f"{name} {value if name == 'failed' else f'{value:.3g}'}"
                    for name, value in found.items()
                ),
            )


def run_network(folder, arguments):
    tools = ["minikits", "minikits fp32", "nnunet", "monai"]
    compare(
        "The paper's plain network on two windows",
        tools,
        arguments.repeats,
        "network",
        folder / "network_{}.npy",
    )
    say_differences(tools, folder / "network_{}.npy", np.load)


def run_evaluate(folder, arguments):
    for path in sorted(arguments.kits19.glob("case_*/segmentation.nii.gz"))[: arguments.pairs]:
        reference = read_labels(path)
        write_labels(
            folder / "masks" / f"{path.parent.name}.nii.gz",
            np.roll(reference.voxels, 1, 1),
            reference,
        )
    compare(
        f"Evaluating {arguments.pairs} cases",
        ["minikits", "kits19"],
        arguments.repeats,
        "evaluate",
        folder / "masks",
        arguments.kits19,
    )


def main():
    if sys.argv[1:2] == ["measure"]:
        if sys.argv[2] != "evaluate" and sys.argv[3].startswith("minikits"):
            claim_memory(torch.device("cpu"))  # as predict.py does: glibc keeps what is freed
        print(json.dumps(globals()[f"measure_{sys.argv[2]}"](*sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "stages", nargs="*", help=f"of {', '.join(STAGES)} (default: all), and cases of whole"
    )
    parser.add_argument(
        "--kits19", type=Path, default=KITS19, help="folder of case_00000/segmentation.nii.gz ..."
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=26, help="of evaluate")
    parser.add_argument("--out", type=Path, help="write the tables here, as markdown")
    arguments = parser.parse_args()
    arguments.cases = [name for name in arguments.stages if name not in STAGES] or list(CASES)
    packages = (
        "nnunetv2",
        "monai",
        "SimpleITK",
        "scikit-image",
        "scipy",
        "torch",
        "numpy",
        "nibabel",
    )
    say(
        f"{', '.join(f'{name} {version(name)}' for name in packages)}; {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for stage in [name for name in STAGES if name in arguments.stages] or STAGES:
            globals()[f"run_{stage}"](Path(folder), arguments)
    if arguments.out:
        write_text(arguments.out, "\n".join(LINES) + "\n")


if __name__ == "__main__":
    main()
