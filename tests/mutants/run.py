"""Small faults that the tests must notice: python tests/mutants/run.py [WORD ...]

Each entry of a *.toml file beside this one is one change to the code and the tests that have to fail of it:

    [[mutant]]
    what = "labels are not mirrored with the image"
    file = "minikits/augmentation.py"
    old = "return image.flip(axes), labels.flip(axes)"
    new = "return image.flip(axes), labels"
    tests = ["tests/test_augmentation.py::test_labels_are_mirrored_with_the_image"]

`old` stands in the file exactly once; a change that no longer applies is an error, not a pass. The change is made in a
copy of the checkout, never in the checkout. A test named is seen to fail if any of its cases does. Before that, all
tests named pass on a copy without a change. WORDs choose the entries whose description or file holds one of them.

torch takes seconds to import, so this process imports it once, with the other libraries, and each change is tried in a
fork of it. The package and the tests are imported in the forks alone, from their copies.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SECONDS = 900  # a change that makes the tests run longer is not taken for noticed
if __name__ == "__main__":  # not in the processes that a test starts, which run this file too
    os.environ.setdefault("MINIKITS_SHARED", str(ROOT.parent / "shared"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.dont_write_bytecode = True


def load_mutants(words: list[str]) -> list[dict]:
    """The entries of all files, or those that a word chooses; each of them still applies."""
    mutants = []
    for path in sorted(HERE.glob("*.toml")):
        for mutant in tomllib.loads(path.read_text())["mutant"]:
            missing = {"what", "file", "old", "new", "tests"} - mutant.keys()
            if missing:
                raise SystemExit(
                    f"{path.name}: {mutant.get('what')}: no {', '.join(sorted(missing))}"
                )
            changed(mutant)
            mutants.append(mutant)
    if not words:
        return mutants
    return [
        mutant
        for mutant in mutants
        if any(word in f"{mutant['what']} {mutant['file']}" for word in words)
    ]


def changed(mutant: dict) -> str:
    """The text of the mutant's file with its change in it."""
    text = (ROOT / mutant["file"]).read_text()
    found = text.count(mutant["old"])
    if found != 1:
        raise SystemExit(
            f"{mutant['what']}: its old text stands {found} times in {mutant['file']}, wanted once"
        )
    return text.replace(mutant["old"], mutant["new"])


def copy_checkout(folder: str) -> None:
    """What git tracks, and what is new and not ignored."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)


def check_without_a_change(mutants: list[dict]) -> None:
    """Ends the run where a test fails by itself: it would take any change for noticed."""
    tests = sorted({test for mutant in mutants for test in mutant["tests"]})
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy_checkout(folder)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            *tests,
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(
            f"without any change the tests named do not all pass:\n{done.stdout[-3000:]}"
        )


class Failures:
    """A plugin of pytest that remembers which tests failed, in their fixtures too."""

    def __init__(self):
        self.tests = set()

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.tests.add(report.nodeid.split("[")[0])


def try_in_a_fork(mutant: dict, folder: str) -> int:
    """Starts a process that runs the mutant's tests on a copy in `folder`, and leaves there what came of it."""
    process = os.fork()
    if process > 0:
        return process

    signal.alarm(SECONDS)
    copy_checkout(folder)
    Path(folder, mutant["file"]).write_text(changed(mutant))
    printed = os.open(Path(folder, "printed.txt"), os.O_WRONLY | os.O_CREAT)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.chdir(folder)
    sys.path.insert(0, folder)

    import pytest

    failures = Failures()
    arguments = ["-q", "--tb=short", "--numprocesses=0", "-p", "no:cacheprovider"]
    status = pytest.main([*arguments, *mutant["tests"]], plugins=[failures])
    verdict = {"status": int(status), "failed": sorted(failures.tests)}
    Path(folder, "verdict.json").write_text(json.dumps(verdict))
    os._exit(0)


def judge(mutant: dict, folder: str) -> str:
    """ "killed", or what is wrong."""
    path = Path(folder, "verdict.json")
    printed = Path(folder, "printed.txt").read_text(errors="replace")[-1500:]
    if not path.exists():
        return f"NO VERDICT, the tests ended before their end or took over {SECONDS} s\n{printed}"
    verdict = json.loads(path.read_text())
    survived = [test for test in mutant["tests"] if test.split("[")[0] not in verdict["failed"]]
    if verdict["status"] not in (0, 1):  # no such test, or not even imported
        return f"NO VERDICT\n{printed}"
    return f"SURVIVED {', '.join(survived)}\n{printed}" if survived else "killed"


def try_all(mutants: list[dict], jobs: int) -> int:
    """Tries the mutants, so many at once, and prints a line each. Returns how many were not killed."""
    waiting, running, not_killed = list(mutants), {}, 0
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            folder = tempfile.mkdtemp(prefix="mutant-")
            running[try_in_a_fork(mutant, folder)] = mutant, folder

        process, _ = os.wait()
        mutant, folder = running.pop(process)
        verdict = judge(mutant, folder)
        shutil.rmtree(folder, ignore_errors=True)
        not_killed += verdict != "killed"
        print(f"{mutant['file']}: {mutant['what']}: {verdict}", flush=True)
    return not_killed


def import_libraries() -> None:
    """What the tests import and takes long, once for all forks."""
    import hypothesis  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import nibabel  # noqa: F401
    import pytest  # noqa: F401
    import scipy.ndimage
    import scipy.stats  # noqa: F401
    import skimage.transform  # noqa: F401
    import torch

    torch.set_num_threads(1)  # a fork has no threads of its parent's


def main() -> None:
    parser = argparse.ArgumentParser(description="See that small faults are noticed by the tests.")
    parser.add_argument(
        "words", nargs="*", help="only entries whose description or file holds one of these"
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="how many at once (default %(default)s)"
    )
    arguments = parser.parse_args()
    if not hasattr(os, "fork"):
        raise SystemExit("mutants: needs a system that forks processes, such as Linux")

    mutants = load_mutants(arguments.words)
    check_without_a_change(mutants)
    import_libraries()
    began = time.monotonic()
    not_killed = try_all(mutants, arguments.jobs)
    print(
        f"{len(mutants) - not_killed} of {len(mutants)} killed, in {time.monotonic() - began:.0f} s"
    )
    raise SystemExit(not_killed > 0)


if __name__ == "__main__":
    main()
