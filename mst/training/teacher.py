"""A trained 3D ResNet as the teacher of another model (knowledge distillation: Hinton et al., arXiv 1503.02531).

What convolutions learn of simulated pictures carries over to real ones better than what attention learns, and one
reader's label of a real nodule is noisy where the ResNet's answer is not. A transformer that is to answer like a
convolutional network takes on its habits (Touvron et al., DeiT, arXiv 2012.12877). Teacher and pupil see the same view
of a case (Beyer et al., arXiv 2106.05237), but the teacher has the lesion in the middle and its tones as they are: so
the pupil learns what should be answered wherever the lesion lies.

A pupil may also be asked for the features that the answer comes from (FitNets: Romero et al., arXiv 1412.6550), which
say more than one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mst.models.resnet3d import ResNet3D
from mst.tasks import Plane
from mst.training.augment import Augmentation, View, cut, outside_value
from mst.training.cases import LoadedCase

ENOUGH = 200  # cases, for a mean and a standard deviation


class Teacher:
    """Answers of a 3D ResNet, and what they come from.

    Args:
        model: trained; it is not trained any further.
        cases: training cases, over some of which each feature has mean 0 and standard deviation 1; none: the features
            are not told, and `width` is 0.

    Attributes:
        width: how many features there are, those of the model's last layer.
    """

    def __init__(self, model: ResNet3D, cases: Sequence[LoadedCase] = ()) -> None:
        self.model = model.eval().requires_grad_(False)
        self.width = 0
        if not cases:
            return
        few = cases[:: max(1, len(cases) // ENOUGH)]
        with torch.no_grad():
            seen = torch.cat([model.encode_scan(case.prepare(model.grid).volume) for case in few])
        self.mean, self.spread = seen.mean(dim=0), seen.std(dim=0).clamp_min(1e-3)
        self.width = len(self.mean)

    @torch.no_grad()
    def answer(
        self, case: LoadedCase, plane: Plane, augmentation: Augmentation, view: View
    ) -> tuple[Tensor, Tensor | None]:
        """What it says of a view of a case, and from which features.

        Returns:
            The probability of the last class, float32 scalar, and the features, float32 [width], where they are told.
        """
        centred = replace(view, shift_mm=np.zeros(3))
        values, inside, *_ = cut(case, self.model.grid, plane, augmentation, centred)
        volume = torch.where(inside, values, outside_value(case.task))
        vector = self.model.encode_scan(volume[None, None])
        probability = self.model.classify(vector).softmax(dim=1)[0, -1]
        return probability, (vector[0] - self.mean) / self.spread if self.width else None
