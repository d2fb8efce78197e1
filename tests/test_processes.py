"""Work shared out to processes: what a row of calls gives, in its order, and how it ends."""

import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor

import pytest
from conftest import ROOT

from minikits.processes import free_memory, is_short_of_memory, map_of_processes


def seen_by_a_process(number):
    """The number, and what the process that was given it is like."""
    return number, os.getpid(), signal.getsignal(signal.SIGINT)


def touch_slowly(path):
    path.touch()
    time.sleep(0.2)


def end_at_once(number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_job_is_done_here():
    with map_of_processes(1) as mapped:
        assert mapped is map


def test_other_processes_give_the_same_in_order_and_leave_ctrl_c_to_the_first():
    with map_of_processes(2) as mapped:
        seen = list(mapped(seen_by_a_process, [3, 1, 2]))

    assert [number for number, *_ in seen] == [3, 1, 2]
    assert os.getpid() not in [process for _, process, *_ in seen]
    assert {handler for *_, handler in seen} == {signal.SIG_IGN}


@pytest.mark.parametrize(("asked_for", "told"), [(None, "1"), ("2", "2")])
def test_each_process_computes_on_one_thread_unless_another_number_is_asked_for(
    monkeypatch, asked_for, told
):
    """As numpy's and torch's libraries are told, which ask once, when they are loaded."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked_for:
        monkeypatch.setenv("OMP_NUM_THREADS", asked_for)

    with map_of_processes(2) as mapped:
        heard = list(mapped(os.getenv, ["OMP_NUM_THREADS"]))  # nothing of these tests is loaded

    assert heard == [told]
    assert os.environ.get("OMP_NUM_THREADS") == asked_for  # nothing is left behind


def test_what_was_not_begun_is_not_begun(tmp_path):
    paths = [tmp_path / str(number) for number in range(200)]

    with map_of_processes(2) as mapped:
        outcomes = mapped(touch_slowly, paths)
        next(outcomes)

    begun = len(list(tmp_path.iterdir()))
    assert 1 <= begun < 20
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == begun  # and nothing goes on


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_process_that_is_killed_is_an_error():
    with pytest.raises(BrokenExecutor), map_of_processes(2) as mapped:
        list(mapped(end_at_once, [1]))


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\n"
        "from minikits.processes import map_of_processes\n"
        "def process_of(number):\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    with map_of_processes(2) as mapped:\n"
        "        print(*set(mapped(process_of, range(2))), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, env=environment, text=True
    ) as first:
        processes = first.stdout.readline().split()
        try:
            first.communicate(timeout=60)  # its output ends with the last process that has it
        except subprocess.TimeoutExpired:
            for process in processes:
                os.kill(int(process), signal.SIGKILL)
            raise

    assert processes
    assert first.returncode == -signal.SIGKILL


def test_free_memory_is_what_the_system_tells(tmp_path):
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:       8000 kB\nMemFree:         500 kB\nMemAvailable:   3000 kB\n")

    assert free_memory(told, tmp_path) == 3000 * 1024

    told.write_text("MemTotal:       8000 kB\n")
    assert free_memory(told, tmp_path) == math.inf
    assert free_memory(tmp_path / "absent", tmp_path) == math.inf


@pytest.mark.parametrize(
    ("most", "free"), [("max", 3000 * 1024), ("2000000", 1_500_000), ("400000", 0)]
)
def test_the_limit_of_a_container_counts_where_it_is_lower(tmp_path, most, free):
    told = tmp_path / "meminfo"
    told.write_text("MemAvailable:   3000 kB\n")
    (tmp_path / "memory.max").write_text(f"{most}\n")
    (tmp_path / "memory.current").write_text("500000\n")

    assert free_memory(told, tmp_path) == free


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_numpys_and_torchs_errors_say_that_memory_ran_out(error, short):
    assert is_short_of_memory(error) is short
