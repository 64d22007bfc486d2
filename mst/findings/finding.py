"""What a model makes of one spot of a scan: its answer, and maps of what the answer rests on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mst.preprocess import AXES, Region
from mst.scans.scan import own_axes
from mst.uncertainty import Interval

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
class SaliencyMap:
    """What one method says an answer rests on.

    It covers the region that the model saw, so it costs as much on a large scan as on a small one; `on_scan` puts it
    on the scan's own voxels, for a file.

    Attributes:
        method: its key in `mst.saliency.METHODS`.
        region: where the model's input lies in the canonical scan.
        affine: of the scan as it was read.
        native: float32 [d, h, w], at least 0, at the map's own resolution over the model's input.
        values: float32 [x, y, z], at least 0, on the canonical scan's voxels within `region.bounds`.
        slice_weights: float32 [D], the weight of each input slice; None where the model weighs none.
        target: the class that is explained; None: the predicted one, or all where the method makes no difference.
        metrics: `mst.saliency.metrics.saliency_metrics` against a mask; None without one.
    """

    method: str
    region: Region
    affine: np.ndarray
    native: np.ndarray
    values: np.ndarray
    slice_weights: np.ndarray | None = None
    target: str | None = None
    metrics: dict[str, Any] | None = None

    @property
    def profile(self) -> np.ndarray:
        """float32, one number for each slice of the canonical scan in the study's plane, zero beyond the region.

        The slice weights, or where there are none the map's largest value in the slice.
        """
        if self.slice_weights is not None:
            return self.region.profile(self.slice_weights)
        along = AXES[self.region.plane][0][0]
        profile = np.zeros(self.region.scan_shape[along], np.float32)
        others = tuple(axis for axis in range(3) if axis != along)
        profile[slice(*self.region.bounds[along])] = self.values.max(axis=others, initial=0)
        return profile

    def in_scan(self) -> tuple[np.ndarray, tuple[slice, slice, slice]]:
        """The map in the scan's own voxel order, and which of its voxels (I, J, K) it covers."""
        values, box = self.values, []
        axes = own_axes(self.affine)
        values = values.transpose([axis for axis, _ in axes])
        for own, (axis, flipped) in enumerate(axes):
            start, stop = (int(edge) for edge in self.region.bounds[axis])
            if flipped:
                start, stop = self.region.scan_shape[axis] - stop, self.region.scan_shape[axis] - start
                values = np.flip(values, own)
            box.append(slice(start, stop))
        return values, (box[0], box[1], box[2])

    def on_scan(self) -> np.ndarray:
        """float32 (I, J, K): the map on the scan's own voxels, zero outside the region."""
        values, box = self.in_scan()
        whole = np.zeros([self.region.scan_shape[axis] for axis, _ in own_axes(self.affine)], np.float32)
        whole[box] = values
        return whole


@dataclass(frozen=True)
class Finding:
    """One model's answer at one spot of a scan.

    Attributes:
        checkpoint: the checkpoint's folder name or repository id.
        title: what people call the model, such as "Medical Slice Transformer with a 2D ResNet".
        probabilities: class name -> probability; they sum to 1.
        prediction: the most probable class.
        logits: float32 [C].
        spot: where the region is centred, and who chose it.
        seconds: time from the scan to this result, loading of the model and the interval excluded.
        maps: what the answer rests on, by one method or several; the first is the one that is shown first.
        validation: the checkpoint's metrics.json ("auc", "protocol", ...); {} where there is none.
        lesion_probability: that there is a lesion in the region at all; None: the model was not trained to tell.
        lesion_threshold: below which none is seen, and the classes mean nothing.
        interval: between which probabilities most answers lie, see `mst.uncertainty`; None: not asked for.
        unfamiliar: in what the region is unlike those that the model was trained on, in phrases; see `mst.familiar`.
    """

    checkpoint: str
    title: str
    probabilities: dict[str, float]
    prediction: str
    logits: np.ndarray
    spot: Spot
    seconds: float
    maps: tuple[SaliencyMap, ...]
    validation: dict[str, Any] = field(default_factory=dict)
    lesion_probability: float | None = None
    lesion_threshold: float | None = None
    interval: Interval | None = None
    unfamiliar: tuple[str, ...] = ()

    @property
    def lesion_seen(self) -> bool:
        """Whether there is something to classify, as far as the model can tell."""
        if self.lesion_probability is None or self.lesion_threshold is None:
            return True
        return self.lesion_probability >= self.lesion_threshold

    @property
    def map(self) -> SaliencyMap:
        """The map that is shown first."""
        return self.maps[0]

    @property
    def region(self) -> Region:
        """Where the model's input lies in the canonical scan."""
        return self.map.region

    @property
    def saliency(self) -> np.ndarray:
        """float32 (I, J, K): the first map on the scan's own voxels, made when it is asked for."""
        return self.map.on_scan()

    @property
    def slice_weights(self) -> np.ndarray | None:
        """float32 [D]: the first map's weight of each input slice; None for a 3D ResNet."""
        return self.map.slice_weights

    @property
    def metrics(self) -> dict[str, Any] | None:
        """Of the first map against the mask; None without one."""
        return self.map.metrics


Prediction = Finding  # what an answer of `mst.predict` is called in the public surface
