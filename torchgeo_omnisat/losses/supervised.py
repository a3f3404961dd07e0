# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Losses of segmentation and of multi-label classification."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from segmentation_models_pytorch.losses._functional import soft_dice_score
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor, nn

from ..utils.plurals import counted
from ..utils.tensors.devices import require


class CrossEntropyDice(nn.Module):
    """Cross-entropy plus Dice loss over labelled pixels.

    Cross-entropy is the mean over the labelled pixels, weighted by class. Dice is that of
    :class:`segmentation_models_pytorch.losses.DiceLoss`: computed over the whole batch, then
    averaged over the classes with the same weights. A class without a pixel in the batch has
    loss 0, and an ignored class is excluded. Without labelled pixels the loss and its gradient
    are 0. The loss is computed in single precision.

    Args:
        ignore_index: Value of the mask to ignore; it may be a class.
        class_weights: Weight of each of the K classes; None for equal weights.
        dice_weight: Weight of the Dice loss relative to cross-entropy; 0 disables it.

    Raises:
        ValueError: If a weight is negative or not finite, or all class weights are 0.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        ignore_index: int | None = None,
        class_weights: Sequence[float] | Tensor | None = None,
        dice_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= dice_weight < float('inf'):
            raise ValueError(f'dice_weight is {dice_weight}, expected a finite number, at least 0')
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        if weights is not None and not (weights.isfinite().all() and weights.ge(0).all() and weights.any()):
            raise ValueError(f'class_weights is {weights.tolist()}, expected finite numbers, at least 0 and not all 0')
        self.ignore_index = ignore_index
        self.dice_weight = dice_weight
        self.register_buffer('class_weights', weights, persistent=False)

    def forward(
        self,
        logits: Float[Tensor, 'b k h w'],
        mask: Int[Tensor, 'b h w'],
        counted: Bool[Tensor, ' b'] | None = None,
    ) -> Float[Tensor, '']:
        """Return the loss of logits.

        Args:
            logits: Logits of K classes.
            mask: Labels from 0 to K - 1, or *ignore_index*.
            counted: Samples to use; None for all.

        Raises:
            ValueError: If the mask has another size or a label that is not a class, or there
                are not K class weights.
        """
        labelled = self._labelled(logits, mask)
        if counted is not None:
            labelled = labelled & counted[:, None, None]
        logits = logits.float()
        target = torch.where(labelled, mask, 0)
        weights = torch.ones_like(logits[0, :, 0, 0]) if self.class_weights is None else self.class_weights.float()
        each = F.cross_entropy(logits, target, weight=weights, reduction='none')
        total = (weights[target] * labelled).sum()
        loss = (each * labelled).sum() / total.clamp(min=torch.finfo(total.dtype).tiny)
        if self.dice_weight:
            loss = loss + self.dice_weight * self._dice(logits, target, labelled, weights)
        return loss

    def _dice(self, logits: Tensor, target: Tensor, labelled: Tensor, weights: Tensor) -> Float[Tensor, '']:
        """Return the mean over the classes of the Dice loss, as smp's, which an accelerator would wait for."""
        classes = torch.arange(logits.shape[1], device=logits.device)
        shown = labelled.unsqueeze(1)
        truth = ((target.unsqueeze(1) == classes[:, None, None]) & shown).to(logits.dtype)
        scores = soft_dice_score(logits.softmax(1) * shown, truth, smooth=0.0, eps=1e-7, dims=(0, 2, 3))
        each = (1 - scores) * truth.flatten(2).any(-1).any(0)
        if self.ignore_index is not None:
            weights = weights.masked_fill(classes == self.ignore_index, 0)
        return (each * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)

    def _labelled(self, logits: Float[Tensor, 'b k h w'], mask: Tensor) -> Tensor:
        """Validate the arguments and return which pixels are labelled."""
        size = (logits.shape[0], *logits.shape[2:])
        if tuple(mask.shape) != size:
            raise ValueError(
                f'mask has shape {tuple(mask.shape)}, expected {size} for logits of shape {tuple(logits.shape)}'
            )
        classes = logits.shape[1]
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ValueError(
                f'class_weights has {counted(len(self.class_weights), "entry")}, expected one for each of '
                f'{counted(classes, "class")}'
            )
        labelled = torch.ones_like(mask, dtype=torch.bool) if self.ignore_index is None else mask != self.ignore_index
        invalid = labelled & ((mask < 0) | (mask >= classes))
        expected = f'expected labels from 0 to {classes - 1}'
        expected += '' if self.ignore_index is None else f' or ignore_index={self.ignore_index}'

        def error() -> ValueError:
            return ValueError(f'mask contains {sorted(set(mask[invalid].tolist()))[:5]}, {expected}')

        require(~invalid.any(), f'mask contains other labels, {expected}', error)
        return labelled


class MultiLabelLoss(nn.Module):
    """Multi-label loss, averaged over samples and labels in single precision.

    ``'asymmetric'`` is timm's asymmetric loss (https://arxiv.org/abs/2009.14119), which reduces
    the weight of easy negatives.
    ``'bce'`` is binary cross-entropy.

    Args:
        kind: Name of the loss.

    Raises:
        ValueError: If *kind* is unknown.
    """

    def __init__(self, kind: str = 'asymmetric') -> None:
        super().__init__()
        kinds = {'asymmetric': AsymmetricLossMultiLabel, 'bce': nn.BCEWithLogitsLoss}
        if kind not in kinds:
            raise ValueError(f'loss is {kind!r}, expected one of {list(kinds)}')
        self.total = kinds[kind]()
        self.total.reduction = 'sum'  # not an argument in timm before 1.0.31, which always sums

    def forward(self, logits: Float[Tensor, 'b k'], label: Shaped[Tensor, 'b k']) -> Float[Tensor, '']:
        """Return the loss of logits.

        Args:
            logits: Logits of K labels.
            label: 1 if the tile has the label, else 0, in any type.

        Raises:
            ValueError: If a label is neither, or there are not K labels per sample.
        """
        if label.shape != logits.shape:
            raise ValueError(f'label has shape {tuple(label.shape)}, expected {tuple(logits.shape)} as the logits')
        wrong = (label != 0) & (label != 1)
        expected = 'expected 0 or 1'
        require(~wrong.any(), expected, lambda: ValueError(f'label is {float(label[wrong][0])}, {expected}'))
        loss: Tensor = self.total(logits.float(), label.float()) / label.numel()
        return loss
