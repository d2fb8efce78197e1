"""Draws depend on (seed, iteration, sample) alone; starts follow nnU-Net's bounds."""

import collections
import dataclasses
import threading

import numpy as np
import pytest
import torch
from conftest import TINY
from scipy.stats import chisquare

from minikits.augmentation import augment, generator_for
from minikits.geometry import cut
from minikits.paper import PAPER
from minikits.sampling import PreparedCase, draw_batch, draw_start, fetch_ahead


def case_of(shape, voxels=(), tumor=(), id="a"):
    labels = torch.zeros(shape, dtype=torch.uint8)
    for value, places in ((1, voxels), (2, tumor)):
        for place in places:
            labels[place] = value
    image = torch.arange(labels.numel(), dtype=torch.float32).reshape(shape)
    return PreparedCase(
        id, image, labels, tuple(np.flatnonzero(labels.numpy() == value) for value in (1, 2))
    )


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
    case = case_of(
        (20, 20, 20), [(10, y, x) for y in range(3, 9) for x in range(3, 9)], [(15, 15, 15)]
    )
    tumors = sum(start == (13, 12, 12) for start in starts(case, (4, 6, 6), True))
    assert 900 < tumors < 1100  # 2000 draws: 4.5 standard deviations


def test_without_foreground_a_forced_patch_is_uniform():
    assert len(set(starts(case_of((9, 8, 7)), (4, 4, 4), True, 3000))) == 6 * 5 * 4


def test_a_small_case_lies_in_the_middle_of_its_patch():
    case = case_of((5, 20, 3), [(4, 10, 2)])
    assert set(starts(case, (11, 20, 7), False, 50)) == {(-3, 0, -2)}
    assert set(starts(case, (10, 20, 8), False, 200)) == {
        (z, 0, x) for z in (-3, -2) for x in (-3, -2)
    }
    assert set(starts(case, (10, 20, 8), True, 20)) == {(-1, 0, -2)}


def test_batches_pad_with_zero_and_background():
    recipe = dataclasses.replace(TINY, patch=(8, 8, 8))
    case = case_of((4, 8, 8), [(z, y, x) for z in range(4) for y in range(8) for x in range(8)])
    image, target = draw_batch([case], recipe, 0, 0, augmented=False)
    assert (
        image.shape == (2, 1, 8, 8, 8)
        and target.shape == (2, 8, 8, 8)
        and image.dtype == torch.float32
    )
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


UNLIKELY = 1e-4  # a right draw falls below it once in ten thousand tests
STILL = dataclasses.replace(
    TINY,
    patch=(8, 8, 8),
    **{
        field.name: 0.0 for field in dataclasses.fields(TINY) if field.name.endswith("_probability")
    },
)  # augmented, by nothing


def numbered_cases(count, shape=(8, 8, 8)):
    """Cases whose image is their number."""
    return [
        dataclasses.replace(case_of(shape, id=str(number)), image=torch.full(shape, float(number)))
        for number in range(count)
    ]


@pytest.mark.parametrize("augmented", [True, False])
def test_cases_are_drawn_uniformly_the_first_and_the_last_too(augmented):
    """With replacement, each sample for itself: the two of a batch are each of the 25 pairs equally often."""
    cases = numbered_cases(5)
    pairs = collections.Counter()
    for iteration in range(1000):
        image, _ = draw_batch(cases, STILL, 0, iteration, augmented=augmented)
        pairs[tuple(int(sample[0, 4, 4, 4]) for sample in image)] += 1
    assert (
        chisquare([pairs[one, other] for one in range(5) for other in range(5)]).pvalue > UNLIKELY
    )


@pytest.mark.parametrize(
    "batch_size, forced", [(1, 0), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2), (7, 2), (8, 3)]
)
@pytest.mark.parametrize("augmented", [True, False])
def test_the_last_third_of_a_batch_is_forced_to_foreground(batch_size, forced, augmented):
    """As nnU-Net v1 rounds it: none of one, one of two. A patch of 512 of 64,000 voxels rarely meets the one voxel."""
    recipe = dataclasses.replace(STILL, batch_size=batch_size)
    case = case_of((40, 40, 40), [(23, 17, 20)])
    met = torch.stack(
        [
            draw_batch([case], recipe, 0, iteration, augmented=augmented)[1].flatten(1).any(dim=1)
            for iteration in range(12)
        ]
    )
    assert met.all(dim=0).tolist() == [False] * (batch_size - forced) + [True] * forced


def test_the_share_of_foreground_is_the_recipes():
    for share, forced in ((0.0, 0), (0.5, 2), (1.0, 4)):
        assert (
            dataclasses.replace(PAPER, batch_size=4, foreground_share=share).foreground_samples
            == forced
        )


