"""Does the same training give the same bits? And what gives others, by how much?

    python benchmarks/repeat.py machine        # two operations of a step, 100,000 times each
    python benchmarks/repeat.py training       # whole processes: prepare, draw, 20 steps
    python benchmarks/repeat.py differences    # other threads, number formats, instruction sets
    python benchmarks/repeat.py masks          # the same for predict.py, with the demo's network (`make demo` before)

Processes that only keep the cores busy run beside the first two (--busy N), so that the compared ones are moved
between cores and stopped in the middle. Results: benchmarks/results/repeat.md.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import zlib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from minikits.cases import prepare
from minikits.devices import claim_memory
from minikits.nifti import read_labels, write_image
from minikits.paper import DEMO
from minikits.phantoms import make_case
from minikits.sampling import draw_batch, fetch_ahead
from minikits.training import freeze_coarsest_head, sgd, training_step
from minikits.unet import build_unet

BUSY = """
import torch
torch.set_num_threads(1)
matrix = torch.randn(512, 512).bfloat16()
while True:
    matrix @ matrix
"""
ROOT = Path(__file__).parent.parent
DEMO_RUN = ROOT / "demo"
STEPS = 20
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
VARIANTS = {  # what is other than in the first: (number format, environment)
    "again": ("bf16", {}),
    "one thread": ("bf16", {"OMP_NUM_THREADS": "1"}),
    "four threads": ("bf16", {"OMP_NUM_THREADS": "4"}),
    "convolutions without AMX": ("bf16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}),
    "everything with AVX2": (
        "bf16",
        {
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "ATEN_CPU_CAPABILITY": "avx2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        },
    ),
    "float32": ("fp32", {}),
    "float32, one thread": ("fp32", {"OMP_NUM_THREADS": "1"}),
}


@contextmanager
def busy_processes(count):
    """So many processes that compute in bfloat16 without end, beside what runs inside."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def repeat_operations(repeats):
    """How often, of so many times, an operation's result was not that of the first time, to the bit."""
    torch.manual_seed(0)
    matrix = torch.randn(128, 128).bfloat16()
    image = torch.randn(2, 8, 8, 16, 16).bfloat16()
    gradient = torch.randn(2, 8, 8, 16, 16).bfloat16()
    kernel = torch.randn(8, 8, 3, 3, 3).bfloat16().requires_grad_()

    def product():
        return matrix @ matrix

    def weight_gradient():
        kernel.grad = None
        F.conv3d(image, kernel, padding=1).backward(gradient)
        return kernel.grad

    for name, operation in (
        ("matrix product", product),
        ("weight gradient of a convolution", weight_gradient),
    ):
        first = operation().clone()
        others = 0
        for _ in range(repeats):
            others += not torch.equal(operation(), first)
        print(f"{name}, bfloat16: {others} of {repeats:,} differ from the first", flush=True)


def sum_of(tensors):
    """One number that changes with any bit of these tensors."""
    total = 0
    for tensor in tensors:
        array = np.ascontiguousarray(tensor.detach().float().numpy())
        total = zlib.crc32(array.tobytes(), total)
    return total


def train_once(folder, arch, precision, out):
    """Prepares the folder's cases and trains for 20 steps, as train.py does; prints a sum of each stage."""
    claim_memory(torch.device("cpu"), 1 << 30)
    recipe = replace(DEMO, patch=(16, 32, 32))
    sums = {}
    with tempfile.TemporaryDirectory() as cache:
        cases = prepare(folder, cache, recipe, say=print)
        sums["prepared cases"] = sum_of(
            [part for case in cases for part in (case.image, case.labels)]
        )

        torch.manual_seed(0)
        network = build_unet(arch, recipe)
        freeze_coarsest_head(network)
        optimizer = sgd(network, recipe)
        losses, drawn = [], []
        batches = fetch_ahead(lambda i: draw_batch(cases, recipe, 0, i), range(STEPS))
        for step, (image, target) in enumerate(batches, 1):
            drawn.append(sum_of([image, target]))
            loss = training_step(network, image, target, optimizer, recipe, precision=precision)
            losses.append(loss.item())
            gradients = [
                parameter.grad for parameter in network.parameters() if parameter.grad is not None
            ]
            sums[f"loss of step {step}"] = losses[-1]
            sums[f"gradients of step {step}"] = sum_of(gradients)
        sums["batches"] = drawn
        sums["weights"] = sum_of(network.parameters())
    torch.save(
        {
            "losses": losses,
            "weights": torch.cat([p.detach().flatten() for p in network.parameters()]),
        },
        out,
    )
    print("sums", json.dumps(sums))


