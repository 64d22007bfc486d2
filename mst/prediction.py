"""A scan through both models: probabilities, and saliency on the scan's own voxels."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch

from mst.errors import CheckpointError, InputError
from mst.familiar import measure, strange
from mst.models import checkpoint_metrics, list_checkpoints, load_model
from mst.models.base import ScanClassifier
from mst.models.loading import ARCHITECTURES, checkpoint_identity, checkpoint_name
from mst.preprocess import AXES, Region, mask_centroid, prepare, side_center
from mst.saliency import explain
from mst.saliency.flips import explain_flips
from mst.saliency.metrics import saliency_metrics
from mst.scans import Scan, ScanError, read_mask
from mst.tasks import Task, get_task
from mst.uncertainty import Interval, answer_interval, fold_calibrations
from mst.words import LABELS

# A model's short name in results -> the architectures that may stand there, the preferred one first.
MODELS = {"mst": ("slice-transformer", "resnet-slice-transformer"), "resnet": ("resnet3d",)}
# What the project's own checkpoints of a study are called behind its name, the one that measures best first.
OWN = {"mst": ("mst-dinov2", "mst"), "resnet": ("resnet34", "resnet")}
MAX_KEPT = 6  # models in memory
ChosenBy = Literal["given", "mask", "side", "scan centre"]


@dataclass(frozen=True)
class Spot:
    """Where the models look.

    Attributes:
        center: (x, y, z) in RAS millimetres.
        chosen_by: "given" (a click or --center), "mask" (its centroid), "side" or "scan centre".
        text: the same as a sentence for the page.
    """

    center: tuple[float, float, float]
    chosen_by: ChosenBy
    text: str


@dataclass(frozen=True)
class Prediction:
    """What one model makes of a scan.

    Attributes:
        checkpoint: the checkpoint's folder name or repository id.
        probabilities: class name -> probability; they sum to 1.
        prediction: the most probable class.
        logits: float32 [C].
        saliency: float32 on the scan's own grid (I, J, K), zero outside the region.
        slice_weights: float32 [D], the weight of each input slice; None for the ResNet.
        slice_profile: float32, one number for each slice of the canonical scan in the study's plane: the
            slice weights, or for the ResNet the largest saliency in the slice.
        method: the saliency method.
        seconds: time from the scan to this result, loading of the model and the interval excluded.
        region: where the model's input lies in the canonical scan.
        spot: where the region is centred, and who chose it.
        metrics: `saliency_metrics` against the mask; None without one.
        validation: the checkpoint's metrics.json ("auc", "protocol", ...); {} where there is none.
        title: what people call the model, such as "Medical Slice Transformer with a 2D ResNet".
        native_saliency: float32 [d, h, w], the map at its own resolution, over the model's input.
        lesion_probability: that there is a lesion in the region at all; None: the model was not trained to tell.
        lesion_threshold: below which none is seen, and the classes mean nothing.
        interval: between which probabilities most answers lie, see `mst.uncertainty`; None: not asked for.
        unfamiliar: in what the region is unlike those that the model was trained on, in phrases; see `mst.familiar`.
    """

    checkpoint: str
    probabilities: dict[str, float]
    prediction: str
    logits: np.ndarray
    saliency: np.ndarray
    slice_weights: np.ndarray | None
    slice_profile: np.ndarray
    method: str
    seconds: float
    region: Region
    spot: Spot
    metrics: dict[str, Any] | None = None
    validation: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    native_saliency: np.ndarray | None = None
    lesion_probability: float | None = None
    lesion_threshold: float | None = None
    unfamiliar: tuple[str, ...] = ()
    interval: Interval | None = None

    @property
    def lesion_seen(self) -> bool:
        """Whether there is something to classify, as far as the model can tell."""
        if self.lesion_probability is None or self.lesion_threshold is None:
            return True
        return self.lesion_probability >= self.lesion_threshold


def predict(
    scan: Scan,
    task: str = "chest-ct",
    center: Sequence[float] | None = None,
    mask: np.ndarray | str | Path | None = None,
    *,
    side: str | None = None,
    models: Mapping[str, str | Path | None] | None = None,
    tta: bool = False,
    interval: bool = False,
    on_model: Callable[[str], None] = lambda name: None,
) -> dict[str, Prediction]:
    """Classifies one region of a scan with the Medical Slice Transformer and the 3D ResNet.

    Args:
        scan: from `mst.read_scan`.
        task: "chest-ct", "breast-mri" or "knee-mri".
        center: (x, y, z) in RAS millimetres of the region; None: the mask's centroid, else the middle of the
            chosen side, else the scan's centre.
        mask: a lesion mask, an array on the scan's grid or a file; saliency is then compared with it.
        side: "left" or "right" (the patient's), for studies that offer it.
        models: {"mst": checkpoint, "resnet": checkpoint}, folders or hub repositories; None or a missing
            entry: the first checkpoint at hand for the study.
        tta: average over the eight flips (test-time augmentation).
        interval: also see how far each answer lies off under flips, small shifts of the spot and the folds'
            calibrations; see `mst.uncertainty`.
        on_model: called with a model's name before it starts, for a progress display.

    Returns:
        {"mst": Prediction, "resnet": Prediction}; a model with no checkpoint at hand is left out.

    Raises:
        ScanError: nothing can be read at that place of the scan, or the mask does not fit.
        CheckpointError: there is no checkpoint for the study, one cannot be used, or its answer is no number.
        InputError: an unknown study or side, or a centre that is not three finite numbers.
    """
    study = get_task(task)
    lesion = None if mask is None else as_mask(mask, scan)
    spot = choose_spot(scan, study, center, lesion, side)
    chosen = resolve_checkpoints(study, models)
    loaded = {name: _loaded(checkpoint) for name, checkpoint in chosen.items()}
    for name, at_hand in loaded.items():
        _check_slot(name, chosen[name], at_hand.model)
        check_study(at_hand.model, chosen[name], study)
    results = {}
    for name, at_hand in loaded.items():
        on_model(name)
        results[name] = _predict_one(at_hand, chosen[name], scan, study, spot, lesion, tta, interval)
    return results


def choose_spot(
    scan: Scan,
    task: Task,
    center: Sequence[float] | None = None,
    mask: np.ndarray | None = None,
    side: str | None = None,
) -> Spot:
    """Decides where the models look: a given centre, else the mask's centroid, else a side, else the middle.

    Raises:
        ScanError: the given centre lies outside the scan.
        InputError: a side that the study does not offer, or a centre that is not three finite numbers.
    """
    if center is not None:
        point = np.asarray(center, float)
        if point.shape != (3,) or not np.isfinite(point).all():
            raise InputError("center must be three numbers: x, y, z in millimetres (RAS)")
        if not scan.contains(point):
            raise ScanError(
                f"The spot ({_millimetres(point)}) lies outside the scan, whose centre is at "
                f"({_millimetres(scan.center)})."
            )
        return _spot(point, "given", "the chosen spot")
    if mask is not None:
        return _spot(mask_centroid(mask, scan), "mask", "the centre of the lesion mask")
    if side:
        if side not in task.sides:
            raise InputError(
                f"{task.title} offers no side {side!r}"
                + (f"; choose {' or '.join(task.sides)}." if task.sides else ".")
            )
        return _spot(side_center(scan, side), "side", f"the middle of the patient's {side} half")
    return _spot(scan.center, "scan centre", "the centre of the scan, since no spot was chosen")


def as_mask(
    mask: np.ndarray | str | Path, scan: Scan, tell: Callable[[str], None] = lambda sentence: None
) -> np.ndarray:
    """A mask as bool on the scan's grid.

    Args:
        mask: an array, or a file.
        scan: that it was drawn on.
        tell: called with a sentence for what had to be decided, such as that several segments are taken together.

    Raises:
        ScanError: it is empty, or does not fit the scan.
    """
    if not isinstance(mask, np.ndarray):
        return read_mask(mask, scan, tell=tell)
    if mask.shape != scan.shape:
        raise ScanError(
            f"The mask has {_voxels(mask.shape)} voxels, the scan {_voxels(scan.shape)}; they must agree."
        )
    if not np.any(mask):
        raise ScanError("The mask is empty: it marks no voxel.")
    return mask.astype(bool)


def resolve_checkpoints(task: Task, models: Mapping[str, str | Path | None] | None = None) -> dict[str, str]:
    """Which checkpoint to use for each model.

    Raises:
        CheckpointError: none is given and none is at hand.
    """
    chosen = {name: str(checkpoint) for name, checkpoint in (models or {}).items() if checkpoint}
    if unknown := set(chosen) - set(MODELS):
        raise ValueError(f"there is no model {', '.join(sorted(unknown))}; choose from {', '.join(MODELS)}")
    for name in MODELS:
        at_hand = checkpoints_for(task, name)
        if name not in chosen and at_hand:
            chosen[name] = str(at_hand[0])
    if not chosen:
        raise CheckpointError(
            f"There is no checkpoint for {task.title} at hand: train one with train.py, or put one into the "
            "checkpoints folder."
        )
    return {name: chosen[name] for name in MODELS if name in chosen}


def checkpoints_for(task: Task, name: str) -> list[Path]:
    """The checkpoint folders at hand for a study that can stand for the model "mst" or "resnet".

    The first is used where none is named: the best of the project's own (`OWN`) that is there, so that weights put
    beside it never take its place unasked. Nor do they where it is damaged: loading it says so.
    """
    at_hand = list_checkpoints(task.key)
    folders = [folder for architecture in MODELS[name] for folder in at_hand[architecture]]
    own = [f"{task.key}-{ending}" for ending in OWN[name]]
    return sorted(folders, key=lambda folder: own.index(folder.name) if folder.name in own else len(own))


@dataclass(frozen=True)
class _Loaded:
    """A checkpoint in memory: nothing in it changes any more, so that any number of threads may use it."""

    model: ScanClassifier
    metrics: dict[str, Any]
    identity: str


_kept: OrderedDict[str, _Loaded] = OrderedDict()
_loading = Lock()


def cached_model(checkpoint: str) -> ScanClassifier:
    """Loads a checkpoint once; again when what is in its folder has changed.

    Raises:
        CheckpointError: it cannot be used.
    """
    return _loaded(checkpoint).model


def _loaded(checkpoint: str) -> _Loaded:
    # One at a time: two threads that want the same model get the same.
    with _loading:
        identity = checkpoint_identity(checkpoint)
        kept = _kept.get(checkpoint)
        if kept is None or kept.identity != identity:
            kept = _Loaded(load_model(checkpoint), checkpoint_metrics(checkpoint), identity)
            if checkpoint_identity(checkpoint) != identity:
                raise CheckpointError(
                    f"{checkpoint_name(checkpoint)} was changed while it was read; try again once it is whole."
                )
            _kept[checkpoint] = kept
        _kept.move_to_end(checkpoint)
        while len(_kept) > MAX_KEPT:
            _kept.popitem(last=False)
        return kept


def check_study(model: ScanClassifier, checkpoint: str, task: Task) -> None:
    """Refuses a model that was trained for another study, or that cannot take the grid in its settings.

    Raises:
        CheckpointError: it was, or it cannot.
    """
    if model.task != task.key:
        raise CheckpointError(
            f"{checkpoint_name(checkpoint)} was trained for {model.task}, not for {task.key}."
        )
    try:
        model.check_grid(task.grid.override(model.grid))
    except ValueError as error:
        raise CheckpointError(f"{checkpoint_name(checkpoint)}: its grid cannot be used ({error}).") from error


def _check_slot(name: str, checkpoint: str, model: ScanClassifier) -> None:
    """Refuses a checkpoint in the other model's place: its result would carry the wrong name."""
    if not any(isinstance(model, ARCHITECTURES[architecture]) for architecture in MODELS[name]):
        other = next(key for key in MODELS if key != name)
        raise CheckpointError(
            f"{checkpoint_name(checkpoint)} is no {LABELS[name]}; name it as the {other} model instead."
        )


def _predict_one(
    loaded: _Loaded,
    checkpoint: str,
    scan: Scan,
    task: Task,
    spot: Spot,
    mask: np.ndarray | None,
    tta: bool,
    interval: bool,
) -> Prediction:
    model = loaded.model
    start = time.perf_counter()
    given = prepare(scan, task, spot.center, model.grid)
    with torch.inference_mode(False):
        try:
            out = (explain_flips if tta else explain)(model, given.volume, padding_mask=given.padding_mask)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint_name(checkpoint)}: {error}") from error
    canonical = given.region.to_scan(out.saliency[0, 0].clamp_min(0).numpy())
    saliency = scan.from_canonical(canonical)
    axis = AXES[task.plane][0][0]
    if out.slice_weights is None:
        weights = None
        profile = canonical.max(axis=tuple(a for a in range(3) if a != axis))
    else:
        weights = out.slice_weights[0].numpy()
        profile = given.region.profile(weights)
    probabilities = (out.logits[0] / model.temperature).softmax(0).tolist()
    metrics = None
    if mask is not None:
        lesion = _to_canonical(mask, scan)
        box = _box_of(lesion, given.region.bounds)
        metrics = saliency_metrics(
            canonical[box], lesion[box], scan.canonical().spacing, profile[box[axis]], slice_axis=axis
        )
    seconds = time.perf_counter() - start
    spread = None
    if interval:
        folds = fold_calibrations(loaded.metrics)
        spread = answer_interval(model, scan, task, spot.center, given, probabilities, folds)
    return Prediction(
        checkpoint=checkpoint_name(checkpoint),
        probabilities=dict(zip(model.classes, probabilities, strict=True)),
        prediction=model.classes[int(np.argmax(probabilities))],
        logits=out.logits[0].numpy(),
        saliency=saliency,
        slice_weights=weights,
        slice_profile=profile,
        method=out.method,
        seconds=seconds,
        region=given.region,
        spot=spot,
        metrics=metrics,
        validation=loaded.metrics,
        title=model.title,
        native_saliency=out.native_saliency[0].float().clamp_min(0).numpy(),
        lesion_probability=None if out.lesion_logits is None else float(out.lesion_logits[0].sigmoid()),
        lesion_threshold=model.lesion_threshold,
        unfamiliar=_unfamiliar(model, out.distance, scan.canonical(), given.region, task),
        interval=spread,
    )


