"""The paper's full recipe on a CPU, as predict.py and train.py run it: seconds and peak memory of a window and a step.

    python benchmarks/paper_on_cpu.py            # each architecture in a process of its own

A window without mirroring, two at a time; a step of a batch of two, with losses, clipping and update. The second of
each in its process. kept: glibc keeps what is freed (devices.claim_memory); given: the system gives memory each time.
"""

import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from minikits.devices import claim_memory, pick_precision
from minikits.paper import ARCHITECTURES, PAPER
from minikits.prediction import predict_probabilities
from minikits.training import Progress, sgd, train_epoch
from minikits.unet import build_unet

CPU = torch.device("cpu")


def peak_gib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(work):
    """(what work gives, seconds, CPU seconds) of its second call."""
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def measure(arch, memory):
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from minikits.devices import step_bytes

    precision = pick_precision("auto", CPU)
    known = step_bytes(arch, PAPER, PAPER.batch_size, precision)
    if memory == "kept":
        claim_memory(CPU, known)
    torch.manual_seed(0)
    network = build_unet(arch, PAPER)
    optimizer = sgd(network, PAPER)
    image = torch.randn(PAPER.patch[0], PAPER.patch[1], PAPER.patch[2] * 3 // 2)  # two windows
    _, window, window_cpu = timed(
        lambda: predict_probabilities([network.eval()], image, PAPER, False, precision=precision)
    )
    window_gib = peak_gib()
    shape = (PAPER.batch_size, 1, *PAPER.patch)
    batch = torch.randn(shape), torch.randint(0, 3, (shape[0], *shape[2:]), dtype=torch.uint8)
    one = replace(PAPER, batches_per_epoch=1)
    row, step, step_cpu = timed(
        lambda: train_epoch(
            network, lambda _: batch, optimizer, one, 0, Progress(), precision=precision
        )
    )
    print(
        f"| {arch} | {memory} | {window / 2:.1f} | {window_cpu / 2:.1f} | {window_gib:.1f} | {step:.1f} | "
        f"{step_cpu:.1f} | {peak_gib():.1f} | {known / 2**30:.1f} | {row['loss']:.3f} |",
        flush=True,
    )


if __name__ == "__main__":
    if "--help" in sys.argv[1:] or "-h" in sys.argv[1:]:
        print(__doc__)
    elif len(sys.argv) > 1:
        measure(*sys.argv[1:])
    else:
        print(
            f"torch {torch.__version__}, {torch.get_num_threads()} threads, {pick_precision('auto', CPU)}, patch "
            f"{PAPER.patch}, batch {PAPER.batch_size}\n\n| architecture | memory | window, s | CPU, s | peak, GiB | "
            "step, s | CPU, s | peak, GiB | known before | loss |\n" + "|---" * 10 + "|",
            flush=True,
        )
        for arch in ARCHITECTURES:
            for memory in ("kept", "given") if arch == "residual" else ("kept",):
                subprocess.run([sys.executable, __file__, arch, memory], check=True)
