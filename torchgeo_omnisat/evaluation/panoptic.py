# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Panoptic quality of instances such as fields."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torchmetrics import Metric

#: Units of a sum of IoUs. Integers give the same sum in any order of samples and ranks, and exist on every device.
_UNIT = 2**30


class PanopticQuality(Metric):
    """Panoptic quality (PQ) with its factors segmentation quality (SQ) and recognition quality (RQ).

    Kirillov et al., "Panoptic Segmentation" (arXiv 1801.00868). A true and a predicted instance match if their class is
    the same and their intersection over union (IoU) is above 0.5. The class of an instance is the most frequent one of
    its pixels. As in the published evaluation of PASTIS (arXiv 2107.07933), void pixels are excluded from all other
    instances, and predictions that match a void instance are not scored. That of torchmetrics excludes them from the
    prediction alone and gives other values (``tests/evaluation/test_panoptic.py::test_published_values``).

    Args:
        num_classes: Number of classes K, with background and void.
        background: Class without instances, which is not scored, or None if there is none.
        void: Class that is not scored, or None if there is none.

    Raises:
        ValueError: If *background* or *void* is not a class.
    """

    full_state_update = False
    higher_is_better = True
    iou: Tensor
    matched: Tensor
    predicted: Tensor
    true: Tensor

    def __init__(self, num_classes: int, background: int | None = 0, void: int | None = None) -> None:
        super().__init__()
        for name, label in (('background', background), ('void', void)):
            if label is not None and not 0 <= label < num_classes:
                raise ValueError(f'{name} is {label}, expected a class from 0 to {num_classes - 1}')
        self.num_classes, self.void = num_classes, void
        self.unscored = [label for label in (background, void) if label is not None]
        for state in ('iou', 'matched', 'predicted', 'true'):
            self.add_state(state, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx='sum')

    def update(
        self,
        instance_pred: Int[Tensor, 'b h w'],
        semantic_pred: Int[Tensor, 'b h w'],
        instance_true: Int[Tensor, 'b h w'],
        semantic_true: Int[Tensor, 'b h w'],
    ) -> None:
        """Add a batch.

        Args:
            instance_pred: Predicted instance of each pixel; 0 is none.
            semantic_pred: Predicted class of each pixel.
            instance_true: True instance of each pixel; 0 is none.
            semantic_true: True class of each pixel.

        Raises:
            ValueError: If the shapes differ, or a class is not one of ``num_classes``.
        """
        maps = {
            'instance_pred': instance_pred,
            'semantic_pred': semantic_pred,
            'instance_true': instance_true,
            'semantic_true': semantic_true,
        }
        for name, values in maps.items():
            if values.shape != instance_pred.shape or values.ndim != 3:
                raise ValueError(f'{name} has shape {tuple(values.shape)}, expected (B, H, W) for all four maps')
            inside = not values.numel() or 0 <= values.min() <= values.max() < self.num_classes
            if name.startswith('semantic') and not inside:
                raise ValueError(
                    f'{name} has values from {int(values.min())} to {int(values.max())}, expected classes from 0 to '
                    f'{self.num_classes - 1}'
                )
        for sample in zip(*(values.flatten(1).long() for values in maps.values()), strict=True):
            self._add(*sample)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores.

        Returns:
            ``sq``, ``rq`` and ``pq``, means over the classes with an instance, and ``sq_per_class``, ``rq_per_class``
            and ``pq_per_class`` of shape ``(K,)``, NaN for classes without instances, background and void.
        """
        matched = self.matched.float()
        missing = self.true + self.predicted == 0
        missing[self.unscored] = True
        # 2 TP + FP + FN is the number of true and predicted instances.
        rq = (2 * matched / (self.true + self.predicted)).masked_fill(missing, torch.nan)
        sq = (self.iou.float() / _UNIT / matched.clamp(min=1)).masked_fill(missing, torch.nan)
        scores = {'sq': sq, 'rq': rq, 'pq': sq * rq}
        means = {name: values.nanmean() for name, values in scores.items()}
        return means | {f'{name}_per_class': values for name, values in scores.items()}

    def _add(self, instance_pred: Tensor, semantic_pred: Tensor, instance_true: Tensor, semantic_true: Tensor) -> None:
        """Add a sample of flattened maps."""
        pred = self._instances(instance_pred, semantic_pred)
        true = self._instances(instance_true, semantic_true)
        if self.void is not None:
            overlap = _iou(true, pred, torch.ones_like(instance_true, dtype=torch.bool)) > 0.5
            on_void = overlap[(true.classes == self.void) & true.exists].any(0)
            pred = pred._replace(scored=pred.scored & ~on_void)
        iou = _iou(true, pred, semantic_true != (-1 if self.void is None else self.void))
        match = (iou > 0.5) & (true.classes[:, None] == pred.classes) & true.scored[:, None] & pred.scored
        units = (iou.masked_fill(~match, 0).amax(1) * _UNIT).round().long()
        self.iou.index_add_(0, true.classes, units)
        self.matched.index_add_(0, true.classes, match.any(1).long())
        self.true.index_add_(0, true.classes, true.scored.long())
        self.predicted.index_add_(0, pred.classes, pred.scored.long())

    def _instances(self, ids: Tensor, classes: Tensor) -> '_Instances':
        unique, index = ids.unique(return_inverse=True)
        counts = (index * self.num_classes + classes).bincount(minlength=len(unique) * self.num_classes)
        most = counts.view(len(unique), self.num_classes).argmax(1)
        exists = unique != 0
        return _Instances(index, most, exists, exists & ~torch.isin(most, most.new_tensor(self.unscored)))


class _Instances(NamedTuple):
    """Instances of a sample: that of each pixel, their classes, whether they are more than 0, and scored."""

    places: Int[Tensor, ' p']
    classes: Int[Tensor, ' n']
    exists: Bool[Tensor, ' n']
    scored: Bool[Tensor, ' n']


def _iou(true: _Instances, pred: _Instances, keep: Bool[Tensor, ' p']) -> Tensor:
    """Return the IoU of each pair of instances ``(N, M)`` over the pixels to keep."""
    shape = len(true.classes), len(pred.classes)
    pairs = (true.places * shape[1] + pred.places)[keep]
    both = pairs.bincount(minlength=shape[0] * shape[1]).view(shape)
    either = both.sum(1, keepdim=True) + both.sum(0) - both
    return both / either.clamp(min=1)
