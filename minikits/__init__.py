"""minikits: the KiTS19-winning 3D U-Nets, from CT scan to kidney and tumor masks, to be read in an
afternoon. Each module imports only such as stand before it here; scripts import any.

Reading order, a patch's life: recipe, paper, volumes, resampling, preprocessing, geometry,
augmentation, sampling, unet, losses, training, train.py, prediction, components, evaluation,
files, frames, nifti, reading, doubts, familiar, cache, layouts, folds, prepared, cases,
checkpoints, ancestors, card, nnunet, ensemble, records, scans, masks, surfaces, lesions,
mistakes, pictures, comparisons, reports, measures, pages, predict.py, evaluate.py.
Beside it: devices, fast, ready, anatomy, phantoms (synthetic cases), facts, findings,
check (a data set before training), stages, explain (a case by stages).
"""

__version__ = "0.1.0"
