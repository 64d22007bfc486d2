"""What a model is trained for: modules whose forward pass takes a batch and gives its loss.

Beside the classes, a slice transformer can be trained for the dense objective: from the tokens of single slices, tell
which patches hold the lesion, whether the slice shows one, and how the lesion was rated. It teaches much from few
cases, since every patch of every slice in every plane is an example. No loss ever looks at an attention map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from mst.models.base import ScanClassifier
from mst.models.encoders import Encoder, encode_tokens, registers
from mst.models.resnet3d import ResNet3D
from mst.models.slice_transformer import SliceTransformer
from mst.models.slices import kept_slices, on_all_slices
from mst.training import processes

MIN_AREA = 0.002  # share of a slice that a lesion must fill for the slice to count as showing it
STAGES = (2, 3, 4)  # of a 3D ResNet, whose maps the dense objective is asked of
PATCH_WEIGHT = 4.0  # of patches that hold lesion against those that do not, as they are few


class DenseHeads(nn.Module):
    """Linear heads for the dense objective, on the tokens of an encoder.

    Args:
        encoder: whose tokens they take.
        ratings: how many ratings are predicted (the diameter included).
    """

    def __init__(self, encoder: Encoder, ratings: int) -> None:
        super().__init__()
        width = int(encoder.config.hidden_size)
        self.first_patch = 1 + registers(encoder)
        self.patch_head = nn.Linear(width, 1 + ratings)
        self.slice_head = nn.Linear(width, 1 + ratings)

    def forward(
        self, tokens: Tensor, patches: Tensor, area: Tensor, ratings: Tensor, padding: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            tokens: float32 [N, T, width], of those of the S slices of each of B cases that are no padding.
            patches: float32 [B, S, h, w], share of each patch that the lesion fills.
            area: float32 [B, S], share of each slice that it fills.
            ratings: float32 [B, R], 0..1; NaN where not known.
            padding: bool [B, S]; None: no slice is.
        """
        patch_logits = self.patch_head(tokens[:, self.first_patch :])
        slice_logits = self.slice_head(tokens[:, 0])
        there = slice(None) if padding is None else ~padding.flatten()
        share = patches.flatten(0, 1).flatten(1)[there]
        shown = (area > MIN_AREA).flatten()[there]
        loss = cross_entropy(slice_logits[:, 0], shown.float())
        ratings_of = ratings[:, None].expand(-1, area.shape[1], -1).flatten(0, 1)[there]
        each = cross_entropy(slice_logits[:, 1:], ratings_of.nan_to_num(), reduction="none")
        loss = loss + _mean(each, shown[:, None] & ~ratings_of.isnan())
        return loss + place_loss(patch_logits, share, ratings_of)


