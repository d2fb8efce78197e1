"""Files that appear whole or not at all, and folders that belong to one process."""

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from minikits.files import (
    claim,
    place_beside,
    read_json,
    remove_leftovers,
    write_text,
    written_whole,
)

HERE = platform.node()


def started(code, *arguments):
    """A Python process of ours, to be talked to through its streams."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def gone():
    """The number of a process that has ended."""
    process = started("")
    process.communicate()
    return process.pid


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# Whole or not at all.


def test_a_file_is_seen_once_it_is_whole(tmp_path):
    path = tmp_path / "new" / "mask.nii.gz"
    with written_whole(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole" and names_in(path.parent) == ["mask.nii.gz"]


def test_a_file_that_fails_half_way_leaves_the_old_one_and_nothing_beside(tmp_path):
    path = tmp_path / "mask.nii.gz"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), written_whole(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names_in(tmp_path) == ["mask.nii.gz"]


def test_all_bytes_are_on_the_disk_before_the_name_is_theirs(tmp_path, monkeypatch):
    path, synced = tmp_path / "checkpoint.pt", []
    real = os.fsync

    def fsync(number):
        synced.append((os.fstat(number).st_size, path.exists()))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    with written_whole(path) as file:
        file.write(bytes(100))  # fewer than a buffer holds
    assert synced == [(100, False)]


def test_a_name_as_long_as_the_file_system_takes_can_be_written(tmp_path):
    name = "é" * 122 + ".nii.gz"  # 251 of 255 bytes
    write_text(tmp_path / name, "text")
    assert names_in(tmp_path) == [name]


def test_two_long_names_with_one_beginning_are_built_apart(tmp_path):
    places = {place_beside(tmp_path / ("a" * 200 + end)).name for end in ("1", "2")}
    assert len(places) == 2


def test_text_with_a_name_that_is_no_utf_8_keeps_its_bytes(tmp_path):
    write_text(tmp_path / "cases.csv", os.fsdecode(b"caf\xe9,\xc3\xa9"))
    assert (tmp_path / "cases.csv").read_bytes() == b"caf\xe9,\xc3\xa9"


# What killed processes leave.

KILLED = """
import os, signal, sys
from minikits.files import written_whole
with written_whole(sys.argv[1]) as file:
    file.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_when_the_file_is_written_again(tmp_path):
    for name in ("a", "b"):
        started(KILLED, tmp_path / name).communicate()
    assert len(list(tmp_path.iterdir())) == 2 and not (tmp_path / "a").exists()

    write_text(tmp_path / "a", "whole")
    left = names_in(tmp_path)
    assert len(left) == 2 and left[0].startswith(".b.") and left[1] == "a"


def test_what_a_killed_process_left_is_removed_when_its_folder_is_claimed(tmp_path):
    started(KILLED, tmp_path / "checkpoint.pt").communicate()
    assert names_in(tmp_path)[0].startswith(".checkpoint.pt.")
    claim(tmp_path)
    assert names_in(tmp_path) == []


def test_only_what_belongs_to_no_living_process_is_removed(tmp_path, gone):
    ours = f".whole.{os.getpid()}@{HERE}.part"
    another_users = f".whole.1@{HERE}.part"
    others = [".whole.gz", "whole.part", f".whole.{gone}.part", f"whole.{gone}@{HERE}.part"]
    for name in (ours, another_users, *others, f".whole.{gone}@{HERE}.part"):
        (tmp_path / name).write_text("half")
    half_a_folder = tmp_path / f".case_1-0f.{gone}@{HERE}.part"
    half_a_folder.mkdir()
    (half_a_folder / "image.npy").write_text("half")

    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == sorted([ours, another_users, *others])


def test_what_another_users_process_builds_stays(tmp_path, monkeypatch, gone):
    def kill(process, number):
        assert number == 0  # which asks and does nothing
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    (tmp_path / f".whole.{gone}@{HERE}.part").write_text("half")
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == [f".whole.{gone}@{HERE}.part"]


@pytest.mark.parametrize("host", ["@another", ""], ids=["another", "an earlier version's, unnamed"])
def test_what_another_computer_builds_is_removed_after_a_day_without_a_change(tmp_path, gone, host):
    for name, hours in (("new", 23), ("old", 25)):
        path = tmp_path / f".{name}.{gone}{host}.part"
        path.write_text("half")
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == [f".new.{gone}{host}.part"]


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path):
    remove_leftovers(tmp_path / "absent")
    assert names_in(tmp_path) == []


# One process at a time.

CLAIMS = """
import sys
from pathlib import Path
from minikits.files import claim
print(claim(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def test_a_folder_is_another_processs_until_that_ends_however_it_ends(tmp_path):
    other = started(CLAIMS, tmp_path)
    assert other.stdout.readline() == "None\n"
    with pytest.raises(ValueError, match="another process trains here; wait for it"):
        claim(tmp_path)
    other.kill()
    other.communicate()
    assert claim(tmp_path) is None
    assert names_in(tmp_path) == []  # nothing that could be stale


def test_a_folder_is_claimed_once(tmp_path):
    folder = tmp_path / "runs" / "fold0"
    assert claim(folder) is None and folder.is_dir()
    with pytest.raises(
        ValueError,
        match=r"fold0: another process trains here; wait for it, or "
        r"choose another --out",
    ):
        claim(folder)
    with pytest.raises(ValueError, match="fold0: another process writes masks here"):
        claim(folder, doing="writes masks")
    assert claim(tmp_path / "runs" / "fold1") is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_where_a_file_system_has_no_locks_the_claim_says_so(tmp_path, monkeypatch, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    line = claim(tmp_path)
    assert line == (
        f"{tmp_path}: its file system has no locks ({os.strerror(number)}); do not "
        "start a second process with this folder while this one runs"
    )


def test_where_the_system_has_no_locks_the_claim_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert claim(tmp_path) == (
        f"{tmp_path}: this system has no locks for folders; do not start a "
        "second process with this folder while this one runs"
    )


def test_an_error_that_is_not_about_locks_is_not_hidden(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        claim(tmp_path)


def test_a_claim_that_was_refused_holds_no_file_open(tmp_path):
    claim(tmp_path)
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        with pytest.raises(ValueError, match="another process"):
            claim(tmp_path)
    assert len(os.listdir("/dev/fd")) == before


# JSON.


def test_json_is_read_with_the_mark_that_windows_sets_and_in_any_language(tmp_path):
    path = tmp_path / "folds.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(["é"], ensure_ascii=False).encode())
    assert read_json(path) == ["é"]


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000])
def test_what_is_no_json_is_refused_by_name(tmp_path, text):
    (tmp_path / "folds.json").write_text(text)
    with pytest.raises(ValueError, match=r"folds\.json: no JSON file"):
        read_json(tmp_path / "folds.json")
    with pytest.raises(ValueError, match=r"absent\.json: no JSON file"):
        read_json(tmp_path / "absent.json")
