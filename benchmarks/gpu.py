"""What a training step, a draw, an epoch and a window cost on a GPU, beside nnU-Net v2 where it is.

    python benchmarks/gpu.py                          # one GPU, under six minutes
    python benchmarks/gpu.py --only scan window       # the stages whose names hold one of these
    python benchmarks/gpu.py --device cpu --tiny      # whether it runs at all: the suite does this

What no run has measured yet comes first. A stage that fails, or for which no time is left, is named
at the end, and the next goes on: tables hold what was measured, and nothing else. They are printed
as they grow and stand in benchmarks/results/gpu.md, each run above those before it, of which no
line is changed.

Compiling takes a minute for each network and its peer, on one core for the most part: so first all
are compiled at once, in processes of their own. What comes of it stays on the disk, where torch
finds it when their turn has come to be measured, alone. nnU-Net v2 (nnunetv2,
dynamic_network_architectures) is imported where it is installed."""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what repeats asks for it

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from minikits.devices import check_bfloat16, exact_float32, repeat_to_the_bit
from minikits.fast import FixedBatch, faster
from minikits.losses import segmentation_loss
from minikits.nifti import read_volume, write_image
from minikits.paper import PAPER
from minikits.prediction import FLIPS, predict_probabilities
from minikits.preprocessing import labels_on_native_grid, prepare_image
from minikits.sampling import draw_batch
from minikits.training import (
    Progress,
    freeze_coarsest_head,
    sgd,
    train_epoch,
    training_step,
)
from minikits.unet import build_unet

RESULTS = Path(__file__).parent / "results" / "gpu.md"
TITLE = "# On a GPU"
PEAK_TFLOPS = 790  # dense bf16 of a Hopper GPU, measured with an 8192 x 8192 x 8192 product
SEED = 0

TINY = replace(
    PAPER,
    patch=(8, 16, 16),
    stage_strides=((1, 1, 1), (2, 2, 2), (1, 2, 2)),
    residual_blocks=(1, 1, 1),
    plain_features=6,
    residual_features=6,
    max_features=10,
)


class Run:
    """The options, and the tables so far."""

    def __init__(self, options: argparse.Namespace):
        self.began = time.monotonic()
        self.device = torch.device(options.device)
        self.tiny = options.tiny
        self.only_compile = options.only_compile
        self.seconds = options.seconds
        self.out = options.out
        self.recipe = TINY if options.tiny else PAPER
        self.steps = 3 if options.tiny else 15
        self.multiple = 4 if options.tiny else 32
        self.backend = "eager" if options.tiny else "inductor"
        self.lines = []
        self.heading = []  # of a table that has no row yet
        self.earlier = earlier_runs(options.out)
        self.failed = []
        self.not_reached = []
        self.models = {}  # the compiled networks, for later stages
        self.losses = {}  # after the same number of steps, for each form

    def say(self, *lines: str) -> None:
        """Prints, and keeps the file up to date."""
        for line in lines:
            print(line, flush=True)
            self.lines.append(line)
        if self.out:
            text = [TITLE, "", *self.lines, *self.earlier]
            self.out.write_text("\n".join(text) + "\n")

    def table(self, *heading: str) -> None:
        """The lines above a table; they appear with its first row, what they explain once."""
        title, columns = heading[1], heading[-2:]
        self.heading = list(heading)
        if title in self.lines:
            self.heading = ["", f"{title}, continued", "", *columns]

    def row(self, *cells: object) -> None:
        """A row of the table, which was measured."""
        heading, self.heading = self.heading, []
        self.say(*heading, f"| {' | '.join(map(str, cells))} |")

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def stage(self, name: str, estimate: float, work, *given, **named) -> None:
        """Does the work where its estimated seconds are left; notes what was not, or failed."""
        if self.left() < estimate:
            self.not_reached.append(name)
            return
        began = time.monotonic()
        try:
            work(self, *given, **named)
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            self.failed.append(f"{name} ({reason[0][:200]})")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        took = time.monotonic() - began
        print(f"<!-- {name}: {took:.0f} s, {self.left():.0f} s left -->", flush=True)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self, work, count: int) -> float:
        """The median of `count` calls, each waited for."""
        times = []
        for _ in range(count):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append(1000 * (time.perf_counter() - began))
        return statistics.median(times)

    def milliseconds_in_a_row(self, work, count: int) -> float:
        self.wait()
        began = time.perf_counter()
        for _ in range(count):
            work()
        self.wait()
        return 1000 * (time.perf_counter() - began) / count

    def peak_gib(self) -> float:
        if self.device.type != "cuda":
            return float("nan")
        return torch.cuda.max_memory_allocated() / 2**30

    def network(self, arch: str, recipe=None):
        """Always of the same weights, on the device, in training mode."""
        torch.manual_seed(SEED)
        network = build_unet(arch, recipe or self.recipe).to(self.device).train()
        freeze_coarsest_head(network)
        return network

    def batch(self, recipe=None, dtype=torch.float32):
        """An image in which the labels can be seen, and they: blobs, so that it can be learnt."""
        recipe = recipe or self.recipe
        generator = torch.Generator().manual_seed(SEED)
        coarse = torch.rand(2, 1, 4, 4, 4, generator=generator)
        blobs = F.interpolate(coarse, recipe.patch, mode="trilinear")
        target = (blobs[:, 0] > 0.6).byte() + (blobs[:, 0] > 0.75).byte()
        noise = torch.randn(blobs.shape, generator=generator)
        image = target[:, None] + 0.5 * noise
        return image.to(self.device, dtype), target.to(self.device)


