"""Checkpoints made to harm: each is refused in one line, nothing in it runs, nothing large is allocated."""

import builtins
import io
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from dataclasses import asdict

import numpy as np
import torch
from conftest import ROOT, TINY

from minikits.checkpoints import load_checkpoint
from minikits.unet import build_unet

MEGABYTES = 500
TRUNCATIONS, FLIPS = 100, 400
HOSTILE = 370  # files, as README says
CHILD = """
import sys
from minikits.checkpoints import load_checkpoint, load_network
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024
good, *hostile = sys.argv[1:]
load_network(load_checkpoint(good), good)
before = peak()
for path in hostile:
    try:
        load_network(load_checkpoint(path), path)
        print(path, "was taken")
    except ValueError as error:
        if "\\n" in str(error) or not str(error).startswith(f"{path}: "):
            print(path, "said", repr(error))
    if peak() - before > LIMIT:
        print(path, "took", peak() - before, "MB")
        before = peak()
"""

warnings.filterwarnings("ignore", message=".*(sparse|quantiz|Sparse).*")


class Calls:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def good():
    return {
        "format": 1,
        "arch": "plain",
        "fold": "0",
        "recipe": asdict(TINY),
        "cases": {"train": [], "validation": []},
        "iteration": 1,
        "seed": 0,
        "network": build_unet("plain", TINY).state_dict(),
        "optimizer": {},
        "log": [],
    }


def hostile_contents(witness):
    """(name, what is saved)"""
    content = good()  # as it should be
    name, weight = next(
        (name, value) for name, value in content["network"].items() if value.ndim == 5
    )
    calls = {
        "os_system": Calls(os.system, f"touch {witness}"),
        "eval": Calls(eval, f"open({str(witness)!r}, 'w')"),
        "exec": Calls(exec, f"open({str(witness)!r}, 'w')"),
        "getattr": Calls(getattr, "text", "upper"),
        "popen": Calls(subprocess.Popen, ["touch", str(witness)]),
        "open": Calls(open, str(witness), "w"),
        "import": Calls(builtins.__import__, "antigravity"),
        "torch_load": Calls(torch.load, io.BytesIO(b"x")),
        "torch_hub": Calls(torch.hub.load, "somebody/something", "model"),
        "numpy_object": np.array([{}], dtype=object),
        "numpy": np.zeros(3),
        "bytes_10GB": Calls(bytearray, 10**10),
        "tensor_40GB": Calls(torch.Tensor, 10**10),
        "counter": Counter("abc"),
        "module": torch.nn.Linear(2, 2),
        "lambda_by_name": Calls(pickle.loads, b"N."),
    }
    for key, value in calls.items():
        yield key, {**content, "extra": value}
        yield f"{key}_in_the_network", {**content, "network": {**content["network"], name: value}}
    weights = {
        "expanded": torch.zeros(1).expand(10**9),
        "expanded_in_shape": torch.zeros(1).expand(10**4, 10**5, 1, 1, 1),
        "meta": torch.zeros(10**11, device="meta"),
        "sparse": torch.zeros(weight.shape).to_sparse(),
        "quantized": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        "complex": weight.to(torch.complex64),
        "half": weight.half(),
        "integer": weight.int(),
        "flat": weight.flatten(),
        "none": None,
        "number": 3.0,
        "list": weight.flatten()[:9].tolist(),
        "text": "xyz",
        "tensor_in_a_list": [weight],
        "not_finite": weight * torch.nan,
    }
    for key, value in weights.items():
        yield f"weight_{key}", {**content, "network": {**content["network"], name: value}}
    yield "weight_names", {**content, "network": dict(enumerate(content["network"].values()))}
    yield (
        "weight_names_mixed",
        {**content, "network": {**content["network"], 3: weight, None: weight, (1, 2): weight}},
    )
    recipes = {
        **{
            f"features_{n:.0e}": {"plain_features": n, "max_features": n}
            for n in (10**4, 10**7, 10**9, 10**30)
        },
        "blocks": {"residual_blocks": (10**9,) * 6},
        "few_blocks": {"residual_blocks": ()},
        "patch": {"patch": (2**40, 2**40, 2**40), "residual_blocks": (1,) * 60},
        "wide_patch": {"patch": (16, 2**20, 2**20), "stage_strides": TINY.strides},
        "strides": {"stage_strides": ((1, 1, 1),) * 9},
        "zero_strides": {"stage_strides": ((1, 1, 1), (0, 0, 0))},
        "many_strides": {"stage_strides": ((1, 1, 1),) * 10**5, "residual_blocks": (1,) * 10**5},
        "patch_of_two": {"patch": (32, 32)},
        "no_patch": {"patch": ()},
        "text": {"patch": "16x32x32"},
        "nan_spacing": {"spacing_mm": (float("nan"), 1.0, 1.0)},
        "infinite": {"sd_hu": float("inf")},
        "negative": {"plain_features": -4},
        "unknown": {"layers": 3},
        "no_name": {5: 5},
        "tensor": {"sd_hu": torch.ones(1)},
        "flag": {"plain_features": True},
    }
    for key, changes in recipes.items():
        yield f"recipe_{key}", {**content, "recipe": {**content["recipe"], **changes}}
    for key, value in {
        "iteration": float("nan"),
        "seed": None,
        "cases": {},
        "log": {},
        "format": 2,
        "arch": "__init__",
        "recipe": [],
        "network": {},
        "optimizer": [],
    }.items():
        yield f"wrong_{key}", {**content, key: value}
    for key in content:
        yield f"no_{key}", {other: value for other, value in content.items() if other != key}
    for value in (None, 1, [], {}, "text", torch.zeros(3), float("nan")):
        yield f"only_{type(value).__name__}", value


