"""The 3D ResNet that the paper compares the Medical Slice Transformer with (MONAI's)."""

from __future__ import annotations

from typing import Any, cast

import torch
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from mst.models.base import ScanClassifier

# depth -> (block, blocks a stage); He et al., "Deep Residual Learning", arXiv 1512.03385, table 1
DEPTHS: dict[int, tuple[str, list[int]]] = {
    10: ("basic", [1, 1, 1, 1]),
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
    152: ("bottleneck", [3, 8, 36, 3]),
}


class ResNet3D(ScanClassifier):
    """A 3D ResNet on the whole volume.

    Args:
        task, classes, grid, temperature, lesion_threshold, familiar: see `ScanClassifier`.
        depth: 10, 18, 34 (the paper's), 50, 101 or 152.
        width: channels of the first stage; each further stage doubles them (64 in the paper).
        first_kernel: size of the first convolution's kernel (7 in the paper).
        first_stride: its stride (D, H, W), or one number for all three.
        max_pool: whether a max-pool follows the first convolution (True in the paper).
        shortcut: how a block's input is brought to fewer voxels and more channels: "B" by a convolution, "A" by
            leaving out and padding with zeros (MedicalNet's 18 and 34).
        shortcut_bias: whether that convolution has a bias (False in MedicalNet's other depths).
    """

    method = "gradcam++"
    title = "3D ResNet"

    def __init__(
        self,
        task: str = "chest-ct",
        classes: list[str] = ["benign", "malignant"],  # noqa: B006  (kept as JSON in config.json)
        grid: dict[str, Any] | None = None,
        temperature: float = 1.0,
        depth: int = 34,
        width: int = 64,
        first_kernel: int = 7,
        first_stride: int | list[int] = 1,
        max_pool: bool = True,
        shortcut: str = "B",
        shortcut_bias: bool = True,
        lesion_threshold: float | None = None,
        familiar: dict[str, Any] | None = None,
        architecture: str = "resnet3d",
    ) -> None:
        super().__init__(task, classes, grid, temperature, lesion_threshold, familiar)
        block, blocks = DEPTHS[depth]
        self.model = ResNet(
            block,
            blocks,
            [width, width * 2, width * 4, width * 8],
            spatial_dims=3,
            n_input_channels=1,
            conv1_t_size=first_kernel,
            conv1_t_stride=tuple(first_stride) if isinstance(first_stride, list) else first_stride,  # type: ignore[arg-type]
            no_max_pool=not max_pool,
            shortcut_type=shortcut,
            bias_downsample=shortcut_bias,
            num_classes=len(classes),
        )
        self.build_beside(self.class_head.in_features)

    def features(self, volume: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """The last feature map: volume [B, 1, D, H, W] -> [B, channels, d, h, w], after the last ReLU.

        A convolution cannot leave slices out: those that are padding are seen as `mst.preprocess` fills
        them, with air in CT and the mean in MRI.
        """
        return self.stages(volume)[-1]

    def stages(self, volume: Tensor) -> list[Tensor]:
        """The feature maps after each of the four stages, see `features`."""
        model = self.model
        # With channels last, 3D convolutions on a CPU take about half of the time; the next layers keep the order.
        x = model.conv1(volume).contiguous(memory_format=torch.channels_last_3d)
        x = model.act(model.bn1(x))
        if not model.no_max_pool:
            x = model.maxpool(x)
        maps = []
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    def pool(self, features: Tensor) -> Tensor:
        """Last feature map [B, channels, d, h, w] -> the scan's vector [B, channels]."""
        return self.model.avgpool(features).flatten(1)

    def encode_scan(self, volume: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """See `ScanClassifier`."""
        return self.pool(self.features(volume, padding_mask))

    def stride(self, stage: int = 4) -> tuple[int, int, int]:
        """Voxels from one place of a stage's map (1 to 4) to the next: place i is centred on voxel i * stride."""
        first = cast(nn.Conv3d, self.model.conv1).stride
        more = 2 ** (stage - 1 if self.model.no_max_pool else stage)
        return first[0] * more, first[1] * more, first[2] * more

    @property
    def class_head(self) -> nn.Linear:
        """See `ScanClassifier`."""
        return cast(nn.Linear, self.model.fc)