def earlier_runs(path: Path | None) -> list[str]:
    """The lines of the file that tell of runs before this one; they stay as they are."""
    if path is None or not path.exists():
        return []
    lines = path.read_text().splitlines()
    if lines[:1] == [TITLE]:
        lines = lines[1:]
    return lines


# --- steps ----------------------------------------------------------------------------------------


def steps_header(run: Run) -> None:
    run.table(
        "",
        "### A training step",
        "",
        f"Batch of two of {'x'.join(map(str, run.recipe.patch))}: forward, loss, backward, "
        f"clipping, SGD; bfloat16 where nothing else is said (nnU-Net v2: float16 with a scaler, "
        f"as its trainer has it). ms: median of {run.steps} steps, each waited for; row: without "
        "waiting; first: the first step, with cudnn's search, and with compiling as far as the "
        "disk had not what came of it; loss: after as many steps on one batch from the same "
        "weights; TFLOP/s: of the unpadded network's work.",
        "",
        "| step | ms | row | GiB | first (s) | loss | TFLOP/s | of the roofline |",
        "|---|---|---|---|---|---|---|---|",
    )


def teraflop(arch: str, recipe) -> float:
    """Multiplications and additions of a step of two patches, in 10^12: there and back."""
    with torch.device("meta"):
        network = build_unet(arch, recipe)
        image = torch.empty(2, 1, *recipe.patch)
    with FlopCounterMode(display=False) as counter:
        logits = network(image)
        sum(head.sum() for head in logits).backward()
    return counter.get_total_flops() / 1e12


def measure_step(run: Run, name: str, step, work: float) -> None:
    """A row of the table. step(): does one, gives its loss. work: its TFLOP."""
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    step()
    run.wait()
    first = time.perf_counter() - began
    if run.only_compile:
        return
    for _ in range(3):
        step()

    waited = run.milliseconds(step, run.steps)
    row = run.milliseconds_in_a_row(step, run.steps)
    loss = float(step())  # of the state after 4 + 2 * steps of them
    run.losses[name] = loss
    rate = work / (waited / 1000)
    run.row(
        name,
        f"{waited:.1f}",
        f"{row:.1f}",
        f"{run.peak_gib():.1f}",
        f"{first:.1f}",
        f"{loss:.4f}",
        f"{rate:.3g}",
        f"{rate / PEAK_TFLOPS:.1%}",
    )


