"""A convolutional stem before the 2D encoder of a compact MST.

A transformer that cuts a slice into patches at once must learn from its examples what an edge is, and from a single
slice nobody can tell a small nodule from a vessel cut across. A few convolutions bring both along (Xiao et al., Early
convolutions help transformers see better, arXiv 2106.14881): here 3D ones at two scales, added up (Lin et al., Feature
pyramid networks, arXiv 1612.03144). They are so few that no convolution reaches beyond `REACH` slices; only the
normalisation, a mean and a spread, takes in the whole volume.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate

GROUPS = 8  # of channels that are normalised together
REACH = {2: 7, 3: 16}  # slices above and below that a feature's convolutions reach, by levels


class ConvStem(nn.Module):
    """3D convolutions that give each slice a map of features of half its height and width.

    Args:
        width: channels of the first convolution, a multiple of 8; the maps have twice as many.
        levels: scales that are added up: features of 2 and 4 pixels, and with 3 levels of 8 pixels too, which see a
            lesion of 2 cm with what lies round it.

    Attributes:
        reach: slices above and below that a feature's convolutions reach.

    Raises:
        ValueError: a width that is no multiple of 8, or another number of levels than 2 or 3.
    """

    stride = 2  # pixels of a slice a feature, along each side

    def __init__(self, width: int = 16, levels: int = 2) -> None:
        super().__init__()
        if width < 1 or width % GROUPS:
            raise ValueError(f"the stem's width must be a multiple of {GROUPS}, not {width}")
        if levels not in REACH:
            raise ValueError(f"the stem has 2 or 3 levels, not {levels}")
        self.width, self.reach = 2 * width, REACH[levels]
        # Halved within the slice alone: each slice keeps a map of its own.
        halving = _convolution(width, 2 * width, stride=(1, 2, 2))
        self.fine = nn.Sequential(*_convolution(1, width), *halving)
        self.coarse = _halved(2 * width)
        self.lateral = nn.Conv3d(4 * width, 2 * width, 1)
        if levels == 3:
            self.coarsest = _halved(4 * width)
            self.coarsest_lateral = nn.Conv3d(8 * width, 2 * width, 1)
        self.norm = nn.GroupNorm(GROUPS, 2 * width)

    def forward(self, volume: Tensor) -> Tensor:
        """Volume float32 [B, 1, D, H, W] -> features [B, 2 * width, D, H / 2, W / 2]."""
        # Channels last is what convolutions are fastest in, on CPUs and GPUs alike.
        fine = self.fine(volume.contiguous(memory_format=torch.channels_last_3d))
        coarse = self.coarse(fine)
        features = fine + _enlarged(self.lateral(coarse), fine)
        if self.reach == REACH[3]:
            features = features + _enlarged(self.coarsest_lateral(self.coarsest(coarse)), fine)
        return gelu(self.norm(features))


def _enlarged(maps: Tensor, like: Tensor) -> Tensor:
    return interpolate(maps, size=like.shape[2:], mode="trilinear", align_corners=False)


def _halved(before: int) -> nn.Sequential:
    """Maps of half the size along all three axes, with twice the channels."""
    first = _convolution(before, 2 * before, stride=(2, 2, 2))
    return nn.Sequential(*first, *_convolution(2 * before, 2 * before))


def _convolution(before: int, after: int, stride: tuple[int, int, int] = (1, 1, 1)) -> list[nn.Module]:
    """Normalised by groups of channels (Wu and He, arXiv 1803.08494), as batches are small."""
    convolution = nn.Conv3d(before, after, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.GroupNorm(GROUPS, after), nn.GELU()]
