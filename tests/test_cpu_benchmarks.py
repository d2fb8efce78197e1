"""benchmarks/cpu_step.py, drawing.py and scaling.py: their functions at sizes of seconds, their models by hand."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY

from minikits import training
from minikits.sampling import PreparedCase, fetch_ahead

RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def cpu_step(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "cpu_step", raising=False)
    import cpu_step

    return cpu_step


@pytest.fixture
def drawing(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "drawing", raising=False)
    import drawing

    return drawing


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "scaling", raising=False)
    import scaling

    return scaling


# --- a step ---------------------------------------------------------------------------------------


def test_every_form_takes_steps(cpu_step):
    seconds = cpu_step.seconds_of_forms("plain", "tiny", "fp32")

    assert list(seconds) == ["as it is", "weights", "by sums", "by patches"]
    assert all(taken > 0 for taken in seconds.values())


def test_a_row_has_the_milliseconds_and_the_share(cpu_step, monkeypatch):
    seconds = {"as it is": 0.2, "weights": 0.19, "by sums": 0.18, "by patches": 0.15}
    monkeypatch.setattr(cpu_step, "in_a_process", lambda *given: seconds)

    *_, row = cpu_step.table_of_forms(["demo"], (("fp32", "AVX2"),), ("plain",))

    assert row == "| demo | plain | fp32 | AVX2 | 200 | 190 | 180 | 150 | 75% |"


def event(name, within=None):
    return SimpleNamespace(name=name, cpu_parent=within)


def test_an_operation_is_of_a_kind_or_of_that_which_called_it(cpu_step):
    convolution = event("aten::convolution_backward")
    optimizer = event("Optimizer.step#SGD.step")

    assert cpu_step.kind_of(convolution) == "convolution"
    assert cpu_step.kind_of(event("aten::empty", within=convolution)) == "convolution"
    assert cpu_step.kind_of(event("aten::copy_", within=convolution)) == "copies"
    assert cpu_step.kind_of(event("aten::lerp", within=optimizer)) == "optimizer, clipping"
    assert cpu_step.kind_of(event("aten::native_batch_norm_backward")) == "norm"
    assert cpu_step.kind_of(event("aten::leaky_relu_")) == "nonlinearity"
    assert cpu_step.kind_of(event("aten::stack", within=event("loss"))) == "loss"
    assert cpu_step.kind_of(event("aten::empty")) == "other"


def test_the_shares_of_a_step_are_one_in_all(cpu_step):
    step = cpu_step.step_of("plain", TINY, cpu_step.torch.float32, cpu_step.by_patches)

    shares = cpu_step.shares(step)

    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares["convolution"], shares["norm"], shares["loss"]) > 0.01
    assert shares["other"] < 0.2


# --- drawing --------------------------------------------------------------------------------------


def case_with_a_tumor():
    image = torch.zeros((20, 20, 20), dtype=torch.float16)
    labels = torch.zeros((20, 20, 20), dtype=torch.uint8)
    labels[5:15, 5:15, 5:10] = 1
    labels[5:15, 5:15, 10:15] = 2
    foreground = tuple(np.flatnonzero(labels == value) for value in (1, 2))
    return PreparedCase("a", image, labels, foreground)


def test_each_way_of_drawing_serves_all_steps_of_its_epochs(drawing, monkeypatch):
    served = []

    def train_epoch(network, draw, optimizer, recipe, epoch, progress, *, precision):
        batches = training.fetch_ahead(draw, range(recipe.batches_per_epoch), drawing.CPU)
        served.append(len(list(batches)))

    monkeypatch.setattr(drawing, "train_epoch", train_epoch)
    recipe = replace(TINY, batches_per_epoch=3)

    seconds = drawing.seconds_of_ways([case_with_a_tumor()], recipe, rounds=2)

    assert served == [3] * 4 * 3  # four ways, and a round that is not counted
    assert {way: len(taken) for way, taken in seconds.items()} == dict.fromkeys(drawing.WAYS, 2)
    assert training.fetch_ahead is fetch_ahead  # the loop is as it was


def test_the_table_says_what_a_draw_adds_to_a_step(drawing):
    seconds = {"no draw": [0.1, 0.1, 0.5], "before each step": [0.1, 0.2, 0.12]}

    *_, without, before = drawing.table(seconds).splitlines()

    assert without == "| no draw | 100 | 0 |"
    assert before == "| before each step | 120 | 20 |"


# --- what grows with the work ---------------------------------------------------------------------


SCANS = [
    {
        **{"case": "short", "slices": 100, "shape": [100, 512, 512]},
        **{"read": 0.2, "prepare": 0.1, "windows": 0.1, "back": 0.05, "write": 0.05},
        **{"network": 1.0, "peak_gib": 1.0, "scan_mb": 30, "mask_mb": 1},
    },
    {
        **{"case": "long", "slices": 300, "shape": [300, 512, 512]},
        **{"read": 0.5, "prepare": 0.5, "windows": 0.2, "back": 0.2, "write": 0.1},
        **{"network": 2.0, "peak_gib": 1.5, "scan_mb": 90, "mask_mb": 3},
    },
]
PREPARING = [
    {"cases": 10, "processes": 1, "first": 2.0, "again": 0.1},
    {"cases": 20, "processes": 1, "first": 3.0, "again": 0.2},
    {"cases": 10, "processes": 2, "first": 1.5, "again": 0.1},
    {"cases": 20, "processes": 2, "first": 2.0, "again": 0.2},
]


def test_a_line_goes_through_the_points(scaling):
    """0.5 s at 100 slices and 1.5 s at 300: 0.005 s a slice."""
    line = scaling.line_of_seconds(SCANS)

    assert line(200) == pytest.approx(1.0) and line(1100) == pytest.approx(5.5)
    assert scaling.line_of_memory(SCANS)(500) == pytest.approx(2.0)


def test_ten_thousand_cases_by_the_line(scaling):
    """A tenth of a second a case and a second to begin with; half of each where two share them."""
    assert scaling.line_of_preparing(PREPARING, 1)(10_000) == pytest.approx(1001)
    assert scaling.rows_of_preparing(PREPARING)[-1] == "| 10,000 | 1001 | 501 | 100 |"


def test_gpus_wait_for_the_gradient(scaling):
    """40 ms a step and 1 GB at 100 GB/s: two GPUs send it once (10 ms), four 1.5 times."""
    seconds = [scaling.seconds_of_step(0.04, 10**9, gpus, 1e11) for gpus in (1, 2, 4)]

    assert seconds == pytest.approx([0.040, 0.050, 0.055])
    assert scaling.patches_a_second(0.04, 10**9, 2, 1e11) == pytest.approx(80)


def test_an_archive_is_so_many_mean_cases(scaling):
    one = scaling.archive(SCANS, {"slices": 200.0, "windows": 30.0}, 0.01)

    assert one["one network"] == pytest.approx(0.3)
    assert one["five networks, mirrored"] == pytest.approx(12)
    assert one["all else"] == pytest.approx(1.0)
    assert one["scan_mb"] == pytest.approx(60) and one["mask_mb"] == pytest.approx(2)
    rows = scaling.rows_of_archive(one)
    assert "| one network, residual | 0.30 s | 83 GPU hours |" in rows
    assert "| all but the network | 1.00 s of a core | 278 core hours |" in rows
    assert "| a scan's file | 60.0 MB | 60.0 TB |" in rows


def test_the_windows_of_the_median_case(scaling):
    """128x248x248 after resampling: three along each axis. Twice the patch is three as well."""
    assert scaling.windows_of([128, 248, 248], [3.22, 1.62, 1.62]) == 27
    mean = scaling.on_average(
        {
            "a": [[80, 160, 160], [3.22, 1.62, 1.62]],
            "b": [[160, 160, 160], [3.22, 1.62, 1.62]],
        }
    )
    assert mean == {"slices": 120, "windows": 2}


def test_what_a_gpu_takes_is_read_of_its_page(scaling):
    steps, window = scaling.measured_on_gpu(RESULTS / "gpu.md")

    assert {"plain", "residual"} <= set(steps)
    assert all(0.005 < step < 1 for step in steps.values()) and 0.001 < window < 0.1


def test_a_scan_is_measured_stage_by_stage(scaling, tmp_path):
    recipe = replace(scaling.SMALL, patch=(16, 32, 32))
    scaling.small_kits19(tmp_path / "kits19")
    scaling.make_scan("short", SimpleNamespace(kits19=tmp_path / "kits19"), tmp_path / "scan.nii")
    scaling.write_model(tmp_path, recipe)

    stages = scaling.stages_of_scan(tmp_path / "scan.nii", tmp_path / "mask.nii")

    assert (tmp_path / "mask.nii").is_file()
    assert all(seconds > 0 for seconds in stages.values()), stages
    assert 0 < scaling.rest_of(stages) < 60


def test_preparing_is_measured_the_first_time_and_again(scaling, tmp_path):
    scaling.small_cases(tmp_path, 2)

    seconds = scaling.seconds_to_prepare(tmp_path / "cases", tmp_path / "cache")

    assert 0 < seconds["again"] < seconds["first"]
    assert len(list((tmp_path / "cases").iterdir())) == 2


def test_the_page_and_the_figure_are_those_of_what_was_measured(scaling, tmp_path):
    found = {
        **{"processor": "a CPU", "cores": 2, "versions": "torch", "date": "today"},
        **{"load_before": 0.0, "mean_case": {"slices": 200.0, "windows": 30.0}},
        **{"scans": SCANS, "preparing": PREPARING},
    }

    page = scaling.page(found)
    scaling.draw(found, tmp_path / "figure.png")

    assert "| short | 100 | 100x512x512 | 0.20 | 0.10 | 0.10 | 0.05 | 0.05 | 1.00 | 0.50 |" in page
    assert "| 20 | 3.0 | 2.0 | 0.20 |" in page
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
