"""What a training step takes on a CPU: in each form of the network, and what the time goes into.

    python benchmarks/cpu_step.py              # a quarter of an hour
    python benchmarks/cpu_step.py --quick      # seconds: whether it runs at all

Two tables, printed and kept in benchmarks/results/cpu_step.md. In the first one each row is a
process of its own, since oneDNN reads once which instructions it may use. There the forms take
turns, step by step, on one thread, and its CPU time counts: other work on the machine takes none of
that. Forms:

  as it is          the readable network
  weights           the same with its weights in channels last, a line: network.to(memory_format=...)
  by sums           minikits.fast.faster, made for the compiler, without it
  by patches        the same with a norm that keeps channels last: what train.py takes on a CPU
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from minikits.devices import claim_memory, exact_float32, pick_precision
from minikits.fast import PatchNorm, faster
from minikits.losses import segmentation_loss
from minikits.paper import ARCHITECTURES, DEMO, PAPER
from minikits.recipe import Recipe
from minikits.training import sgd, training_step
from minikits.unet import build_unet

RESULTS = Path(__file__).parent / "results" / "cpu_step.md"

RECIPES = {
    "tiny": replace(
        DEMO,
        patch=(16, 32, 32),
        plain_features=4,
        residual_features=4,
        max_features=8,
    ),
    "demo": DEMO,
    "larger": replace(PAPER, patch=(48, 96, 96)),
    "paper": PAPER,
}
# Other processors, for which this one stands in by leaving instructions out.
PROCESSORS = {
    "AMX": {},
    "AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "AVX2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}
ROWS = (
    *(("bf16", "AMX"), ("bf16", "AVX-512")),
    *(("fp32", "AVX-512"), ("fp32", "AVX2")),
)
STEPS = {"tiny": 2, "demo": 7, "larger": 1, "paper": 1}

# What an operation, or the one that called it, has in its name: the first that fits.
KINDS = {
    "copies": ("copy", "contiguous", "clone", "cat", "CatBackward", "fill_", "zero_"),
    "norm": ("norm_backward", "batch_norm", "instance_norm", "BatchNorm", "repeat", "Repeat"),
    "nonlinearity": ("relu", "Relu", "clamp_min", "threshold"),
    "convolution": ("conv", "Conv"),
    "loss": ("loss", "Loss", "softmax", "Softmax", "SumBackward", "MulBackward", "DivBackward"),
    "optimizer, clipping": ("SGD", "linalg_vector_norm", "mul_", "zero_grad"),
    "sums of skips": ("add", "Add"),
}


# --- forms of a network ---------------------------------------------------------------------------


def as_it_is(network: nn.Module) -> nn.Module:
    return network


def weights(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last_3d)


def by_sums(network: nn.Module) -> nn.Module:
    return faster(network)


def by_patches(network: nn.Module) -> nn.Module:
    return faster(network, norm=PatchNorm)


FORMS = {
    "as it is": as_it_is,
    "weights": weights,
    "by sums": by_sums,
    "by patches": by_patches,
}


def step_of(arch: str, recipe: Recipe, precision: torch.dtype, form: Callable) -> Callable:
    """A function that takes a training step; the same weights and batch each time it is made."""
    torch.manual_seed(0)
    image = torch.randn(recipe.batch_size, 1, *recipe.patch)
    target = torch.randint(0, 3, (recipe.batch_size, *recipe.patch), dtype=torch.uint8)
    network = build_unet(arch, recipe).train()
    model = form(network)
    optimizer = sgd(network, recipe)

    def loss_of(logits, target):
        with record_function("loss"):
            return segmentation_loss(logits, target)

    def step():
        return training_step(
            model, image, target, optimizer, recipe, precision=precision, loss_of=loss_of
        )

    return step


# --- the first table ------------------------------------------------------------------------------


def seconds_of_forms(arch: str, size: str, precision: str) -> dict[str, float]:
    """{form: median CPU seconds of a step}; the first step of each is not counted."""
    dtype = pick_precision(precision, torch.device("cpu"))
    steps = {}
    for name, form in FORMS.items():
        steps[name] = step_of(arch, RECIPES[size], dtype, form)
        steps[name]()

    seconds = {name: [] for name in steps}
    for _ in range(STEPS[size]):
        for name, step in steps.items():
            began = time.process_time()
            step()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def in_a_process(arch: str, size: str, precision: str, processor: str) -> dict[str, float]:
    """The same, measured by a process that has this processor's instructions."""
    command = [sys.executable, __file__, "--measure", arch, size, precision]
    environment = {**os.environ, **PROCESSORS[processor]}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table_of_forms(sizes: list[str], rows: tuple, archs: tuple) -> list[str]:
    """A row for each size, network, number format and processor: milliseconds of each form, and
    what the last one takes of the first."""
    lines = [
        f"| size | network | format | processor | {' | '.join(FORMS)} | of as it is |",
        "|---" * (5 + len(FORMS)) + "|",
    ]
    for size in sizes:
        for precision, processor in rows:
            for arch in archs:
                seconds = in_a_process(arch, size, precision, processor)
                cells = [f"{1000 * taken:.0f}" for taken in seconds.values()]
                share = seconds["by patches"] / seconds["as it is"]
                lines.append(
                    f"| {size} | {arch} | {precision} | {processor} | {' | '.join(cells)} | "
                    f"{share:.0%} |"
                )
                print(lines[-1], file=sys.stderr, flush=True)
    return lines


