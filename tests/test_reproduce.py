"""benchmarks/reproduce.py: what it runs in which state; its commands stand in by files that they would leave."""

import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY

from minikits.checkpoints import save_checkpoint
from minikits.paper import ARCHITECTURES, FOLDS, PAPER
from minikits.reports import as_csv

CASES = [f"case_{number:05d}" for number in range(10)]


@pytest.fixture
def reproduce(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "reproduce", raising=False)
    import reproduce

    monkeypatch.setattr(reproduce, "chosen_recipe", lambda name: TINY)
    return reproduce


class Commands:
    """Stands in for the commands: what ran, and what each would leave on the disk."""

    def __init__(self, out):
        self.out = out
        self.names = []  # of those that ran
        self.words = {}
        self.gpus = {}
        self.status = {}  # of those that fail
        self.at_once = self.most_at_once = 0
        self.busy = []  # GPUs, at this moment
        self.shared_gpu = False
        self.lock = threading.Lock()
        self.seconds = 0.0

    def run(self, words, gpu, log, noted):
        name = self.name_of(words)
        with self.lock:
            self.names.append(name)
            self.words[name], self.gpus[name] = words, gpu
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.shared_gpu |= gpu in self.busy
            self.busy.append(gpu)
        time.sleep(self.seconds)
        status = self.status.get(name, 0)
        if status == 0:
            self.leave(name)
        with self.lock:
            self.at_once -= 1
            self.busy.remove(gpu)
        return status

    def name_of(self, words):
        words = [str(word) for word in words]
        if "minikits.check" in words:
            return "check"
        script = Path(words[0]).stem
        if script == "train":
            return f"train {words[words.index('--arch') + 1]} {words[words.index('--fold') + 1]}"
        if script == "predict":
            return f"predict {Path(words[words.index('--out') + 1]).name}"
        return script

    def leave(self, name):
        kind, *more = name.split()
        if kind == "check":
            (self.out / "check").mkdir(parents=True)
            (self.out / "check" / "index.html").write_text("<html>")
        if kind == "train":
            save_run(self.out, more[0], int(more[1]))
        if kind == "evaluate":
            for system in (*ARCHITECTURES, "ensemble"):
                save_scores(self.out, system, [(case, 0.9, 0.5) for case in CASES])


def save_run(out, arch, fold, *, recipe=TINY, epochs=TINY.epochs, lines=()):
    held_out = CASES[2 * fold : 2 * fold + 2]
    save_checkpoint(
        out / arch / f"fold{fold}" / "checkpoint.pt",
        arch=arch,
        fold=str(fold),
        recipe=asdict(recipe),
        cases={"train": sorted({*CASES} - {*held_out}), "validation": held_out},
        seed=0,
        iteration=epochs * recipe.batches_per_epoch,
        network={},
        optimizer={},
        log=[{"epoch": number + 1} for number in range(epochs)],
        departures={"recipe": [], "run": list(lines), "code": ["axes"]},
    )


def save_scores(out, system, rows):
    named = [
        {"case": case, "kidney": kidney, "tumor": tumor, "composite": (kidney + tumor) / 2}
        for case, kidney, tumor in rows
    ]
    path = out / "report" / system / "cases.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_csv(named))


@pytest.fixture
def commands(reproduce, tmp_path, monkeypatch):
    commands = Commands(tmp_path / "runs")
    prepared = []
    monkeypatch.setattr(reproduce, "run_command", commands.run)
    monkeypatch.setattr(reproduce, "prepare", lambda *given, **_: prepared.append(given))
    commands.prepared = prepared
    return commands


def start(reproduce, commands, *more, noted=()):
    words = ["--data", "data", "--out", commands.out, *more]
    arguments = reproduce.command_line().parse_args([str(word) for word in words])
    reproduce.reproduce(arguments, list(noted))


TRAININGS = [f"train {arch} {fold}" for arch in ARCHITECTURES for fold in range(5)]
SCORES = [*(f"predict {arch}" for arch in ARCHITECTURES), "predict ensemble", "evaluate"]


def test_from_nothing_to_the_table(reproduce, commands, capsys):
    start(reproduce, commands)

    assert commands.names == ["check", *TRAININGS, *SCORES]
    assert len(commands.prepared) == 1
    printed = capsys.readouterr().out
    assert "train plain 0: begins" in printed
    assert (commands.out / "report" / "by_fold.csv").exists()
    assert "Mean Dice in %  fold   cases" in printed


def test_started_again_what_is_done_is_left_alone(reproduce, commands, capsys):
    """predict.py itself leaves out the scans that have a mask."""
    start(reproduce, commands)
    commands.names.clear()

    start(reproduce, commands)

    assert commands.names == SCORES
    assert capsys.readouterr().out.count("trained already") == 15


def test_after_a_kill_the_rest_is_done(reproduce, commands):
    """Three runs are finished, one is not, one is of another recipe: train.py is asked for the
    last two, and says what is wrong with the other recipe."""
    for fold in range(3):
        save_run(commands.out, "plain", fold)
    save_run(commands.out, "plain", 3, epochs=TINY.epochs - 1)
    save_run(commands.out, "plain", 4, recipe=replace(TINY, weight_decay=0.1))

    start(reproduce, commands)

    assert [name for name in commands.names if name in TRAININGS] == TRAININGS[3:]
    assert "--resume" in commands.words["train plain 3"]


def test_a_damaged_checkpoint_is_not_taken_as_trained(reproduce, commands):
    for arch in ARCHITECTURES:
        for fold in range(5):
            save_run(commands.out, arch, fold)
    (commands.out / "residual" / "fold1" / "checkpoint.pt").write_bytes(b"half a file")

    start(reproduce, commands, "--only", 6)

    assert commands.names == ["train residual 1"]


@pytest.mark.parametrize(
    "part, names",
    [
        ("check", ["check"]),
        ("prepare", []),
        ("0", ["train plain 0"]),
        ("7", ["train residual 2"]),
        ("14", ["train preactivation 4"]),
    ],
)
def test_a_part_alone(reproduce, commands, part, names):
    start(reproduce, commands, "--only", part)

    assert commands.names == names
    assert len(commands.prepared) == (part == "prepare")


def test_every_training_is_one_of_an_arrays(reproduce):
    assert len(reproduce.TRAININGS) == len({*reproduce.TRAININGS}) == len(ARCHITECTURES) * FOLDS
    assert [part for part in reproduce.PARTS if part.isdigit()] == [str(n) for n in range(15)]


