"""What several tests share: small recipes, phantoms on disk, and the real data beside the checkout, if it is there."""

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

# One thread for each process, told before torch is imported: the tests' networks are tiny, and threads that wait for
# each other on cores that others use too make them ten times slower. What must hold with more asks for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from minikits.nifti import write_image
from minikits.paper import PAPER
from minikits.phantoms import make_case
from minikits.prediction import predict_probabilities
from minikits.preprocessing import labels_on_native_grid, prepare_image

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs"))  # the slow witnesses are the plain forms of docs/one_page.py
SHARED = Path(os.environ.get("MINIKITS_SHARED", ROOT.parent / "shared"))

TINY = dataclasses.replace(
    PAPER,
    spacing_mm=(8.0, 6.0, 6.0),
    patch=(16, 32, 32),
    plain_features=4,
    residual_features=4,
    max_features=8,
    epochs=2,
    batches_per_epoch=3,
    validation_batches=1,
)


def with_probabilities(recipe, probability, **others):
    """The recipe, with this probability for each transform of the augmentation; others: for those
    named, another one, as `noise=1.0`."""
    names = [field.name for field in dataclasses.fields(recipe)]
    changes = {name: probability for name in names if name.endswith("_probability")}
    for name, another in others.items():
        assert f"{name}_probability" in changes
        changes[f"{name}_probability"] = another
    return dataclasses.replace(recipe, **changes)


@pytest.fixture
def train(monkeypatch):
    """train.py as a module; a run folder may be taken again within this process."""
    monkeypatch.syspath_prepend(ROOT)
    module = importlib.import_module("train")
    monkeypatch.setattr(module, "claim", lambda folder: None)
    return module


@pytest.fixture
def no_scan_is_too_small(monkeypatch):
    """Scans of a few voxels are not doubted for their breadth."""
    monkeypatch.setattr("minikits.doubts.LEAST_ACROSS_MM", 0)


@pytest.fixture(scope="session")
def kits19():
    if not (SHARED / "kits19").is_dir():
        pytest.skip(
            "the KiTS19 label volumes are not here (kits19/ beside the checkout, in ../shared)"
        )
    return SHARED / "kits19"


@pytest.fixture(scope="session")
def real_ct():
    path = SHARED / "ct" / "example_ct_sm.nii.gz"
    if not path.is_file():
        pytest.skip("the example CT is not here (ct/example_ct_sm.nii.gz in ../shared)")
    return path


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """A KiTS19 folder of six small cases."""
    folder = tmp_path_factory.mktemp("phantoms")
    for number in range(6):
        image, labels, spacing = make_case(number, shape=(30, 64, 70), spacing_mm=(6.0, 5.5, 5.5))
        write_image(folder / f"phantom_{number}" / "imaging.nii.gz", image, spacing)
        write_image(folder / f"phantom_{number}" / "segmentation.nii.gz", labels, spacing)
    return folder


def touch(folder, *names):
    """Empty files; the folders that their names have are made."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def link_to_nothing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path.parent / "store" / "absent")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


def predict_volume(networks, volume, recipe, **options):
    """The stages of predict.py, one after the other: the labels (Z, Y, X) on the scan's own grid."""
    image = prepare_image(volume, recipe)
    return labels_on_native_grid(predict_probabilities(networks, image, recipe, **options), volume)


# how many processes follows; a free port each time, so that two suites may run beside each other
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


# For what is promised to the bit, which has to hold with the threads that users have. Threads that wait for each other
# give way to others: on a busy machine they would spin for most of their time.
TWO_THREADS = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}


def run_script(*arguments, expect=0, cwd=ROOT, env=None):
    """Runs a script of ours as a user does; returns its output, both streams."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        timeout=300,
    )
    assert done.returncode == expect, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr
