"""A region of a scan through models: answers, and maps on the region's own box."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mst.errors import CheckpointError, InputError
from mst.familiar import measure, strange
from mst.findings.checkpoints import LoadedModel, check_slot, check_study, loaded, resolve_checkpoints
from mst.findings.finding import Finding, SaliencyMap, Spot
from mst.findings.spots import as_mask, choose_spot
from mst.models.base import ScanClassifier
from mst.models.loading import checkpoint_name
from mst.preprocess import AXES, ModelInput, Region, prepare
from mst.saliency import METHODS, Explanation, explain, fitting_methods
from mst.saliency.flips import explain_flips
from mst.saliency.metrics import saliency_metrics
from mst.scans import Scan
from mst.scans.boxes import box_of, on_box
from mst.tasks import Task, get_task
from mst.uncertainty import answer_interval, fold_calibrations


def find(
    scan: Scan,
    models: Sequence[str | Path] | None = None,
    methods: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    *,
    task: str = "chest-ct",
    center: Sequence[float] | None = None,
    mask: np.ndarray | str | Path | None = None,
    side: str | None = None,
    tta: bool = False,
    interval: bool = False,
    on_model: Callable[[str], None] = lambda name: None,
) -> list[Finding]:
    """What any number of models make of one region of a scan, each explained by any number of methods.

    Args:
        scan: from `mst.read_scan`.
        models: checkpoint folders or hub repositories, all of them in memory at once; None: the project's own pair
            for the study, as far as it is at hand.
        methods: keys of `mst.saliency.METHODS`, of which each model gets those that fit it; None: each model's own.
        targets: classes to explain; None: the predicted one.
        task, center, mask, side, tta, interval: see `predict`.
        on_model: called with a model's checkpoint before it starts, for a progress display.

    Returns:
        a finding a model, in their order; its maps are by method and, within one, by target.

    Raises:
        ScanError, CheckpointError, InputError: as `predict`; also for a method that there is none of or that fits no
            model, and a class that a model does not have.
    """
    study = get_task(task)
    models, methods, targets = (
        _several(models, "model"),
        _several(methods, "method"),
        _several(targets, "class"),
    )
    for method in methods or ():
        if method not in METHODS:
            raise InputError(f"there is no saliency method {method!r}; choose of {', '.join(METHODS)}")
    if models is None:
        names = list(resolve_checkpoints(study).values())
    else:
        names = models
    lesion = None if mask is None else as_mask(mask, scan)
    spot = choose_spot(scan, study, center, lesion, side)
    asked = _Asked(scan, study, spot, _Lesion.of(lesion, scan), methods, targets, tta, interval)
    at_hand = [(name, loaded(name)) for name in names]
    for name, model in at_hand:
        check_study(model.model, name, study)
        asked.check(model.model, name)
    if methods is not None and not any(fitting_methods(model.model, methods) for _, model in at_hand):
        raise InputError(f"{', '.join(methods)} fits none of these models")
    findings = []
    for name, model in at_hand:
        on_model(name)
        findings.append(_find_one(model, name, asked))
    return findings


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
) -> dict[str, Finding]:
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
        {"mst": Finding, "resnet": Finding}, each with its own method's map; a model with no checkpoint at hand is left
        out.

    Raises:
        ScanError: nothing can be read at that place of the scan, or the mask does not fit.
        CheckpointError: there is no checkpoint for the study, one cannot be used, or its answer is no number.
        InputError: an unknown study or side, or a centre that is not three finite numbers.
    """
    study = get_task(task)
    lesion = None if mask is None else as_mask(mask, scan)
    spot = choose_spot(scan, study, center, lesion, side)
    chosen = resolve_checkpoints(study, models)
    at_hand = {name: loaded(checkpoint) for name, checkpoint in chosen.items()}
    for name, model in at_hand.items():
        check_slot(name, chosen[name], model.model)
        check_study(model.model, chosen[name], study)
    asked = _Asked(scan, study, spot, _Lesion.of(lesion, scan), None, None, tta, interval)
    results = {}
    for name, model in at_hand.items():
        on_model(name)
        results[name] = _find_one(model, chosen[name], asked)
    return results


def _several(names: Sequence[str | Path] | None, what: str) -> list[str] | None:
    """Names as a list, one alone too."""
    if names is None:
        return None
    if isinstance(names, str | Path):
        names = [names]
    if not names:
        raise InputError(f"name at least one {what}")
    return [str(name) for name in names]


@dataclass(frozen=True)
class _Lesion:
    """A mask on the canonical scan, and the smallest box [3, 2] that holds it."""

    mask: np.ndarray
    box: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray | None, scan: Scan) -> _Lesion | None:
        if mask is None:
            return None
        canonical = Scan(mask, scan.affine).canonical().voxels
        return cls(canonical, box_of(canonical))


@dataclass(frozen=True)
class _Asked:
    """What is asked of every model."""

    scan: Scan
    task: Task
    spot: Spot
    lesion: _Lesion | None
    methods: Sequence[str] | None
    targets: Sequence[str] | None
    tta: bool
    interval: bool

    def check(self, model: ScanClassifier, checkpoint: str) -> None:
        """Refuses classes that a model does not have."""
        if unknown := [target for target in self.targets or () if target not in model.classes]:
            raise InputError(
                f"{checkpoint_name(checkpoint)} has no class {', '.join(unknown)}; it has "
                f"{', '.join(model.classes)}"
            )

    def of(self, model: ScanClassifier) -> list[tuple[str, str | None]]:
        """(method, class) of each map to make. A model that no method fits has its own: its answer counts too."""
        methods = [model.method]
        if self.methods is not None:
            methods = fitting_methods(model, self.methods) or methods
        found: list[tuple[str, str | None]] = []
        for method in methods:
            # A map that is the same for every class is made once.
            targets = self.targets if isinstance(model, METHODS[method].by_class) else None
            found += [(method, target) for target in targets or (None,)]
        return found


def _find_one(at_hand: LoadedModel, checkpoint: str, asked: _Asked) -> Finding:
    model, scan, task = at_hand.model, asked.scan, asked.task
    start = time.perf_counter()
    given = prepare(scan, task, asked.spot.center, model.grid)
    run = explain_flips if asked.tta else explain
    outs: list[tuple[Explanation, str | None]] = []
    with torch.inference_mode(False):
        try:
            for method, target in asked.of(model):
                number = None if target is None else model.classes.index(target)
                outs.append((run(model, given.volume, method, number, given.padding_mask), target))
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint_name(checkpoint)}: {error}") from error
    maps = tuple(_map(out, target, given, asked) for out, target in outs)
    out = outs[0][0]
    probabilities = (out.logits[0] / model.temperature).softmax(0).tolist()
    seconds = time.perf_counter() - start
    spread = None
    if asked.interval:
        folds = fold_calibrations(at_hand.metrics)
        spread = answer_interval(model, scan, task, asked.spot.center, given, probabilities, folds)
    return Finding(
        checkpoint=checkpoint_name(checkpoint),
        title=model.title,
        probabilities=dict(zip(model.classes, probabilities, strict=True)),
        prediction=model.classes[int(np.argmax(probabilities))],
        logits=out.logits[0].numpy(),
        spot=asked.spot,
        seconds=seconds,
        maps=maps,
        validation=at_hand.metrics,
        lesion_probability=None if out.lesion_logits is None else float(out.lesion_logits[0].sigmoid()),
        lesion_threshold=model.lesion_threshold,
        interval=spread,
        unfamiliar=_unfamiliar(model, out.distance, scan.canonical(), given.region, task),
    )


def _map(out: Explanation, target: str | None, given: ModelInput, asked: _Asked) -> SaliencyMap:
    region = given.region
    made = SaliencyMap(
        method=out.method,
        region=region,
        affine=asked.scan.affine,
        native=out.native_saliency[0].float().clamp_min(0).numpy(),
        values=region.to_box(out.saliency[0, 0].clamp_min(0).numpy()),
        slice_weights=None if out.slice_weights is None else out.slice_weights[0].numpy(),
        target=target,
    )
    if asked.lesion is None:
        return made
    return replace(made, metrics=_compared(made, asked.lesion, asked.scan.canonical().spacing))


def _compared(made: SaliencyMap, lesion: _Lesion, spacing: tuple[float, float, float]) -> dict[str, Any]:
    """`saliency_metrics` over the smallest box that holds the region and the lesion."""
    bounds = made.region.bounds
    box = np.stack(
        [np.minimum(bounds[:, 0], lesion.box[:, 0]), np.maximum(bounds[:, 1], lesion.box[:, 1])], axis=1
    )
    values, mask = on_box(made.values, bounds[:, 0], box), on_box(lesion.mask, (0, 0, 0), box)
    axis = AXES[made.region.plane][0][0]
    profile = made.profile[slice(*box[axis])]
    return saliency_metrics(values, mask, spacing, profile, slice_axis=axis)


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