def our_step(run: Run, arch: str, form: str) -> None:
    """form: "as it is", "channels last", "fast, eager" or "fast, compiled"; or the network as it is
    in "float32" or "tf32"."""
    precision = torch.bfloat16
    if form in ("float32", "tf32"):
        precision = torch.float32
    network = run.network(arch)
    image, target = run.batch()
    optimizer = sgd(network, run.recipe)
    model, loss_of = network, segmentation_loss
    if form == "channels last":
        network.to(memory_format=torch.channels_last_3d)
        image = image.to(memory_format=torch.channels_last_3d)
    if form.startswith("fast"):
        model = faster(network, multiple=run.multiple)
    if form == "fast, compiled":
        model.compile(dynamic=False, backend=run.backend)
        loss_of = torch.compile(segmentation_loss, dynamic=False, backend=run.backend)
        run.models[arch] = model, loss_of, network

    def step():
        return training_step(
            model,
            image,
            target,
            optimizer,
            run.recipe,
            precision=precision,
            loss_of=loss_of,
        )

    if form == "tf32":
        torch.backends.cudnn.conv.fp32_precision = "tf32"
    try:
        measure_step(run, f"{arch}, {form}", step, teraflop(arch, run.recipe))
    finally:
        exact_float32()


def nnunet_step(run: Run, arch: str) -> None:
    """nnU-Net v2's network with these features, its loss and its trainer's step, compiled."""
    try:
        from dynamic_network_architectures.architectures.unet import (
            PlainConvUNet,
            ResidualEncoderUNet,
        )
        from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
        from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
        from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
    except ImportError:
        run.not_reached.append(f"nnU-Net v2 {arch}, which is not installed")
        return

    recipe = run.recipe
    stages = len(recipe.strides)
    options = {
        "norm_op": torch.nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "conv_bias": True,
        "nonlin": torch.nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": True,
    }
    given = (1, stages, recipe.features(arch), torch.nn.Conv3d, 3, recipe.strides)
    torch.manual_seed(SEED)
    if arch == "plain":
        network = PlainConvUNet(
            *given, n_conv_per_stage=2, num_classes=3, n_conv_per_stage_decoder=2, **options
        )
    else:
        network = ResidualEncoderUNet(
            *given,
            n_blocks_per_stage=recipe.residual_blocks[:stages],
            num_classes=3,
            n_conv_per_stage_decoder=1,
            **options,
        )
    network = network.to(run.device).train()

    loss = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        weight_ce=1,
        weight_dice=1,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    loss.dc = torch.compile(loss.dc, backend=run.backend)
    weights = np.array([1 / 2**level for level in range(stages - 1)])
    if len(weights) > 1:
        weights[-1] = 0
    loss = DeepSupervisionWrapper(loss, weights / weights.sum())
    model = torch.compile(network, backend=run.backend)

    optimizer = torch.optim.SGD(
        network.parameters(), 0.01, weight_decay=3e-5, momentum=0.99, nesterov=True
    )
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.device.type == "cuda")
    image, target = run.batch()
    targets = []
    for z, y, x in np.cumprod(np.array(recipe.strides), 0)[: stages - 1]:
        targets.append(target[:, None, ::z, ::y, ::x].to(torch.int16).contiguous())

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(run.device.type, torch.float16, enabled=run.device.type == "cuda"):
            value = loss(model(image), targets)
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()
        return value.detach()

    measure_step(run, f"nnU-Net v2 {arch}, compiled", step, teraflop(arch, recipe))


def forms_compared(run: Run) -> None:
    """Of the losses above, and in float32: what padding, layout and norm by sums change."""
    run.table(
        "",
        "Do the forms learn the same? float32, a small patch, 20 steps of one batch:",
        "",
        "| form | loss after 20 steps | largest difference of weights, relative |",
        "|---|---|---|",
    )
    recipe = run.recipe if run.tiny else replace(PAPER, patch=(32, 64, 64), stage_strides=())
    image, target = run.batch(recipe)
    for arch in ("plain", "residual", "preactivation"):
        weights = {}
        for form in ("as it is", "fast"):
            network = run.network(arch, recipe)
            model = network if form == "as it is" else faster(network, multiple=run.multiple)
            optimizer = sgd(network, recipe)
            for _ in range(20):
                loss = training_step(model, image, target, optimizer, recipe)
            weights[form] = torch.cat([p.detach().flatten() for p in network.parameters()])
            difference = (weights[form] - weights["as it is"]).abs().max()
            difference = difference / weights["as it is"].abs().max()
            run.row(f"{arch}, {form}", f"{loss.item():.5f}", f"{difference.item():.1e}")