# --- the second table -----------------------------------------------------------------------------


def kind_of(event) -> str:
    """Which of KINDS an operation is; where its own name says nothing, whoever called it does."""
    while event is not None:
        for kind, words in KINDS.items():
            if any(word in event.name for word in words):
                return kind
        event = event.cpu_parent
    return "other"


def shares(step: Callable) -> dict[str, float]:
    """{kind: its share of a step's time}, of three steps after the first."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(3):
            step()

    spent = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiled.events():
        spent[kind_of(event)] += event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: microseconds / total for kind, microseconds in spent.items()}


def table_of_shares(sizes: list[str], archs: tuple) -> list[str]:
    """A row for each size, network, number format and form: what a step's time goes into."""
    kinds = [*KINDS, "other"]
    lines = [
        f"| size | network | format | form | {' | '.join(kinds)} |",
        "|---" * (4 + len(kinds)) + "|",
    ]
    for size in sizes:
        for arch in archs:
            for precision in ("bf16", "fp32"):
                for name in ("as it is", "by patches"):
                    dtype = pick_precision(precision, torch.device("cpu"))
                    found = shares(step_of(arch, RECIPES[size], dtype, FORMS[name]))
                    cells = [f"{found[kind]:.0%}" for kind in kinds]
                    lines.append(
                        f"| {size} | {arch} | {precision} | {name} | {' | '.join(cells)} |"
                    )
                    print(lines[-1], file=sys.stderr, flush=True)
    return lines


# --- the page -------------------------------------------------------------------------------------


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def page(sizes: list[str], rows: tuple, archs: tuple) -> str:
    """Both tables, with the machine and the day."""
    busy = os.getloadavg()[0]
    forms = table_of_forms(sizes, rows, archs)
    profiled = table_of_shares([size for size in sizes if size != "paper"], archs[:1])
    return "\n".join(
        [
            "# A training step on a CPU",
            "",
            f"`python benchmarks/cpu_step.py`, {time.strftime('%Y-%m-%d')}: {processor_name()}, "
            f"{os.cpu_count()} cores; load when it began {busy:.1f}; torch {torch.__version__}, "
            f"Python {platform.python_version()}.",
            "",
            "## Forms of the network",
            "",
            "CPU milliseconds on one thread: forward, loss, backward, clipping, update of a batch "
            "of two; the median, the forms in turn.",
            "",
            *forms,
            "",
            "## What the time goes into",
            "",
            "By torch.profiler, on one thread: the time of each operation without those that it "
            "calls.",
            "",
            *profiled,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny size, one network")
    parser.add_argument("--sizes", nargs="+", choices=RECIPES, default=["demo", "larger"])
    parser.add_argument("--archs", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--out", type=Path, help="default: results/cpu_step.md; none if --quick")
    parser.add_argument(
        "--measure", nargs=3, metavar=("ARCH", "SIZE", "PRECISION"), help="one row, as JSON"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    exact_float32()
    claim_memory(torch.device("cpu"), 1 << 30)  # glibc keeps what is freed, as in train.py
    if options.measure:
        print(json.dumps(seconds_of_forms(*options.measure)))
        return

    if options.quick:
        text = page(["tiny"], ROWS[:1], ARCHITECTURES[:1])
    else:
        text = page(options.sizes, ROWS, tuple(options.archs))
    print(text)
    out = options.out or (None if options.quick else RESULTS)
    if out:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
