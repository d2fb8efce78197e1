"""A store of arrays: whole or not at all, and loaded as it was written."""

import numpy as np
import pytest

from minikits.cache import load_entry, read_description, save_entry

ARRAYS = {
    "image": np.arange(24, dtype=np.float16).reshape(2, 3, 4),
    "labels": np.ones((2, 3, 4), dtype=np.uint8),
    "tumor": np.zeros(0, dtype=np.int32),  # a case may have none
}


def test_what_is_loaded_is_what_was_saved(tmp_path):
    save_entry(tmp_path / "a", ARRAYS, {"id": "a"}, checksum="0123")

    arrays, checksum = load_entry(tmp_path / "a", ARRAYS)

    assert checksum == "0123"
    for name, array in ARRAYS.items():
        assert arrays[name].numpy().dtype == array.dtype
        assert np.array_equal(arrays[name].numpy(), array)


def test_an_entry_says_what_it_is_of(tmp_path):
    save_entry(tmp_path / "a", ARRAYS, {"id": "a", "format": 7}, checksum="0123")

    description = read_description(tmp_path / "a")

    assert description["id"] == "a" and description["format"] == 7
    assert description["checksum"] == "0123"
    assert description["sums"].keys() == ARRAYS.keys()


def test_only_the_arrays_that_are_asked_for_are_loaded(tmp_path):
    save_entry(tmp_path / "a", ARRAYS, {}, checksum="")
    (tmp_path / "a" / "image.npy").unlink()

    arrays, _ = load_entry(tmp_path / "a", ["labels"])

    assert arrays.keys() == {"labels"}


def test_an_array_that_is_not_as_it_was_written_is_refused(tmp_path):
    save_entry(tmp_path / "a", ARRAYS, {}, checksum="")
    np.save(tmp_path / "a" / "labels.npy", 2 * ARRAYS["labels"])

    with pytest.raises(ValueError, match=r"labels\.npy: is not as it was written"):
        load_entry(tmp_path / "a", ARRAYS)


def test_an_entry_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(path, array):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)

    with pytest.raises(OSError, match=r"a: cannot be written .*is the disk full\?"):
        save_entry(tmp_path / "a", ARRAYS, {}, checksum="")
    assert list(tmp_path.iterdir()) == []


def test_of_two_processes_the_first_ones_entry_stays(tmp_path):
    save_entry(tmp_path / "a", ARRAYS, {}, checksum="first")

    save_entry(tmp_path / "a", ARRAYS, {}, checksum="second")

    _, checksum = load_entry(tmp_path / "a", ARRAYS)
    assert checksum == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
