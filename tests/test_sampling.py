"""Draws depend on (seed, iteration, sample) alone; starts follow nnU-Net's bounds."""

import dataclasses
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import TINY, with_probabilities
from scipy.stats import chisquare

from minikits.augmentation import augment, generator_for
from minikits.geometry import cut
from minikits.paper import PAPER
from minikits.sampling import PreparedCase, draw_batch, draw_start, fetch_ahead

UNLIKELY = 1e-4  # a right draw falls below it once in ten thousand tests

SMALL = dataclasses.replace(TINY, patch=(8, 8, 8))
STILL = with_probabilities(SMALL, 0.0)  # augmented, by nothing


def case_of(shape, kidney=(), tumor=(), id="a"):
    """A case with these voxels of kidney and tumor; its image numbers the voxels."""
    labels = torch.zeros(shape, dtype=torch.uint8)
    for voxel in kidney:
        labels[voxel] = 1
    for voxel in tumor:
        labels[voxel] = 2

    image = torch.arange(labels.numel(), dtype=torch.float32).reshape(shape)
    foreground = tuple(np.flatnonzero(labels.numpy() == value) for value in (1, 2))
    return PreparedCase(id, image, labels, foreground)


def numbered_cases(count, shape=(8, 8, 8)):
    """Cases whose image is their number."""
    cases = []
    for number in range(count):
        case = case_of(shape, id=str(number))
        cases.append(dataclasses.replace(case, image=torch.full(shape, float(number))))
    return cases


def three_cases():
    """Three cases of one kidney's and one tumor's voxel each."""
    return [case_of((20, 40, 40), [(10, 20, 20)], [(5, 6, 7)], id=str(i)) for i in range(3)]


def starts(case, patch, *, forced, count=2000):
    """The first voxels of so many patches."""
    return [draw_start(case, patch, generator_for(0, i), forced=forced) for i in range(count)]


def assert_equally_often(counts, wanted, unlikely=UNLIKELY):
    """Nothing but what is wanted was drawn, each of it as often as the others."""
    assert set(counts) == set(wanted)
    assert chisquare([counts[each] for each in wanted]).pvalue > unlikely


# --- where a patch begins -------------------------------------------------------------------------


def test_uniform_patches_lie_inside_and_reach_every_corner():
    """Of sides 9, 8 and 5 by 6, 6 and 5: 4 starts along Z, 3 along Y, 1 along X."""
    drawn = Counter(starts(case_of((9, 8, 5)), (6, 6, 5), forced=False))

    assert_equally_often(drawn, [(z, y, 0) for z in range(4) for y in range(3)], unlikely=1e-3)


@pytest.mark.parametrize(
    "voxel, wanted",
    [
        ((10, 11, 12), (8, 8, 9)),
        ((1, 2, 0), (0, 0, 0)),
        ((19, 19, 19), (17, 16, 16)),
    ],
)
def test_forced_patches_are_centred_clamped_low_and_overhang_high(voxel, wanted):
    """A patch of 4 x 6 x 6 begins 2, 3 and 3 voxels before its centre."""
    case = case_of((20, 20, 20), [voxel])

    assert set(starts(case, (4, 6, 6), forced=True, count=20)) == {wanted}


def test_forced_patches_of_odd_size_are_centred_too():
    case = case_of((20, 20, 20), [(10, 11, 12)])

    assert set(starts(case, (5, 7, 3), forced=True, count=5)) == {(8, 8, 11)}


def test_forced_classes_are_equally_likely_however_large():
    """36 voxels of kidney, 1 of tumor: half of 2000 patches, to 4.5 standard deviations of 22."""
    kidney = [(10, y, x) for y in range(3, 9) for x in range(3, 9)]
    case = case_of((20, 20, 20), kidney, tumor=[(15, 15, 15)])

    drawn = starts(case, (4, 6, 6), forced=True)

    assert 900 < drawn.count((13, 12, 12)) < 1100


def test_forced_voxels_are_drawn_uniformly_the_first_and_the_last_too():
    voxels = [(5, 9, 11), (6, 9, 11), (6, 10, 12), (9, 13, 8), (12, 12, 12)]
    case = case_of((20, 20, 20), voxels)

    drawn = Counter(starts(case, (4, 6, 6), forced=True))

    assert_equally_often(drawn, [(z - 2, y - 3, x - 3) for z, y, x in voxels])


@pytest.mark.parametrize("kidney, tumor", [([(10, 10, 10)], []), ([], [(10, 10, 10)])])
def test_a_case_of_one_structure_is_forced_to_that_one(kidney, tumor):
    case = case_of((20, 20, 20), kidney, tumor)

    assert set(starts(case, (4, 6, 6), forced=True, count=20)) == {(8, 7, 7)}


