"""What a training step, a draw, an epoch and a window cost on a GPU, beside nnU-Net v2 where it is.

    python benchmarks/gpu.py                          # one GPU, about six minutes
    python benchmarks/gpu.py --seconds 560            # everything, as far as the time goes
    python benchmarks/gpu.py --device cpu --tiny      # whether it runs at all: the suite does this

Stages come in the order of their importance; one that fails, or for which no time is left, says so
and the next goes on. The tables are printed as they grow, and kept in benchmarks/results/gpu.md.
nnU-Net v2 (nnunetv2, dynamic_network_architectures) is imported where it is installed."""

import argparse
import os
import platform
import statistics
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what repeats asks for it

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from minikits.devices import check_bfloat16, exact_float32
from minikits.fast import faster
from minikits.losses import segmentation_loss
from minikits.paper import PAPER
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
        self.seconds = options.seconds
        self.out = options.out
        self.recipe = TINY if options.tiny else PAPER
        self.steps = 3 if options.tiny else 15
        self.multiple = 4 if options.tiny else 32
        self.backend = "eager" if options.tiny else "inductor"
        self.lines = []
        self.failed = []
        self.models = {}  # the compiled networks, for later stages
        self.losses = {}  # after the same number of steps, for each form

    def say(self, *lines: str) -> None:
        """Prints, and keeps the file up to date."""
        for line in lines:
            print(line, flush=True)
            self.lines.append(line)
        if self.out:
            self.out.write_text("\n".join(self.lines) + "\n")

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def stage(self, name: str, estimate: float, work, *given, **named) -> None:
        """Does the work where its estimated seconds are left; notes what it took, or why not."""
        if self.left() < estimate:
            self.say(f"| {name} | not run: {self.left():.0f} s were left of {self.seconds} |")
            return
        began = time.monotonic()
        try:
            work(self, *given, **named)
        except Exception as error:
            self.failed.append(name)
            reason = str(error).strip().splitlines() or [type(error).__name__]
            self.say(f"| {name} | failed: {reason[0][:200]} |")
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


# --- steps ----------------------------------------------------------------------------------------


def steps_header(run: Run) -> None:
    run.say(
        "",
        "## A training step",
        "",
        f"Batch of two of {'x'.join(map(str, run.recipe.patch))}: forward, loss, backward, "
        f"clipping, SGD; bfloat16 (nnU-Net v2: float16 with a scaler, as its trainer has it). ms: "
        f"median of {run.steps} steps, each waited for; row: without waiting; first: the first "
        "step, with compiling and cudnn's search; loss: after as many steps on one batch from the "
        "same weights; TFLOP/s: of the unpadded network's work.",
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
    for _ in range(3):
        step()

    waited = run.milliseconds(step, run.steps)
    row = run.milliseconds_in_a_row(step, run.steps)
    loss = float(step())  # of the state after 4 + 2 * steps of them
    run.losses[name] = loss
    rate = work / (waited / 1000)
    run.say(
        f"| {name} | {waited:.1f} | {row:.1f} | {run.peak_gib():.1f} | {first:.1f} | {loss:.4f} | "
        f"{rate:.3g} | {rate / PEAK_TFLOPS:.1%} |"
    )


def our_step(run: Run, arch: str, form: str) -> None:
    """form: "as it is", "channels last", "fast, eager" or "fast, compiled"."""
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
            precision=torch.bfloat16,
            loss_of=loss_of,
        )

    measure_step(run, f"{arch}, {form}", step, teraflop(arch, run.recipe))


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
    except ImportError as error:
        run.say(f"| nnU-Net v2 {arch} | not installed: {error} |")
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
    run.say("", "Do the forms learn the same? float32, a small patch, 20 steps of one batch:", "")
    run.say("| form | loss after 20 steps | largest difference of weights, relative |")
    run.say("|---|---|---|")
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
            run.say(f"| {arch}, {form} | {loss.item():.5f} | {difference.item():.1e} |")


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
    run.say("", "## A draw of two augmented patches, cases on the device", "")
    run.say("| host, median ms | host, 9th decile | in a row, ms | synchronisations |")
    run.say("|---|---|---|---|")
    decile = np.quantile(host, 0.9)
    run.say(f"| {statistics.median(host):.1f} | {decile:.1f} | {whole:.1f} | {waits} {places} |")


def epoch(run: Run, arch: str) -> None:
    """train.py's own loop on compiled networks, of which the first steps are done."""
    if arch not in run.models:
        run.say(f"| {arch} | not measured: its step was not compiled |")
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
    row = train_epoch(
        model, draw, optimizer, recipe, 1, Progress(recipe.batches_per_epoch), **options
    )

    computing, waiting = row["seconds_computing"], row["seconds_waiting"]
    share = waiting / (computing + waiting)
    hours = (computing + waiting) / batches * 250 * 1000 / 3600
    run.say(
        f"| {arch} | {1000 * computing / batches:.1f} | {1000 * waiting / batches:.1f} | "
        f"{share:.1%} | {(computing + waiting) / batches * 250:.1f} | {hours:.2f} |"
    )


