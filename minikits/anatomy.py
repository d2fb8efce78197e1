"""A synthetic abdomen in HU, for phantoms.py: drawn first as numbers, then painted slab by slab.

Places are mm (z, y, x) from the middle of both kidneys, to inferior, posterior and the left. One
smooth displacement bends everything but given labels. Nobody is meant to learn anatomy here: a
network shall meet what makes kidneys and tumors hard to find, which is all that surrounds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Point = Sequence[float] | np.ndarray  # z, y, x in mm

AIR_HU = -1000
LUNG_HU = -850
GAS_HU = -900
BUBBLES_HU = -350
FAT_HU = -104
STRAND_HU = -55  # sheets of fascia in the fat
WATER_HU = 12
SKIN_HU = 30
MUSCLE_HU = 62
MARROW_HU = 170
BONE_HU = 420
TABLE_HU = 120

BEND_CELL_MM = 60
BEND_SD_MM = 5
BEND_MOST_MM = 12  # where a part may reach beyond its own box
VERTEBRA_MM = 33  # with its disc
DISC_MM = 8
RIB_MM = 31  # from one to the next
LAYERS_RADIUS = 0.45  # deeper in the body no wall reaches
DOME_MM = 100  # of the diaphragm, top to rim
MIDDLE_Y_MM = -8  # of the body: before that of the kidneys


# --- smooth random fields -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Field:
    """A smooth random function of place, of mean 0 and sd 1 or so: cubic B-splines on cells."""

    coefficients: np.ndarray  # (cells of z, of y, of x)
    first_mm: np.ndarray  # where the first cell of each axis lies
    cell_mm: float


def draw_field(random: np.random.Generator, axes: Sequence[np.ndarray], cell_mm: float) -> Field:
    """A Field over axes, the mm of the voxels along z, y and x."""
    first_mm = np.array([axis[0] for axis in axes]) - 2 * cell_mm
    cells = [int((axis[-1] - axis[0]) / cell_mm) + 5 for axis in axes]
    coefficients = random.standard_normal(cells, dtype=np.float32)
    return Field(3 * coefficients, first_mm, cell_mm)  # sums of splines have a third of their sd


def field_values(field: Field, axes: Sequence[np.ndarray]) -> np.ndarray:
    """The field at all voxels of axes: (Z, Y, X) float32."""
    values = field.coefficients
    for axis, first in zip(axes, field.first_mm):
        weights = spline_weights((axis - first) / field.cell_mm, values.shape[0])
        values = np.tensordot(values, weights, axes=(0, 1))  # the next axis comes first
    return values


def spline_weights(places: np.ndarray, cells: int) -> np.ndarray:
    """(N,) places counted in cells -> (N, cells): of each cell's cubic B-spline, the value there."""
    distance = np.abs(places[:, None] - np.arange(cells))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


# --- parts ----------------------------------------------------------------------------------------


class Part(NamedTuple):
    """An ellipsoid of one value. Anterior of gas_y it is gas, which rises in who lies on the back."""

    centre: Point
    radii: Point
    hu: float
    gas_y: float = -np.inf


@dataclass(frozen=True, eq=False)
class Places:
    """Where the voxels of a slab lie, in mm: axes as they are, and bent z, y, x (Z, Y, X)."""

    axes: Sequence[np.ndarray]
    z: np.ndarray
    y: np.ndarray
    x: np.ndarray


def draw_bends(random: np.random.Generator, axes: Sequence[np.ndarray]) -> list[Field]:
    """One smooth displacement: a Field for each of z, y and x."""
    return [draw_field(random, axes, BEND_CELL_MM) for _ in range(3)]


def bent(
    axes: Sequence[np.ndarray], bends: Sequence[Field], stiff: np.ndarray | float = 0
) -> Places:
    """The Places of a slab, displaced. stiff: from 0 to 1, where nothing is."""
    coordinates = []
    for place, bend in zip(np.ix_(*axes), bends):
        shift = BEND_SD_MM * field_values(bend, axes) * (1 - stiff)
        shift = np.clip(shift, -BEND_MOST_MM, BEND_MOST_MM)
        coordinates.append(place + shift)
    return Places(axes, *coordinates)