def trained(folder, arch, precision, out, environment=None):
    """The sums that a process of its own prints."""
    command = [
        sys.executable,
        __file__,
        "once",
        "--data",
        folder,
        "--arch",
        arch,
        "--precision",
        precision,
    ]
    command += ["--out", out]
    environment = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("sums "))
    return json.loads(line.removeprefix("sums "))


def repeat_trainings(folder, processes):
    for arch in ("plain", "residual"):
        first = trained(folder, arch, "bf16", folder / "first.pt")
        others = []
        for _ in range(processes):
            sums = trained(folder, arch, "bf16", folder / "other.pt")
            others += [[stage for stage in first if sums[stage] != first[stage]]]
        different = [stages for stages in others if stages]
        print(
            f"{arch}, bfloat16, {STEPS} steps: {len(different)} of {processes} processes differ from the first",
            flush=True,
        )
        for stages in different:
            print(f"  in {', '.join(stages)}")


def compare_variants(folder):
    print(
        f"| other than the first | loss of step 1 | of step {STEPS} | weights after {STEPS} steps |"
    )
    print("|---|---|---|---|")
    trained(folder, "residual", "bf16", folder / "first.pt")
    first = torch.load(folder / "first.pt")
    for name, (precision, environment) in VARIANTS.items():
        trained(folder, "residual", precision, folder / "other.pt", environment)
        other = torch.load(folder / "other.pt")
        apart = (other["weights"] - first["weights"]).norm() / first["weights"].norm()
        losses = [abs(b - a) for a, b in zip(first["losses"], other["losses"])]
        print(f"| {name} | {losses[0]:.1e} | {losses[-1]:.1e} | {apart:.1e} |", flush=True)


def predicted(out, precision, environment):
    """The demo's masks of its first three scans, as a process of its own makes them."""
    for number in range(3):
        command = [
            sys.executable,
            ROOT / "predict.py",
            "--in",
            DEMO_RUN / "scans" / f"phantom_200{number}",
            "--out",
            out / str(number),
            "--model",
            DEMO_RUN / "runs" / "residual",
            "--no-mirroring",
            "--precision",
            precision,
        ]
        subprocess.run(
            command, env={**os.environ, **environment}, check=True, stdout=subprocess.DEVNULL
        )
    return [read_labels(path).voxels for path in sorted(out.glob("*/*.nii.gz"))]


def compare_masks(folder):
    print("| other than the first | voxels that differ | of those marked |")
    print("|---|---|---|")
    first = predicted(folder / "first", "bf16", {})
    marked = sum(np.count_nonzero(mask) for mask in first)
    for name, (precision, environment) in VARIANTS.items():
        other = predicted(folder / name, precision, environment)
        differ = sum(np.count_nonzero(a != b) for a, b in zip(first, other))
        print(
            f"| {name} | {differ} of {sum(mask.size for mask in first):,} | {differ / marked:.2%} |",
            flush=True,
        )


def write_phantoms(folder):
    for number in range(5):
        image, labels, spacing = make_case(number, shape=(36, 80, 90), spacing_mm=(5.0, 4.4, 4.4))
        write_image(folder / f"phantom_{number}" / "imaging.nii.gz", image, spacing)
        write_image(folder / f"phantom_{number}" / "segmentation.nii.gz", labels, spacing)


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    able = [name for name, has in torch.cpu.get_capabilities().items() if has and "bf16" in name]
    return f"{names[0] if names else platform.processor()}, {', '.join(able) or 'no bfloat16'}"


def main():
    parser = argparse.ArgumentParser(description="Does the same training give the same bits?")
    parser.add_argument("what", choices=["machine", "training", "differences", "masks", "once"])
    parser.add_argument("--repeats", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--arch", default="residual")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "once":
        train_once(arguments.data, arguments.arch, PRECISIONS[arguments.precision], arguments.out)
        return

    print(f"{processor()}; {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder))
        if arguments.what == "differences":
            compare_variants(Path(folder))
            return
        if arguments.what == "masks":
            compare_masks(Path(folder))
            return
        print(f"{arguments.busy} busy processes beside")
        with busy_processes(arguments.busy):
            if arguments.what == "machine":
                repeat_operations(arguments.repeats)
            else:
                repeat_trainings(Path(folder), arguments.processes)


if __name__ == "__main__":
    main()
