"""The paper's Table 1 from KiTS19's data, by one command that can be stopped anywhere and started again.

    python benchmarks/reproduce.py --data data --out runs                  # one thing after the other
    python benchmarks/reproduce.py --data data --out runs --gpus 0 1 2 3   # a training on each of these GPUs
    python benchmarks/reproduce.py --data data --out runs --slurm          # prints a script that submits it all
    python benchmarks/reproduce.py --data data --out runs --only 7         # one part alone: check, prepare, a
                                                                           # training (0 to 14), or scores

The data are checked, the cases prepared, three architectures trained on five folds each; every case is predicted by
the networks that did not see it, by those of each architecture and by all together; evaluate.py compares them, beside
the paper's numbers, and a table by fold follows. What is done is seen on the disk and not done again.
"""

import argparse
import csv
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import monotonic

import numpy as np

from minikits.cases import prepare
from minikits.checkpoints import load_checkpoint
from minikits.devices import note_signals
from minikits.evaluation import SCORES
from minikits.files import forgiving_output, typed_path, write_text
from minikits.paper import ARCHITECTURES, FOLDS, TABLE_1
from minikits.processes import cores
from minikits.reading import a_number, chosen_recipe
from minikits.recipe import Recipe
from minikits.reports import as_csv

ROOT = Path(__file__).parent.parent
TRAININGS = [(arch, fold) for arch in ARCHITECTURES for fold in range(FOLDS)]
SYSTEMS = {**{arch: (arch,) for arch in ARCHITECTURES}, "ensemble": ARCHITECTURES}
PARTS = ("check", "prepare", *map(str, range(len(TRAININGS))), "scores")


@dataclass(frozen=True)
class Step:
    """A command of ours: a name for messages and its log, and the words after `python`."""

    name: str
    words: list


class Unfinished(Exception):
    """What is left undone, and the exit status that says so."""

    def __init__(self, said: str, status: int = 2):
        super().__init__(said)
        self.status = status