def hostile_files(folder, valid):
    """(name, bytes)"""
    with zipfile.ZipFile(io.BytesIO(valid)) as source:
        entries = {entry.filename: source.read(entry) for entry in source.infolist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    for length in np.linspace(0, len(valid) - 1, TRUNCATIONS).astype(int):
        yield f"truncated_{length}", valid[:length]
    for name in (name for name in entries if name.endswith("pkl") or "/data/" in name):
        rest = {other: data for other, data in entries.items() if other != name}
        yield f"without_{name.replace('/', '_')}", zipped(rest)
    for protocol in (0, 2, 4, 5):
        yield f"pickle_{protocol}", pickle.dumps({"format": 1}, protocol)
        yield (
            f"pickle_{protocol}_inside",
            zipped({**entries, pickled: pickle.dumps(Calls(os.getcwd), protocol)}),
        )
    data = next(name for name in entries if "/data/" in name)
    yield "bomb_in_data", zipped({**entries, data: bytes(700 << 20)}, zipfile.ZIP_DEFLATED)
    yield "bomb_in_pickle", zipped({**entries, pickled: bytes(700 << 20)}, zipfile.ZIP_DEFLATED)
    yield "deep", zipped({**entries, pickled: b"\x80\x02" + b"(" * 10**6 + b"t" * 10**6 + b"."})
    yield "second_pickle", zipped({"other/data.pkl": pickle.dumps(Calls(os.getcwd), 2), **entries})
    yield "short_data", zipped({**entries, data: b""})
    yield "html", b"<!DOCTYPE html><html>not found</html>"
    yield "zeros", bytes(10_000)


def zipped(entries, how=zipfile.ZIP_STORED):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", how, compresslevel=1) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return content.getvalue()


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def test_hostile_checkpoints_are_refused_and_nothing_runs(tmp_path):
    witness, files = tmp_path / "it_ran", {"good": saved(good())}
    for name, content in hostile_contents(witness):
        files[name] = saved(content)
        files[f"{name}_legacy"] = saved(content, _use_new_zipfile_serialization=False)
    files.update(hostile_files(tmp_path, files["good"]))
    assert len(files) == 1 + HOSTILE
    for name, content in files.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
    paths = [tmp_path / f"{name}.pt" for name in files]
    child = CHILD.replace("LIMIT", str(MEGABYTES))
    done = subprocess.run(
        [sys.executable, "-c", child, *paths], capture_output=True, text=True, cwd=ROOT
    )
    assert not done.stdout and not done.returncode and not witness.exists(), (
        done.stdout + done.stderr
    )


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    draw, valid, path = np.random.default_rng(0), saved(good()), tmp_path / "checkpoint.pt"
    refused = 0
    wanted = torch.load(io.BytesIO(valid))
    for place in draw.integers(len(valid), size=FLIPS):
        content = bytearray(valid)
        content[place] ^= 1 << draw.integers(8)
        path.write_bytes(content)
        try:
            found = load_checkpoint(path)
        except ValueError:
            refused += 1
            continue
        assert all(
            torch.equal(found["network"][name], value) for name, value in wanted["network"].items()
        ), place
    assert refused > FLIPS // 2
