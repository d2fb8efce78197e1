"""The synthetic abdomen: smooth fields, parts, and a body whose layers lie where they should."""

from dataclasses import replace

import numpy as np
import pytest

from minikits.anatomy import (
    AIR_HU,
    BEND_MOST_MM,
    BUBBLES_HU,
    DOME_MM,
    FAT_HU,
    GAS_HU,
    LUNG_HU,
    VERTEBRA_MM,
    Field,
    Part,
    bent,
    chain,
    draw_bends,
    draw_body,
    draw_field,
    field_values,
    paint,
    paint_body,
    spline_weights,
)

AXES = [np.arange(-n, n + 1, dtype=np.float32) * step for n, step in ((30, 3), (60, 3), (65, 3))]
SIZE_MM = (110.0, 150.0)
KIDNEYS = [np.array([8.0, 0, -60]), np.array([-8.0, 0, 60])]


def body_over(axes):
    random = np.random.default_rng(1)
    return draw_body(random, axes, draw_bends(random, axes), SIZE_MM, KIDNEYS, 180.0)


@pytest.fixture(scope="module")
def body():
    return body_over(AXES)


@pytest.fixture(scope="module")
def painted(body):
    return paint_body(body, AXES)


def straight(axes):
    """Places that nothing bends."""
    random = np.random.default_rng(0)
    return bent(axes, draw_bends(random, axes), stiff=1)


# --- fields ---------------------------------------------------------------------------------------


def test_a_cubic_spline_weighs_its_own_place_two_thirds_and_its_neighbours_a_sixth():
    weights = spline_weights(np.array([2.0]), 5)

    assert weights[0] == pytest.approx([0, 1 / 6, 2 / 3, 1 / 6, 0])


def test_the_weights_of_any_place_inside_add_up_to_one():
    weights = spline_weights(np.linspace(1, 3, 21), 5)

    assert weights.sum(axis=1) == pytest.approx(np.ones(21), abs=1e-6)


def test_a_field_of_equal_coefficients_is_that_number_everywhere():
    field = Field(np.full((5, 6, 7), 2, np.float32), np.array([-20.0, -20, -20]), 10.0)

    values = field_values(field, [np.arange(0.0, 5), np.arange(0.0, 9), np.arange(0.0, 12)])

    assert values.shape == (5, 9, 12)
    assert values == pytest.approx(np.full((5, 9, 12), 2), abs=1e-5)


def test_axes_of_a_field_are_z_y_x():
    """Coefficients that grow by 1 from cell to cell of one axis make the field grow along it."""
    axes = [np.arange(0.0, 4), np.arange(0.0, 5), np.arange(0.0, 6)]
    for axis in range(3):
        ramp = np.arange(10.0).reshape([10 if i == axis else 1 for i in range(3)])
        coefficients = np.broadcast_to(ramp, (10, 10, 10)).astype(np.float32)

        values = field_values(Field(coefficients, np.array([-2.0, -2, -2]), 1.0), axes)

        assert np.diff(values, axis=axis) == pytest.approx(1, abs=1e-5)


def test_a_drawn_field_has_mean_0_and_sd_1_and_is_smooth():
    field = draw_field(np.random.default_rng(0), AXES, 9.0)

    values = field_values(field, AXES)

    assert abs(values.mean()) < 0.05
    assert 0.9 < values.std() < 1.1
    neighbours = np.corrcoef(values[:, :, 1:].ravel(), values[:, :, :-1].ravel())[0, 1]
    assert neighbours > 0.8  # 3 mm on, a third of a cell


# --- parts ----------------------------------------------------------------------------------------


def test_an_ellipsoid_is_painted_where_its_squares_are_below_one():
    places = straight([np.arange(-2.0, 3)] * 3)
    hu = np.zeros((5, 5, 5))

    paint(hu, places, [Part((0, 0, 0), (1.5, 1.1, 2.1), 7)])

    assert hu[2, 2].tolist() == [7, 7, 7, 7, 7]  # x from -2 to 2
    assert hu[2, :, 2].tolist() == [0, 7, 7, 7, 0]  # y from -1 to 1
    assert hu[:, 2, 2].tolist() == [0, 7, 7, 7, 0]
    assert np.count_nonzero(hu) == 9 + 4  # with y or z off by one there is room for one or three


def test_a_later_part_covers_an_earlier_one():
    places = straight([np.arange(-2.0, 3)] * 3)
    hu = np.zeros((5, 5, 5))

    paint(hu, places, [Part((0, 0, 0), (2.1, 2.1, 2.1), 1), Part((0, 0, 0), (1, 1, 1), 2)])

    assert hu[2, 2].tolist() == [1, 1, 2, 1, 1]


def test_gas_is_anterior_of_the_level():
    places = straight([np.arange(-2.0, 3)] * 3)
    hu = np.zeros((5, 5, 5))

    paint(hu, places, [Part((0, 0, 0), (9, 9, 9), 40, gas_y=0)])

    assert hu[0, :, 0].tolist() == [GAS_HU, GAS_HU, 40, 40, 40]


def test_nothing_is_painted_outside_of_where():
    places = straight([np.arange(-2.0, 3)] * 3)
    hu = np.zeros((5, 5, 5))
    where = np.zeros((5, 5, 5), dtype=bool)
    where[2, 2, 2] = True

    paint(hu, places, [Part((0, 0, 0), (9, 9, 9), 40)], where=where)

    assert hu[2, 2, 2] == 40
    assert np.count_nonzero(hu) == 1