def paint(
    hu: np.ndarray, places: Places, parts: Sequence[Part], *, where: np.ndarray | None = None
) -> None:
    """Parts, one over the other, into hu (Z, Y, X) in place, or into those of its voxels `where`."""
    top, bottom = places.axes[0][0], places.axes[0][-1]
    for part in parts:
        reach = part.radii[0] + BEND_MOST_MM
        if part.centre[0] + reach < top or part.centre[0] - reach > bottom:
            continue  # of another slab

        centres, radii = list(map(float, part.centre)), list(map(float, part.radii))
        box = []
        for axis, centre, radius in zip(places.axes, centres, radii):
            reach = radius + BEND_MOST_MM
            box.append(slice(*np.searchsorted(axis, [centre - reach, centre + reach])))
        box = tuple(box)

        squared = ((places.z[box] - centres[0]) / radii[0]) ** 2
        squared += ((places.y[box] - centres[1]) / radii[1]) ** 2
        squared += ((places.x[box] - centres[2]) / radii[2]) ** 2
        inside = squared < 1
        if where is not None:
            inside &= where[box]
        hu[box][inside] = part.hu
        if part.gas_y > -np.inf:
            hu[box][inside & (places.y[box] < part.gas_y)] = GAS_HU


def chain(
    random: np.random.Generator,
    way: tuple[Point, Point],
    radius: float,
    hu: float,
    *,
    wander: float = 0,
    links: int = 0,
) -> list[Part]:
    """Balls along a way (start, stop) that strays by `wander` mm and arrives. links: how many; as
    many as touch each other if 0."""
    start, stop = np.array(way[0], float), np.array(way[1], float)
    links = links or int(np.linalg.norm(stop - start) / radius) + 2
    along = np.linspace(0, 1, links)[:, None]
    straying = np.cumsum(random.standard_normal((links, 3)), axis=0) * wander / links**0.5
    straying -= along * straying[-1]  # it arrives

    balls = []
    for centre in start + along * (stop - start) + straying:
        radii = radius * random.uniform(0.85, 1.15, size=3)
        balls.append(Part(centre, radii, hu))
    return balls


# --- a body ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Body:
    """All that is drawn of a body before it is painted."""

    depth_mm: float  # half of it, front to back
    width_mm: float  # half of it, side to side
    fat_mm: float  # beneath the skin
    wall_mm: float  # muscle of the belly
    spine_phase_mm: float
    rib_phase_mm: float
    lungs_end_mm: float  # z of the top of the diaphragm
    vessel_hu: float
    liver_hu: float
    bends: list[Field]
    uneven: Field  # cells of 30 mm: thickness of layers
    twigs: list[Field]  # of vessels, which run where both are near 0
    grain: Field  # of marrow, muscle and fat: cells of 5 mm
    liver: list[Part]
    perirenal: list[Part]  # the fat around the kidneys, in which no bowel lies
    organs: list[Part]
    bowel: list[Part]
    stool: list[Part]  # and food, with bubbles in it
    muscles: list[Part]
    vessels: list[Part]


