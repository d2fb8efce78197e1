"""Synthetic KiTS19 cases: contrast-enhanced abdominal CT in HU, so that everything runs without the data set.

    python -m minikits.phantoms --out data --cases 20
    python -m minikits.phantoms --out data --labels FOLDER    # kidneys and tumors of real label volumes

Made for tests and demonstrations; a score on phantoms says nothing about patients. Body, muscle, spine, ribs, lung
bases, liver, spleen, psoas, aorta, cava and bowel are simple shapes with drawn places, sizes and intensities;
kidneys have cortex, medulla and a sinus; most cases have a tumor (heterogeneous, some necrotic, some growing
outwards), many have cysts (labelled kidney, as in KiTS19). Vessels, bowel and organs share the intensities of
kidney and tumor, so that no threshold finds either: see `best_threshold_dice`.

Lengths are mm. Places are (z, y, x) from the volume's middle: z to inferior, y to posterior, x to the left.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from minikits.volumes import read_labels, write_image

SLICES_AT_ONCE = 32
TEXTURE_MM = 9.0  # grain of what a tumor looks like inside
FAT_MM = 12.0  # the box around the kidneys is this much larger, for the fat that lies around them
CORTEX_MM = 15.0  # width of the window that tells the cortex from what is deeper


def make_case(seed, *, shape=None, spacing_mm=None, labels=None):
    """(image int16 in HU, labels uint8, spacing_mm); arrays (Z, Y, X). The same arguments give the same case.

    seed: an integer or a sequence of them. Without labels, kidneys and tumors are drawn, and shape and spacing
    where not given. With labels (0, 1, 2) and their spacing, the body is built around them; they come back as given.
    """
    random = np.random.default_rng(seed)
    synthetic = labels is None
    if synthetic:
        spacing_mm = spacing_mm or (float(random.choice([2, 3, 3.75, 5])), *[float(random.uniform(1.7, 2.6))] * 2)
        shape = shape or tuple(int(random.uniform(*mm) / step) for mm, step in zip(
            [(200, 300), (360, 360), (400, 400)], spacing_mm))
        labels = _draw_labels(random, shape, spacing_mm)
    kidneys = _draw_kidneys(random, labels, spacing_mm, synthetic)
    body = _draw_body(random, labels, spacing_mm, kidneys)
    image = np.empty(labels.shape, dtype=np.int16)
    for first in range(0, len(image), SLICES_AT_ONCE):
        slab = slice(first, min(first + SLICES_AT_ONCE, len(image)))
        places = _places(labels.shape, spacing_mm)
        places[0] = places[0][slab]
        hu = _paint_body(body, places)
        _paint_kidneys(hu, body, kidneys, labels, slab, places)
        image[slab] = _scanned(hu, body["noise_sd"], random)
    return image, labels, tuple(spacing_mm)


def best_threshold_dice(image, labels):
    """(kidney, tumor): the best Dice of any global rule "from a to b HU" or "from a HU", a and b multiples of 10."""
    edges = np.append(np.arange(-200, 500, 10), 1 << 15)
    everything = np.histogram(image, edges)[0]
    scores = []
    for truth in (labels > 0, labels == 2):
        hits = np.histogram(image[truth], edges)[0]
        hit, chosen = (np.subtract.outer(n.cumsum(), n.cumsum() - n) for n in (hits, everything))
        dice = 2 * hit / np.maximum(chosen + np.count_nonzero(truth), 1)
        scores.append(float(np.tril(dice).max()))
    return tuple(scores)


def _places(shape, spacing_mm):
    """mm from the middle, one array per axis, ready to broadcast to (Z, Y, X)."""
    return [((np.arange(n, dtype=np.float32) - (n - 1) / 2) * np.float32(step)).reshape(
        [-1 if a == axis else 1 for a in range(3)]) for axis, (n, step) in enumerate(zip(shape, spacing_mm))]


def _near(places, centre, radii):
    """The box (slices) and, in it, the squared distance from an ellipsoid's centre: 1 is its surface."""
    box, squared = [], 0
    for place, middle, radius in zip(places, centre, radii):
        low, high = np.searchsorted(place.ravel(), [middle - radius, middle + radius])
        box.append(slice(low, high))
    for axis, (place, middle, radius) in enumerate(zip(places, centre, radii)):
        squared = squared + ((np.take(place, np.arange(box[axis].start, box[axis].stop), axis) - middle) / radius) ** 2
    return tuple(box), squared


