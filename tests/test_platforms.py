"""Windows, macOS, Apple GPUs: what can be tried without them."""

import json
import os
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, run_script

from minikits import devices

CPU, APPLE = torch.device("cpu"), torch.device("mps")

# What Windows or macOS lack, taken away once torch, numpy and nibabel, which have ways of their own, are there.
ELSEWHERE = """
import importlib, os, pathlib, signal, sys
import nibabel, numpy, torch, torch.distributed, torch.nn.parallel

class Absent:
    def find_spec(self, name, *_):
        if name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"):
    sys.modules.pop(name, None)
for name in ("fork", "sysconf", "sysconf_names", "confstr", "confstr_names", "sched_getaffinity",
             "getuid", "geteuid", "getpgid", "killpg", "setsid", "mkfifo", "statvfs", "uname",
             "O_DIRECTORY", "posix_fadvise", "sched_setaffinity", "nice", "wait", "WNOHANG"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "SIGCHLD", "SIGPIPE", "alarm", "pause"):
    if hasattr(signal, name):
        delattr(signal, name)
"""


def test_every_module_and_script_is_imported_where_posix_is_not():
    code = (
        ELSEWHERE
        + """
names = [path.stem for path in pathlib.Path("minikits").glob("*.py") if path.stem != "__init__"]
sys.path.append("benchmarks")
for name in [*(f"minikits.{name}" for name in names), "train", "predict", "evaluate", "reproduce"]:
    importlib.import_module(name)
print(len(names), "modules")
"""
    )

    assert "modules" in run_script("-c", code)


def test_a_training_runs_where_posix_is_not_and_says_what_it_lacks(phantoms, tmp_path):
    """No lock keeps a second process away, and how much memory there is is not known."""
    recipe = replace(TINY, patch=(8, 16, 16), epochs=1, batches_per_epoch=1)
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(recipe)))
    code = ELSEWHERE + "import train\nsys.argv[0] = 'train.py'\ntrain.main()\n"
    options = ("--data", phantoms, "--out", tmp_path, "--recipe", tmp_path / "recipe.json")

    printed = run_script("-c", code, *options, "--arch", "plain", "--device", "cpu")

    assert "this system has no locks for folders; do not start a second process" in printed
    assert "epoch 1 of 1" in printed
    assert (tmp_path / "plain" / "fold0" / "checkpoint.pt").exists()


@pytest.mark.parametrize("error", [AttributeError, ValueError, OSError])
def test_a_system_that_does_not_tell_its_memory_refuses_no_training(monkeypatch, error):
    def sysconf(name):
        raise error("unknown")

    monkeypatch.setattr(os, "sysconf", sysconf)

    assert devices.claim_memory(CPU, 2**50) == float("inf")


# --- an Apple GPU ---------------------------------------------------------------------------------


def test_an_apple_gpu_is_taken_where_it_is_named(monkeypatch):
    asked = []

    def ones(shape, device):
        asked.append(device)
        return SimpleNamespace(item=lambda: 1.0, device=APPLE)

    monkeypatch.setattr(devices.torch, "ones", ones)

    assert devices.pick_device("mps") == APPLE
    assert asked == ["mps"]


def test_an_apple_gpu_that_is_not_there_is_refused_in_a_line():
    with pytest.raises(ValueError, match=r"device mps: .*use auto, cpu, cuda or cuda:1") as told:
        devices.pick_device("mps")

    assert "\n" not in str(told.value)


def test_an_apple_gpu_computes_in_float32():
    assert devices.pick_precision("auto", APPLE) == torch.float32
    assert devices.pick_precision("fp32", APPLE) == torch.float32
    with pytest.raises(ValueError, match="--precision bf16: untried on device mps; use fp32"):
        devices.pick_precision("bf16", APPLE)


def test_an_apple_gpu_is_said_to_be_untested():
    assert "device mps is untested" in devices.doubt_about(APPLE)
    assert devices.doubt_about(CPU) == devices.doubt_about(torch.device("cuda:0")) == ""


def test_no_autocast_is_wanted_of_an_apple_gpu():
    """As in a step, and without a warning: a step in float32 asks for none."""
    with torch.autocast("mps", torch.float32, enabled=False):
        assert not torch.is_autocast_enabled("mps")


def test_what_an_apple_gpu_is_given_is_drawn_on_the_cpu():
    """A stand-in for tensors notes where they are sent."""
    drawn_on, sent_to = [], []

    class Part:
        def to(self, device):
            sent_to.append(device)
            return (self, device)

    parts = (Part(), Part())

    def draw(iteration, *, device):
        drawn_on.append((iteration, device))
        return parts

    for_apple = devices.draws_on(APPLE, draw)(7)
    for_cuda = devices.draws_on(torch.device("cuda:1"), draw)(8)

    assert drawn_on == [(7, CPU), (8, torch.device("cuda:1"))]
    assert for_apple == [(parts[0], APPLE), (parts[1], APPLE)]
    assert sent_to == [APPLE, APPLE]
    assert for_cuda == parts


def test_prepared_cases_stay_where_they_are_for_an_apple_gpu():
    """It shares the computer's memory; patches are drawn on the CPU."""
    cases = [SimpleNamespace(image=torch.zeros(3), labels=torch.zeros(3))]

    assert devices.keep_on_device(cases, APPLE, room=2**40) is cases
