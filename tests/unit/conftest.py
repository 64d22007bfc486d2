"""Small models with random weights; enough to check shapes, masks and geometry."""

import pytest
import torch

from mst.models import ResNet3D, ResNetSliceTransformer, SliceTransformer

GRID = {"shape": [8, 24, 24], "spacing_mm": [4.0, 2.0, 2.0]}


@pytest.fixture
def small_mst() -> SliceTransformer:
    torch.manual_seed(1)
    encoder = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 24,
        "patch_size": 6,
        "num_channels": 1,
        # DINOv2's own initial layer scale of 1 keeps the layers' contributions visible in tests
    }
    model = SliceTransformer(grid=GRID, encoder=encoder, slice_heads=4).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


@pytest.fixture
def small_resnet() -> ResNet3D:
    torch.manual_seed(2)
    return ResNet3D(grid=GRID, depth=10, width=4, first_kernel=3).eval()


@pytest.fixture
def small_mst_resnet() -> ResNetSliceTransformer:
    torch.manual_seed(3)
    return ResNetSliceTransformer(
        grid=GRID, depth=10, width=4, channels=1, first_kernel=3, slice_heads=4
    ).eval()