class ClassTraining(nn.Module):
    """A classifier trained for its classes, and for what is known beside them.

    The scan's vector can be asked for the ratings too: what makes a nodule malignant is then learnt from many answers
    instead of one (multi-task learning: Hussein et al., arXiv 1704.08797).

    Args:
        model: trained in place.
        ratings: how many ratings there are; 0: they are not asked.
        rating_weight: of telling them.
    """

    def __init__(self, model: ScanClassifier, ratings: int = 0, rating_weight: float = 0.0) -> None:
        super().__init__()
        self.model, self.rating_weight = model, rating_weight
        self.rating_head = nn.Linear(model.width, ratings) if ratings else None

    def forward(
        self,
        volume: Tensor,
        padding_mask: Tensor,
        probability: Tensor,
        lesion: Tensor | None = None,
        ratings: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar; see `class_loss` and `rating_loss`."""
        vector = self.model.encode_scan(volume, padding_mask if padding_mask.any() else None)
        loss = class_loss(self.model, vector, probability, lesion)
        if self.rating_head is None:
            return loss
        assert ratings is not None
        return loss + self.rating_weight * rating_loss(self.rating_head(vector), ratings)


class MapTraining(nn.Module):
    """A 3D ResNet trained to classify, with the dense objective on its feature maps beside it.

    Each place of a map tells how much of the tissue around it is lesion, and the ratings where there is some. Without
    it a 3D ResNet hardly learns from so few cases how large a lesion is.

    Args:
        model: trained in place.
        ratings: how many ratings are predicted.
        weight: of the dense objective.
        scan_weight: of telling the ratings from the scan's vector; 0: it is not asked.
    """

    def __init__(self, model: ResNet3D, ratings: int, weight: float = 0.5, scan_weight: float = 0.0) -> None:
        super().__init__()
        self.model, self.weight, self.scan_weight = model, weight, scan_weight
        widths = [model.width >> (STAGES[-1] - stage) for stage in STAGES]
        self.place_heads = nn.ModuleList(nn.Linear(width, 1 + ratings) for width in widths)
        self.scan_head = nn.Linear(model.width, ratings) if scan_weight else None

    def forward(
        self,
        volume: Tensor,
        padding_mask: Tensor,
        probability: Tensor,
        ratings: Tensor,
        lesion: Tensor | None = None,
        **places: Tensor,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            volume, padding_mask, probability, ratings, lesion: as in `JointTraining`.
            places: "places_2" and so on, for each of `STAGES`: float32 [B, d, h, w], share of the tissue around each
                place of the stage's map that the lesion fills.
        """
        maps = self.model.stages(volume)
        vector = self.model.pool(maps[-1])
        loss = class_loss(self.model, vector, probability, lesion)
        for stage, head in zip(STAGES, self.place_heads, strict=True):
            logits = head(maps[stage - 1].flatten(2).transpose(1, 2))  # [B, d * h * w, 1 + R]
            dense = place_loss(logits, places[f"places_{stage}"].flatten(1), ratings)
            loss = loss + self.weight / len(STAGES) * dense
        if self.scan_head is None:
            return loss
        return loss + self.scan_weight * rating_loss(self.scan_head(vector), ratings)


class JointTraining(nn.Module):
    """A slice transformer trained to classify, with the dense objective beside it.

    The dense objective keeps the encoder's features about the lesion while few labels are learnt from. The scan's
    vector can be asked for the ratings too, as in `ClassTraining`.

    Args:
        model: trained in place.
        ratings: how many ratings the dense objective predicts.
        weight: of the dense objective.
        scan_weight: of telling the ratings from the scan's vector; 0: it is not asked.
    """

    def __init__(
        self,
        model: SliceTransformer,
        ratings: int,
        weight: float = 0.5,
        scan_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.heads = DenseHeads(model.encoder, ratings)
        self.scan_head = nn.Linear(model.linear.in_features, ratings) if scan_weight else None
        self.weight, self.scan_weight = weight, scan_weight

    def heads_state(self) -> dict[str, Tensor]:
        """The weights of all that is not the model."""
        return {
            name: value.cpu().contiguous()
            for name, value in self.state_dict().items()
            if not name.startswith("model.")
        }

    def load_heads(self, state: dict[str, Tensor]) -> None:
        """Takes what `heads_state` gave; the model stays as it is.

        Raises:
            RuntimeError: they are heads for other questions.
        """
        own = {name: value for name, value in self.state_dict().items() if name.startswith("model.")}
        self.load_state_dict(own | state)

    def forward(
        self,
        volume: Tensor,
        padding_mask: Tensor,
        probability: Tensor,
        patches: Tensor,
        area: Tensor,
        ratings: Tensor,
        lesion: Tensor | None = None,
        corner: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            volume: as the model takes it; with `corner` each slice is a part of one.
            padding_mask: bool [B, D].
            probability: float32 [B], of the last of two classes.
            patches, area, ratings: as in `DenseHeads`, of the volume's D slices.
            lesion: float32 [B], 1 where there is a lesion at all; what kind it is is asked of these alone. None: all.
            corner: int64 [B, 2], see `encode_tokens`; None: slices are whole.
        """
        depth = volume.shape[2]
        corners = None if corner is None else corner.repeat_interleave(depth, dim=0)[~padding_mask.flatten()]
        slices = kept_slices(volume, padding_mask)
        tokens = encode_tokens(self.model.encoder, slices, self.model.class_layers, corners=corners)
        scan = self.model.fuse_slices(on_all_slices(tokens[:, 0], volume, padding_mask), padding_mask)
        loss = class_loss(self.model, scan, probability, lesion)
        loss = loss + self.weight * self.heads(tokens, patches, area, ratings, padding_mask)
        if self.scan_head is None:
            return loss
        return loss + self.scan_weight * rating_loss(self.scan_head(scan), ratings)


def class_loss(
    model: ScanClassifier, vector: Tensor, probability: Tensor, lesion: Tensor | None = None
) -> Tensor:
    """Soft cross-entropy of the classes, and of whether there is a lesion where the model tells that too.

    Args:
        vector: float32 [B, width], what the model classifies.
        probability: float32 [B], of the last of two classes.
        lesion: float32 [B], 1 where there is a lesion; None: everywhere. The classes of nothing are not asked.
    """
    target = torch.stack([1 - probability, probability], dim=1)
    each = nn.functional.cross_entropy(model.classify(vector), target, reduction="none")
    if lesion is None:
        return each.mean()
    loss = _mean(each, lesion)
    if model.lesion_head is not None:
        loss = loss + cross_entropy(model.lesion_head(vector)[:, 0], lesion)
    return loss


def place_loss(logits: Tensor, share: Tensor, ratings: Tensor) -> Tensor:
    """Of places in a slice or a volume: how much lesion they hold, and how it was rated.

    The ratings are asked of the lesion's places too: what is known of it should be found where it lies.

    Args:
        logits: float32 [N, P, 1 + R].
        share: float32 [N, P], of each place, that the lesion fills.
        ratings: float32 [N, R], 0..1; NaN where not known.
    """
    loss = cross_entropy(logits[..., 0], share, pos_weight=share.new_tensor(PATCH_WEIGHT))
    targets = ratings[:, None].expand(-1, share.shape[1], -1)
    each = cross_entropy(logits[..., 1:], targets.nan_to_num(), reduction="none")
    return loss + _mean(each, share[..., None] * ~targets.isnan())


def rating_loss(logits: Tensor, ratings: Tensor) -> Tensor:
    """Cross-entropy of ratings [B, R], each 0..1 or NaN where not known."""
    each = cross_entropy(logits, ratings.nan_to_num(), reduction="none")
    return _mean(each, ~ratings.isnan())


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean; 0 where there is no weight.

    Of several processes, each gives a share whose mean over the processes is the mean over all of their samples.
    """
    weights = weights.expand_as(values)
    return (values * weights).sum() * processes.count() / processes.total(weights.sum()).clamp_min(1)
