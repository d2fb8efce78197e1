"""The panel of slices that a reader tells apart: its parts, and a run of it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from minikits.nifti import write_image

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import phantom_panel


def test_a_canvas_has_the_image_in_its_middle_and_air_around():
    image = torch.full((2, 5), 40.0)

    canvas = phantom_panel.on_canvas(image, (4, 3))

    assert canvas.tolist() == [[-1000] * 3, [40] * 3, [40] * 3, [-1000] * 3]


def test_a_panel_shows_as_many_of_each_and_its_key_names_them(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    ct = np.random.default_rng(0).integers(-100, 100, (6, 20, 24)).astype(np.int16)
    write_image(tmp_path / "ct.nii.gz", ct, (12.0, 12.0, 12.0))
    arguments = [str(tmp_path / "ct.nii.gz"), str(tmp_path / "panel"), "--of-each", "2"]
    monkeypatch.setattr(sys, "argv", ["phantom_panel.py", *arguments])

    phantom_panel.main()

    key = json.loads((tmp_path / "panel" / "key.json").read_text())
    assert list(key) == ["1", "2", "3", "4"]
    assert sum(what.startswith("ct.nii.gz, slice ") for what in key.values()) == 2
    assert sum(what.startswith("phantom ") for what in key.values()) == 2
    assert (tmp_path / "panel" / "slices.png").stat().st_size > 1000
