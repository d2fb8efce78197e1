"""Seconds to read a CT of 602x512x512 voxels, checks and all, beside nibabel's own reading, which checks nothing.

    python benchmarks/reading.py

The content is a phantom's with a scanner's noise, since zeros would unpack in no time. Medians of 5, taken in turns.
"""

import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from minikits.nifti import read_labels, read_volume, write_image
from minikits.phantoms import make_case

SHAPE, SPACING_MM, REPEATS = (602, 512, 512), (1.0, 0.78, 0.78), 5


def phantom():
    """An image and labels of SHAPE, nearest voxels of a coarse phantom's; noise of 10 HU within the body."""
    image, labels, _ = make_case(0, shape=(86, 128, 128), spacing_mm=(7.0, 3.12, 3.12))
    image, labels = (np.repeat(np.repeat(np.repeat(a, 7, 0), 4, 1), 4, 2) for a in (image, labels))
    noise = np.random.default_rng(0).normal(0, 10, SHAPE[1:])
    for z, plane in enumerate(image):
        plane += np.where(plane > -900, np.roll(noise, 37 * z, (0, 1)), 0).astype(image.dtype)
    return image, labels


def by_nibabel(path):
    return np.asarray(nib.load(path, mmap=False).dataobj)


def seconds(read, path):
    began = time.perf_counter()
    read(path)
    return time.perf_counter() - began


def main():
    if "--help" in sys.argv[1:] or "-h" in sys.argv[1:]:
        print(__doc__)
        return
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, "
        f"nibabel {nib.__version__}; shape {SHAPE}, medians of {REPEATS}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, array, read in zip(("image", "labels"), phantom(), (read_volume, read_labels)):
            for ending in ("nii.gz", "nii"):
                path = Path(folder, f"{name}.{ending}")
                write_image(path, array, SPACING_MM)
                taken = [(seconds(read, path), seconds(by_nibabel, path)) for _ in range(REPEATS)]
                ours, theirs = map(statistics.median, zip(*taken))
                print(
                    f"{name}.{ending}, {path.stat().st_size / 1e6:.0f} MB: {ours:.2f} s, nibabel {theirs:.2f} s, "
                    f"ratio {ours / theirs:.2f}",
                    flush=True,
                )
                path.unlink()


if __name__ == "__main__":
    main()
