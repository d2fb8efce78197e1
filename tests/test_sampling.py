"""Draws depend on (seed, iteration, sample) alone; starts follow nnU-Net's bounds."""

import collections
import dataclasses

import numpy as np
import pytest
import torch
from conftest import TINY

from minikits.cases import PreparedCase
from minikits.sampling import draw_batch, draw_start, fetch_ahead, generator_for


def case_of(shape, voxels=(), tumor=(), id="a"):
    labels = torch.zeros(shape, dtype=torch.uint8)
    for value, places in ((1, voxels), (2, tumor)):
        for place in places:
            labels[place] = value
    image = torch.arange(labels.numel(), dtype=torch.float32).reshape(shape)
    return PreparedCase(id, image, labels, tuple(np.flatnonzero(labels.numpy() == value) for value in (1, 2)))


def starts(case, patch, forced, count=2000):
    return [draw_start(case, patch, generator_for(0, i), forced=forced) for i in range(count)]


def test_uniform_patches_lie_inside_and_reach_every_corner():
    drawn = starts(case_of((9, 8, 5)), (6, 6, 5), forced=False)
    counts = collections.Counter(drawn)
    assert set(counts) == {(z, y, 0) for z in range(4) for y in range(3)}
    expected = len(drawn) / 12  # 11 degrees of freedom: the 99.9% quantile of chi-square is 31.3
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 31.3


def test_forced_patches_are_centred_clamped_low_and_overhang_high():
    patch = (4, 6, 6)
    assert set(starts(case_of((20, 20, 20), [(10, 11, 12)]), patch, True, 20)) == {(8, 8, 9)}
    assert set(starts(case_of((20, 20, 20), [(1, 2, 0)]), patch, True, 20)) == {(0, 0, 0)}
    assert set(starts(case_of((20, 20, 20), [(19, 19, 19)]), patch, True, 20)) == {(17, 16, 16)}


def test_forced_classes_are_equally_likely_however_large():
    case = case_of((20, 20, 20), [(10, y, x) for y in range(3, 9) for x in range(3, 9)], [(15, 15, 15)])
    tumors = sum(start == (13, 12, 12) for start in starts(case, (4, 6, 6), True))
    assert 900 < tumors < 1100  # 2000 draws: 4.5 standard deviations


def test_without_foreground_a_forced_patch_is_uniform():
    assert len(set(starts(case_of((9, 8, 7)), (4, 4, 4), True, 3000))) == 6 * 5 * 4


def test_a_small_case_lies_in_the_middle_of_its_patch():
    case = case_of((5, 20, 3), [(4, 10, 2)])
    assert set(starts(case, (11, 20, 7), False, 50)) == {(-3, 0, -2)}
    assert set(starts(case, (10, 20, 8), False, 200)) == {(z, 0, x) for z in (-3, -2) for x in (-3, -2)}
    assert set(starts(case, (10, 20, 8), True, 20)) == {(-1, 0, -2)}


def test_batches_pad_with_zero_and_background():
    recipe = dataclasses.replace(TINY, patch=(8, 8, 8))
    case = case_of((4, 8, 8), [(z, y, x) for z in range(4) for y in range(8) for x in range(8)])
    image, target = draw_batch([case], recipe, 0, 0, augmented=False)
    assert image.shape == (2, 1, 8, 8, 8) and target.shape == (2, 8, 8, 8) and image.dtype == torch.float32
    assert torch.equal(image[0, 0, 2:6], case.image) and (target[0, 2:6] == 1).all()
    assert not image[0, 0, :2].any() and not image[0, 0, 6:].any() and not target[0, :2].any()


def test_a_batch_depends_on_its_key_alone():
    cases = [case_of((20, 40, 40), [(10, 20, 20)], [(5, 6, 7)], id=str(i)) for i in range(3)]
    image, target = draw_batch(cases, TINY, 0, 17)
    for iteration in (3, 4):
        draw_batch(cases, TINY, 0, iteration)
    torch.rand(5)
    again = draw_batch(cases, TINY, 0, 17)
    assert torch.equal(image, again[0]) and torch.equal(target, again[1])
    for other in (draw_batch(cases, TINY, 1, 17), draw_batch(cases, TINY, 0, 18)):
        assert not torch.equal(image, other[0])
    assert not torch.equal(image[0], image[1])


def test_the_last_sample_holds_foreground():
    case = case_of((40, 80, 80), [(20, 40, 41)])
    for iteration in range(20):
        _, target = draw_batch([case], TINY, 0, iteration, augmented=False)
        assert target[1].any()


def test_fetching_ahead_keeps_the_order_and_passes_errors_on():
    assert list(fetch_ahead(lambda i: i * i, range(5))) == [0, 1, 4, 9, 16]
    assert list(fetch_ahead(lambda i: i, [])) == []

    def draw(i):
        if i == 2:
            raise ValueError("case_00002")
        return i

    batches = fetch_ahead(draw, range(5))
    assert next(batches) == 0 and next(batches) == 1
    with pytest.raises(ValueError, match="case_00002"):
        next(batches)