def epochs_header(run: Run) -> None:
    run.say("", "## The loop of train.py, network and loss compiled, one drawing thread", "")
    run.say(
        "| network | computing, ms | waiting, ms | waiting | s of 250 batches | hours of 1000 |"
    )
    run.say("|---|---|---|---|---|---|")


# --- windows --------------------------------------------------------------------------------------


def windows_header(run: Run) -> None:
    looks = 27 * 8 * 5
    run.say(
        "",
        "## A window of inference",
        "",
        "bfloat16, softmax included. A median scan: 27 windows, 8 mirror images, 5 networks: "
        f"{looks} looks, estimated by these ms; and the scan of one network, measured.",
        "",
        "| window | at once | ms a batch | ms a window | first (s) | GiB | a median scan, s |",
        "|---|---|---|---|---|---|---|",
    )


def window(run: Run, arch: str, form: str, at_once: int) -> None:
    network = run.network(arch).eval()
    model = network
    if form.startswith("fast"):
        model = faster(network, multiple=run.multiple).eval()
    if form == "fast, compiled":
        model.compile(dynamic=False, backend=run.backend)
    generator = torch.Generator().manual_seed(SEED)
    image = torch.randn(at_once, 1, *run.recipe.patch, generator=generator).to(run.device)

    @torch.inference_mode()
    def look():
        with torch.autocast(run.device.type, torch.bfloat16):
            logits = model(image)
        return logits.float().softmax(dim=1)

    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    look()
    run.wait()
    first = time.perf_counter() - began
    look()
    ms = run.milliseconds_in_a_row(look, run.steps)
    scan = 27 * 8 * 5 * ms / at_once / 1000
    run.say(
        f"| {arch}, {form} | {at_once} | {ms:.1f} | {ms / at_once:.1f} | {first:.1f} | "
        f"{run.peak_gib():.1f} | {scan:.1f} |"
    )


def scan(run: Run, arch: str, form: str) -> None:
    """A whole median scan through minikits.prediction, of one network with eight mirror images."""
    from minikits.prediction import predict_probabilities

    shape = (8, 24, 16) if run.tiny else (128, 248, 248)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    network = run.network(arch).eval()
    if form.startswith("fast"):
        network = faster(network, multiple=run.multiple).eval()
    options = {"device": run.device, "precision": torch.bfloat16}
    small = image[tuple(slice(side) for side in run.recipe.patch)]
    predict_probabilities([network], small, run.recipe, **options)

    run.wait()
    began = time.perf_counter()
    predict_probabilities([network], image, run.recipe, **options)
    run.wait()
    seconds = time.perf_counter() - began
    run.say(f"| {arch}, {form}: a scan of one network | | | | | | {seconds:.2f} measured |")


# --- numbers --------------------------------------------------------------------------------------


def numbers_header(run: Run) -> None:
    run.say("", "## Numbers", "", "| what | found |", "|---|---|")


def bfloat16(run: Run) -> None:
    began = time.perf_counter()
    check_bfloat16(run.device)
    milliseconds = 1000 * (time.perf_counter() - began)
    run.say(f"| bfloat16 convolutions are right | yes; {milliseconds:.0f} ms to know |")


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
    run.say(
        f"| a float32 convolution beside float64, relative | {plain_error:.1e} in "
        f"{plain_cost:.2f} ms (with TF32 {loose_error:.1e} in {loose_cost:.2f} ms) |"
    )


def same_bits(run: Run, deterministic: bool) -> None:
    """Ten steps of two fresh networks, in bfloat16."""
    recipe = run.recipe if run.tiny else replace(PAPER, patch=(48, 96, 96), stage_strides=())
    image, target = run.batch(recipe)
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    said = set()
    try:
        weights = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                network = run.network("residual", recipe)
                optimizer = sgd(network, recipe)

                def step(network=network, optimizer=optimizer):
                    precision = torch.bfloat16
                    training_step(network, image, target, optimizer, recipe, precision=precision)

                for _ in range(10):
                    step()
                kept = [p.detach().flatten().clone() for p in network.parameters()]
                weights.append(torch.cat(kept))
                cost = run.milliseconds(step, 5)
        for each in caught:
            if "deterministic" in str(each.message):
                said.add(str(each.message).split(" does not")[0].strip())
    finally:
        torch.backends.cudnn.deterministic = False
        torch.use_deterministic_algorithms(False)
    difference = (weights[0] - weights[1]).abs().max().item()
    answer = "the same bits" if difference == 0 else f"differ by up to {difference:.1e}"
    name = "deterministic algorithms" if deterministic else "as it is"
    without = f"; none for {', '.join(sorted(said))}" if said else ""
    run.say(f"| ten steps twice, {name} | {answer}; {cost:.1f} ms a step{without} |")


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
    run.say(f"| twenty float32 steps on both: loss; weights | {said}; {difference:.1e} relative |")


