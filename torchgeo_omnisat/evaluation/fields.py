# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Scores of the delineation of fields: objects, over- and under-segmentation, and boundaries."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from rasterio.features import sieve
from scipy.ndimage import label
from torch import Tensor
from torchmetrics import Metric

from ..losses.fields import boundaries

#: Units of a sum of fractions. Integers give the same sum in any order of samples and ranks.
_UNIT = 2**30


class FieldScores(Metric):
    """Scores of delineated fields, independent of their classes.

    Let T be a true field, P a predicted one, and P(T) the predicted field that shares the most pixels with T.

    * ``object_f1`` is 2 M / (number of T + number of P), where M is the number of pairs with an intersection over union
      (IoU) above 0.5, each T in at most one: the F1 score of objects, as in Fields of The World (arXiv 2409.16252).
    * ``over_segmentation`` is the mean over all T of 1 - area(T and P(T)) / area(T), 1 if there is no P(T).
    * ``under_segmentation`` is the mean over all T with a P(T) of 1 - area(T and P(T)) / area(P(T)). Both are of
      Clinton et al., "Accuracy Assessment Measures for Object-based Image Segmentation Goodness" (Photogrammetric
      Engineering and Remote Sensing 76, 2010), for the largest overlap as in Persello and Bruzzone, "A Novel Protocol
      for Accuracy Assessment in Classification of Very High Resolution Images" (IEEE TGRS 48, 2010).
    * ``boundary_f1`` is the F1 score of boundary pixels: precision is the fraction of predicted ones with a true one
      among the pixel and its eight neighbours, recall the fraction of true ones with a predicted one (Csurka et al.,
      "What is a good evaluation measure for semantic segmentation?", BMVC 2013, with a tolerance of one pixel). Counts
      are summed over all samples.

    Pixels of the class void are excluded. A predicted field of which more than half is void is not scored.

    Args:
        void: Class that is not scored, or None if there is none.
    """

    full_state_update = False
    higher_is_better = True
    objects: Tensor
    segmentation: Tensor
    edges: Tensor

    def __init__(self, void: int | None = None) -> None:
        super().__init__()
        self.void = void
        self.add_state('objects', torch.zeros(3, dtype=torch.int64), dist_reduce_fx='sum')
        self.add_state('segmentation', torch.zeros(3, dtype=torch.int64), dist_reduce_fx='sum')
        self.add_state('edges', torch.zeros(4, dtype=torch.int64), dist_reduce_fx='sum')

    def update(
        self,
        instance_pred: Int[Tensor, 'b h w'],
        semantic_pred: Int[Tensor, 'b h w'],
        instance_true: Int[Tensor, 'b h w'],
        semantic_true: Int[Tensor, 'b h w'],
    ) -> None:
        """Add a batch; arguments are those of :meth:`.PanopticQuality.update`, and *semantic_pred* is not used.

        Raises:
            ValueError: If the shapes differ.
        """
        for name, values in {'instance_true': instance_true, 'semantic_true': semantic_true}.items():
            if values.shape != instance_pred.shape or values.ndim != 3:
                raise ValueError(
                    f'{name} has shape {tuple(values.shape)}, expected (B, H, W) as instance_pred, '
                    f'{tuple(instance_pred.shape)}'
                )
        keep = torch.ones_like(semantic_true, dtype=torch.bool) if self.void is None else semantic_true != self.void
        for sample in zip(instance_pred, instance_true, keep, strict=True):
            self._add(*(values.flatten() for values in sample))
        pred, true = boundaries(instance_pred) & keep, boundaries(instance_true) & keep
        counts = [(pred & _near(true)).sum(), pred.sum(), (true & _near(pred)).sum(), true.sum()]
        self.edges += torch.stack(counts)

    def compute(self) -> dict[str, Tensor]:
        """Return ``object_f1``, ``over_segmentation``, ``under_segmentation`` and ``boundary_f1``; NaN if undefined."""
        matched, true, predicted = self.objects.float()
        over, under, covered = self.segmentation.float()
        near_pred, pred_edge, near_true, true_edge = self.edges.float()
        precision, recall = near_pred / pred_edge.clamp(min=1), near_true / true_edge.clamp(min=1)
        boundary = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
        return {
            'object_f1': 2 * matched / (true + predicted),
            'over_segmentation': over / _UNIT / true,
            'under_segmentation': under / _UNIT / covered,
            'boundary_f1': boundary.masked_fill(pred_edge + true_edge == 0, torch.nan),
        }

    def _add(self, pred: Int[Tensor, ' p'], true: Int[Tensor, ' p'], keep: Bool[Tensor, ' p']) -> None:
        """Add a sample of flattened maps."""
        pred_ids, pred_index = pred.unique(return_inverse=True)
        true_ids, true_index = true.unique(return_inverse=True)
        shape = len(true_ids), len(pred_ids)
        both = (true_index * shape[1] + pred_index)[keep].bincount(minlength=shape[0] * shape[1]).view(shape)
        true_area, pred_area = both.sum(1), both.sum(0)
        is_true = (true_ids != 0) & (true_area > 0)
        is_pred = (pred_ids != 0) & (2 * pred_area >= pred_index.bincount(minlength=shape[1]))
        iou = both / (true_area[:, None] + pred_area - both).clamp(min=1)
        matched = ((iou > 0.5) & is_true[:, None] & is_pred).sum()
        self.objects += torch.stack([matched, is_true.sum(), is_pred.sum()])
        shared, best = (both * is_pred)[is_true].max(1)
        covered = shared > 0
        over = 1 - shared / true_area[is_true]
        under = (1 - shared / pred_area[best].clamp(min=1))[covered]
        units = [(values * _UNIT).round().long().sum() for values in (over, under)]
        self.segmentation += torch.stack([*units, covered.sum()])


def connected_components(classes: Int[Tensor, 'b h w'], background: int | None = None) -> Int[Tensor, 'b h w']:
    """Return ids of the connected pixels of each class, from 1 in every sample; 4-connected.

    This is the baseline of field delineation: touching fields of one class are not separated.

    Args:
        classes: Class of each pixel.
        background: Class without fields, which gets the id 0.
    """
    found = [_components(sample.cpu().numpy(), background) for sample in classes]
    return torch.from_numpy(np.stack(found)).to(classes.device)


def merge_small(classes: Int[Tensor, 'b h w'], smallest: int) -> Int[Tensor, 'b h w']:
    """Return the classes with small connected components merged into their largest neighbour.

    This is GDAL's sieve filter, 4-connected, as in :func:`.write_parcels`.

    Args:
        classes: Class of each pixel.
        smallest: Minimum number of pixels of a component.
    """
    if not 2 <= smallest < classes[0].numel():  # GDAL merges nothing where all components are too small
        return classes
    found = [sieve(sample.cpu().numpy().astype(np.int32), smallest, connectivity=4) for sample in classes]
    return torch.from_numpy(np.stack(found)).to(classes)


def _components(classes: NDArray[np.int64], background: int | None) -> NDArray[np.int64]:
    ids = np.zeros(classes.shape, np.int64)
    for code in np.unique(classes):
        if code != background:
            parts, _ = label(classes == code)
            ids += np.where(parts > 0, parts + ids.max(), 0)
    return ids


def _near(edges: Bool[Tensor, 'b h w']) -> Bool[Tensor, 'b h w']:
    """Return a mask of pixels with an edge among themselves and their eight neighbours."""
    return F.max_pool2d(edges[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0
