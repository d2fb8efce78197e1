"""train.py: stopped and resumed, shared by processes, on a split of one's own."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, TORCHRUN, TWO_THREADS, run_script

from minikits import devices
from minikits.cases import prepare, read_folds
from minikits.checkpoints import load_checkpoint
from minikits.sampling import draw_batch

RECIPE = replace(TINY, epochs=2, batches_per_epoch=10)


@pytest.fixture(scope="module")
def whole(phantoms, tmp_path_factory):
    """(arguments that train into `out`, out, checkpoint) of a run that nobody disturbs."""
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
    run_script(*arguments, "--out", out, env=TWO_THREADS)
    return arguments, out, load_checkpoint(out / "plain" / "foldall" / "checkpoint.pt")


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_within_an_epoch_and_resumed_to_the_bit(whole, tmp_path, number, status):
    arguments, _, undisturbed = whole
    command = [sys.executable, *map(str, arguments), "--out", str(tmp_path)]
    # the signal comes once the loop runs: a batch of this network takes longer than this test's polling
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=TWO_THREADS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    checkpoint = tmp_path / "plain" / "foldall" / "checkpoint.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == status and errors == "train.py: stopped; --resume goes on\n"
    stopped = load_checkpoint(checkpoint)
    batch = stopped["iteration"] - 10
    assert len(stopped["log"]) == 1 and 0 < batch < 10 and stopped["loss_sum"] != 0
    printed = run_script(*arguments, "--out", tmp_path, "--resume", env=TWO_THREADS)
    assert f"resumed after epoch 1, batch {batch} of the next" in printed
    resumed = load_checkpoint(checkpoint)
    assert all(
        torch.equal(value, resumed["network"][name])
        for name, value in undisturbed["network"].items()
    )
    assert [row["loss"] for row in resumed["log"]] == [row["loss"] for row in undisturbed["log"]]


IN_FLOAT64 = f"""
import sys, torch
sys.path.insert(0, {str(ROOT)!r})
torch.set_default_dtype(torch.float64)
import train
single = train.draw_batch
def double(*given, **named):
    image, target = single(*given, **named)
    return image.double(), target
train.draw_batch = double
"""

# Padded channels, as on a GPU; the graphs of the steps there and back are run as they are, since a
# compiler of C++ would take a minute for them.
COMPILED = """
from minikits import fast
fast.suited_multiple = lambda device: 8
graphs = []
def as_it_is(graph, inputs):
    graphs.append(graph)
    return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)