def test_the_scripts_understand_what_they_are_given(reproduce, commands, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    import evaluate
    import predict
    import train

    start(reproduce, commands, "--recipe", "demo", "--precision", "fp32")

    words = [str(word) for word in commands.words["train residual 2"][1:]]
    training = train.command_line().parse_args(words)
    assert (training.arch, training.fold, training.resume) == ("residual", "2", True)
    assert (training.recipe, training.precision) == ("demo", "fp32")
    assert (training.data, training.out) == (Path("data"), commands.out)

    words = [str(word) for word in commands.words["predict ensemble"]]
    monkeypatch.setattr(sys, "argv", words)
    prediction = predict.parse_arguments()
    assert prediction.cross_validation and prediction.precision == "fp32"
    assert prediction.model == [commands.out / arch for arch in ARCHITECTURES]
    assert commands.words["predict residual"][-3] == commands.out / "residual"

    words = [str(word) for word in commands.words["evaluate"][1:]]
    evaluation = evaluate.argument_parser().parse_args(words)
    assert evaluation.pred == [commands.out / "masks" / name for name in reproduce.SYSTEMS]
    assert evaluation.out == commands.out / "report"


def test_several_gpus_each_have_a_training(reproduce, commands):
    commands.seconds = 0.01

    start(reproduce, commands, "--gpus", 0, 3)

    assert sorted(commands.names[1:16]) == sorted(TRAININGS)
    assert {commands.gpus[name] for name in TRAININGS} == {"0", "3"}
    assert commands.most_at_once == 2
    assert not commands.shared_gpu


def test_a_training_that_fails_is_named_when_the_others_are_done(reproduce, commands):
    """And nothing is predicted without it."""
    commands.status = {"train residual 2": 2}

    with pytest.raises(reproduce.Unfinished, match=r"not finished: train residual 2 \(2\)") as told:
        start(reproduce, commands)

    assert told.value.status == 2
    assert commands.names == ["check", *TRAININGS]


def test_a_training_that_was_stopped_gives_its_status(reproduce, commands):
    """By which a Slurm job knows that it is to be queued again."""
    commands.status = {"train plain 0": 143}

    with pytest.raises(reproduce.Unfinished) as told:
        start(reproduce, commands, "--only", 0)

    assert told.value.status == 143


def test_after_a_signal_nothing_is_begun(reproduce, commands):
    with pytest.raises(reproduce.Unfinished, match="stopped; the same command goes on") as told:
        start(reproduce, commands, noted=[signal.SIGTERM])

    assert told.value.status == 143
    assert commands.names == []


# --- a command ------------------------------------------------------------------------------------


def test_a_command_sees_its_gpu_and_adds_to_its_log(reproduce, tmp_path):
    code = "import os, minikits; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    log = tmp_path / "logs" / "x.txt"

    statuses = [reproduce.run_command(["-c", code], gpu, log, []) for gpu in ("3", "5")]

    assert statuses == [0, 0]
    assert log.read_text() == "3\n5\n"


def test_a_signal_is_passed_on_and_waited_for(reproduce, tmp_path):
    """The command has a moment to write what it has."""
    code = (
        "import signal, sys, time\n"
        "def stop(*_): time.sleep(0.2); print('saved'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)\n"
    )
    log, noted = tmp_path / "x.txt", []

    def note():
        while not log.exists() or "begun" not in log.read_text():
            time.sleep(0.02)
        noted.append(signal.SIGTERM)

    threading.Thread(target=note).start()
    status = reproduce.run_command(["-c", code], None, log, noted)

    assert status == 143
    assert log.read_text() == "begun\nsaved\n"


def test_a_command_that_a_signal_ended_has_the_status_of_a_shell(reproduce, tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"

    assert reproduce.run_command(["-c", code], None, tmp_path / "x.txt", []) == 128 + 9


# --- Slurm ----------------------------------------------------------------------------------------


def test_the_script_for_slurm_is_a_shells_and_names_every_part(
    reproduce, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "my data"
    words = ["--data", folder, "--out", tmp_path / "runs", "--recipe", "demo", "--slurm"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, words)])
    monkeypatch.setattr(reproduce, "forgiving_output", lambda: None)

    reproduce.main()

    script = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert f"--data '{folder}'" in script
    assert "--array=0-14 " in script and "--only $SLURM_ARRAY_TASK_ID" in script
    assert script.count("--recipe demo") == 4
    for part in ("check", "prepare", "scores"):
        assert f"--only {part}" in script
    assert not (tmp_path / "runs").exists()


# --- the tables -----------------------------------------------------------------------------------


def test_the_table_by_fold_by_hand(reproduce, tmp_path):
    """Two cases a fold; of fold 1 a case has no tumor score, of fold 2 none has one."""
    arguments = reproduce.command_line().parse_args(["--out", str(tmp_path)])
    kidney = [1.0, 0.5, 0.8, 0.6, 0.9, 0.7, 1.0, 1.0, 0.0, 0.2]
    tumor = [0.5, 0.3, 0.4, np.nan, np.nan, np.nan, 1.0, 0.0, 0.2, 0.2]
    for system in reproduce.SYSTEMS:
        save_scores(tmp_path, system, list(zip(CASES, kidney, tumor)))
    for arch in ARCHITECTURES:
        for fold in range(5):
            save_run(tmp_path, arch, fold)

    rows = reproduce.scores_by_fold(arguments)
    table = reproduce.table_by_fold(rows).splitlines()

    assert len(rows) == 4 * 7
    of_plain = {row["fold"]: row for row in rows if row["system"] == "plain"}
    assert of_plain["0"]["kidney"] == 0.75
    assert of_plain["1"]["tumor"] == 0.4
    assert np.isnan(of_plain["2"]["tumor"])
    assert of_plain["all"]["cases"] == 10
    assert of_plain["all"]["kidney"] == pytest.approx(0.67)
    assert of_plain["all"]["tumor"] == pytest.approx(2.6 / 7)
    assert table[1].split() == ["plain", "0", "2", "75.00", "40.00", "57.50"]
    assert table[3].split() == ["plain", "2", "2", "80.00", "-", "-"]
    assert table[7].split() == ["plain", "paper", "206", "97.34", "85.04", "91.19"]
    assert 210 - len(PAPER.excluded_cases) == 206


def test_what_the_trainings_departed_by_is_said_once(reproduce, tmp_path):
    arguments = reproduce.command_line().parse_args(["--out", str(tmp_path)])
    for arch, fold in reproduce.TRAININGS:
        lines = ["number format: bfloat16"] if arch == "plain" else []
        save_run(tmp_path, arch, fold, lines=lines)

    said = reproduce.what_differs(arguments).splitlines()

    assert said[1:] == ["  number format: bfloat16 (5 of 15 trainings)"]
    for arch, fold in reproduce.TRAININGS:
        save_run(tmp_path, arch, fold)
    assert reproduce.what_differs(arguments).startswith("recipe and runs: the paper's")