def _unfamiliar(
    model: ScanClassifier, distance: torch.Tensor | None, scan: Scan, region: Region, task: Task
) -> tuple[str, ...]:
    if model.familiar is None or distance is None:
        return ()
    phrases = strange(measure(scan, region, task), model.familiar.get("spans", {}), task.unit)
    limit = model.familiar.get("limit")
    if limit is not None and float(distance[0]) > limit:
        phrases.append(
            f"what the model makes of it ({float(distance[0]) / limit:.1f} times as far off as is usual)"
        )
    return tuple(phrases)


def _to_canonical(mask: np.ndarray, scan: Scan) -> np.ndarray:
    return Scan(mask.astype(np.float32), scan.affine).canonical().voxels > 0.5


def _box_of(mask: np.ndarray, bounds: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box that holds a region's bounds and a mask's voxels."""
    box = []
    for axis in range(3):
        held = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        start, stop = min(bounds[axis][0], held[0]), max(bounds[axis][1], held[-1] + 1)
        box.append(slice(int(start), int(stop)))
    return box[0], box[1], box[2]


def _spot(point: np.ndarray, chosen_by: ChosenBy, text: str) -> Spot:
    x, y, z = (round(float(v), 3) for v in point)
    return Spot((x, y, z), chosen_by, f"The models looked at {text}, ({_millimetres(point)}).")


def _millimetres(point: np.ndarray) -> str:
    return ", ".join(f"{v:.1f}" for v in point) + " mm"


def _voxels(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)
