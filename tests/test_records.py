"""prediction.json, the notes beside masks, and what tells whether a file was replaced."""

import json
import os

import pytest

from minikits.records import is_as_stamped, keep_stamps, noted_mask, read_record, stamp, with_notes


def test_a_file_is_as_stamped_until_it_is_replaced(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"mask")
    told = stamp(path, contents=True)

    assert is_as_stamped(path, told)

    path.write_bytes(b"another mask")
    assert not is_as_stamped(path, told)


def test_a_copy_with_another_time_is_known_by_its_contents(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"mask")
    told = stamp(path, contents=True)

    os.utime(path, ns=(0, 0))
    assert is_as_stamped(path, told)

    path.write_bytes(b"sack")  # as many bytes
    os.utime(path, ns=(0, 0))
    assert not is_as_stamped(path, told)


def test_a_folder_without_prediction_json_has_no_scans(tmp_path):
    assert read_record(tmp_path) == {"scans": {}}


def test_what_a_mask_looks_like_is_noted_before_it_is_there(tmp_path):
    mask = tmp_path / "a.nii.gz"
    record = {"scans": {"a.nii.gz": {"case": "a", "mask": None}}}

    with noted_mask(mask, {"bytes": 7}) as built:
        built.parent.mkdir()
        built.write_bytes(b"mask")
        assert not mask.exists()

    entry = with_notes(tmp_path, record)["scans"]["a.nii.gz"]
    assert mask.read_bytes() == b"mask"
    assert entry["scan"] == {"bytes": 7}
    assert is_as_stamped(mask, entry["mask"])


def test_a_mask_that_fails_is_neither_there_nor_noted(tmp_path):
    mask = tmp_path / "a.nii.gz"

    with pytest.raises(OSError, match="disk full"), noted_mask(mask, {"bytes": 7}) as built:
        built.parent.mkdir()
        built.write_bytes(b"ma")
        raise OSError("disk full")

    assert list(tmp_path.iterdir()) == []


def test_only_the_notes_that_prediction_json_repeats_are_removed(tmp_path):
    """One process ends; another has noted the second mask, and not yet put it in its place."""
    (tmp_path / "a.nii.gz").write_bytes(b"mask")
    looks = stamp(tmp_path / "a.nii.gz", contents=True)
    for name in ("a", "b"):
        note = json.dumps({"scan": {}, "mask": looks})
        (tmp_path / f".{name}.nii.gz.stamp").write_text(note)
    entries = {f"{name}.nii.gz": {"case": name, "networks": [0], "mask": None} for name in "ab"}

    keep_stamps(tmp_path, {"scans": entries}, {})

    told = json.loads((tmp_path / "prediction.json").read_text())["scans"]
    assert told["a.nii.gz"]["mask"] == looks and told["b.nii.gz"]["mask"] is None
    assert [path.name for path in tmp_path.glob(".*.stamp")] == [".b.nii.gz.stamp"]
