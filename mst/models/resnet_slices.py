"""The paper's MST with a 2D ResNet in place of DINOv2 (MONAI's, whose names and steps are torchvision's)."""

from __future__ import annotations

from typing import Any

from monai.networks.nets.resnet import ResNet
from torch import Tensor

from mst.models.resnet3d import DEPTHS
from mst.models.slices import SliceClassifier


class ResNetSliceTransformer(SliceClassifier):
    """A 2D ResNet on every slice and a transformer over the slices.

    Args:
        task, classes, grid, temperature, lesion_threshold, familiar: see `ScanClassifier`.
        depth: 10, 18, 34 (the paper's), 50, 101 or 152.
        width: channels of the first stage; each further stage doubles them (64 in the paper).
        channels: of the first convolution (3 in the paper: the grey slice goes into each of them).
        first_kernel, first_stride, max_pool: of the first convolution (7, 2 and True in the paper).
        slice_layers, slice_heads, slice_feedforward, slice_positions: see `SliceTransformer` (1, 16, None and 0
            in the paper).
    """

    method = "gradcam++"
    title = "Medical Slice Transformer with a 2D ResNet"

    def __init__(
        self,
        task: str = "chest-ct",
        classes: list[str] = ["benign", "malignant"],  # noqa: B006  (kept as JSON in config.json)
        grid: dict[str, Any] | None = None,
        temperature: float = 1.0,
        depth: int = 34,
        width: int = 64,
        channels: int = 3,
        first_kernel: int = 7,
        first_stride: int = 2,
        max_pool: bool = True,
        slice_layers: int = 1,
        slice_heads: int = 16,
        slice_feedforward: int | None = None,
        slice_positions: int = 0,
        lesion_threshold: float | None = None,
        familiar: dict[str, Any] | None = None,
        architecture: str = "resnet-slice-transformer",
    ) -> None:
        super().__init__(task, classes, grid, temperature, lesion_threshold, familiar)
        self.channels = channels
        block, blocks = DEPTHS[depth]
        self.encoder = ResNet(
            block,
            blocks,
            [width, width * 2, width * 4, width * 8],
            spatial_dims=2,
            n_input_channels=channels,
            conv1_t_size=first_kernel,
            conv1_t_stride=first_stride,
            no_max_pool=not max_pool,
            feed_forward=False,
            bias_downsample=False,
        )
        self.build_fusion(
            width * 8 * (4 if block == "bottleneck" else 1),
            layers=slice_layers,
            heads=slice_heads,
            feedforward=slice_feedforward,
            positions=slice_positions,
        )

    def feature_maps(self, slices: Tensor) -> Tensor:
        """Slices float32 [N, 1, H, W] -> their last feature maps [N, width, h, w], after the last ReLU."""
        encoder: Any = self.encoder
        x = encoder.act(encoder.bn1(encoder.conv1(slices.expand(-1, self.channels, -1, -1))))
        if not encoder.no_max_pool:
            x = encoder.maxpool(x)
        return encoder.layer4(encoder.layer3(encoder.layer2(encoder.layer1(x))))

    def encode(self, slices: Tensor) -> Tensor:
        """Slices float32 [N, 1, H, W] -> the means of their last feature maps [N, width]."""
        return self.feature_maps(slices).mean(dim=(2, 3))
