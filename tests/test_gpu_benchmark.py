"""benchmarks/gpu.py runs through without a GPU, at sizes that take seconds."""

import argparse
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, run_script


@pytest.fixture
def gpu(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "gpu", raising=False)
    import gpu

    return gpu


def options_of(out, **others):
    given = {"device": "cpu", "tiny": True, "seconds": 350, "only": [], "only_compile": False}
    return argparse.Namespace(out=out, **(given | others))


def test_every_stage_runs_on_a_cpu(tmp_path):
    """Which costs a machine with a GPU no time for what could have been seen before."""
    out = tmp_path / "gpu.md"
    out.write_text("# On a GPU\n\n## An earlier card, 2025-01-01\n\n| plain, as it is | 97.1 |\n")

    printed = run_script("benchmarks/gpu.py", "--device", "cpu", "--tiny", "--out", out)

    kept = out.read_text()
    assert "failed: none" in kept
    for row in (
        "| plain, as it is |",
        "| plain, fast, compiled |",
        "| preactivation, as it is |",
        "| plain, tf32 |",
        "| plain, fast, eager, of 3 algorithms |",
        "| bfloat16 convolutions are right | yes",
        "| ten steps twice, as it is | the same bits",
        "| ten steps twice, as it is, --deterministic | the same bits",
        "| residual, fast, eager | 4 |",
        "| residual, fast, compiled | 4 |",
    ):
        assert row in kept, row
    now, earlier = kept.split("\n\n## An earlier card, 2025-01-01\n\n")
    assert all(line in printed for line in now.splitlines()[1:])
    assert now.startswith("# On a GPU\n\n## ") and now.count("# On a GPU") == 1
    assert earlier == "| plain, as it is | 97.1 |\n"


def test_tables_hold_nothing_but_what_was_measured(gpu, tmp_path):
    """A stage fails, one is not reached, one measures; the last table has no row."""
    run = gpu.Run(options_of(tmp_path / "gpu.md"))

    def fail(run):
        raise RuntimeError("no kernel\nsee the docs")

    run.table("", "### A", "", "what it is", "", "| a | b |", "|---|---|")
    run.stage("broken", 0, fail)
    run.stage("long", 1000, fail)
    run.stage("good", 0, lambda run: run.row("x", 1.5))
    run.table("", "### A", "", "what it is", "", "| a | b |", "|---|---|")
    run.row("y", 2)
    run.table("", "### B", "", "| c |", "|---|")

    assert (run.failed, run.not_reached) == (["broken (no kernel)"], ["long"])
    heading = ["", "### A", "", "what it is", "", "| a | b |", "|---|---|"]
    again = ["", "### A, continued", "", "| a | b |", "|---|---|"]
    assert run.lines == [*heading, "| x | 1.5 |", *again, "| y | 2 |"]


def test_stages_are_chosen_by_a_word(gpu):
    named = [name for name, *_ in gpu.stages(["nnU"], tiny=False) if name]
    assert named == ["nnU-Net v2 plain", "nnU-Net v2 residual"]
    assert len(gpu.stages([], tiny=False)) > 30


def test_all_stages_before_those_that_were_measured_fit_into_six_minutes(gpu):
    """With a minute and a half in which all are compiled."""
    listed = gpu.stages([], tiny=False)
    names = [name for name, *_ in listed]
    measured = names.index("plain, as it is")
    assert 90 + sum(seconds for _, seconds, *_ in listed[:measured]) < 360


def test_networks_are_compiled_at_once_before_they_are_measured(gpu, monkeypatch):
    """Each stage that compiles one, by a process of its own, that writes no table."""
    started, ended = [], []

    def start(command, **_):
        started.append(command)
        return SimpleNamespace(wait=lambda seconds: ended.append(seconds))

    monkeypatch.setattr(gpu.subprocess, "Popen", start)
    names = gpu.compiled_stages(gpu.stages([], tiny=False))

    gpu.compile_all(options_of(None, device="cuda"), names)

    assert names == [
        "plain, fast, compiled",
        "nnU-Net v2 plain",
        "residual, fast, compiled",
        "nnU-Net v2 residual",
        "preactivation, fast, compiled",
        "window, fast, compiled, 4",
        "window, fast, compiled, 8",
    ]
    assert [command[-2:] for command in started] == [["--only", name] for name in names]
    assert all("--only-compile" in command for command in started)
    assert len(ended) == 7 and all(0 <= seconds <= 90 for seconds in ended)


def test_a_stage_that_only_compiles_does_its_first_step_and_writes_nothing(gpu, tmp_path):
    run = gpu.Run(options_of(tmp_path / "gpu.md", only_compile=True))

    gpu.our_step(run, "plain", "fast, eager")
    gpu.window(run, "residual", "fast, eager", 2)

    assert run.lines == [] and not (tmp_path / "gpu.md").exists()
