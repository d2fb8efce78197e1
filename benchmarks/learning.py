"""Does learning suffer from what makes it fast? Dice with and without each speed-up, over seeds.

    python -m minikits.phantoms --out learning/data --labels FOLDER      # bodies around KiTS19's label volumes
    python benchmarks/learning.py learning --seeds 3

Trains fold 0 of the demo's recipe with train.py, on learning/data, and scores the held-out cases, for each seed: in
float32, and in bfloat16 (a CPU without it emulates it, many times slower). All are predicted in float32.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import torch

from minikits.cases import prepare
from minikits.paper import DEMO

ROOT = Path(__file__).parent.parent


def float32():
    sys.argv += ["--precision", "fp32"]


def bfloat16():
    sys.argv += ["--precision", "bf16"]


VARIANTS = {f.__name__: f for f in (float32, bfloat16)}


def run(command):
    done = subprocess.run(
        [*map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-1000:])


def train_once(folder, variant, seed):
    """(kidney, tumor) mean Dice of the fold's held-out cases, and the seconds it took."""
    out, began = folder / variant / str(seed), time.monotonic()
    out.mkdir(parents=True)
    (out / "prepared").symlink_to(folder / "prepared")
    run(
        [
            sys.executable,
            "-W",
            "ignore",
            __file__,
            "train",
            variant,
            "--recipe",
            folder / "recipe.json",
            "--data",
            folder / "data",
            "--out",
            out,
            "--seed",
            seed,
        ]
    )
    seconds = time.monotonic() - began
    run(
        [
            sys.executable,
            "predict.py",
            "--in",
            folder / "data",
            "--cross-validation",
            "--no-mirroring",
            "--precision",
            "fp32",
            "--model",
            out / "residual",
            "--out",
            out / "masks",
        ]
    )
    run(
        [
            sys.executable,
            "evaluate.py",
            "--pred",
            out / "masks",
            "--ref",
            folder / "data",
            "--allow-missing",
            "--out",
            out / "report",
        ]
    )
    summary = json.loads((out / "report" / "summary.json").read_text())
    return [summary[score]["mean"] for score in ("kidney", "tumor")], seconds


def train_variant(variant, arguments):
    sys.path.insert(0, str(ROOT))
    sys.argv = ["train.py", *arguments]
    VARIANTS[variant]()
    import train

    train.main()


def main():
    if sys.argv[1:2] == ["train"]:
        train_variant(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=DEMO.epochs)
    arguments = parser.parse_args()
    folder, names, seeds = arguments.folder.resolve(), arguments.variants, range(arguments.seeds)
    recipe = replace(DEMO, epochs=arguments.epochs)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))
    prepare(folder / "data", folder / "prepared", recipe, say=print)
    runs = [(name, seed) for seed in seeds for name in names]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(runs, pool.map(lambda run: train_once(folder, *run), runs)))
    print(
        f"torch {torch.__version__}, one thread, {recipe.epochs} epochs of {recipe.batches_per_epoch} batches\n\n"
        "| variant | kidney, each seed | tumor, each seed | mean kidney | mean tumor | seconds |\n"
        "|---|---|---|---|---|---|"
    )
    for name in names:
        dice, seconds = zip(*(found[name, seed] for seed in seeds))
        each = [" ".join(f"{100 * value:.1f}" for value in values) for values in zip(*dice)]
        means = [f"{100 * statistics.mean(values):.1f}" for values in zip(*dice)]
        print(f"| {' | '.join([name, *each, *means])} | {statistics.median(seconds):.0f} |")


if __name__ == "__main__":
    main()