def test_forced_voxels_are_drawn_uniformly_the_first_and_the_last_too():
    voxels = [(5, 9, 11), (6, 9, 11), (6, 10, 12), (9, 13, 8), (12, 12, 12)]
    drawn = collections.Counter(starts(case_of((20, 20, 20), voxels), (4, 6, 6), True))
    wanted = [(z - 2, y - 3, x - 3) for z, y, x in voxels]
    assert (
        set(drawn) == set(wanted)
        and chisquare([drawn[start] for start in wanted]).pvalue > UNLIKELY
    )


@pytest.mark.parametrize("kidney, tumor", [([(10, 10, 10)], []), ([], [(10, 10, 10)])])
def test_a_case_of_one_structure_is_forced_to_that_one(kidney, tumor):
    assert set(starts(case_of((20, 20, 20), kidney, tumor), (4, 6, 6), True, 20)) == {(8, 7, 7)}


def test_forced_patches_of_odd_size_are_centred_too():
    assert set(starts(case_of((20, 20, 20), [(10, 11, 12)]), (5, 7, 3), True, 5)) == {(8, 8, 11)}


@pytest.mark.parametrize(
    "size, patch, wanted",
    [
        (5, 5, {0}),
        (6, 5, {0, 1}),
        (4, 5, {0, -1}),
        (3, 5, {-1}),
        (2, 5, {-1, -2}),
        (1, 4, {-1, -2}),
        (7, 4, {0, 1, 2, 3}),
    ],
)
def test_starts_on_each_axis(size, patch, wanted):
    """Inside where the case is at least as large as the patch; else in the middle, of which an odd rest has two."""
    for axis in range(3):
        shape, sides = [6, 6, 6], [6, 6, 6]
        shape[axis], sides[axis] = size, patch
        drawn = starts(case_of(tuple(shape)), tuple(sides), False, 60)
        assert {start[axis] for start in drawn} == wanted
        assert all(start[other] == 0 for start in drawn for other in range(3) if other != axis)


def test_starts_on_two_axes_are_drawn_apart():
    drawn = collections.Counter(start[1:] for start in starts(case_of((4, 8, 8)), (4, 6, 6), False))
    assert chisquare([drawn[y, x] for y in range(3) for x in range(3)]).pvalue > UNLIKELY


def test_every_part_of_the_key_changes_the_patch():
    """Also whether it is augmented, although here nothing else comes of that."""
    case = case_of((60, 70, 80))
    keys = [
        (seed, iteration, augmented)
        for seed in (0, 1)
        for iteration in (0, 1, 2)
        for augmented in (True, False)
    ]
    firsts = [
        int(image[0, 0, 0, 0])
        for seed, iteration, augmented in keys
        for image in draw_batch([case], STILL, seed, iteration, augmented=augmented)[0]
    ]
    assert len(set(firsts)) == len(keys) * 2


def test_validation_patches_are_cut_and_training_patches_are_augmented():
    everything = dataclasses.replace(
        TINY,
        patch=(8, 8, 8),
        **{
            field.name: 1.0
            for field in dataclasses.fields(TINY)
            if field.name.endswith("_probability")
        },
    )
    case = case_of((20, 20, 20), [(10, 10, 10)])
    image, target = draw_batch([case], everything, 0, 0, augmented=False)
    for number in range(2):
        start = np.unravel_index(int(image[number, 0, 0, 0, 0]), (20, 20, 20))
        box = tuple(slice(first, first + 8) for first in start)
        assert torch.equal(image[number, 0], case.image[box]) and torch.equal(
            target[number], case.labels[box]
        )
    trained, _ = draw_batch([case], everything, 0, 0)
    assert not torch.equal(trained, trained.round())  # the case's image are whole numbers


def test_one_stream_serves_case_start_and_augmentation_in_that_order():
    """None begins anew: a case's patches would lie where its number says, and be turned accordingly."""
    cases = [case_of((12, 34, 36), [(10, 20, 20)], [(5, 6, 7)], id=str(i)) for i in range(4)]
    cases = [
        dataclasses.replace(case, image=case.image + 20_000 * i) for i, case in enumerate(cases)
    ]
    for iteration, augmented in ((0, True), (1, True), (2, True), (3, False), (4, False)):
        image, target = draw_batch(cases, TINY, 5, iteration, augmented=augmented)
        for sample in range(2):
            stream = generator_for(5, iteration, sample, augmented)
            case = cases[int(torch.randint(4, (), generator=stream))]
            start = draw_start(case, TINY.patch, stream, forced=sample == 1)
            if augmented:
                wanted = augment(
                    case.image, case.labels, TINY, stream, start=start, patch=TINY.patch
                )
            else:
                wanted = cut(case.image, start, TINY.patch), cut(case.labels, start, TINY.patch)
            assert torch.equal(image[sample, 0], wanted[0]) and torch.equal(
                target[sample], wanted[1]
            )