def fewer_algorithms(run: Run) -> None:
    """What cudnn's search costs and gains: the fast form with 3 candidates instead of 10."""
    before = torch.backends.cudnn.benchmark_limit
    torch.backends.cudnn.benchmark_limit = 3
    try:
        our_step(run, "plain", "fast, eager")
        name = "plain, fast, eager"
        run.losses.pop(name)
        run.say(
            f"| (the row above, again: {name} with cudnn's search bounded to 3, not {before}) |"
        )
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
        "# On a GPU",
        "",
        f"{card}, {os.cpu_count()} CPU cores; Python {platform.python_version()}, torch "
        f"{torch.__version__}, cuDNN {cudnn}, {peer}; {time.strftime('%Y-%m-%d')}; "
        f"`{' '.join(['python', 'benchmarks/gpu.py', *sys.argv[1:]])}`.",
    ]


def main() -> None:
    options = parse_arguments()
    run = Run(options)
    torch.backends.cudnn.benchmark = True
    exact_float32()
    run.say(*versions(run))
    if not options.tiny:
        timer = threading.Timer(run.seconds + 25, give_up)
        timer.daemon = True
        timer.start()

    for name, estimate, work, *given in stages(options.only, options.tiny):
        if name:
            run.stage(name, 0 if options.tiny else estimate, work, *given)
        else:
            work(run)
    run.say("", f"{time.monotonic() - run.began:.0f} s in all; failed: {run.failed or 'none'}.")
    sys.exit(1 if run.failed else 0)


def stages(only: list[str], tiny: bool) -> list[tuple]:
    """(name, estimated seconds, function, what else it is given), in the order of importance; the
    names that hold one of the words of `only`, and the headings, which have none. Tiny: one network
    is compiled, the others would take as long again."""
    listed = [
        ("", 0, steps_header),
        ("plain, as it is", 20, our_step, "plain", "as it is"),
        ("plain, fast, compiled", 65, our_step, "plain", "fast, compiled"),
        ("residual, as it is", 12, our_step, "residual", "as it is"),
        ("residual, fast, compiled", 65, our_step, "residual", "fast, compiled"),
        ("nnU-Net v2 plain", 60, nnunet_step, "plain"),
        ("preactivation, as it is", 12, our_step, "preactivation", "as it is"),
        ("preactivation, fast, compiled", 65, our_step, "preactivation", "fast, compiled"),
        ("", 0, epochs_header),
        ("epoch, plain", 8, epoch, "plain"),
        ("epoch, residual", 8, epoch, "residual"),
        ("draws", 3, draws),
        ("", 0, numbers_header),
        ("bfloat16", 1, bfloat16),
        ("float32", 3, float32),
        ("CPU beside GPU", 8, cpu_beside_gpu),
        ("same bits", 8, same_bits, False),
        ("same bits, deterministic", 8, same_bits, True),
        ("", 0, windows_header),
        ("window, as it is, 4", 5, window, "residual", "as it is", 4),
        ("window, fast, eager, 4", 5, window, "residual", "fast, eager", 4),
        ("window, fast, compiled, 4", 30, window, "residual", "fast, compiled", 4),
        ("window, as it is, 2", 4, window, "residual", "as it is", 2),
        ("window, as it is, 1", 4, window, "residual", "as it is", 1),
        ("window, fast, eager, 2", 4, window, "residual", "fast, eager", 2),
        ("window, fast, eager, 1", 4, window, "residual", "fast, eager", 1),
        ("scan, as it is", 8, scan, "residual", "as it is"),
        ("", 0, steps_header),
        ("nnU-Net v2 residual", 90, nnunet_step, "residual"),
        ("plain, fast, eager", 20, our_step, "plain", "fast, eager"),
        ("residual, fast, eager", 15, our_step, "residual", "fast, eager"),
        ("plain, channels last", 20, our_step, "plain", "channels last"),
        ("forms compared", 30, forms_compared),
        ("fewer algorithms", 15, fewer_algorithms),
        ("residual, channels last", 12, our_step, "residual", "channels last"),
        ("", 0, windows_header),
        ("scan, fast, eager", 8, scan, "residual", "fast, eager"),
        ("window, fast, compiled, 2", 30, window, "residual", "fast, compiled", 2),
    ]
    chosen = []
    for stage in listed:
        name = stage[0]
        wanted = not only or not name or any(word in name for word in only)
        slow = tiny and "compiled" in name and "plain" not in name
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
    return parser.parse_args()


if __name__ == "__main__":
    main()
