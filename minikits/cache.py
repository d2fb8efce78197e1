"""A store on disk: entries of arrays with a description. It knows no case.

An entry is a folder that appears whole or not at all: NAME.npy for each array, and entry.json,
which keeps their sums. What is loaded is what was written, or is refused; it is memory-mapped, so
that many large arrays cost no memory."""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from minikits.files import place_beside, read_json

DESCRIPTION = "entry.json"
BLOCK_BYTES = 1 << 20  # that are summed at once
TAIL_BYTES = 4096  # of a file, in what tells whether it was replaced


def save_entry(place: Path, arrays: dict[str, np.ndarray], about: dict, checksum: str) -> None:
    """Writes an entry, the folder `place`. about, checksum: what its description says beside the
    sums of the arrays' files. An entry that another process has just written there stays: it is the
    same. OSError where it cannot be written."""
    beside = place_beside(place)
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(beside / f"{name}.npy", array)
        sums = {name: _sum_of(beside / f"{name}.npy") for name in arrays}
        description = {**about, "checksum": checksum, "sums": sums}
        (beside / DESCRIPTION).write_text(json.dumps(description, indent=1))
        _move(beside, place)
    except OSError as error:
        raise OSError(f"{place}: cannot be written ({error}); is the disk full?") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _move(beside, place):
    try:
        os.rename(beside, place)
    except OSError:
        if not (place / DESCRIPTION).exists():  # else another process was first; they are the same
            raise


def load_entry(place: Path, names: Iterable[str]) -> tuple[dict[str, torch.Tensor], str]:
    """(arrays, checksum) of an entry: memory-mapped tensors by their names, no file open.
    ValueError or OSError where one of these arrays is not as it was written."""
    description = read_description(place)
    arrays = {}
    for name in names:
        path = place / f"{name}.npy"
        if _sum_of(path) != description["sums"].get(name):
            raise ValueError(f"{path}: is not as it was written")
        arrays[name] = _mapped(path)
    return arrays, str(description["checksum"])


def read_description(place: Path) -> dict:
    """What an entry says of itself; ValueError where that is not what `save_entry` writes."""
    description = read_json(place / DESCRIPTION)
    whole = (
        isinstance(description, dict)
        and isinstance(description.get("sums"), dict)
        and "checksum" in description
    )
    if not whole:
        raise ValueError(f"{place / DESCRIPTION}: no description of a prepared case")
    return description


def _sum_of(path):
    """A file's CRC-32; more than a gigabyte a second."""
    total = 0
    with open(path, "rb") as file:
        block = file.read(BLOCK_BYTES)
        while block:
            total = zlib.crc32(block, total)
            block = file.read(BLOCK_BYTES)
    return total


def _mapped(path):
    """The array of a .npy file as a tensor, memory-mapped. numpy would hold a file open for each,
    of which a process has few: 256 on some systems, for 206 cases of four arrays."""
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        shape, columns_first, numpy_dtype = np.lib.format.read_array_header_1_0(file)
        assert not columns_first
        start = file.tell()
    dtype = torch.from_numpy(np.empty(0, numpy_dtype)).dtype

    # private: torch wants writable memory; nothing is written, and nothing would reach the file
    size = path.stat().st_size
    # pyrefly: ignore[bad-argument-type]  # torch takes bytes too
    whole = torch.from_file(os.fsencode(path), shared=False, size=size, dtype=torch.uint8)
    return whole[start:].view(dtype).reshape(shape)


def identity(path: Path) -> list:
    """[bytes, time of change in ns, hash of the last bytes]: what tells whether a file was replaced.
    There a .gz keeps its sum of it all. The hash is no CRC: together with the .gz's own that would
    be the same for any content."""
    about = path.stat()
    with open(path, "rb") as file:
        file.seek(max(0, about.st_size - TAIL_BYTES))
        end = hashlib.sha256(file.read()).hexdigest()[:16]
    return [about.st_size, about.st_mtime_ns, end]