def main() -> None:
    forgiving_output()
    parser = command_line()
    arguments = parser.parse_args()
    if arguments.slurm:
        print(slurm_script(arguments), end="")
        return
    try:
        with note_signals() as noted:
            reproduce(arguments, noted)
    except Unfinished as unfinished:
        parser.exit(unfinished.status, f"reproduce.py: {unfinished}\n")
    except (ValueError, OSError) as error:
        parser.exit(2, f"reproduce.py: {error}\n")


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description="Repeat the paper's Table 1 on KiTS19.")
    add = parser.add_argument
    add("--data", type=typed_path, default=Path("data"), help="KiTS19 folder")
    add("--out", type=typed_path, default=Path("runs"), help="folder of all that is made")
    add("--recipe", default="paper", help="paper, demo, or a JSON file, as train.py takes it")
    add("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="paper: fp32")
    add("--gpus", nargs="+", metavar="N", help="the GPUs to use at once, by their numbers")
    add("--only", choices=PARTS, metavar="PART", help=f"of it: {', '.join(PARTS)}")
    add("--jobs", type=a_number, default=cores(), help="processes that prepare cases, at most")
    add("--slurm", action="store_true", help="print a script that submits it as Slurm jobs")
    return parser


def reproduce(arguments: argparse.Namespace, noted: list[int]) -> None:
    """All of it, or the part that --only names. noted: signals that came in. Unfinished where
    anything failed or was stopped."""
    recipe = chosen_recipe(arguments.recipe)
    wanted = [arguments.only] if arguments.only else PARTS

    if "check" in wanted and not (arguments.out / "check" / "index.html").exists():
        run_all([check_of(arguments)], arguments, noted)

    if "prepare" in wanted:
        prepare_cases(arguments, recipe, noted)

    trainings = []
    for number, (arch, fold) in enumerate(TRAININGS):
        if str(number) not in wanted:
            continue
        if is_trained(run_folder(arguments, arch, fold), recipe):
            print(f"{arch}, fold {fold}: trained already", flush=True)
        else:
            trainings.append(training_of(arguments, arch, fold))
    run_all(trainings, arguments, noted)

    if "scores" in wanted:
        run_all([prediction_of(arguments, name) for name in SYSTEMS], arguments, noted)
        run_all([evaluation_of(arguments)], arguments, noted)
        rows = scores_by_fold(arguments)
        print(f"\n{table_by_fold(rows)}\n\n{what_differs(arguments)}", flush=True)
        write_text(arguments.out / "report" / "by_fold.csv", as_csv(rows))


# --- the parts ------------------------------------------------------------------------------------


def run_folder(arguments: argparse.Namespace, arch: str, fold: int) -> Path:
    """Where train.py puts a run."""
    return arguments.out / arch / f"fold{fold}"


def is_trained(folder: Path, recipe: Recipe) -> bool:
    """Whether a run is there, of this recipe and trained to its end. Of others train.py says what
    is wrong with them."""
    try:
        checkpoint = load_checkpoint(folder / "checkpoint.pt")
    except (ValueError, OSError):
        return False
    return checkpoint["recipe"] == recipe and len(checkpoint["log"]) >= recipe.epochs


def check_of(arguments: argparse.Namespace) -> Step:
    """The check of the data."""
    return Step("check", ["-m", "minikits.check", arguments.data, "--out", arguments.out / "check"])


def prepare_cases(arguments: argparse.Namespace, recipe: Recipe, noted: list[int]) -> None:
    """Prepares the cases once, before several trainings would do it at the same time."""
    folder = arguments.out / "prepared"
    prepare(
        arguments.data, folder, recipe, jobs=arguments.jobs, stop=lambda: bool(noted), say=print
    )
    stop_if(noted)


def training_of(arguments: argparse.Namespace, arch: str, fold: int) -> Step:
    """A training, begun or resumed."""
    words = [ROOT / "train.py", "--arch", arch, "--fold", fold]
    words += ["--data", arguments.data, "--out", arguments.out, "--recipe", arguments.recipe]
    words += ["--precision", arguments.precision, "--resume"]
    return Step(f"train {arch} {fold}", words)


def prediction_of(arguments: argparse.Namespace, name: str) -> Step:
    """The cross-validation of one architecture, or of all together; predict.py goes on with the
    masks that are missing."""
    models = [arguments.out / arch for arch in SYSTEMS[name]]
    words = [ROOT / "predict.py", "--cross-validation", "--in", arguments.data]
    words += ["--out", arguments.out / "masks" / name, "--model", *models]
    words += ["--precision", arguments.precision]
    return Step(f"predict {name}", words)


def evaluation_of(arguments: argparse.Namespace) -> Step:
    """Table 1, with the paper's numbers beside it."""
    masks = [arguments.out / "masks" / name for name in SYSTEMS]
    words = [ROOT / "evaluate.py", "--pred", *masks, "--ref", arguments.data]
    return Step("evaluate", [*words, "--out", arguments.out / "report"])


# --- running them ---------------------------------------------------------------------------------


def run_all(steps: list[Step], arguments: argparse.Namespace, noted: list[int]) -> None:
    """Runs commands one after the other, or as many at a time as there are GPUs. Unfinished, when
    all have ended, where some have failed."""
    free = SimpleQueue()
    gpus = arguments.gpus or [None]
    for gpu in gpus:
        free.put(gpu)

    def run_one(step: Step) -> int:
        if noted:
            return 128 + noted[0]
        gpu = free.get()
        log = None
        if len(gpus) > 1:
            log = arguments.out / "logs" / f"{step.name.replace(' ', '_')}.txt"
        began = monotonic()
        print(f"{step.name}: begins{place_of(gpu, log)}", flush=True)
        status = run_command(step.words, gpu, log, noted)
        free.put(gpu)
        minutes = (monotonic() - began) / 60
        print(f"{step.name}: exit status {status} after {minutes:.1f} min", flush=True)
        return status

    with ThreadPoolExecutor(len(gpus)) as threads:
        statuses = list(threads.map(run_one, steps))
    stop_if(noted)

    failed = {step.name: status for step, status in zip(steps, statuses) if status}
    if failed:
        names = ", ".join(f"{name} ({status})" for name, status in failed.items())
        stopped = [status for status in failed.values() if status > 128]
        raise Unfinished(
            f"not finished: {names}; see what they say, then start the same command again",
            status=stopped[0] if stopped else 2,
        )


def place_of(gpu: str | None, log: Path | None) -> str:
    """Where a command runs and writes, for the line that it begins with."""
    place = ""
    if gpu is not None:
        place += f", GPU {gpu}"
    if log is not None:
        place += f", its words in {log}"
    return place


def run_command(words: list, gpu: str | None, log: Path | None, noted: list[int]) -> int:
    """Runs `python WORDS` and gives its exit status. gpu: the only one that it sees. log: a file
    that its output is added to, where it should not be printed. A signal that is noted is passed
    on, so that it can write a checkpoint."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    output = None
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")

    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
    )
    told = False
    while True:
        try:
            status = process.wait(timeout=0.5)
            break
        except subprocess.TimeoutExpired:
            if noted and not told:
                process.terminate()
                told = True
    if output:
        output.close()
    return status if status >= 0 else 128 - status  # by a signal


def stop_if(noted: list[int]) -> None:
    """Unfinished where a signal came in."""
    if noted:
        raise Unfinished("stopped; the same command goes on", status=128 + noted[0])


# --- as Slurm jobs --------------------------------------------------------------------------------


def slurm_script(arguments: argparse.Namespace) -> str:
    """A shell script that submits three jobs: what comes before the trainings, these as an array,
    and the scores. A training that is out of time has a checkpoint, and is queued again."""
    recipe = arguments.recipe
    if recipe not in ("paper", "demo"):
        recipe = typed_path(recipe).resolve()
    words = ["python", Path(__file__).resolve(), "--data", arguments.data.resolve()]
    words += ["--out", arguments.out.resolve(), "--recipe", recipe]
    words += ["--precision", arguments.precision]
    command = shlex.join(map(str, words))
    last = len(TRAININGS) - 1
    return f"""#!/bin/bash
# bash this file, where `python` is the one that minikits is installed for; fit times and sizes to your cluster
set -e
before=$(sbatch --parsable --job-name before --cpus-per-task=8 --mem=32G --time=4:00:00 <<'END'
#!/bin/bash
{command} --only check && {command} --only prepare
END
)
trained=$(sbatch --parsable --job-name train --array=0-{last} --gres=gpu:1 --cpus-per-task=4 --mem=16G \\
    --time=24:00:00 --requeue --signal=TERM@120 --dependency=afterok:$before <<'END'
#!/bin/bash
srun {command} --only $SLURM_ARRAY_TASK_ID
status=$?
if [ $status -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $status
END
)
sbatch --job-name scores --gres=gpu:1 --cpus-per-task=4 --mem=32G --time=24:00:00 \\
    --dependency=afterok:$trained <<'END'
#!/bin/bash
srun {command} --only scores
END
"""


# --- scores by fold -------------------------------------------------------------------------------


def scores_by_fold(arguments: argparse.Namespace) -> list[dict]:
    """Rows {system, fold, cases, kidney, tumor, composite}: mean Dice of each system's folds, of
    all cases, and the paper's."""
    rows = []
    for name, archs in SYSTEMS.items():
        dice = read_dice(arguments.out / "report" / name / "cases.csv")
        for fold in range(FOLDS):
            checkpoint = load_checkpoint(run_folder(arguments, archs[0], fold) / "checkpoint.pt")
            held_out = [case for case in checkpoint["cases"]["validation"] if case in dice]
            rows.append(row_of(name, str(fold), [dice[case] for case in held_out]))
        rows.append(row_of(name, "all", list(dice.values())))
        paper = [percent / 100 for percent in TABLE_1[name]]
        rows.append({"system": name, "fold": "paper", "cases": 206, **dict(zip(SCORES, paper))})
    return rows


def read_dice(path: Path) -> dict[str, list[float]]:
    """{case: [kidney, tumor, composite]} of a cases.csv."""
    with path.open(newline="") as file:
        return {
            row["case"]: [float(row[score]) for score in SCORES] for row in csv.DictReader(file)
        }


def row_of(name: str, fold: str, dice: list[list[float]]) -> dict:
    """The means of some cases' Dice; NaN is left out, and where there is nothing else is the mean."""
    row = {"system": name, "fold": fold, "cases": len(dice)}
    for place, score in enumerate(SCORES):
        values = [of_case[place] for of_case in dice if not np.isnan(of_case[place])]
        row[score] = float(np.mean(values)) if values else np.nan
    return row


def table_by_fold(rows: list[dict]) -> str:
    """The rows as lines, in per cent."""
    lines = ["Mean Dice in %  fold   cases" + "".join(score.rjust(11) for score in SCORES)]
    for row in rows:
        cells = []
        for score in SCORES:
            cells.append("-" if np.isnan(row[score]) else f"{100 * row[score]:.2f}")
        cells = [cell.rjust(11) for cell in cells]
        lines.append(f"{row['system']:<16}{row['fold']:<7}{row['cases']:>5}{''.join(cells)}")
    return "\n".join(lines)


def what_differs(arguments: argparse.Namespace) -> str:
    """What the trainings departed by from the paper, as their checkpoints say: lines."""
    lines = {}
    for arch, fold in TRAININGS:
        checkpoint = load_checkpoint(run_folder(arguments, arch, fold) / "checkpoint.pt")
        told = checkpoint["departures"]
        for line in told["recipe"] + told["run"]:
            lines[line] = lines.get(line, 0) + 1
    if not lines:
        return "recipe and runs: the paper's; departures of the code: docs/paper.md"
    listed = [f"  {line} ({count} of {len(TRAININGS)} trainings)" for line, count in lines.items()]
    return "\n".join(["what differs from the paper, beside the code (docs/paper.md):", *listed])


if __name__ == "__main__":
    main()
