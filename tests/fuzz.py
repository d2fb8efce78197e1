"""Damaged files in great number: each is read or refused, soon, in little memory. python tests/fuzz.py [inputs] [seed]

What can be read is written as a mask, and that must be read again without options, on the same grid.
A seed gives its inputs again.
"""

import gzip
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np

from minikits.doubts import doubts
from minikits.frames import check_same_grid
from minikits.nifti import read_labels, read_volume, write_labels
from minikits.volumes import KITS19_AFFINE

AWKWARD = [
    0,
    -1,
    1,
    2,
    3,
    7,
    255,
    32767,
    -32768,
    2**31 - 1,
    -(2**31),
    2**62,
    np.nan,
    np.inf,
    -np.inf,
    1e38,
    1e-38,
]
OPTIONS = (
    {"affine": "sform"},
    {"affine": "qform"},
    {"assume_spacing": (3, 1, 1)},
    {"max_voxels": 100},
)


def valid_files(draw):
    for kind, order, number in product((nib.Nifti1Image, nib.Nifti2Image), "<>", range(4)):
        voxels = draw.integers(0, 3, (5, 6, 7)).astype(order + ["i2", "u1", "f4", "f8"][number])
        image = kind(
            voxels,
            KITS19_AFFINE * [3, 0.8, 0.8, 1],
            kind.header_class(endianness=order),
            dtype=voxels.dtype,
        )
        image.header.set_qform(image.affine, number % 2)
        image.header.extensions.extend(
            [nib.nifti1.Nifti1Extension("comment", b"by hand")] * (number // 2)
        )
        yield kind.header_class.template_dtype.newbyteorder(order), image.to_bytes()


@np.errstate(all="ignore")
def changed(content, layout, draw):
    content = bytearray(content)
    for _ in range(draw.integers(1, 5)):
        place, change = int(draw.integers(len(content) or 1)), draw.integers(6)
        if change < 2 and content:
            content[place % (len(content) if change else layout.itemsize)] ^= 1 << draw.integers(8)
        elif change < 4 and len(content) > layout.itemsize:
            header = np.frombuffer(content[: layout.itemsize], layout).copy()
            field = header[
                draw.choice([name for name in layout.names if layout[name].base.kind in "iuf"])
            ].reshape(-1)
            field[draw.integers(len(field))] = np.float64(draw.choice(AWKWARD)).astype(field.dtype)
            content[: layout.itemsize] = header.tobytes()
        else:  # cut off, or some bytes replaced by more or fewer
            content[place : None if change == 4 else place + draw.integers(40)] = draw.bytes(
                draw.integers(40)
            )
    return bytes(content)


def outcome(read, path, mask, options):
    try:
        volume = read(path, **options)
        doubts(volume)
        with np.errstate(
            all="ignore"
        ):  # NIfTI-2 keeps numbers, of no use here, that NIfTI-1 cannot
            write_labels(mask, np.zeros(volume.voxels.shape), volume)
        check_same_grid(volume, read_labels(mask))
        return "read"
    except (ValueError, OSError) as error:
        return (
            "refused"
            if str(error).startswith(f"{path}: ") and "\n" not in str(error)
            else f"said: {error!r}"
        )
    except Exception:
        return traceback.format_exc(limit=-2)


def main(inputs=24_000, seed=0):
    outcomes, slowest, draw = Counter(), 0.0, np.random.default_rng(seed)
    files = list(valid_files(draw))
    nib.imageglobals.logger.disabled = True
    warnings.simplefilter("error")  # a warning is a line that no user asked for
    with tempfile.TemporaryDirectory() as folder:
        path, mask = Path(folder, "input"), Path(folder, "mask.nii")
        for number in range(inputs):
            layout, content = files[draw.integers(len(files))]
            for step in ((changed,), (changed, gzip.compress), (gzip.compress, changed))[
                number % 3
            ]:
                content = (
                    changed(content, layout, draw) if step is changed else gzip.compress(content, 1)
                )
            path.write_bytes(content)
            for read in (read_volume, read_labels):
                began = time.perf_counter()
                found = outcome(
                    read, path, mask, {} if number % 5 else OPTIONS[number % len(OPTIONS)]
                )
                outcomes[found], slowest = (
                    outcomes[found] + 1,
                    max(slowest, time.perf_counter() - began),
                )
                if found not in ("read", "refused") and outcomes[found] == 1:
                    print(f"input {number} of seed {seed}, {read.__name__}: {found}")
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"{inputs} inputs of seed {seed}: {dict(outcomes)}, {slowest:.2f} s at most, {megabytes} MB"
    )
    sys.exit(bool(outcomes.keys() - {"read", "refused"}) or slowest > 10 or megabytes > 1000)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