def test_a_bent_part_is_whole():
    """Its box is larger than itself by as much as anything is bent: none of it is cut off."""
    random = np.random.default_rng(3)
    places = bent(AXES, draw_bends(random, AXES))
    hu = np.zeros(places.z.shape)
    part = Part((4, -9, 30), (31, 22, 40), 1)

    paint(hu, places, [part])

    squared = ((places.z - 4) / 31) ** 2 + ((places.y + 9) / 22) ** 2 + ((places.x - 30) / 40) ** 2
    assert np.array_equal(hu == 1, squared < 1)


def test_nothing_bends_by_more_than_twelve_mm_nor_where_it_is_stiff():
    bends = draw_bends(np.random.default_rng(3), AXES)
    for bend in bends:
        bend.coefficients[:] *= 10

    places, stiff = bent(AXES, bends), bent(AXES, bends, stiff=1)

    shift = places.x - AXES[2]
    assert BEND_MOST_MM == 12
    assert np.abs(shift).max() == pytest.approx(12, abs=1e-4)
    assert np.array_equal(stiff.x, np.broadcast_to(AXES[2], stiff.x.shape))


def test_a_chain_leads_from_its_start_to_its_stop_without_a_gap():
    balls = chain(np.random.default_rng(0), ((0, 0, 0), (60, 20, -30)), 6, 40, wander=5)

    centres = np.array([ball.centre for ball in balls])
    gaps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    assert np.abs(centres[0]).max() < 6
    assert centres[-1] == pytest.approx([60, 20, -30])
    assert gaps.max() < 2 * 6


# --- a body ---------------------------------------------------------------------------------------


def test_a_body_is_the_same_whatever_slabs_it_is_painted_in(body, painted):
    slabs = []
    for start in range(0, 61, 7):
        slabs.append(paint_body(body, [AXES[0][start : start + 7], AXES[1], AXES[2]]))

    assert np.array_equal(np.concatenate(slabs), painted)


def test_lungs_reach_down_to_the_rim_of_the_diaphragm_whatever_the_slabs():
    """Their lowest slices lie far below the top of the dome, and are slabs without any of it."""
    axes = [np.arange(-200.0, -30, 2).astype(np.float32), AXES[1], AXES[2]]
    high = body_over(axes)

    painted = paint_body(high, axes)

    lungs = (painted == LUNG_HU).any(axis=(1, 2))
    lowest = axes[0][lungs].max()
    assert high.lungs_end_mm + 20 < lowest < high.lungs_end_mm + DOME_MM + BEND_MOST_MM
    slabs = []
    for start in range(0, len(axes[0]), 5):
        slabs.append(paint_body(high, [axes[0][start : start + 5], AXES[1], AXES[2]]))
    assert np.array_equal(np.concatenate(slabs), painted)


def test_from_the_side_there_are_air_skin_fat_and_muscle(painted):
    """Along x at the height of the kidneys, in the middle slice and 30 mm before the spine."""
    row = painted[30, 50]
    inwards = row[: len(row) // 2]
    skin = np.flatnonzero(inwards != AIR_HU)[0]

    assert (inwards[:skin] == AIR_HU).all()
    assert FAT_HU in inwards[skin : skin + 4]
    assert ((inwards > 30) & (inwards < 95)).any()


def test_the_corners_of_the_field_of_view_are_air(painted):
    corners = painted[:, [0, 0], [0, -1]]

    assert (corners == AIR_HU).all()


def test_vertebrae_follow_each_other_every_33_mm_with_discs_between(body):
    """Without bends: the middle of the vertebral bodies, voxel by voxel down the spine."""
    axes = [np.arange(0.0, 3 * VERTEBRA_MM).astype(np.float32), AXES[1], AXES[2]]
    for bend in body.bends:
        bend.coefficients[:] = 0

    column = paint_body(body, axes)[:, 69, 65]  # y 27 mm, x 0

    disc = column == 85
    starts = np.flatnonzero(np.diff(disc.astype(int)) == 1)
    assert VERTEBRA_MM == 33
    assert np.diff(starts).tolist() == [33] * (len(starts) - 1)
    assert 7 <= np.count_nonzero(disc[:33]) <= 9  # of 8 mm


def test_vessels_lead_to_both_kidneys():
    random = np.random.default_rng(5)
    bends = draw_bends(random, AXES)

    body = draw_body(random, AXES, bends, SIZE_MM, KIDNEYS, 180.0)

    ends = np.array([part.centre for part in body.vessels])
    for z, y, x in KIDNEYS:
        hilum = (z, y - 4, x - 14 * np.sign(x))
        assert np.linalg.norm(ends - hilum, axis=1).min() < 1e-6


def test_food_has_crumbs_and_bubbles_and_what_is_gas_stays_gas(body):
    ball = Part((-60, -40, 40), (30, 30, 30), 40, gas_y=-50)
    alone = replace(body, organs=[], bowel=[], liver=[], perirenal=[], vessels=[], muscles=[])

    fluid = paint_body(replace(alone, bowel=[ball], stool=[]), AXES)
    food = paint_body(replace(alone, bowel=[ball], stool=[ball]), AXES)

    assert np.count_nonzero(fluid == 40) > 1000
    assert np.array_equal(food == GAS_HU, fluid == GAS_HU)
    assert np.array_equal(food[fluid != 40], fluid[fluid != 40])
    inside = food[fluid == 40]
    bubbles = inside == BUBBLES_HU
    assert 0 < bubbles.mean() < 0.1
    assert inside[~bubbles].mean() == pytest.approx(40, abs=3)
    assert inside[~bubbles].std() > 5