def _draw_labels(random, shape, spacing_mm):
    """Two kidneys without their sinus, 0 to 2 tumors: uint8 (Z, Y, X)."""
    labels = np.zeros(shape, dtype=np.uint8)
    places = _places(shape, spacing_mm)
    tumors = []
    count = random.choice([0, 1, 2], p=[0.05, 0.8, 0.15])
    bearers = random.permutation([-1, 1])[:count]
    for side in (-1, 1):
        centre = np.array([random.uniform(-15, 15) - 8 * side, random.uniform(12, 34), side * random.uniform(56, 70)])
        radii = np.array([random.uniform(48, 60), random.uniform(24, 30), random.uniform(24, 31)])
        lean = side * random.uniform(0.15, 0.35)  # the upper pole leans to the spine: x grows with z
        z, y, x = (place - middle for place, middle in zip(places, centre))
        bumps = 0.05 * np.sin(z / random.uniform(7, 11) + random.uniform(0, 6)) * np.cos(y / random.uniform(7, 11))
        x = x - lean * z
        inside = (z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2 < 1 + bumps
        sinus = (z / (0.5 * radii[0])) ** 2 + (y / (0.4 * radii[1])) ** 2 + (
            (x + side * 0.75 * radii[2]) / (0.75 * radii[2])) ** 2 < 1
        labels[inside & ~sinus] = 1
        if side in bearers:
            towards = random.normal(size=3) * (1, 1, 0.7) + (0, 0, 0.6 * side)
            outwards = random.uniform(0.75, 1.1)  # above 1 it grows out of the kidney
            place = towards / np.linalg.norm(towards) * radii * outwards
            place[2] += lean * place[0]
            tumors.append((centre + place, random.uniform(14, 28)))
    for centre, radius in tumors:
        box, squared = _near(places, centre, [1.4 * radius] * 3)
        z, y, x = (np.take(place, np.arange(s.start, s.stop), axis) for axis, (place, s) in enumerate(zip(places, box)))
        waves = sum(np.sin(place / (0.45 * radius) + random.uniform(0, 6)) for place in (z, y, x))
        labels[box][squared * 1.4**2 < 1 + 0.12 * waves] = 2
    return labels


def _draw_kidneys(random, labels, spacing_mm, synthetic):
    """What is inside the kidneys. In the box around the labels: depth below the surface and texture."""
    spans = [np.flatnonzero(labels.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    margin = [int(FAT_MM // step) for step in spacing_mm]
    box = tuple(slice(max(0, int(span[0]) - m), min(n, int(span[-1]) + 1 + m)) if len(span) else slice(0, 1)
                for span, m, n in zip(spans, margin, labels.shape))
    cysts, places, inside = [], _places(labels.shape, spacing_mm), np.flatnonzero(labels == 1)
    for _ in range(random.integers(0, 3) if len(inside) else 0):
        voxel = np.unravel_index(random.choice(inside), labels.shape)
        centre = [place.ravel()[v] for place, v in zip(places, voxel)]
        cysts.append((centre, random.uniform(5, 14)))
        if synthetic:  # a cyst may bulge out of its kidney, and is labelled kidney
            near, squared = _near(places, centre, [cysts[-1][1]] * 3)
            labels[near][(squared < 1) & (labels[near] == 0)] = 1
    coarse = [max(2, round(n * step / TEXTURE_MM)) for n, step in zip(labels[box].shape, spacing_mm)]
    texture = torch.from_numpy(random.normal(size=coarse).astype(np.float32))
    cortex = random.uniform(140, 215)
    # real kidneys can fill a short scan: there the darker medulla keeps a threshold from finding them
    medulla = cortex - random.uniform(10, 75) - (0 if synthetic else 30)
    return {
        "box": box, "cysts": cysts,
        "depth": _depth(labels[box] > 0, spacing_mm), "tumor_depth": _depth(labels[box] == 2, spacing_mm),
        "texture": F.interpolate(texture[None, None], labels[box].shape, mode="trilinear")[0, 0].numpy(),
        "cortex_hu": cortex, "medulla_hu": medulla, "cyst_hu": random.uniform(0, 18),
        "tumor_hu": random.uniform(50, 125), "tumor_texture_hu": random.uniform(12, 32),
        "necrotic": random.random() < 0.4, "necrosis_hu": random.uniform(15, 35),
    }


def _depth(mask, spacing_mm):
    """The share of a mask's neighbourhood that the mask fills: 1/2 at a flat surface, 1 deep inside. float32."""
    share = torch.from_numpy(mask.astype(np.float32))[None, None]
    for axis, step in enumerate(spacing_mm):
        reach = max(1, round(CORTEX_MM / 2 / step))
        width, pad = [1, 1, 1], [0, 0, 0]
        width[axis], pad[axis] = 2 * reach + 1, reach
        share = F.avg_pool3d(F.pad(share, [p for p in pad[::-1] for _ in (0, 1)]), width, 1)
    return share[0, 0].numpy()


def _draw_body(random, labels, spacing_mm, kidneys):
    """Everything but the kidneys: the frame, and a list of ellipsoids (centre, radii, HU) painted in order."""
    places = _places(labels.shape, spacing_mm)
    middle = [(place.ravel()[s.start] + place.ravel()[s.stop - 1]) / 2 for place, s in zip(places, kidneys["box"])]
    reach = [(place.ravel()[s.stop - 1] - place.ravel()[s.start]) / 2 for place, s in zip(places, kidneys["box"])]
    zk, y0, x0 = middle[0], middle[1] - random.uniform(18, 28), np.clip(middle[2], -25, 25)
    width = max(random.uniform(145, 180), reach[2] + 45)
    depth = max(random.uniform(98, 122), reach[1] + 50)
    spine = y0 + 0.55 * depth
    cortex = kidneys["cortex_hu"]  # blood, liver, spleen and bowel come close to it
    blood, veins = cortex + random.uniform(-10, 70), cortex + random.uniform(-50, 10)
    ellipsoids = []
    for side in (-1, 1):
        ellipsoids += [
            ((zk + 60, spine - 2, x0 + side * 38), (170, 22, 17), 60),  # psoas
            ((zk, spine + 38, x0 + side * 36), (900, 24, 30), 58),  # paraspinal muscle
            ((zk + 30, y0 + 5, x0 + side * 0.68 * width), (110, 20, 20), 80),  # colon, and what it holds
            ((zk + 30, y0 + 5, x0 + side * 0.68 * width), (108, 17, 17), random.choice([30, cortex, cortex, -600])),
        ]
    for _ in range(random.integers(14, 24)):  # bowel
        centre = (zk + random.uniform(-30, 170), y0 + random.uniform(-70, 0), x0 + random.uniform(-95, 95))
        radii, wall = random.uniform(12, 27, size=3), 3
        inside = random.choice([cortex + random.uniform(-40, 60), random.uniform(5, 40), random.uniform(60, 120), -700])
        ellipsoids += [(centre, radii, random.uniform(70, 130)), (centre, radii - wall, inside)]
    ellipsoids += [
        ((zk - 75, y0 - 15, x0 - 75), (95, 80, 75), cortex - random.uniform(15, 75)),  # liver
        ((zk - 70, y0 + 25, x0 + 0.66 * width), (50, 38, 26), cortex - random.uniform(0, 45)),  # spleen
        ((zk - 80, y0 - 45, x0 + 50), (45, 32, 48), random.choice([25, 70, 220])),  # stomach
        ((zk - 80, y0 - 68, x0 + 50), (30, 10, 30), -850),  # its air
    ]
    ellipsoids += [
        ((zk, spine - 34, x0 + 9), (900, 11, 11), blood),  # aorta
        ((zk, spine - 32, x0 - 19), (900, 13, 12), veins),  # cava
        ((zk - 3, spine - 30, x0), (5, 5, 58), blood),  # renal arteries, across
        ((zk + 10, spine - 34, x0), (6, 6, 58), veins),  # renal veins
    ]
    return {"centre": (zk, y0, x0), "width": width, "depth": depth, "spine": spine, "ellipsoids": ellipsoids,
            "fat_hu": random.uniform(-115, -90), "muscle_hu": random.uniform(50, 68),
            "bone_hu": random.uniform(160, 260), "wall": random.uniform(0.78, 0.85),
            "phase": random.uniform(0, 36), "noise_sd": random.uniform(10, 24)}


def _paint_body(body, places):
    """One slab of HU, float32 (Z, Y, X)."""
    z, y, x = (place - middle for place, middle in zip(places, body["centre"]))
    radius = (y / body["depth"]) ** 2 + (x / body["width"]) ** 2  # squared: 1 is the skin
    inner = radius < body["wall"] ** 2
    plane = np.where(radius < 1, np.float32(body["fat_hu"]), np.float32(-1000))
    plane[(radius < (body["wall"] + 0.07) ** 2) & ~inner] = body["muscle_hu"]
    hu = np.repeat(plane, z.size, axis=0)
    for centre, radii, value in body["ellipsoids"]:
        box, squared = _near(places, centre, radii)
        hu[box][(squared < 1) & (inner | (centre[1] > body["spine"]))[:, box[1], box[2]]] = value
    lungs = (z + 185 < 100 * radius / body["wall"] ** 2) & inner  # the diaphragm is a dome
    hu[lungs] = -850
    # ribs run down and forward in the wall; the shortest are above the kidneys' lower poles
    ring = (radius < (body["wall"] + 0.05) ** 2) & ~inner
    hu[ring & (np.mod(z + 0.35 * y + body["phase"], 30) < 9) & (z < 20)] = body["bone_hu"] + 120
    down, across = places[1] - body["spine"], x
    level = np.mod(z + body["phase"], 36)
    vertebra = down**2 + across**2
    hu[(vertebra < 22**2) & (level < 28)] = body["bone_hu"] + 160
    hu[(vertebra < 19**2) & (level < 28)] = body["bone_hu"]
    hu[(vertebra < 20**2) & (level >= 28)] = 85
    every_slice = np.ones_like(z, dtype=bool)
    hu[((down - 31) ** 2 + across**2 < 13**2) & every_slice] = body["bone_hu"] + 160
    hu[((down - 30) ** 2 + across**2 < 9**2) & every_slice] = 30
    return hu


def _paint_kidneys(hu, body, kidneys, labels, slab, places):
    """Kidneys, the fat around them, cysts and tumors over a slab of HU, in place."""
    box = kidneys["box"]
    rows = slice(max(slab.start, box[0].start), min(slab.stop, box[0].stop))
    if rows.start >= rows.stop:
        return
    part = hu[rows.start - slab.start:rows.stop - slab.start, box[1], box[2]]
    label = labels[rows, box[1], box[2]]
    own = slice(rows.start - box[0].start, rows.stop - box[0].start)
    depth, tumor_depth, texture = (kidneys[name][own] for name in ("depth", "tumor_depth", "texture"))
    part[(label == 0) & (depth > 0.1)] = body["fat_hu"]
    part[label == 1] = kidneys["cortex_hu"]
    part[(label == 1) & (depth > 0.85) & (texture > -0.4)] = kidneys["medulla_hu"]
    for centre, radius in kidneys["cysts"]:
        near, squared = _near(places, centre, [radius] * 3)
        hu[near][(squared < 1) & (labels[slab][near] == 1)] = kidneys["cyst_hu"]
    tumor = label == 2
    part[tumor] = (kidneys["tumor_hu"] + kidneys["tumor_texture_hu"] * texture)[tumor]
    if kidneys["necrotic"]:
        part[tumor & (tumor_depth > 0.9) & (texture > -0.8)] = kidneys["necrosis_hu"]


def _scanned(hu, noise_sd, random):
    """What a scanner makes of it: edges blurred in the plane, noise that is correlated there, whole HU."""
    noise = _blurred(random.standard_normal(hu.shape, dtype=np.float32))
    blurred = _blurred(hu) + np.float32(noise_sd / 0.375) * noise  # the blur leaves 0.375 of white noise's sd
    return np.clip(np.rint(blurred), -1024, 3071).astype(np.int16)


def _blurred(values):
    """(1 2 1) / 4 along Y and X, edges replicated: two means of two."""
    padded = F.pad(torch.from_numpy(values)[None], (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(padded, 2, 1), 2, 1)[0].numpy()


def write_cases(out, count=None, seed=0, labels=None):
    """Writes cases into a folder, a line each. count: default 10, or as many as the folder `labels` holds."""
    sources = sorted(Path(labels).glob("*/segmentation.nii*"))[:count] if labels else [None] * (count or 10)
    if not sources:
        raise ValueError(f"{labels}: no label volumes found, wanted case_00000/segmentation.nii.gz")
    scores = []
    for number, source in enumerate(sources):
        like = source and read_labels(source)
        given = {"labels": like.voxels, "spacing_mm": like.spacing_mm} if source else {}
        image, mask, spacing = make_case([seed, number], **given)
        name = source.parent.name if source else f"phantom_{number:03d}"
        write_image(out / name / "imaging.nii.gz", image, spacing)
        write_image(out / name / "segmentation.nii.gz", mask, spacing)
        scores.append(best_threshold_dice(image, mask))
        kidney, tumor = (np.count_nonzero(m) * np.prod(spacing) / 1000 for m in (mask, mask == 2))
        print(f"{name}: {'x'.join(map(str, mask.shape))} voxels of {'x'.join(f'{s:.3g}' for s in spacing)} mm, "
              f"kidney {kidney:.0f} ml, tumor {tumor:.0f} ml", flush=True)
    (kidney, tumor), (best_kidney, best_tumor) = np.mean(scores, axis=0), np.max(scores, axis=0)
    print(f"best global threshold: Dice {kidney:.2f} kidney, {tumor:.2f} tumor; at most {best_kidney:.2f}, "
          f"{best_tumor:.2f}")


def main():
    parser = argparse.ArgumentParser(description="Write synthetic KiTS19 cases.")
    parser.add_argument("--out", type=Path, required=True, help="folder for NAME/imaging.nii.gz, segmentation.nii.gz")
    parser.add_argument("--cases", type=int, help="how many (default 10, or all of --labels)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", type=Path, help="folder of case_00000/segmentation.nii.gz to build bodies around")
    arguments = parser.parse_args()
    try:
        write_cases(arguments.out, arguments.cases, arguments.seed, arguments.labels)
    except (ValueError, OSError) as error:
        parser.exit(2, f"phantoms: {error}\n")


if __name__ == "__main__":
    main()