@pytest.mark.parametrize("augmented", [True, False])
def test_cases_in_half_precision_give_float32_and_labels_their_bytes(augmented):
    case = case_of((12, 12, 12), [(5, 5, 5)])
    case = dataclasses.replace(case, image=case.image.half())
    for recipe in (STILL, dataclasses.replace(TINY, patch=(8, 8, 8), rotation_probability=1.0)):
        image, target = draw_batch([case], recipe, 0, 0, augmented=augmented)
        assert image.dtype == torch.float32 and target.dtype == torch.uint8
        assert image.shape == (2, 1, 8, 8, 8) and target.shape == (2, 8, 8, 8)


def test_some_samples_of_a_batch_are_the_batchs():
    cases = [case_of((20, 40, 40), [(10, 20, 20)], id=str(i)) for i in range(3)]
    recipe = dataclasses.replace(TINY, batch_size=4)
    image, target = draw_batch(cases, recipe, 0, 5)
    for samples in (range(1, 4, 2), [3, 0], np.array([2]), (0, 0), [0]):
        part = draw_batch(cases, recipe, 0, 5, samples=samples)
        wanted = list(samples)
        assert torch.equal(part[0], image[wanted]) and torch.equal(part[1], target[wanted])


def test_draws_do_not_depend_on_the_cases_beside_the_drawn_one_nor_on_how_they_are_kept():
    """In half precision, in another order of memory: the same patch of the same case."""
    case = case_of((20, 40, 40), [(10, 20, 20)])
    case = dataclasses.replace(
        case, image=torch.randn(20, 40, 40, generator=generator_for(1)).half()
    )
    other = dataclasses.replace(
        case, image=case.image.float().permute(2, 1, 0).contiguous().permute(2, 1, 0)
    )
    assert not other.image.is_contiguous()
    for iteration in range(10):
        one, two = (draw_batch([each] * 3, TINY, 0, iteration) for each in (case, other))
        assert torch.allclose(one[0], two[0], atol=1e-5) and torch.equal(one[1], two[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_draws_do_not_depend_on_where_the_cases_lie():
    case = case_of((20, 40, 40), [(10, 20, 20)])
    there = dataclasses.replace(case, image=case.image.cuda(), labels=case.labels.cuda())
    for iteration in range(20):
        one, two = (draw_batch([each], TINY, 0, iteration) for each in (case, there))
        assert torch.allclose(one[0], two[0].cpu(), rtol=1e-4, atol=0.1)
        assert (one[1] != two[1].cpu()).float().mean() < 1e-3


@pytest.mark.parametrize(
    "samples, complaint",
    [
        (range(0), "some of 0 to 1"),
        ([], "some of 0 to 1"),
        ([2], "some of 0 to 1"),
        ([0, -1], "some of 0 to 1"),
        ([0, 2], "some of 0 to 1"),
    ],
)
def test_samples_that_a_batch_has_not_are_refused(samples, complaint):
    with pytest.raises(ValueError, match=complaint):
        draw_batch(numbered_cases(2), STILL, 0, 0, samples=samples)


def test_cases_that_cannot_be_drawn_from_are_refused():
    with pytest.raises(ValueError, match="no cases"):
        draw_batch([], STILL, 0, 0)
    case = case_of((8, 8, 8))
    for augmented in (True, False):
        with pytest.raises(ValueError, match="same shape"):
            draw_batch(
                [dataclasses.replace(case, image=case.image[:7])], STILL, 0, 0, augmented=augmented
            )
    for shape, patch in (((8, 8, 8), (8, 8)), ((8, 8, 8), (8, 0, 8)), ((8, 8, 0), (8, 8, 8))):
        with pytest.raises(ValueError, match="a: patch"):
            draw_start(case_of(shape), patch, generator_for(0), forced=False)


def test_one_batch_is_drawn_ahead_and_no_more():
    begun, done = [], [threading.Event() for _ in range(5)]

    def draw(i):
        begun.append(i)
        done[i].set()
        return i

    batches = fetch_ahead(draw, range(5))
    assert begun == []
    for i in range(4):
        assert next(batches) == i
        assert done[i + 1].wait(60)
        assert begun == list(range(i + 2))
    assert list(batches) == [4]


def test_one_batch_is_drawn_at_a_time_and_beside_the_caller():
    """By one other thread: the order of draws is the order of batches."""
    threads, at_work, most = set(), [0], [0]
    release = threading.Event()

    def draw(i):
        threads.add(threading.get_ident())
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        release.wait(0.05)
        at_work[0] -= 1
        return i

    assert list(fetch_ahead(draw, range(6))) == list(range(6))
    assert len(threads) == 1 and threading.get_ident() not in threads and most == [1]


def test_without_a_gpu_to_draw_on_none_is_touched(monkeypatch):
    """A computer that has one: it is not started for draws on the CPU, nor for no draws at all."""
    started = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: started.append("device") or 0)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: started.append("init"))

    for device in (None, torch.device("cpu")):
        assert list(fetch_ahead(lambda i: i, range(3), device)) == [0, 1, 2]

    assert started == []
