"""Killed runs, full disks, two at once, odd names: nothing is lost, half-written or changed.

MINIKITS_KILLS=30 kills a training at thirty random moments; the suite is content with the two worst.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import torch
from conftest import ROOT, TINY, TWO_THREADS, run_script

from minikits.checkpoints import load_checkpoint, save_checkpoint
from minikits.unet import build_unet

RECIPE = replace(TINY, epochs=2, batches_per_epoch=10)
SLOW_DISK = """
import os, runpy, sys, time
flush = os.fsync
os.fsync = lambda file: (time.sleep(0.5), flush(file))
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def whole(phantoms, tmp_path_factory):
    """(arguments of a training, its checkpoint if nobody disturbs it, how long that takes)."""
    out = tmp_path_factory.mktemp("whole")
    (out / "recipe.json").write_text(json.dumps(asdict(RECIPE)))
    arguments = [
        "train.py",
        "--arch",
        "plain",
        "--fold",
        "all",
        "--data",
        phantoms,
        "--recipe",
        out / "recipe.json",
    ]
    began = time.monotonic()
    run_script(*arguments, "--out", out, env=TWO_THREADS)
    return (
        arguments,
        load_checkpoint(out / "plain" / "foldall" / "checkpoint.pt"),
        time.monotonic() - began,
    )


def started(*command):
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, env=TWO_THREADS, stdout=subprocess.DEVNULL
    )


@pytest.mark.parametrize(
    "moment", ["preparing", "writing", *range(int(os.environ.get("MINIKITS_KILLS", 0)))]
)
def test_killed_and_resumed_to_the_bit(whole, tmp_path, moment):
    arguments, undisturbed, seconds = whole
    seen = {"preparing": "prepared/.phantom*", "writing": "plain/foldall/.checkpoint.pt*"}.get(
        moment
    )
    until = time.monotonic() + (60 if seen else random.Random(moment).uniform(0.2, 1) * seconds)
    process = started("-c", SLOW_DISK, *arguments, "--out", tmp_path)
    while (
        process.poll() is None
        and time.monotonic() < until
        and not (seen and any(tmp_path.glob(seen)))
    ):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -9 or not seen
    run_script(*arguments, "--out", tmp_path, "--resume", env=TWO_THREADS)
    resumed = load_checkpoint(tmp_path / "plain" / "foldall" / "checkpoint.pt")
    assert all(
        torch.equal(value, resumed["network"][name])
        for name, value in undisturbed["network"].items()
    )
    assert [row["loss"] for row in resumed["log"]] == [row["loss"] for row in undisturbed["log"]]


def test_a_second_training_of_the_same_run_is_refused(whole, tmp_path):
    arguments, undisturbed, _ = whole
    first = started("-c", SLOW_DISK, *arguments, "--out", tmp_path)
    while first.poll() is None and not any(tmp_path.glob("plain/foldall/.checkpoint.pt*")):
        time.sleep(0.001)
    said = run_script(*arguments, "--out", tmp_path, "--resume", expect=2)
    assert "another process trains here; wait for it, or choose another --out" in said
    assert first.wait() == 0
    found = load_checkpoint(tmp_path / "plain" / "foldall" / "checkpoint.pt")
    assert all(
        torch.equal(value, found["network"][name]) for name, value in undisturbed["network"].items()
    )


def limited(bytes_a_file, *arguments):
    """What a script says on a disk that takes no larger files."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, [bytes_a_file] * 2),
    )
    return done.returncode, done.stderr


def checksums(folder):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_checkpoint(
        out / "fold0" / "checkpoint.pt",
        arch="plain",
        recipe=asdict(TINY),
        fold="0",
        seed=0,
        epoch=1,
        cases={"train": [], "validation": []},
        network=build_unet("plain", TINY).state_dict(),
        log=[],
        optimizer={},
    )
    return out


def test_a_disk_that_is_full(whole, model, phantoms, tmp_path):
    arguments, _, _ = whole
    before = checksums(phantoms)
    status, said = limited(20_000, *arguments, "--out", tmp_path / "runs")
    assert (
        status == 2
        and "cannot be written" in said
        and "is the disk full?" in said
        and said.count("\n") == 1
    )
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    predict = (
        "predict.py",
        "--in",
        phantoms,
        "--out",
        tmp_path / "masks",
        "--model",
        model,
        "--no-mirroring",
    )
    run_script(*predict)
    masks = checksums(tmp_path / "masks")
    status, said = limited(400, *predict, "--overwrite")
    assert status == 2 and "File too large" in said
    assert checksums(tmp_path / "masks") == masks and checksums(phantoms) == before


def test_odd_names_and_places(model, phantoms, tmp_path):
    """Each scan is predicted into its place, nothing else is written, and the inputs stay as they were."""
    scans = tmp_path / "scans of -- the day"
    scans.mkdir()
    for number, name in enumerate(("-dash", "with space", "..dots", "Ünïcode-名", "a.b.c_0000")):
        shutil.copy(phantoms / f"phantom_{number}" / "imaging.nii.gz", scans / f"{name}.nii.gz")
    (scans / "link.nii.gz").symlink_to(phantoms / "phantom_5" / "imaging.nii.gz")
    (scans / "folder.nii.gz").mkdir()
    before = checksums(tmp_path)
    for path in scans.glob("*.nii.gz"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    out = scans / ".." / "masks"
    run_script("predict.py", "--in", scans, "--out", out, "--model", model, "--no-mirroring")
    names = {"-dash", "with space", "Ünïcode-名", "a.b.c", "link"}
    after = checksums(tmp_path)
    assert {path: after[path] for path in before} == before
    assert after.keys() - before.keys() == {
        tmp_path / "masks" / name
        for name in ("prediction.json", "prediction.csv", *(f"{name}.nii.gz" for name in names))
    }
    for inside in (scans, scans / ".." / scans.name):
        said = run_script("predict.py", "--in", scans, "--out", inside, "--model", model, expect=2)
        assert "scans or labels lie there; choose another folder for the masks" in said
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "link.nii.gz").symlink_to(scans / "with space.nii.gz")
    run_script(
        "predict.py",
        "--in",
        tmp_path / "links",
        "--out",
        scans,
        "--model",
        model,
        "--overwrite",
        expect=2,
    )
    assert {path: checksums(tmp_path)[path] for path in after} == after