# --- draws, an epoch ------------------------------------------------------------------------------


def phantom_cases(run: Run) -> list:
    """Two prepared cases on the device: noise, and blobs for kidneys and tumors."""
    shape = (12, 24, 24) if run.tiny else (128, 248, 248)  # the data set's median
    cases = []
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        coarse = torch.rand(1, 1, 6, 6, 6, generator=generator)
        blobs = F.interpolate(coarse, shape, mode="trilinear")[0, 0]
        labels = (blobs > 0.7).byte() + (blobs > 0.8).byte()
        image = (labels + 0.5 * torch.randn(shape, generator=generator)).half()
        foreground = tuple(
            np.flatnonzero(labels.numpy() == structure).astype(np.int32) for structure in (1, 2)
        )
        case = SimpleNamespace(
            id=f"case_{number}",
            image=image.to(run.device),
            labels=labels.to(run.device),
            foreground=foreground,
        )
        cases.append(case)
    return cases


def draws(run: Run) -> None:
    cases = phantom_cases(run)
    count = 3 if run.tiny else 40

    def draw(number: int):
        return draw_batch(cases, run.recipe, SEED, number, device=run.device)

    for number in range(min(count, 20)):
        draw(number)
    run.wait()
    host = []
    began = time.perf_counter()
    for number in range(count):
        one = time.perf_counter()
        draw(number)
        host.append(1000 * (time.perf_counter() - one))
    run.wait()
    whole = 1000 * (time.perf_counter() - began) / count

    waits, places = "not counted", ""
    if run.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for number in range(20):
                draw(number)
        torch.cuda.set_sync_debug_mode("default")
        synchronising = [each for each in caught if "synchronizing" in str(each.message)]
        waits = f"{len(synchronising)} in 20 draws"
        found = {f"{Path(each.filename).name}:{each.lineno}" for each in synchronising}
        places = ", ".join(sorted(found))
    run.table(
        "",
        "### A draw of two augmented patches, cases on the device",
        "",
        "| host, median ms | host, 9th decile | in a row, ms | synchronisations |",
        "|---|---|---|---|",
    )
    decile = np.quantile(host, 0.9)
    run.row(f"{statistics.median(host):.1f}", f"{decile:.1f}", f"{whole:.1f}", f"{waits} {places}")


def epoch(run: Run, arch: str) -> None:
    """train.py's own loop on compiled networks, of which the first steps are done."""
    if arch not in run.models:
        run.not_reached.append(f"epoch, {arch}, whose step was not compiled")
        return
    model, loss_of, network = run.models[arch]
    batches = 3 if run.tiny else 100
    recipe = replace(run.recipe, batches_per_epoch=batches, epochs=1000)
    cases = phantom_cases(run)
    optimizer = sgd(network, recipe)

    def draw(number: int):
        return draw_batch(cases, recipe, SEED, number, device=run.device)

    options = {"precision": torch.bfloat16, "loss_of": loss_of}
    warm = replace(recipe, batches_per_epoch=3)
    train_epoch(model, draw, optimizer, warm, 0, Progress(), **options)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    row = train_epoch(
        model, draw, optimizer, recipe, 1, Progress(recipe.batches_per_epoch), **options
    )

    computing, waiting = row["seconds_computing"], row["seconds_waiting"]
    share = waiting / (computing + waiting)
    hours = (computing + waiting) / batches * 250 * 1000 / 3600
    run.row(
        arch,
        f"{1000 * computing / batches:.1f}",
        f"{1000 * waiting / batches:.1f}",
        f"{share:.1%}",
        f"{(computing + waiting) / batches * 250:.1f}",
        f"{hours:.2f}",
        f"{run.peak_gib():.1f}",
    )


