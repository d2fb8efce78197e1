"""Files and folders appear whole or not at all, and a folder belongs to one process at a time."""

import argparse
import errno
import json
import os
import platform
import re
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter
from itertools import islice
from pathlib import Path
from typing import Any

PART = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)(@(?P<host>.*))?\.part", re.DOTALL)
ABANDONED_SECONDS = 24 * 3600  # what a process not of this computer did not touch for so long
LONGEST_NAME = 150  # bytes; a file system takes 255, process and computer among them
LOOKED_AT = 100  # files and folders, for whether they are DICOM
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}


def place_beside(path: Path) -> Path:
    """Where this process builds what will be `path`: hidden, in the same folder, named after the
    process and its computer, so that others can tell whether it is still at work."""
    return path.with_name(f".{_shortened(path.name)}.{os.getpid()}@{platform.node()}.part")


def _shortened(name):
    whole = os.fsencode(name)
    return name if len(whole) <= LONGEST_NAME else f"{name[:20]}-{zlib.crc32(whole):08x}"


def remove_leftovers(folder: Path, *, of: str | None = None) -> None:
    """Removes what killed processes were building in `folder`: all, or what would be named `of`.
    Never what a living process builds; of another computer's processes, what has not changed for a
    day. What cannot be removed stays; a folder that is not there has none."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        part = PART.fullmatch(name)
        if part is None or (of is not None and part["name"] != _shortened(of)):
            continue
        path = Path(folder, name)
        if _is_abandoned(path, int(part["process"]), part["host"]):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink(missing_ok=True)


def _is_abandoned(path: Path, process: int, host: str | None) -> bool:
    if host == platform.node() and os.name == "posix":
        return not _is_running(process)
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
    except OSError:  # its process has just finished it
        return False


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextmanager
def written_whole(path: Path | str) -> Iterator[BufferedWriter]:
    """A binary file to write, beside `path`; flushed and renamed to it at the end, removed on any
    failure. Whatever kills the process, `path` is either what it was before or complete; what a
    killed one left beside it is removed when `path` is written again."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, of=path.name)
    beside = place_beside(path)
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, beside `folder`; renamed to it at the end, removed on any failure.
    ValueError where there is something already: nothing is written over."""
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"{folder}: is there already; choose another --out, or move it away")
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent, of=folder.name)
    beside = place_beside(folder)
    try:
        beside.mkdir()
        yield beside
        os.rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def claim(folder: Path, *, doing: str = "trains") -> str | None:
    """Keeps a folder for this process until it ends, however it ends; ValueError where another has
    it. Removes what killed processes left there. Returns None, or a line to print where the system
    or the file system has no such locks (Windows, some network file systems): then nothing holds
    back a second process. doing: what the other one does, for the message."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unprotected = _lock(folder, doing)
    remove_leftovers(folder)
    return unprotected


def _lock(folder: Path, doing: str) -> str | None:
    advice = "do not start a second process with this folder while this one runs"
    try:
        import fcntl
    except ImportError:
        return f"{folder}: this system has no locks for folders; {advice}"

    opened = os.open(folder, os.O_RDONLY)  # stays open: the lock goes with the process
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise ValueError(
            f"{folder}: another process {doing} here; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        os.close(opened)
        if error.errno not in NO_LOCKS:
            raise
        return f"{folder}: its file system has no locks ({error.strerror}); {advice}"
    return None


def write_text(path: Path | str, text: str) -> None:
    """A text file, whole or not at all."""
    with written_whole(path) as file:
        file.write(text.encode(errors="surrogateescape"))  # a file's name may be no UTF-8


def read_json(path: Path | str) -> Any:
    """What a JSON file holds; ValueError, naming it, where it is none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON file ({error})") from None


def holds_dicom(source: Path) -> bool:
    """Whether a file is DICOM, or one of the first in a folder and in those in it: by its ending,
    which scanners' files often lack, or by the word that stands in it behind 128 bytes."""
    paths = [source] if source.is_file() else islice(source.rglob("*"), LOOKED_AT)
    for path in paths:
        if path.suffix.lower() == ".dcm":
            return True
        if not path.is_file():
            continue  # to open a pipe would wait for who writes into it
        try:
            with path.open("rb") as file:
                if file.read(132)[128:] == b"DICM":
                    return True
        except OSError:  # nothing that may be read
            continue
    return False


def typed_path(text: str) -> Path:
    """A path of the command line (argparse's type): `~` is the home folder also where no shell put
    it, as in --out=~/x. argparse tells the user of a `~name` that nobody has."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty path, of an unset variable? . is this folder")
    if not text.startswith("~"):
        return Path(text)
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(
            f"{text}: {error} ./{text} is a folder of that name"
        ) from None


class ForgivingStream:
    """A text stream that never fails: once it cannot be written to, what goes there is lost."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """How many letters were taken: all, in whatever way."""
        try:
            return self.stream.write(text)
        except (OSError, ValueError):
            self._send_nowhere()
            return len(text)

    def flush(self) -> None:
        """Passes on what was written so far."""
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self._send_nowhere()

    def _send_nowhere(self) -> None:
        """What the stream still holds would be an error again when the process ends."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


def forgiving_output() -> None:
    """From now on no message ends a run. Standard output and error show what they cannot encode as
    \\xfc or \\u80be; what nobody takes is lost: a stream that was closed from the start (`>&-`), a
    pipe whose reader has gone, a full disk. The numbers of closed streams are taken, so that no
    file that is opened later gets the lines."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)

    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (stays open)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        if not isinstance(stream, ForgivingStream):
            setattr(sys, name, ForgivingStream(stream))
