"""minikits: the KiTS19-winning 3D U-Nets, from CT scan to kidney and tumor masks, to be read in an afternoon.

Reading order, a patch's life: recipe, paper, volumes, resampling, preprocessing, geometry,
augmentation, sampling, unet, losses, training, train.py, frames, nifti, doubts, cache, cases,
checkpoints, nnunet, ensemble, prediction, masks, evaluation, reports, predict.py, evaluate.py.
Beside it: files, devices, fast, phantoms (synthetic cases).
"""

__version__ = "0.1.0"
