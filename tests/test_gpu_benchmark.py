"""benchmarks/gpu.py runs through without a GPU, at sizes that take seconds."""

import sys

from conftest import ROOT, run_script


def test_every_stage_runs_on_a_cpu(tmp_path):
    """Which costs a machine with a GPU no time for what could have been seen before."""
    out = tmp_path / "gpu.md"

    printed = run_script("benchmarks/gpu.py", "--device", "cpu", "--tiny", "--out", out)

    kept = out.read_text()
    assert "failed: none" in kept and "not run" not in kept
    for row in (
        "| plain, as it is |",
        "| plain, fast, compiled |",
        "| preactivation, as it is |",
        "| bfloat16 convolutions are right | yes",
        "| ten steps twice, as it is | the same bits",
        "| residual, fast, eager | 4 |",
        "| residual, fast | ",
    ):
        assert row in kept, row
    assert all(line in printed for line in kept.splitlines())


def test_stages_are_chosen_by_a_word(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "gpu", raising=False)
    import gpu

    named = [name for name, *_ in gpu.stages(["nnU"], tiny=False) if name]
    assert named == ["nnU-Net v2 plain", "nnU-Net v2 residual"]
    assert len(gpu.stages([], tiny=False)) > 30