def draw_body(
    random: np.random.Generator,
    axes: Sequence[np.ndarray],
    bends: list[Field],
    size_mm: np.ndarray,
    kidneys: Sequence[np.ndarray],
    cortex_hu: float,
) -> Body:
    """A Body over axes (the mm of voxels along z, y, x). size_mm: half its depth and width;
    kidneys: their middles, to which vessels lead; cortex_hu: what spleen, bowel and vessels come
    close to, so that no threshold tells kidneys from these; the liver is nearer to their medulla."""
    depth_mm, width_mm = map(float, size_mm)
    vessel_hu = cortex_hu + random.uniform(-30, 50)
    liver_hu = random.uniform(80, 140)
    stomach, meal = _draw_stomach(random)
    bowel, stool = _draw_bowel(random, cortex_hu, depth_mm, width_mm)
    return Body(
        depth_mm=depth_mm,
        width_mm=width_mm,
        fat_mm=random.uniform(8, 26),
        wall_mm=random.uniform(11, 17),
        spine_phase_mm=random.uniform(0, VERTEBRA_MM),
        rib_phase_mm=random.uniform(0, RIB_MM),
        lungs_end_mm=random.uniform(-170, -140),
        vessel_hu=vessel_hu,
        liver_hu=liver_hu,
        bends=bends,
        uneven=draw_field(random, axes, 30),
        twigs=[draw_field(random, axes, 15) for _ in range(2)],
        grain=draw_field(random, axes, 5),
        liver=_draw_liver(random),
        organs=stomach + _draw_organs(random, cortex_hu, width_mm),
        perirenal=_draw_perirenal(random, kidneys),
        bowel=bowel,
        stool=stool + meal,
        muscles=_draw_muscles(random),
        vessels=_draw_vessels(random, vessel_hu, kidneys),
    )


def _draw_liver(random):
    lower = random.uniform(15, 60)  # the end of the right lobe
    right = Part((lower - 150, -22, -100), (150, 104, 92), 1)
    left = Part((lower - 150, -78, -12), random.uniform((90, 40, 70), (115, 56, 95)), 1)
    caudate = Part((lower - 105, -18, -6), (50, 20, 18), 1)
    return [right, left, caudate]


def _draw_perirenal(random, kidneys):
    fat = []
    for middle in kidneys:
        radii = random.uniform((42, 28, 31), (60, 38, 41))
        fat.append(Part(middle, radii, FAT_HU))
    return fat


def _draw_organs(random, cortex_hu, width_mm):
    spleen_hu = cortex_hu - random.uniform(0, 45)
    spleen = Part((-72, 22, width_mm - 42), random.uniform((50, 46, 30), (66, 58, 44)), spleen_hu)
    gallbladder = Part((5, -62, -62), random.uniform((16, 10, 10), (28, 16, 15)), WATER_HU)

    pancreas_hu = random.uniform(85, 125)
    pancreas = chain(random, ((0, -42, -35), (-32, -22, 72)), 10, pancreas_hu, wander=8)
    adrenals = []
    for side in (-1, 1):
        for foot in (24, 40):
            limb = ((-62, -2, 30 * side), (-44, 14, foot * side))
            adrenals += chain(random, limb, 3.5, 75, links=9)

    return [*adrenals, *pancreas, spleen, gallbladder]


def _draw_stomach(random):
    """Its wall with what is in it, and where that is food: from beneath the left dome, where it is
    wide, forward and down to the middle."""
    way = ((-105, 4, 62), (-15, -78, 18))
    balls = chain(random, way, 1, random.uniform(70, 105), wander=14, links=14)
    widths = np.linspace(random.uniform(36, 50), random.uniform(20, 28), len(balls))
    walls = []
    for ball, width in zip(balls, widths):
        walls.append(ball._replace(radii=np.multiply(ball.radii, width)))
    lumens = _lumens(walls, random.uniform(WATER_HU, 70), random.uniform(-75, -30))
    eaten = random.random() < 0.4
    return walls + lumens, lumens if eaten else []


def _draw_bowel(random, cortex_hu, depth_mm, width_mm):
    """Loops of small bowel and the colon around them, and where that holds stool."""
    front = MIDDLE_Y_MM - depth_mm
    side = width_mm - 52
    small = []
    for _ in range(60):
        start = random.uniform((-50, front + 30, -side), (200, -22, side))
        stop = start + random.uniform((-40, -30, -80), (40, 30, 80))
        walls, lumens = _draw_loop(random, cortex_hu, (start, stop), random.uniform(9, 15), 26)
        small += walls + lumens

    width = random.uniform(0.8, 1.15)
    ascending = ((25, -8, -side - 8), (220, -25, -side)), 20 * width
    descending = ((-25, 8, side + 10), (220, 0, side)), 16 * width
    transverse = ((28, front + 42, 15 - side), (-35, front + 60, side - 6)), 19 * width
    colon, stool = [], []
    for way, radius in (ascending, descending, transverse):
        walls, lumens = _draw_loop(random, cortex_hu, way, radius, 14)
        colon += walls + lumens
        if random.random() < 0.7:
            stool += lumens
    return small + colon, stool


