"""A few tiny simulated nodules and the configs of models that learn from them in a second."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from mst.data.outlines import RATINGS, Outline
from mst.data.simulated import simulate_chest_ct
from mst.models import ResNet3D, SliceTransformer
from mst.models.loading import save_model
from mst.scans import write_nifti

GRID = {"shape": [8, 24, 24], "spacing_mm": [4.0, 2.0, 2.0]}
# An augmentation that varies nothing.
STILL: dict[str, Any] = {"shift_mm": 0, "zoom": [1, 1], "rotate_deg": 0, "flip": False, "other_planes": 0}
STILL |= {"continue_edges": 0, "noise": 0, "shift": 0, "scale": 0, "smooth": 0}
TRAINING = {"steps": 4, "batch": 2, "learning_rate": 1e-3, "save_every": 2, "log_every": 1}
ENCODER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 6,
    "num_channels": 1,
}
ONE_BLOCK = ENCODER | {"num_hidden_layers": 1}
RESNET: dict[str, Any] = {
    "name": "tiny-resnet",
    "kind": "classifier",
    "task": "chest-ct",
    "folds": 2,
    "model": {"architecture": "resnet3d", "grid": GRID, "depth": 10, "width": 4, "first_kernel": 3},
    "training": TRAINING,
}
MST: dict[str, Any] = {
    **RESNET,
    "name": "tiny-mst",
    "model": {"architecture": "slice-transformer", "grid": GRID, "encoder": ENCODER, "slice_heads": 2},
}
MST_RESNET: dict[str, Any] = {
    **RESNET,
    "name": "tiny-mst-resnet",
    "model": {
        "architecture": "resnet-slice-transformer",
        "grid": GRID,
        "depth": 10,
        "width": 4,
        "channels": 1,
        "first_kernel": 3,
        "slice_heads": 4,
    },
}


def write_lesion_models(folder: Path, **sees: bool) -> Path:
    """Tiny chest CT checkpoints that tell whether there is a nodule, always the same; returns the folder.

    Args:
        folder: they are made in it, as chest-ct-mst and chest-ct-resnet.
        sees: "mst" and "resnet", or one of them: whether that model sees a nodule, wherever it looks.
    """
    torch.manual_seed(0)
    for name, seen in sees.items():
        if name == "mst":
            model = SliceTransformer(grid=GRID, encoder=ENCODER, slice_heads=2, lesion_threshold=0.5)
        else:
            model = ResNet3D(grid=GRID, depth=10, width=4, first_kernel=3, lesion_threshold=0.5)
        with torch.no_grad():
            model.lesion_head.weight.zero_()
            model.lesion_head.bias.fill_(5 if seen else -5)
        save_model(model, folder / f"chest-ct-{name}")
    return folder


def round_outline(diameter_mm: float, **ratings: int) -> Outline:
    """The outline of a ball on slices of 1 mm, rated solid and sharp."""
    rated = dict.fromkeys(RATINGS, 1) | {
        "subtlety": 5,
        "calcification": 6,
        "sphericity": 5,
        "margin": 5,
        "texture": 5,
    }
    radius = diameter_mm / 2
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    contours = []
    for z in np.arange(-np.floor(radius - 0.5), radius):
        # Annotators click half a pixel outside of the edge.
        corners = (np.sqrt(radius**2 - z**2) + 0.5) * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        contours.append((float(z), True, (corners + 30).astype(np.float32)))
    return Outline("nobody", rated | ratings, tuple(contours), 1.0, 1.0)


def write_cases(folder: Path, count: int = 8) -> Path:
    """Simulated nodules with masks, half of them malignant, the first two of one patient; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [["case", "patient", "image", "mask", "malignancy", "label"]]
    for number in range(count):
        malignant = number % 2
        nodule = round_outline(8 + 8 * malignant, spiculation=1 + 2 * malignant)
        scan, mask = simulate_chest_ct(number, nodule, (48, 48, 24), (1.2, 1.2, 2.4))
        write_nifti(scan.voxels, scan.affine, folder / f"i{number}.nii.gz")
        write_nifti(mask, scan.affine, folder / f"m{number}.nii.gz")
        label = ("benign", "malignant")[malignant]
        patient = "p0" if number < 2 else f"p{number}"
        files = [f"i{number}.nii.gz", f"m{number}.nii.gz"]
        rows.append([f"c{number}", patient, *files, str(1 + 4 * malignant), label])
    with (folder / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def write_config(path: Path, config: dict[str, Any], **training: Any) -> Path:
    """Writes a config with some of its training settings replaced; returns its path."""
    path.write_text(yaml.safe_dump(config | {"training": config["training"] | training}))
    return path
