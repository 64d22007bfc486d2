"""A trained 3D ResNet as the teacher of another model (knowledge distillation: Hinton et al., arXiv 1503.02531).

What convolutions learn of simulated pictures carries over to real ones better than what attention learns, and one
reader's label of a real nodule is noisy where the ResNet's answer is not. A transformer that is to answer like a
convolutional network takes on its habits (Touvron et al., DeiT, arXiv 2012.12877). Teacher and pupil see the same view
of a case (Beyer et al., arXiv 2106.05237), but the teacher has the lesion in the middle and its tones as they are: so
the pupil learns what should be answered wherever the lesion lies.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mst.models.resnet3d import ResNet3D
from mst.tasks import Plane
from mst.training.augment import Augmentation, View, cut, outside_value
from mst.training.cases import LoadedCase


class Teacher:
    """Answers of a 3D ResNet.

    Args:
        model: trained; it is not trained any further.
    """

    def __init__(self, model: ResNet3D) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def answer(self, case: LoadedCase, plane: Plane, augmentation: Augmentation, view: View) -> Tensor:
        """What it says of a view of a case: the probability of the last class, float32 scalar."""
        centred = replace(view, shift_mm=np.zeros(3))
        values, inside, *_ = cut(case, self.model.grid, plane, augmentation, centred)
        volume = torch.where(inside, values, outside_value(case.task))
        return self.model(volume[None, None]).softmax(dim=1)[0, -1]
