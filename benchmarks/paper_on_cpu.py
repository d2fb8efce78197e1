"""One training step and one predicted window of the paper's full recipe: seconds and peak memory.

    python benchmarks/paper_on_cpu.py            # each architecture in a process of its own
"""

import resource
import subprocess
import sys
import time

import torch

from minikits.losses import segmentation_loss
from minikits.paper import ARCHITECTURES, PAPER
from minikits.prediction import predict_probabilities
from minikits.unet import build_unet


def peak_gib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(arch):
    torch.manual_seed(0)
    network = build_unet(arch, PAPER)
    began = time.monotonic()
    probabilities = predict_probabilities([network], torch.randn(PAPER.patch), PAPER, mirroring=False)
    window_s, window_gib = time.monotonic() - began, peak_gib()
    assert probabilities.shape == (3, *PAPER.patch) and probabilities.isfinite().all()

    optimizer = torch.optim.SGD(network.parameters(), PAPER.learning_rate, PAPER.momentum, nesterov=True,
                                weight_decay=PAPER.weight_decay)
    image = torch.randn(PAPER.batch_size, 1, *PAPER.patch)
    target = torch.randint(0, 3, (PAPER.batch_size, *PAPER.patch), dtype=torch.uint8)
    began = time.monotonic()
    loss = segmentation_loss(network(image), target)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), PAPER.max_gradient_norm)
    optimizer.step()
    print(f"| {arch} | {window_s:.1f} | {window_gib:.1f} | {time.monotonic() - began:.1f} | {peak_gib():.1f} | "
          f"{loss.item():.3f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, patch {PAPER.patch}, batch "
              f"{PAPER.batch_size}\n\n| architecture | window, s | peak, GiB | training step, s | peak, GiB | loss |\n"
              "|---|---|---|---|---|---|", flush=True)
        for arch in ARCHITECTURES:
            subprocess.run([sys.executable, __file__, arch], check=True)