compile = torch.compile
torch.compile = lambda function, **options: compile(function, backend=as_it_is, **options)
"""


def run_in_float64(arguments, out, *launcher, more="", then=""):
    """The checkpoint of that training, and what it printed. more, then: lines before and after."""
    out.mkdir()
    script = out / "double.py"
    script.write_text(IN_FLOAT64 + more + "train.main()\n" + then)
    printed = run_script(*launcher, script, *arguments[1:], "--out", out)
    return load_checkpoint(out / "plain" / "foldall" / "checkpoint.pt"), printed


def test_two_processes_with_a_sample_each_equal_one_with_two(whole, tmp_path):
    """20 steps, gloo, in float64: rounding grows a thousandfold over such steps of momentum 0.99."""
    arguments, _, _ = whole

    one, _ = run_in_float64(arguments, tmp_path / "one")
    two, _ = run_in_float64(arguments, tmp_path / "two", *TORCHRUN, 2)

    assert two["environment"]["processes"] == 2 and [row["epoch"] for row in two["log"]] == [1, 2]
    for name, value in one["network"].items():
        assert (
            value.dtype == torch.float64 and (value - two["network"][name]).abs().max() < 1e-10
        ), name
    assert [row["loss"] for row in two["log"]] == pytest.approx(
        [row["loss"] for row in one["log"]], abs=1e-10
    )


def test_two_processes_with_a_compiled_network_equal_one_without(whole, tmp_path):
    """Four steps. Each process compiles the network for its sample, and the loss."""
    arguments, _, _ = whole
    recipe = replace(
        TINY,
        patch=(8, 16, 16),
        stage_strides=((1, 1, 1), (2, 2, 2)),
        epochs=1,
        batches_per_epoch=4,
    )
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(asdict(recipe)))
    arguments = [*arguments, "--recipe", path]

    one, _ = run_in_float64(arguments, tmp_path / "one")
    two, printed = run_in_float64(
        [*arguments, "--compile", "on"],
        tmp_path / "two",
        *TORCHRUN,
        2,
        more=COMPILED,
        then="print(f'{len(graphs)} graphs')\n",
    )

    assert two["environment"]["processes"] == 2
    graphs = [int(number) for number in re.findall(r"(\d+) graphs", printed)]
    assert len(graphs) == 2 and min(graphs) >= 2
    assert two["log"][0]["loss"] == pytest.approx(one["log"][0]["loss"], abs=1e-10)
    assert two["network"].keys() == one["network"].keys()
    for name, value in one["network"].items():
        assert (value - two["network"][name]).abs().max() < 1e-10, name


def test_a_batch_that_cannot_be_shared_out_is_refused(whole, monkeypatch):
    arguments, _, _ = whole
    monkeypatch.setenv("LOCAL_RANK", "0")
    said = run_script(*TORCHRUN, 3, *arguments, "--out", "nowhere", expect=1)
    assert "batch_size 2, wanted a multiple of the 3 processes" in said


def test_shares_of_a_batch_are_its_samples(phantoms, tmp_path):
    cases = prepare(phantoms, tmp_path, TINY)
    recipe = replace(TINY, batch_size=4)
    image, target = draw_batch(cases, recipe, 0, 5)
    for rank in range(4):
        part, labels = draw_batch(cases, recipe, 0, 5, samples=range(rank, 4, 4))
        assert torch.equal(part, image[rank : rank + 1]) and torch.equal(
            labels, target[rank : rank + 1]
        )


def test_a_split_of_ones_own(phantoms, tmp_path, monkeypatch):
    ids = sorted(path.name for path in phantoms.iterdir())
    (tmp_path / "tiny.json").write_text(json.dumps(asdict(TINY)))
    arguments = [
        "train.py",
        "--arch",
        "plain",
        "--data",
        phantoms,
        "--recipe",
        tmp_path / "tiny.json",
    ]
    arguments += ["--out", tmp_path]

    def written(content):
        (tmp_path / "folds.json").write_text(json.dumps(content))
        return [*arguments, "--folds", tmp_path / "folds.json"]

    run_script(
        *written([{"train": ids[:1], "val": ids[1:]}, {"train": ids[:4], "validation": ids[5:]}]),
        "--fold",
        1,
    )
    checkpoint = load_checkpoint(tmp_path / "plain" / "fold1" / "checkpoint.pt")
    assert checkpoint["cases"] == {"train": ids[:4], "validation": ids[5:]}
    for content, complaint in (
        ({"train": ids}, "wanted a JSON list"),
        ([{"train": ids}], "wanted a JSON list"),
        ([{"train": ids, "val": ["case_9"]}], r"\['case_9'\] in a fold"),
        ([{"train": ids, "val": ids[:1]}], f"'{ids[0]}'.* in a fold"),
        ([{"train": [], "val": ids}], "nothing to train on"),
    ):
        with pytest.raises(ValueError, match=complaint):
            read_folds(written(content)[-1], ids, TINY)
    said = run_script(*arguments, "--fold", 7, expect=2)
    assert "--fold 7: no such fold, wanted 0 to 4, or all" in said


def test_a_cpu_that_emulates_bfloat16_does_not_get_it(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert devices.pick_precision("auto", cpu) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert devices.pick_precision("auto", cpu) == torch.bfloat16
    assert devices.pick_precision("fp32", cpu) == torch.float32


MEASURE = """
import json, torch
from pathlib import Path
from minikits.losses import segmentation_loss
from minikits.paper import recipe_from
from minikits.unet import build_unet
from minikits.devices import step_bytes
recipe = recipe_from({recipe!r})
wanted = step_bytes({arch!r}, recipe, 2, torch.float32)
peaks = []
for patch in (16, 16, 32), recipe.patch:  # the first for what libraries take
    network = build_unet({arch!r}, recipe)
    image, target = torch.randn(2, 1, *patch), torch.randint(0, 3, (2, *patch))
    segmentation_loss(network(image), target).backward()
    peaks.append(next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM")))
print(json.dumps([wanted, 1024 * (peaks[1] - peaks[0])]))
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak memory is read where Linux has it"
)
@pytest.mark.parametrize("arch", ["plain", "residual", "preactivation"])
def test_the_memory_of_a_step_is_known_before(arch):
    recipe = asdict(
        replace(TINY, patch=(48, 64, 64), plain_features=12, residual_features=12, max_features=48)
    )
    known, measured = json.loads(run_script("-c", MEASURE.format(recipe=recipe, arch=arch)))
    assert 0.65 * measured < known < 1.4 * measured, (
        known,
        measured,
    )  # at this size fragments of the heap count


def test_a_step_that_would_not_fit_is_refused_before_the_first_batch(
    phantoms, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(ROOT)
    train = importlib.import_module("train")
    monkeypatch.setattr(devices.os, "sysconf", lambda name: 2**15)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "train.py",
            "--data",
            str(phantoms),
            "--out",
            str(tmp_path / "runs"),
            "--precision",
            "fp32",
        ],
    )
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert stop.value.code == 2 and not [
        path for path in (tmp_path / "runs").rglob("*") if path.is_file()
    ]
    said = capsys.readouterr().err
    assert (
        "has 1.0 GiB of memory, a training step wants about 11.4; a recipe with a smaller patch"
        in said
    )


def test_cases_go_where_there_is_room(phantoms, tmp_path):
    cases = prepare(phantoms, tmp_path, TINY)
    size = sum(case.image.nbytes + case.labels.nbytes for case in cases)
    assert devices.keep_on_device(cases, torch.device("cpu"), 2 * size) is cases
    assert (
        devices.keep_on_device(cases, torch.device("meta"), size - 1) is cases
    )  # meta stands for a GPU
    moved = devices.keep_on_device(cases, torch.device("meta"), size)
    assert all(case.image.is_meta and case.labels.is_meta for case in moved)


FAULTS = """
import os
import resource
import numpy as np
import torch
from minikits.devices import claim_memory

claim_memory(torch.device("cpu"), {share} * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 26, dtype=np.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


@pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()), reason="only glibc is told to"
)
@pytest.mark.parametrize("share, kept", [(0.4, True), (0.6, False), (0, False)])
def test_memory_that_was_freed_is_used_again_where_there_is_room(share, kept):
    first, *later = map(int, run_script("-c", FAULTS.format(share=share)).split())
    assert first > 10 and (
        max(later) < 10 if kept else min(later) > 10
    )  # of 16,384 pages, or 32 huge ones and more