def epochs_header(run: Run) -> None:
    run.table(
        "",
        "### The loop of train.py, network and loss compiled, one drawing thread",
        "",
        "| network | computing, ms | waiting, ms | waiting | s of 250 batches | hours of 1000 "
        "| GiB |",
        "|---|---|---|---|---|---|---|",
    )


# --- windows --------------------------------------------------------------------------------------


def windows_header(run: Run) -> None:
    run.table(
        "",
        "### A window of inference",
        "",
        "bfloat16, softmax included, in a row. A median scan: 27 windows, 8 mirror images, 5 "
        "networks, estimated by these ms.",
        "",
        "| window | at once | ms a batch | ms a window | first (s) | GiB | a median scan, s |",
        "|---|---|---|---|---|---|---|",
    )


def predicting(run: Run, arch: str, form: str, at_once: int):
    """A network in eval mode, in this form: "as it is", "fast, eager" or "fast, compiled"."""
    model = run.network(arch).eval()
    if form.startswith("fast"):
        model = faster(model, multiple=run.multiple).eval()
    if form == "fast, compiled":
        model.compile(dynamic=False, backend=run.backend)
        model = FixedBatch(model, at_once)
    return model


def window(run: Run, arch: str, form: str, at_once: int) -> None:
    model = predicting(run, arch, form, at_once)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    look = window_of(run, model, at_once)
    look()
    run.wait()
    first = time.perf_counter() - began
    if run.only_compile:
        return

    look()
    ms = run.milliseconds_in_a_row(look, run.steps)
    scan_seconds = 27 * len(FLIPS) * 5 * ms / at_once / 1000
    run.row(
        f"{arch}, {form}",
        at_once,
        f"{ms:.1f}",
        f"{ms / at_once:.1f}",
        f"{first:.1f}",
        f"{run.peak_gib():.1f}",
        f"{scan_seconds:.1f}",
    )


def window_of(run: Run, model, at_once: int):
    """A function that has the model look at so many windows, up to the softmax."""
    generator = torch.Generator().manual_seed(SEED)
    image = torch.randn(at_once, 1, *run.recipe.patch, generator=generator).to(run.device)

    @torch.inference_mode()
    def look():
        with torch.autocast(run.device.type, torch.bfloat16):
            logits = model(image)
        return logits.float().softmax(dim=1)

    return look


def scans_header(run: Run) -> None:
    run.table(
        "",
        "### A whole scan: five networks, eight mirror images",
        "",
        "bfloat16, by minikits.prediction, the networks on the device; 512x512 voxels a slice, of "
        "the data set's median shape once resampled. Network: so many windows in a row, as above, "
        "of the time of all windows. The first scan, which compiles and searches, is not counted.",
        "",
        "| scan | at once | preparing, s | windows, s | of it network | labels, s | GiB |",
        "|---|---|---|---|---|---|---|",
    )


def scan(run: Run, arch: str, form: str, at_once: int) -> None:
    volume = median_scan(run)
    models = [predicting(run, arch, form, at_once) for _ in range(5)]
    options = {"device": run.device, "precision": torch.bfloat16, "at_once": at_once}
    patch_of_zeros = torch.zeros(run.recipe.patch)
    predict_probabilities(models[:1], patch_of_zeros, run.recipe, **options)
    look = window_of(run, models[0], at_once)
    look()
    ms = run.milliseconds_in_a_row(look, run.steps)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    began = time.perf_counter()
    image = prepare_image(volume, run.recipe)
    prepared = time.perf_counter()
    told = []
    probabilities = predict_probabilities(
        models, image, run.recipe, **options, on_window=lambda done, of: told.append(done)
    )
    run.wait()
    predicted = time.perf_counter()
    labels_on_native_grid(probabilities, volume)
    ended = time.perf_counter()

    seconds = predicted - prepared
    share = len(told) * ms / 1000 / seconds
    run.row(
        f"{arch}, {form}",
        at_once,
        f"{prepared - began:.2f}",
        f"{seconds:.2f}",
        f"{share:.0%}",
        f"{ended - predicted:.2f}",
        f"{run.peak_gib():.1f}",
    )


