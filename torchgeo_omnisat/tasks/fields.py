# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Fields of a batch from the output of a segmentation model, and their scores."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..evaluation.fields import FieldScores, connected_components, merge_small
from ..evaluation.panoptic import PanopticQuality
from ..evaluation.subsets import SubsetRow, SubsetScores
from ..modality import Which
from ..models.segmentation import FieldMaps
from ..prediction.fields.segmentation import segment_fields
from ..utils.atomic import atomic_file

#: Names of the logged scores of fields, by column of ``subsets.csv``.
FIELD_METRICS = {
    'pq': 'PanopticQuality',
    'sq': 'SegmentationQuality',
    'rq': 'RecognitionQuality',
    'object_f1': 'ObjectF1',
    'over_segmentation': 'OverSegmentation',
    'under_segmentation': 'UnderSegmentation',
    'boundary_f1': 'BoundaryF1',
}
#: Minimum area of a field, and of a parcel of the baseline, in hectares; the defaults of ``GeoTIFFWriter``.
SMALLEST = 0.1
#: Prefix of the columns of the baseline, connected pixels of one class.
BASELINE = 'components_'
#: Names of all scores that are logged, by column.
LOGGED = {**FIELD_METRICS, f'{BASELINE}pq': 'ComponentsPanopticQuality'}


class FoundFields(NamedTuple):
    """Predicted fields.

    Attributes:
        ids: Field of each pixel, from 1 in every sample, and 0 for none, ``(B, H, W)`` int64.
        classes: Class of each pixel, ``(B, H, W)`` int64: in a field that of the field, elsewhere that of the pixel.
    """

    ids: Tensor
    classes: Tensor


def smallest_pixels(gsd: float) -> int:
    """Return the minimum size of a field, :data:`SMALLEST`, in pixels of a GSD in metres."""
    return math.ceil(SMALLEST * 1e4 / gsd**2 - 1e-9)


def repeat_pixels(values: Tensor, factor: int) -> Tensor:
    """Return a map ``(..., H, W)`` with each pixel as *factor* x *factor* pixels."""
    return values if factor == 1 else values.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def find_fields(
    probabilities: Tensor, maps: FieldMaps, observed: Tensor, smallest: int = 1, background: int | None = None
) -> FoundFields:
    """Return the fields of every sample, with the class of the largest mean probability in each.

    With the defaults of the segmentation, and the size and class excluded here, they are those of a predicted area.

    Args:
        probabilities: Probabilities of the classes, ``(B, K, H, W)``.
        maps: Extent and distance.
        observed: Pixels that a modality observed, ``(B, H, W)`` bool.
        smallest: Minimum size of a field in pixels; smaller ones are removed.
        background: Class outside of fields, which is not chosen for a field; None if there is none.
    """
    parts = maps.extent.float().softmax(1), maps.distance.float()
    extent, distance = (part.detach().cpu().numpy() for part in parts)
    samples = zip(extent, distance, observed.cpu().numpy(), strict=True)
    found = [segment_fields(*sample, smallest=smallest) for sample in samples]
    ids = torch.from_numpy(np.stack(found)).to(probabilities.device, torch.int64)
    classes = [_classes(*sample, background) for sample in zip(probabilities, ids, strict=True)]
    return FoundFields(ids, torch.stack(classes))


def _classes(probabilities: Tensor, ids: Tensor, background: int | None) -> Tensor:
    flat, index = probabilities.float().flatten(1), ids.flatten()
    sums = flat.new_zeros(len(flat), int(index.max()) + 1).index_add_(1, index, flat)
    if background is not None:
        sums[background] = -torch.inf
    return torch.where(index > 0, sums.argmax(0)[index], flat.argmax(0)).view(ids.shape)


