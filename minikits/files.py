"""Files appear whole or not at all."""

import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path):
    """A binary file to write, beside `path`; flushed and renamed to it at the end, removed on any failure.
    Whatever kills the process, `path` is either what it was before or complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def claim(folder):
    """Keeps a folder for this process until it ends, however it ends; a ValueError where another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(ImportError):  # Windows cannot keep it
        import fcntl
        try:
            fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process trains here; wait for it, or choose another --out") from None


def write_text(path, text):
    with written_whole(path) as file:
        file.write(text.encode())


def read_json(path):
    try:
        return json.loads(Path(path).read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: no JSON file ({error})") from None
