"""The paper's Table 1 in small: three architectures and their ensemble, five folds, on bodies around real kidneys.

    python benchmarks/table1.py [FOLDER] [--labels ../shared/kits19] [--epochs 8] [--recipe demo]

Fifteen trainings of the demo's recipe, cut to so many epochs, two at a time with a core each (`--jobs`, `--threads`);
then every case is predicted by the networks that did not see it, and evaluate.py compares. Without the labels, bodies
are drawn. What is in FOLDER already is not done again. It shows that the whole way works and what the tests say of
differences of this size; it shows nothing about patients, nor about what networks of the paper's size would do.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from minikits.cases import prepare
from minikits.paper import ARCHITECTURES, DEMO, FOLDS, PAPER

ROOT = Path(__file__).parent.parent


def main():
    parser = argparse.ArgumentParser(
        description="Train, cross-validate and compare the three architectures."
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("table1"))
    parser.add_argument("--labels", type=Path, default=ROOT.parent / "shared" / "kits19")
    parser.add_argument("--recipe", choices=["demo", "paper"], default="demo")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    out, began = arguments.folder, time.monotonic()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    recipe = replace({"demo": DEMO, "paper": PAPER}[arguments.recipe], epochs=arguments.epochs)
    data, runs, masks = out / "data", out / "runs", out / "masks"

    def run(*command):
        whole = [sys.executable, *map(str, command)]
        done = subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, check=False)
        print(
            f"{(time.monotonic() - began) / 60:.0f} min: {' '.join(map(str, command[:5]))}",
            flush=True,
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        return done.stdout

    if not data.exists():
        given = ["--labels", arguments.labels] if arguments.labels.is_dir() else ["--cases", 25]
        run("-m", "minikits.phantoms", "--out", data.resolve(), *given)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe)))
    prepare(data, runs / "prepared", recipe, say=print)
    out, data, runs, masks = (path.resolve() for path in (out, data, runs, masks))
    with ThreadPoolExecutor(arguments.jobs) as jobs:
        list(
            jobs.map(
                lambda job: run(
                    "train.py",
                    "--arch",
                    job[0],
                    "--fold",
                    job[1],
                    "--data",
                    data,
                    "--out",
                    runs,
                    "--recipe",
                    out / "recipe.json",
                    "--resume",
                ),
                [(arch, fold) for fold in range(FOLDS) for arch in ARCHITECTURES],
            )
        )
        systems = {arch: [arch] for arch in ARCHITECTURES} | {"ensemble": ARCHITECTURES}
        list(
            jobs.map(
                lambda name: run(
                    "predict.py",
                    "--in",
                    data,
                    "--out",
                    masks / name,
                    "--no-mirroring",
                    "--cross-validation",
                    "--model",
                    *(runs / arch for arch in systems[name]),
                ),
                systems,
            )
        )
    printed = run(
        "evaluate.py",
        "--pred",
        *(masks / name for name in systems),
        "--ref",
        data,
        "--out",
        out / "report",
        "--allow-missing",
    )
    print(printed[printed.index("The ") :])


if __name__ == "__main__":
    main()