def observed_fields(maps: FieldMaps | None, seen: Tensor) -> dict[str, Tensor | None]:
    """Return ``extent`` and ``distance`` of a prediction, 0 where *seen* ``(B, H, W)`` is; empty without *maps*.

    The maps may be finer than *seen* by a whole factor.
    """
    if maps is None:
        return {}
    unseen = repeat_pixels(seen == 0, maps.distance.shape[-1] // seen.shape[-1])
    extent = maps.extent.softmax(dim=1).masked_fill(unseen[:, None], 0)
    return {'extent': extent, 'distance': maps.distance.masked_fill(unseen, 0)}


class SubsetFieldScores(torch.nn.Module):
    """Scores of fields, and of connected pixels of one class, for every subset of the modalities.

    Args:
        names: Names of the modalities.
        which: Subsets to score; see :func:`.subsets`.
        num_classes: Number of classes K.
        background: Class outside of fields; None if there is none.
        ignore_index: Label that is not scored, which may be a class; None if there is none.
        label_gsd: GSD of the maps in metres, for the minimum area of connected pixels, :data:`SMALLEST`.
    """

    def __init__(
        self,
        names: Iterable[str],
        which: Which,
        num_classes: int,
        background: int | None,
        ignore_index: int | None,
        label_gsd: float,
    ) -> None:
        super().__init__()
        names = list(names)
        self.smallest = smallest_pixels(label_gsd)
        self.void, self.background, self.ignore_index = num_classes, background, ignore_index
        metrics = {
            'panoptic': PanopticQuality(num_classes + 1, background, self.void),
            'fields': FieldScores(self.void),
        }
        self.fields = SubsetScores(names, which, metrics, 'panoptic quality')
        self.components = SubsetScores(names, which, metrics, 'panoptic quality')

    def update(
        self,
        subset: tuple[str, ...],
        found: FoundFields | None,
        classes: Tensor | None,
        instances: Tensor,
        mask: Tensor,
        available: Tensor,
        labelled: Tensor,
    ) -> None:
        """Update the scores of one subset; see :meth:`.SubsetScores.update`.

        Args:
            subset: Names of its S modalities.
            found: Predicted fields; None if no sample has any of the modalities.
            classes: Predicted class of each pixel ``(B, H, W)``, for the baseline.
            instances: True field of each pixel ``(B, H, W)``.
            mask: True class of each pixel ``(B, H, W)``.
            available: Modalities available in each sample, ``(B, S)`` bool.
            labelled: Samples with a label, ``(B,)`` bool.
        """
        if self.ignore_index is not None:
            mask = mask.masked_fill(mask == self.ignore_index, self.void)
        target = instances, mask
        self.fields.update(subset, found, target, available, labelled)
        parts = None
        if classes is not None:
            classes = merge_small(classes, self.smallest)
            parts = connected_components(classes, self.background), classes
        self.components.update(subset, parts, target, available, labelled)

    def rows(self) -> list[dict[str, float]]:
        """Return the scores of every subset by column."""
        pairs = zip(self.fields.compute(), self.components.compute(), strict=True)
        return [
            {column: fields.scores[column] for column in FIELD_METRICS}
            | {f'{BASELINE}{column}': parts.scores[column] for column in FIELD_METRICS}
            for fields, parts in pairs
        ]

    def write_classes(self, path: Path, rows: Sequence[SubsetRow], labels: Sequence[str]) -> None:
        """Write SQ, RQ and PQ of every subset and class as CSV, of fields and of connected pixels."""
        lines = []
        for row in rows:
            for index, label in enumerate(labels):
                line: dict[str, Any] = {'subset': row.subset, 'class': label}
                for prefix, scores in (('', self.fields), (BASELINE, self.components)):
                    found: Mapping[str, Tensor] = scores.metrics_of(row.subset)['panoptic'].compute()
                    line |= {f'{prefix}{name}': float(found[f'{name}_per_class'][index]) for name in ('pq', 'sq', 'rq')}
                if not np.isnan([line['pq'], line[f'{BASELINE}pq']]).all():
                    lines.append(line)
        with atomic_file(path) as temporary:
            pd.DataFrame(lines).to_csv(temporary, index=False, float_format='%.6f', na_rep='nan')
