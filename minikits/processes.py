"""Work that is shared out to processes: the results of doing it in a row, in the same order."""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path

MOST_ON_WINDOWS = 61  # processes that it can wait for
THREADS = "OMP_NUM_THREADS"  # numpy's and torch's libraries ask for it once, when they are loaded


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory(told: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that can be taken before the system swaps, or before a container or a cluster's job is
    over its limit; infinity where neither is told (only Linux does). told: where it tells, in kB;
    group: the folder of the limit."""
    free = math.inf
    try:
        for line in told.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = 1024 * int(line.split()[1])
    except OSError:
        pass

    try:
        most = (group / "memory.max").read_text().strip()
        taken = (group / "memory.current").read_text()
    except OSError:
        return free
    if most == "max":
        return free
    return max(0, min(free, int(most) - int(taken)))


def is_short_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: torch has no kind of its own for it."""
    return isinstance(error, MemoryError) or "memory" in str(error)


@contextmanager
def map_of_processes(jobs: int) -> Iterator[Callable]:
    """A function like `map` whose calls are shared out to processes, in order; `map` itself for one
    job. Processes are started anew: so Windows and macOS do it, and none inherits threads. When the
    `with` ends, what was begun is ended, with one call more for each process at most, and nothing
    else is begun.

    Each of several processes computes on one thread, unless OMP_NUM_THREADS says otherwise: with
    more than one a core they would wait for each other."""
    if jobs == 1:
        yield map
        return
    if os.name == "nt":
        jobs = min(jobs, MOST_ON_WINDOWS)
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin_worker)
    try:
        with _one_thread_each():
            yield pool.map
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _one_thread_each():
    """What is started meanwhile computes on one thread, where nothing else was asked for."""
    asked_for = os.environ.get(THREADS)
    os.environ.setdefault(THREADS, "1")
    try:
        yield
    finally:
        if asked_for is None:
            os.environ.pop(THREADS, None)


def _begin_worker():
    """What a process does first. Ctrl-C reaches it too, but what it stops the first process says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """Ends this process when the one that started it is gone, however it ended: nobody else would."""
    starter = parent_process()
    assert starter is not None  # as each process of a pool has
    starter.join()
    os._exit(1)
