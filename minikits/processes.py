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


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory(told: Path = Path("/proc/meminfo")) -> float:
    """Bytes that can be taken before the system swaps; infinity where it does not tell (only Linux
    does). told: where it tells, in kB."""
    try:
        lines = told.read_text().splitlines()
    except OSError:
        return math.inf
    for line in lines:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return math.inf


@contextmanager
def map_of_processes(jobs: int, *, begin: Callable[[], object] | None = None) -> Iterator[Callable]:
    """A function like `map` whose calls are shared out to processes, in order; `map` itself for one
    job. Processes are started anew: so Windows and macOS do it, and none inherits threads. What was
    not begun when the `with` ends is not begun. begin: what each process does first."""
    if jobs == 1:
        yield map
        return
    start_anew = get_context("spawn")
    with ProcessPoolExecutor(
        jobs, mp_context=start_anew, initializer=_begin_worker, initargs=(begin,)
    ) as pool:
        try:
            yield pool.map
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin_worker(begin):
    """What a process does first. Ctrl-C reaches it too, but what it stops the first process says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin:
        begin()


def _end_with_parent():
    """Ends this process when the one that started it is gone, however it ended: nobody else would."""
    starter = parent_process()
    assert starter is not None  # as each process of a pool has
    starter.join()
    os._exit(1)