def test_without_foreground_a_forced_patch_is_uniform():
    drawn = starts(case_of((9, 8, 7)), (4, 4, 4), forced=True, count=3000)

    assert len(set(drawn)) == 6 * 5 * 4


def test_a_small_case_lies_in_the_middle_of_its_patch():
    """6 and 4 voxels of overhang: 3 and 2 on either side. 5 and 5: 3 and 2, or 2 and 3."""
    case = case_of((5, 20, 3), [(4, 10, 2)])

    even = starts(case, (11, 20, 7), forced=False, count=50)
    odd = starts(case, (10, 20, 8), forced=False, count=200)
    forced = starts(case, (10, 20, 8), forced=True, count=20)

    assert set(even) == {(-3, 0, -2)}
    assert set(odd) == {(-3, 0, -3), (-3, 0, -2), (-2, 0, -3), (-2, 0, -2)}
    assert set(forced) == {(-1, 0, -2)}


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
    """Inside where the case is at least as large as the patch; else in the middle, of which an odd
    rest has two. The other two sides are as long as the patch: 0 is their only start."""
    for axis in range(3):
        shape, sides = [6, 6, 6], [6, 6, 6]
        shape[axis], sides[axis] = size, patch

        drawn = np.array(starts(case_of(tuple(shape)), tuple(sides), forced=False, count=60))

        assert set(drawn[:, axis].tolist()) == wanted
        assert not np.delete(drawn, axis, axis=1).any()


def test_starts_on_two_axes_are_drawn_apart():
    drawn = starts(case_of((4, 8, 8)), (4, 6, 6), forced=False)

    counts = Counter((y, x) for _, y, x in drawn)
    assert_equally_often(counts, [(y, x) for y in range(3) for x in range(3)])


@pytest.mark.parametrize(
    "shape, patch", [((8, 8, 8), (8, 8)), ((8, 8, 8), (8, 0, 8)), ((8, 8, 0), (8, 8, 8))]
)
def test_empty_patches_and_cases_have_no_start(shape, patch):
    with pytest.raises(ValueError, match="a: patch"):
        draw_start(case_of(shape), patch, generator_for(0), forced=False)


# --- a batch --------------------------------------------------------------------------------------


def test_batches_pad_with_zero_and_background():
    """A case of 4 slices lies in slices 2 to 5 of a patch of 8; all of it is kidney."""
    everywhere = [(z, y, x) for z in range(4) for y in range(8) for x in range(8)]
    case = case_of((4, 8, 8), everywhere)

    image, target = draw_batch([case], SMALL, 0, 0, augmented=False)

    assert image.shape == (2, 1, 8, 8, 8)
    assert target.shape == (2, 8, 8, 8)
    assert image.dtype == torch.float32
    assert torch.equal(image[0, 0, 2:6], case.image)
    assert (target[0, 2:6] == 1).all()
    assert not image[0, 0, :2].any()
    assert not image[0, 0, 6:].any()
    assert not target[0, :2].any()


def test_a_batch_depends_on_its_key_alone():
    cases = three_cases()

    image, target = draw_batch(cases, TINY, 0, 17)
    for iteration in (3, 4):
        draw_batch(cases, TINY, 0, iteration)
    torch.rand(5)
    again, target_again = draw_batch(cases, TINY, 0, 17)
    of_another_seed, _ = draw_batch(cases, TINY, 1, 17)
    of_another_iteration, _ = draw_batch(cases, TINY, 0, 18)

    assert torch.equal(image, again)
    assert torch.equal(target, target_again)
    assert not torch.equal(image, of_another_seed)
    assert not torch.equal(image, of_another_iteration)
    assert not torch.equal(image[0], image[1])


def test_every_part_of_the_key_changes_the_patch():
    """Also whether it is augmented, although here nothing else comes of that. The first voxel of
    each patch says where it lies."""
    case = case_of((60, 70, 80))

    firsts = []
    for seed in (0, 1):
        for iteration in (0, 1, 2):
            for augmented in (True, False):
                image, _ = draw_batch([case], STILL, seed, iteration, augmented=augmented)
                firsts += image[:, 0, 0, 0, 0].tolist()

    assert len(set(firsts)) == len(firsts) == 2 * 3 * 2 * 2


def test_the_last_sample_holds_foreground():
    case = case_of((40, 80, 80), [(20, 40, 41)])

    for iteration in range(20):
        _, target = draw_batch([case], TINY, 0, iteration, augmented=False)
        assert target[1].any()


