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
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SHARED = os.environ.get("MINIKITS_SHARED", str(ROOT.parent / "shared"))


def load_mutants() -> list[dict]:
    mutants = []
    for path in sorted(HERE.glob("*.toml")):
        for mutant in tomllib.loads(path.read_text())["mutant"]:
            missing = {"what", "file", "old", "new", "tests"} - mutant.keys()
            if missing:
                raise SystemExit(f"{path.name}: {mutant.get('what')}: no {', '.join(sorted(missing))}")
            mutants.append(mutant)
    return mutants


def changed(mutant: dict) -> str:
    """The text of the mutant's file with its change in it."""
    text = (ROOT / mutant["file"]).read_text()
    found = text.count(mutant["old"])
    if found != 1:
        raise SystemExit(f"{mutant['what']}: its old text stands {found} times in {mutant['file']}, wanted once")
    return text.replace(mutant["old"], mutant["new"])


def copy_checkout(folder: str) -> None:
    """What git tracks, and what is new and not ignored."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
                            check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)


def failing_tests(folder: str, tests: list[str]) -> tuple[set[str], str]:
    """Which of the tests fail in a copy of the checkout, and what pytest printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "--tb=line", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "MINIKITS_SHARED": SHARED, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=900)
    if done.returncode not in (0, 1):  # not collected, no such test
        return set(), done.stdout + done.stderr
    failed = re.findall(r"^FAILED (\S+?)(?:\[| - |$)", done.stdout, flags=re.MULTILINE)
    return set(failed), done.stdout


def try_mutant(mutant: dict) -> str:
    """"killed", or what is wrong."""
    text = changed(mutant)
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy_checkout(folder)
        Path(folder, mutant["file"]).write_text(text)
        failed, printed = failing_tests(folder, mutant["tests"])
    survived = [test for test in mutant["tests"] if test.split("[")[0] not in failed]
    if not survived:
        return "killed"
    return f"SURVIVED {', '.join(survived)}\n{printed[-1500:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description="See that small faults are noticed by the tests.")
    parser.add_argument("words", nargs="*", help="only entries whose description or file holds one of these")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once (default %(default)s)")
    arguments = parser.parse_args()

    mutants = load_mutants()
    if arguments.words:
        mutants = [mutant for mutant in mutants
                   if any(word in mutant["what"] + " " + mutant["file"] for word in arguments.words)]
    for mutant in mutants:
        changed(mutant)  # each still applies, before hours are spent on the first

    tests = sorted({test for mutant in mutants for test in mutant["tests"]})
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy_checkout(folder)
        failed, printed = failing_tests(folder, tests)
    if failed or " passed" not in printed:
        raise SystemExit(f"without any change the tests named do not all pass:\n{printed[-3000:]}")

    survivors = 0
    with ThreadPoolExecutor(arguments.jobs) as threads:
        for mutant, verdict in zip(mutants, threads.map(try_mutant, mutants)):
            survivors += verdict != "killed"
            print(f"{mutant['file']}: {mutant['what']}: {verdict}", flush=True)
    print(f"{len(mutants) - survivors} of {len(mutants)} killed")
    raise SystemExit(survivors > 0)


if __name__ == "__main__":
    main()