def median_scan(run: Run):
    """A scan of noise, whose shape on the networks' grid is the data set's median, 128x248x248."""
    shape, spacing_mm = (128, 512, 512), (3.22, 0.785, 0.785)
    if run.tiny:
        shape, spacing_mm = (10, 30, 20), run.recipe.spacing_mm
    voxels = np.random.default_rng(SEED).integers(-400, 500, shape).astype(np.int16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii"
        write_image(path, voxels, spacing_mm)
        return read_volume(path)


# --- numbers --------------------------------------------------------------------------------------


def numbers_header(run: Run) -> None:
    run.table("", "### Numbers", "", "| what | found |", "|---|---|")


def bfloat16(run: Run) -> None:
    """The check of bfloat16 at the start of a run, with what cuDNN's search takes of it."""
    seconds = []
    for search in (True, True, False):
        torch.backends.cudnn.benchmark = search
        began = time.perf_counter()
        check_bfloat16(run.device)
        seconds.append(time.perf_counter() - began)
    torch.backends.cudnn.benchmark = True
    first, again, without = (1000 * each for each in seconds)
    run.row(
        "bfloat16 convolutions are right",
        f"yes; {first:.0f} ms to know, {again:.0f} again, {without:.0f} again without a search",
    )


def float32(run: Run) -> None:
    """How far a convolution in float32 is from float64, with and without TF32, and its cost."""
    generator = torch.Generator().manual_seed(SEED)
    side = 8 if run.tiny else 48
    image = 1000 + torch.randn(2, 32, side, side, side, generator=generator, dtype=torch.float64)
    kernel = torch.randn(32, 32, 3, 3, 3, generator=generator, dtype=torch.float64)
    image, kernel = image.to(run.device), kernel.to(run.device)
    exact = F.conv3d(image, kernel, padding=1)
    x, weight = image.float(), kernel.float()

    def error():
        found = F.conv3d(x, weight, padding=1).double()
        return ((found - exact).abs().max() / exact.abs().max()).item()

    def cost():
        return run.milliseconds(lambda: F.conv3d(x, weight, padding=1), 5)

    exact_float32()
    plain_error, plain_cost = error(), cost()
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    loose_error, loose_cost = error(), cost()
    exact_float32()
    x, weight = x.bfloat16(), weight.bfloat16()
    short_error, short_cost = error(), cost()
    run.row(
        "a float32 convolution beside float64, relative",
        f"{plain_error:.1e} in {plain_cost:.2f} ms (with TF32 {loose_error:.1e} in "
        f"{loose_cost:.2f} ms, in bfloat16 {short_error:.1e} in {short_cost:.2f} ms)",
    )


def same_bits(run: Run, *, deterministic: bool, compiled: bool) -> None:
    """Ten steps of two fresh networks, in bfloat16; deterministic: as train.py has it."""
    recipe = run.recipe if run.tiny else replace(PAPER, patch=(48, 96, 96), stage_strides=())
    image, target = run.batch(recipe)
    if deterministic:
        repeat_to_the_bit()
    said = set()
    try:
        weights = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                network = run.network("residual", recipe)
                optimizer = sgd(network, recipe)
                model = network
                if compiled:
                    model = faster(network, multiple=run.multiple)
                    model.compile(dynamic=False, backend=run.backend)

                def step(model=model, optimizer=optimizer):
                    precision = torch.bfloat16
                    training_step(model, image, target, optimizer, recipe, precision=precision)

                for _ in range(10):
                    step()
                kept = [p.detach().flatten().clone() for p in network.parameters()]
                weights.append(torch.cat(kept))
                cost = run.milliseconds(step, 5)
        for each in caught:
            if "deterministic" in str(each.message):
                said.add(str(each.message).split(" does not")[0].strip())
    finally:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.deterministic = False
        torch.use_deterministic_algorithms(False)
    difference = (weights[0] - weights[1]).abs().max().item()
    answer = "the same bits" if difference == 0 else f"differ by up to {difference:.1e}"
    name = "fast, compiled" if compiled else "as it is"
    if deterministic:
        name += ", --deterministic"
    without = f"; none for {', '.join(sorted(said))}" if said else ""
    run.row(f"ten steps twice, {name}", f"{answer}; {cost:.1f} ms a step{without}")


def cpu_beside_gpu(run: Run) -> None:
    """Twenty steps of a small network in float32 on both."""
    recipe = TINY
    if not run.tiny:
        recipe = replace(PAPER, patch=(16, 32, 32), stage_strides=(), residual_features=8)
        recipe = replace(recipe, max_features=64)
    image, target = run.batch(recipe)
    losses, weights = {}, {}
    for device in (torch.device("cpu"), run.device):
        torch.manual_seed(SEED)
        network = build_unet("residual", recipe).to(device).train()
        optimizer = sgd(network, recipe)
        for _ in range(20):
            loss = training_step(network, image.to(device), target.to(device), optimizer, recipe)
        losses[device.type] = loss.item()
        weights[device.type] = torch.cat([p.detach().flatten().cpu() for p in network.parameters()])
    largest = weights["cpu"].abs().max()
    difference = ((weights["cpu"] - weights[run.device.type]).abs().max() / largest).item()
    said = ", ".join(f"{name} {value:.6f}" for name, value in losses.items())
    run.row("twenty float32 steps on both: loss; weights", f"{said}; {difference:.1e} relative")


def fewer_algorithms(run: Run) -> None:
    """What cudnn's search costs and gains: a step with 3 candidates instead of 10."""
    before = torch.backends.cudnn.benchmark_limit
    torch.backends.cudnn.benchmark_limit = 3
    try:
        our_step(run, "plain", "fast, eager, of 3 algorithms")
    finally:
        torch.backends.cudnn.benchmark_limit = before


# --- the run --------------------------------------------------------------------------------------


def versions(run: Run) -> list[str]:
    card = platform.processor() or platform.machine()
    cudnn = "none"
    if run.device.type == "cuda":
        card = torch.cuda.get_device_name()
        cudnn = torch.backends.cudnn.version()
    try:
        from importlib.metadata import version

        peer = f"nnunetv2 {version('nnunetv2')}"
    except ImportError:
        peer = "nnunetv2 not installed"
    return [
        f"## {card}, {time.strftime('%Y-%m-%d')}",
        "",
        f"{os.cpu_count()} CPU cores; Python {platform.python_version()}, torch "
        f"{torch.__version__}, cuDNN {cudnn}, {peer}; "
        f"`{' '.join(['python', 'benchmarks/gpu.py', *sys.argv[1:]])}`.",
    ]


def main() -> None:
    options = parse_arguments()
    run = Run(options)
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 64  # each network in each form, not the few of a run
    exact_float32()
    run.say(*versions(run))
    if not options.tiny:
        timer = threading.Timer(run.seconds + 25, give_up)
        timer.daemon = True
        timer.start()

    chosen = stages(options.only, options.tiny)
    if run.device.type == "cuda" and not options.only_compile:
        compile_all(options, compiled_stages(chosen))
    for name, estimate, work, *given in chosen:
        if name:
            run.stage(name, 0 if options.tiny else estimate, work, *given)
        else:
            work(run)

    took = time.monotonic() - run.began
    not_reached = "; ".join(run.not_reached) or "none"
    failed = "; ".join(run.failed) or "none"
    run.say(
        "", f"{took:.0f} s in all; not reached, so not measured: {not_reached}; failed: {failed}."
    )
    sys.exit(1 if run.failed else 0)


def compiled_stages(chosen: list[tuple]) -> list[str]:
    """The names of the stages that compile a network which no other stage has compiled."""
    names = []
    for name, _, work, *_ in chosen:
        peer = work is nnunet_step
        if peer or (work in (our_step, window) and "compiled" in name):
            names.append(name)
    return names


def compile_all(options: argparse.Namespace, names: list[str]) -> None:
    """Does the first step of each of these stages, all at once, in processes of their own, within a
    minute and a half. What fails there fails again in its turn, and is told then."""
    command = [sys.executable, __file__, "--device", options.device, "--only-compile"]
    started = []
    for name in names:
        process = subprocess.Popen(
            [*command, "--only", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        started.append(process)

    until = time.monotonic() + 90
    for process in started:
        try:
            process.wait(max(0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    print(f"<!-- compiled {len(names)} networks -->", flush=True)


def stages(only: list[str], tiny: bool) -> list[tuple]:
    """(name, estimated seconds, function, what else it is given): what no run has measured yet
    comes first, beside what it has to be compared with. Of them those whose names hold one of the
    words of `only`; headings have no names. Tiny: one network's steps are compiled, the others
    would take as long again."""
    listed = [
        ("", 0, steps_header),
        ("plain, fast, compiled", 30, our_step, "plain", "fast, compiled"),
        ("nnU-Net v2 plain", 30, nnunet_step, "plain"),
        ("residual, fast, compiled", 30, our_step, "residual", "fast, compiled"),
        ("nnU-Net v2 residual", 30, nnunet_step, "residual"),
        ("preactivation, fast, compiled", 30, our_step, "preactivation", "fast, compiled"),
        ("", 0, epochs_header),
        ("epoch, preactivation", 8, epoch, "preactivation"),
        ("epoch, plain", 8, epoch, "plain"),
        ("epoch, residual", 8, epoch, "residual"),
        ("", 0, windows_header),
        ("window, fast, compiled, 4", 20, window, "residual", "fast, compiled", 4),
        ("window, as it is, 4", 4, window, "residual", "as it is", 4),
        ("window, as it is, 8", 4, window, "residual", "as it is", 8),
        ("", 0, scans_header),
        ("scan, fast, compiled", 20, scan, "residual", "fast, compiled", 4),
        ("scan, as it is", 25, scan, "residual", "as it is", 4),
        ("", 0, numbers_header),
        ("bfloat16", 2, bfloat16),
        ("float32", 3, float32),
        ("same bits, deterministic", 8, partial(same_bits, deterministic=True, compiled=False)),
        ("", 0, steps_header),
        ("plain, as it is", 20, our_step, "plain", "as it is"),
        ("residual, as it is", 12, our_step, "residual", "as it is"),
        ("preactivation, as it is", 12, our_step, "preactivation", "as it is"),
        ("plain, float32", 20, our_step, "plain", "float32"),
        ("plain, tf32", 20, our_step, "plain", "tf32"),
        ("draws", 3, draws),
        ("", 0, numbers_header),
        ("CPU beside GPU", 8, cpu_beside_gpu),
        ("same bits", 8, partial(same_bits, deterministic=False, compiled=False)),
        ("same bits, compiled", 40, partial(same_bits, deterministic=True, compiled=True)),
        ("", 0, steps_header),
        ("plain, fast, eager", 20, our_step, "plain", "fast, eager"),
        ("fewer algorithms", 15, fewer_algorithms),
        ("residual, fast, eager", 15, our_step, "residual", "fast, eager"),
        ("plain, channels last", 20, our_step, "plain", "channels last"),
        ("residual, channels last", 12, our_step, "residual", "channels last"),
        ("", 0, windows_header),
        ("window, fast, eager, 4", 5, window, "residual", "fast, eager", 4),
        ("window, as it is, 2", 4, window, "residual", "as it is", 2),
        ("window, as it is, 1", 4, window, "residual", "as it is", 1),
        ("window, fast, compiled, 8", 40, window, "residual", "fast, compiled", 8),
        ("forms compared", 30, forms_compared),
    ]
    chosen = []
    for stage in listed:
        name = stage[0]
        wanted = not only or not name or any(word in name for word in only)
        slow = tiny and "compiled" in name and "plain" not in name and "scan" not in name
        if wanted and not slow:
            chosen.append(stage)
    return chosen


def give_up() -> None:
    """A stage that hangs does not cost what was measured: the file has it."""
    print("time is up", flush=True)
    os._exit(3)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small sizes, nothing compiled")
    parser.add_argument("--seconds", type=float, default=350, help="that it may take")
    parser.add_argument("--only", nargs="+", default=[], help="stages whose names hold a word")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the tables go")
    parser.add_argument(
        "--only-compile", action="store_true", help="the first step of each stage, no table"
    )
    options = parser.parse_args()
    if options.only_compile:
        options.out = None
    return options


if __name__ == "__main__":
    main()