@pytest.mark.parametrize(
    "batch_size, forced", [(1, 0), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2), (7, 2), (8, 3)]
)
@pytest.mark.parametrize("augmented", [True, False])
def test_the_last_third_of_a_batch_is_forced_to_foreground(batch_size, forced, augmented):
    """As nnU-Net v1 rounds it: none of one, one of two. A patch of 512 of 64,000 voxels rarely
    meets the one voxel of foreground."""
    recipe = dataclasses.replace(STILL, batch_size=batch_size)
    case = case_of((40, 40, 40), [(23, 17, 20)])

    met = []
    for iteration in range(12):
        _, target = draw_batch([case], recipe, 0, iteration, augmented=augmented)
        met.append(target.flatten(1).any(dim=1))

    each_time = torch.stack(met).all(dim=0)
    assert each_time.tolist() == [False] * (batch_size - forced) + [True] * forced


@pytest.mark.parametrize("share, forced", [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_the_share_of_foreground_is_the_recipes(share, forced):
    recipe = dataclasses.replace(PAPER, batch_size=4, foreground_share=share)

    assert recipe.foreground_samples == forced


@pytest.mark.parametrize("augmented", [True, False])
def test_cases_are_drawn_uniformly_the_first_and_the_last_too(augmented):
    """With replacement, each sample for itself: the two of a batch are each of the 25 pairs equally
    often."""
    cases = numbered_cases(5)

    pairs = Counter()
    for iteration in range(1000):
        image, _ = draw_batch(cases, STILL, 0, iteration, augmented=augmented)
        one, other = image[:, 0, 4, 4, 4].tolist()
        pairs[one, other] += 1

    assert_equally_often(pairs, [(one, other) for one in range(5) for other in range(5)])


def test_validation_patches_are_cut_and_training_patches_are_augmented():
    """The case's image are whole numbers, each its voxel's: the first of a patch says where it
    lies."""
    everything = with_probabilities(SMALL, 1.0)
    case = case_of((20, 20, 20), [(10, 10, 10)])

    cut_images, cut_targets = draw_batch([case], everything, 0, 0, augmented=False)
    trained, _ = draw_batch([case], everything, 0, 0)

    for image, target in zip(cut_images[:, 0], cut_targets):
        start = np.unravel_index(int(image[0, 0, 0]), (20, 20, 20))
        box = tuple(slice(first, first + 8) for first in start)
        assert torch.equal(image, case.image[box])
        assert torch.equal(target, case.labels[box])
    assert not torch.equal(trained, trained.round())


@pytest.mark.parametrize(
    "iteration, augmented", [(0, True), (1, True), (2, True), (3, False), (4, False)]
)
def test_one_stream_serves_case_start_and_augmentation_in_that_order(iteration, augmented):
    """None begins anew: a case's patches would lie where its number says, and be turned
    accordingly. No two of the four cases have a value of their images in common."""
    cases = []
    for number in range(4):
        case = case_of((12, 34, 36), [(10, 20, 20)], [(5, 6, 7)], id=str(number))
        cases.append(dataclasses.replace(case, image=case.image + 20_000 * number))

    images, targets = draw_batch(cases, TINY, 5, iteration, augmented=augmented)

    for sample in range(2):
        stream = generator_for(5, iteration, sample, augmented)
        case = cases[int(torch.randint(4, (), generator=stream))]
        start = draw_start(case, TINY.patch, stream, forced=sample == 1)
        if augmented:
            where = {"start": start, "patch": TINY.patch}
            image, target = augment(case.image, case.labels, TINY, stream, **where)
        else:
            image = cut(case.image, start, TINY.patch)
            target = cut(case.labels, start, TINY.patch)
        assert torch.equal(images[sample, 0], image)
        assert torch.equal(targets[sample], target)


@pytest.mark.parametrize("recipe", [STILL, dataclasses.replace(SMALL, rotation_probability=1.0)])
@pytest.mark.parametrize("augmented", [True, False])
def test_cases_in_half_precision_give_float32_and_labels_their_bytes(augmented, recipe):
    case = case_of((12, 12, 12), [(5, 5, 5)])
    case = dataclasses.replace(case, image=case.image.half())

    image, target = draw_batch([case], recipe, 0, 0, augmented=augmented)

    assert image.dtype == torch.float32
    assert target.dtype == torch.uint8
    assert image.shape == (2, 1, 8, 8, 8)
    assert target.shape == (2, 8, 8, 8)


@pytest.mark.parametrize("samples", [range(1, 4, 2), [3, 0], np.array([2]), (0, 0), [0]])
def test_some_samples_of_a_batch_are_the_batchs(samples):
    cases = three_cases()
    recipe = dataclasses.replace(TINY, batch_size=4)

    image, target = draw_batch(cases, recipe, 0, 5)
    some_images, some_targets = draw_batch(cases, recipe, 0, 5, samples=samples)

    assert torch.equal(some_images, image[list(samples)])
    assert torch.equal(some_targets, target[list(samples)])


def test_draws_do_not_depend_on_the_cases_beside_the_drawn_one_nor_on_how_they_are_kept():
    """In half precision, in another order of memory: the same patch of the same case."""
    noise = torch.randn(20, 40, 40, generator=generator_for(1)).half()
    in_float32_x_first = noise.float().permute(2, 1, 0).contiguous().permute(2, 1, 0)
    case = dataclasses.replace(case_of((20, 40, 40), [(10, 20, 20)]), image=noise)
    other = dataclasses.replace(case, image=in_float32_x_first)
    assert not other.image.is_contiguous()

    for iteration in range(10):
        image, target = draw_batch([case] * 3, TINY, 0, iteration)
        other_image, other_target = draw_batch([other] * 3, TINY, 0, iteration)

        assert torch.allclose(image, other_image, atol=1e-5)
        assert torch.equal(target, other_target)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_draws_do_not_depend_on_where_the_cases_lie():
    here = case_of((20, 40, 40), [(10, 20, 20)])
    there = dataclasses.replace(here, image=here.image.cuda(), labels=here.labels.cuda())

    for iteration in range(20):
        image, target = draw_batch([here], TINY, 0, iteration)
        image_there, target_there = draw_batch([there], TINY, 0, iteration)

        assert torch.allclose(image, image_there.cpu(), rtol=1e-4, atol=0.1)
        assert (target != target_there.cpu()).float().mean() < 1e-3


@pytest.mark.parametrize("samples", [range(0), [], [2], [0, -1], [0, 2]])
def test_samples_that_a_batch_has_not_are_refused(samples):
    with pytest.raises(ValueError, match="some of 0 to 1"):
        draw_batch(numbered_cases(2), STILL, 0, 0, samples=samples)


def test_without_cases_there_is_no_batch():
    with pytest.raises(ValueError, match="no cases"):
        draw_batch([], STILL, 0, 0)


@pytest.mark.parametrize("augmented", [True, False])
def test_cases_that_cannot_be_drawn_from_are_refused(augmented):
    case = case_of((8, 8, 8))
    short = dataclasses.replace(case, image=case.image[:7])

    with pytest.raises(ValueError, match="same shape"):
        draw_batch([short], STILL, 0, 0, augmented=augmented)


# --- batches ahead --------------------------------------------------------------------------------


def test_fetching_ahead_keeps_the_order():
    assert list(fetch_ahead(lambda i: i * i, range(5))) == [0, 1, 4, 9, 16]
    assert list(fetch_ahead(lambda i: i, [])) == []


def test_fetching_ahead_passes_errors_on():
    def draw(i):
        if i == 2:
            raise ValueError("case_00002")
        return i

    batches = fetch_ahead(draw, range(5))

    assert next(batches) == 0
    assert next(batches) == 1
    with pytest.raises(ValueError, match="case_00002"):
        next(batches)


def test_one_batch_is_drawn_ahead_and_no_more():
    begun = []
    done = [threading.Event() for _ in range(5)]

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
    threads = set()
    at_work = []  # the draws that have begun and not ended
    most_at_work = []
    never = threading.Event()

    def draw(i):
        threads.add(threading.get_ident())
        at_work.append(i)
        most_at_work.append(len(at_work))
        never.wait(0.05)
        at_work.remove(i)
        return i

    drawn = list(fetch_ahead(draw, range(6)))

    assert drawn == list(range(6))
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert max(most_at_work) == 1


def test_a_batch_is_drawn_on_one_core_and_nothing_else_is():
    cores = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        drawn = list(fetch_ahead(lambda i: torch.get_num_threads(), range(2)))
        caller = torch.get_num_threads()
        with ThreadPoolExecutor(1) as thread:
            later = thread.submit(torch.get_num_threads).result()
    finally:
        torch.set_num_threads(cores)

    assert drawn == [1, 1]
    assert caller == later == 3


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_without_a_gpu_to_draw_on_none_is_touched(monkeypatch, device):
    """A computer that has one: it is not started for draws on the CPU, nor for no draws at all."""
    started = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: started.append("device") or 0)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: started.append("init"))

    drawn = list(fetch_ahead(lambda i: i, range(3), device))

    assert drawn == [0, 1, 2]
    assert started == []
