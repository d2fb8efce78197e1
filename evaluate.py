"""Kidney, tumor and composite Dice of masks: python evaluate.py --pred masks/ --ref data/"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from minikits.cases import find_cases
from minikits.evaluation import as_csv, as_json, compare, comparison_table, score_case, summarise, table
from minikits.files import read_json, write_text, written_whole
from minikits.sampling import fetch_ahead
from minikits.volumes import check_same_grid, read_labels, read_volume


def main():
    parser = argparse.ArgumentParser(description="Score masks against references as the KiTS19 challenge does.")
    parser.add_argument("--pred", type=Path, nargs="+", required=True, help="folders of masks; several are compared")
    parser.add_argument("--ref", type=Path, required=True, help="KiTS19 folder, or a flat folder of label files")
    parser.add_argument("--out", type=Path, help="folder for cases.csv, summary.json, comparison.json and pictures")
    parser.add_argument("--allow-missing", action="store_true", help="score the cases that both have")
    arguments = parser.parse_args()
    try:
        folders = {folder.resolve().name: folder for folder in arguments.pred}
        if len(folders) < len(arguments.pred):
            raise ValueError("--pred: several folders of one name; rename one, the reports bear their names")
        systems = {}
        for name, folder in folders.items():
            out = arguments.out and (arguments.out / name if len(folders) > 1 else arguments.out)
            systems[name] = evaluate(folder, arguments.ref, out, arguments.allow_missing)
        if len(systems) > 1:
            compared = compare(systems)
            print(f"\nThe {len(compared['cases'])} cases that all have, best first; p: sign flips, paired, Holm\n"
                  f"{comparison_table(compared)}")
            if arguments.out:
                write_text(arguments.out / "comparison.json", as_json(compared))
    except (ValueError, OSError) as error:
        parser.exit(2, f"evaluate.py: {error}\n")


def evaluate(folder, reference_folder, out, allow_missing):
    """Scores one folder of masks and prints the table; writes it, and a picture per case, into `out` if given."""
    masks, (references, images) = find_labels(folder)[0], find_labels(reference_folder)
    both = sorted(masks.keys() & references.keys())
    for kind, only in (("reference", masks.keys() - references.keys()), ("mask", references.keys() - masks.keys())):
        if only and not (allow_missing and both):
            raise ValueError(f"{folder}: {len(only)} cases have no {kind} ({', '.join(sorted(only)[:5])}), wanted one "
                             "for each; --allow-missing scores the cases that have both")
    rows = []
    for mask, reference in fetch_ahead(lambda name: (read_labels(masks[name]), read_labels(references[name])), both):
        check_same_grid(mask, reference)
        rows.append(score_case(both[len(rows)], mask.voxels, reference.voxels))
        if out and find_spec("matplotlib"):
            draw_overlay(out / "overlays", rows[-1], images.get(rows[-1]["case"]), mask.voxels, reference)
    print(f"{folder} against {reference_folder}, {len(rows)} cases\n{table(rows)}")
    about = read_json(folder / "prediction.json") if (folder / "prediction.json").exists() else {}
    if seen := sorted({*both} & {*about.get("trained_on", [])}):
        print(f"warning: {folder}: its networks were trained on {len(seen)} of these cases ({', '.join(seen[:5])})")
    if out:
        write_text(out / "cases.csv", as_csv(rows))
        write_text(out / "summary.json", as_json(summarise(rows)))
    return rows


def find_labels(folder):
    """({case: label file}, {case: image}) of a folder of cases; of a flat folder, every file is a label file."""
    cases = find_cases(folder)
    if not any(case.labels for case in cases):
        return {case.id.replace("prediction_", "case_"): case.image for case in cases}, {}
    return {case.id: case.labels for case in cases if case.labels}, {case.id: case.image for case in cases}


def draw_overlay(folder, row, image_path, mask, reference):
    """Two axial slices in soft tissue's window of HU, with the contours of reference (solid) and mask (dashed)."""
    from matplotlib.figure import Figure
    truth = reference.voxels
    image = read_volume(image_path) if image_path else reference
    check_same_grid(image, reference)
    most = ("most tumor", truth == 2) if (truth == 2).any() else ("most kidney", truth > 0)
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    for axes, (why, voxels) in zip(figure.subplots(1, 2), (most, ("most voxels wrong", mask != truth))):
        z = voxels.sum(axis=(1, 2)).argmax()
        axes.imshow(image.voxels[z], "gray", vmin=-160, vmax=300, aspect=image.spacing_mm[1] / image.spacing_mm[2])
        for labels, line in ((truth[z], "solid"), (mask[z], "dashed")):
            for level in range(1, labels.max() + 1):  # kidney, tumor
                axes.contour(labels >= level, [0.5], colors=("tab:cyan", "tab:red")[level - 1], linestyles=line)
        axes.set(title=f"slice {z}: {why}", xticks=[], yticks=[])
    figure.suptitle(f"{row['case']}: Dice of kidney (cyan) {100 * row['kidney']:.1f}, of tumor (red) "
                    f"{100 * row['tumor']:.1f}; reference solid, prediction dashed")
    with written_whole(folder / f"{row['case']}.png") as file:
        figure.savefig(file, format="png", dpi=110)


if __name__ == "__main__":
    main()