def _draw_loop(random, cortex_hu, way, radius, wander):
    """The walls of a loop, and its lumens: fluid or contrast, and gas on it."""
    walls = chain(random, way, radius, random.uniform(55, 115), wander=wander)
    filling = random.choice([WATER_HU, 40, cortex_hu, 260], p=[0.4, 0.25, 0.2, 0.15])
    filling += random.uniform(-8, 15)
    middle = walls[len(walls) // 2]
    gas_y = middle.centre[1] + random.uniform(-1.6, 0.6) * middle.radii[1]
    return walls, _lumens(walls, filling, gas_y)


def _lumens(walls, filling, gas_y):
    """What is inside parts whose walls are 3 mm thick: fluid, food or contrast, and gas on it."""
    lumens = []
    for wall in walls:
        radii = np.maximum(np.array(wall.radii) - 3, 2)
        lumens.append(Part(wall.centre, radii, filling, gas_y))
    return lumens


def _draw_muscles(random):
    """Psoas, which grows downwards, quadratus lumborum, and the crura of the diaphragm."""
    parts = []
    for side in (-1, 1):
        way = ((-25, 34, 24 * side), (210, 18, 44 * side))
        balls = chain(random, way, 10, MUSCLE_HU, links=24)
        for ball, size in zip(balls, np.linspace(0.35, 1.3, 24)):
            parts.append(ball._replace(radii=(14, 23 * size, 18 * size)))
        parts.append(Part((95, 50, 68 * side), (85, 11, 26), MUSCLE_HU))
        parts.append(Part((-60, 6, 15 * side), (75, 17, 5), MUSCLE_HU))
    return parts


def _draw_vessels(random, hu, kidneys):
    """Aorta and vena cava along the spine, an artery and a vein to each kidney, and two more."""
    aorta, cava = ((-400, -4, 8), (400, -4, 4)), ((-400, -14, -24), (400, -4, -18))
    mesenteric, splenic = ((-20, -16, 6), (160, -40, 0)), ((-30, -30, -8), (-20, -30, 70))
    vessels = []
    for ball in chain(random, cava, 11, hu - random.uniform(10, 60), wander=10, links=130):
        vessels.append(ball._replace(radii=np.multiply(ball.radii, (1, 0.75, 1.2))))
    vessels += chain(random, aorta, 9.5, hu, wander=8, links=130)
    vessels += chain(random, mesenteric, 4, hu, wander=8, links=50)
    vessels += chain(random, splenic, 4.5, hu, wander=8, links=40)

    for z, y, x in kidneys:
        hilum = (z, y - 4, x - 14 * np.sign(x))
        vessels += chain(random, ((z - 12, -12, 6), hilum), 3.5, hu, wander=6, links=40)  # artery
        vessels += chain(random, ((z - 4, -18, -16), hilum), 5, hu, wander=6, links=40)  # vein
    return vessels


# --- painting it ----------------------------------------------------------------------------------


def paint_body(body: Body, axes: Sequence[np.ndarray]) -> np.ndarray:
    """The body without its kidneys in a slab, whose voxels lie at axes: (Z, Y, X) float32 in HU."""
    flat = _skin(body, *np.ix_(np.zeros(1, np.float32), axes[1], axes[2]))
    stiff = np.clip(4 * (flat - 0.75), 0, 1)  # near the skin nothing bends
    places = bent(axes, body.bends, stiff)
    radius = _skin(body, places.z, places.y, places.x)

    uneven = field_values(body.uneven, axes)
    grain = field_values(body.grain, axes)
    twigs = np.ones(radius.shape, dtype=bool)
    for twig in body.twigs:
        twigs &= np.abs(field_values(twig, axes)) < 0.16

    hu = np.full(radius.shape, FAT_HU, dtype=np.float32)
    cavity = _paint_layers(hu, body, places, radius, uneven, grain)
    hu[cavity] += 9 * grain[cavity]
    hu[cavity & (np.abs(uneven) < 0.07)] = STRAND_HU
    hu[cavity & twigs] = 0.6 * body.vessel_hu
    paint(hu, places, body.bowel, where=cavity & (places.y < 14))
    paint(hu, places, body.organs, where=cavity)
    _paint_stool(hu, body, places, cavity, grain)
    _paint_liver(hu, body, places, cavity, twigs)
    paint(hu, places, body.perirenal, where=cavity & ~twigs)
    paint(hu, places, body.muscles, where=cavity)
    _paint_lungs(hu, body, places, cavity, twigs)
    paint(hu, places, body.vessels, where=cavity)
    _paint_spine(hu, body, places, grain)
    hu[radius > 1] = AIR_HU
    _paint_table(hu, body, axes)
    return hu


def _skin(body, z, y, x):
    """How far from the middle, in parts of the way to the skin: 1 there, more in the air."""
    swell = 1 + 0.03 * np.sin(z / 70 + body.rib_phase_mm)
    along_y = ((y - MIDDLE_Y_MM) / body.depth_mm) ** 2
    along_x = (x / body.width_mm) ** 2
    corners = 0.45 * along_y * along_x  # of an ellipse there are none
    furrow = 0.16 * np.exp(-((x / 20) ** 2)) * (y > 0)  # along the spine
    return np.sqrt(along_y * (1 + furrow) + along_x - corners) / swell


def _paint_layers(hu, body, places, radius, uneven, grain):
    """Skin, fat and the wall with its ribs into hu; returns what is within: the cavity."""
    cavity = radius <= LAYERS_RADIUS
    near = ~cavity & (radius < 1)
    z, y, x = places.z[near], places.y[near], places.x[near]
    radius, uneven, grain = radius[near], uneven[near], grain[near]
    values = hu[near]

    beneath_mm = np.hypot(y - MIDDLE_Y_MM, x) * (1 / radius - 1)
    back = np.clip(y / 60, 0, 1)
    flank = np.abs(x) / body.width_mm
    fat_mm = body.fat_mm * (0.6 + 0.5 * flank + 0.5 * back + 0.12 * uneven)
    tendon = np.exp(-(((np.abs(x) - 66) / 13) ** 2)) * (y < 0)  # beside the straight muscles
    wall_mm = body.wall_mm * (0.75 + 0.45 * flank + 0.1 * uneven - 0.4 * tendon) + 6 * back
    through = (beneath_mm - fat_mm) / wall_mm  # the wall: 0 at its outside, 1 at its inside

    values[beneath_mm < 3] = SKIN_HU
    muscle = (through > 0) & (through < 1)
    values[muscle] = MUSCLE_HU + 8 * grain[muscle]
    seams = (np.abs(through - 0.36) < 0.035) | (np.abs(through - 0.7) < 0.035)
    values[seams & (flank > 0.45) & (y < 35)] = -40  # between its three layers
    values[muscle & (np.abs(x) < 5) & (y < 0)] = 10  # the white line

    erector = ((np.abs(x) - 36) / 42) ** 2 + ((y - 70) / 27) ** 2 < 1  # beside the spine
    erector &= beneath_mm > 0.6 * fat_mm
    values[erector] = np.where(grain[erector] > 1.7, -30, MUSCLE_HU + 9 * grain[erector])

    along_mm = np.mod(z + 0.42 * y + body.rib_phase_mm, RIB_MM) - RIB_MM / 2
    across_mm = (through - 0.62) * wall_mm
    rib = (along_mm / 6) ** 2 + (across_mm / 3.8) ** 2
    rib[(z > 10 + 0.6 * y) | (np.abs(x) < 45)] = np.inf  # none lower, none at the front and back
    values[rib < 1] = BONE_HU
    values[rib < 0.4] = MARROW_HU

    hu[near] = values
    cavity[near] = (through >= 1) & ~erector
    return cavity


def _paint_liver(hu, body, places, cavity, twigs):
    liver = np.zeros(hu.shape, dtype=bool)
    paint(liver, places, body.liver, where=cavity)
    hu[liver] = body.liver_hu
    hu[liver & twigs] = (body.liver_hu + body.vessel_hu) / 2 + 15


def _paint_stool(hu, body, places, cavity, grain):
    """Crumbs and bubbles in what bowel and stomach hold, but for their gas, in place. A colon that
    lies behind the bowel's fat has them there too, without its wall."""
    stool = np.zeros(hu.shape, dtype=bool)
    paint(stool, places, body.stool, where=cavity & (hu > GAS_HU))
    hu[stool] = np.minimum(hu[stool], 60) + 14 * grain[stool]
    hu[stool & (grain > 1.9)] = BUBBLES_HU


def _paint_lungs(hu, body, places, cavity, twigs):
    """What lies above the dome of the diaphragm, which reaches lower at the back and the sides."""
    if places.z.min() > body.lungs_end_mm + DOME_MM:
        return

    behind = (places.y - MIDDLE_Y_MM) / body.depth_mm
    behind = np.where(behind > 0, behind, 0.7 * behind)
    from_middle = np.hypot(behind, places.x / body.width_mm)
    dome = body.lungs_end_mm + DOME_MM * np.clip(from_middle / 0.8, 0, 1) ** 5
    lungs = cavity & (places.z < dome)
    lungs &= np.hypot(places.y + 10, places.x) > 38
    hu[lungs] = LUNG_HU
    hu[lungs & twigs] = 20


def _paint_spine(hu, body, places, grain):
    """Vertebral bodies with their discs, canal, arch and processes, in place."""
    z, y, x = places.z, places.y, places.x
    near = (np.abs(x) < 48) & (y > 0) & (y < 105)
    z, y, x, grain = z[near], y[near], np.abs(x[near]), grain[near]
    values = hu[near]

    tilted = z + 0.22 * (y - 27) + body.spine_phase_mm  # no slice shows an endplate whole
    level = np.abs(np.mod(tilted, VERTEBRA_MM) - VERTEBRA_MM / 2)  # 0 mid-body
    disc = level > (VERTEBRA_MM - DISC_MM) / 2
    waist = 1 - 0.1 * np.clip(1 - level / 12, 0, 1)
    column = np.hypot(x / 23, (y - 27) / 17) / waist
    endplate = np.abs(level - (VERTEBRA_MM - DISC_MM) / 2) < 1.2

    ring = np.hypot(x / 17, (y - 54) / 15)
    arch = (ring < 1) & (level < 12)
    spinous = (x < 4) & (y > 60) & (y < 92) & (level < 8)
    transverse = (np.abs(y - 50 - 0.15 * x) < 4.5) & (x > 12) & (x < 42) & (level < 5)
    facets = np.hypot((x - 17) / 5, (y - 58) / 6) < 1
    values[arch | spinous | transverse | (facets & (level > 6))] = BONE_HU
    values[(facets & (level <= 6)) | (spinous & (x < 2))] = MARROW_HU

    values[(column < 1) & disc] = 85
    bone = (column < 1) & ~disc
    values[bone] = MARROW_HU + 35 * grain[bone]
    values[bone & ((column > 0.87) | endplate)] = BONE_HU

    values[np.hypot(x / 11, (y - 52) / 8.5) < 1] = -20  # fat in the canal
    values[np.hypot(x / 8.5, (y - 52) / 6.5) < 1] = 32
    hu[near] = values


def _paint_table(hu, body, axes):
    """The board that the body lies on."""
    _, y, x = axes
    back = MIDDLE_Y_MM + body.depth_mm
    surface = back + 5 - x**2 / 900
    board = np.abs(y[:, None] - surface) < 2
    hu[:, board & (np.abs(x) < 210)] = np.maximum(hu[:, board & (np.abs(x) < 210)], TABLE_HU)
