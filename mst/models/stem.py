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
REACH = 7  # slices above and below that a feature's convolutions reach


class ConvStem(nn.Module):
    """3D convolutions that give each slice a map of features of half its height and width.

    Args:
        width: channels of the first convolution, a multiple of 8; the maps have twice as many.

    Raises:
        ValueError: a width that is no multiple of 8.
    """

    stride = 2  # pixels of a slice a feature, along each side

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        if width < 1 or width % GROUPS:
            raise ValueError(f"the stem's width must be a multiple of {GROUPS}, not {width}")
        self.width = 2 * width
        # Halved within the slice alone: each slice keeps a map of its own.
        halving = _convolution(width, 2 * width, stride=(1, 2, 2))
        self.fine = nn.Sequential(*_convolution(1, width), *halving)
        self.coarse = nn.Sequential(
            *_convolution(2 * width, 4 * width, stride=(2, 2, 2)), *_convolution(4 * width, 4 * width)
        )
        self.lateral = nn.Conv3d(4 * width, 2 * width, 1)
        self.norm = nn.GroupNorm(GROUPS, 2 * width)

    def forward(self, volume: Tensor) -> Tensor:
        """Volume float32 [B, 1, D, H, W] -> features [B, 2 * width, D, H / 2, W / 2]."""
        # Channels last is what convolutions are fastest in, on CPUs and GPUs alike.
        fine = self.fine(volume.contiguous(memory_format=torch.channels_last_3d))
        coarse = self.lateral(self.coarse(fine))
        coarse = interpolate(coarse, size=fine.shape[2:], mode="trilinear", align_corners=False)
        return gelu(self.norm(fine + coarse))


def _convolution(before: int, after: int, stride: tuple[int, int, int] = (1, 1, 1)) -> list[nn.Module]:
    """Normalised by groups of channels (Wu and He, arXiv 1803.08494), as batches are small."""
    convolution = nn.Conv3d(before, after, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.GroupNorm(GROUPS, after), nn.GELU()]
