# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Losses of segmentation and of multi-label classification."""

from collections.abc import Sequence

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor, nn


class CrossEntropyDice(nn.Module):
    """Cross-entropy plus Dice; ignored pixels take part in neither.

    Cross-entropy is the mean over the labelled pixels, weighted by class. Dice is that of
    :class:`segmentation_models_pytorch.losses.DiceLoss`: computed over the whole batch,
    then averaged over the classes, weighted likewise; a class without a pixel in the
    batch counts 0, and an ignored class is left out. Without any labelled pixel the loss
    is 0 and so is its gradient. Half-precision logits are computed in single precision.

    Args:
        ignore_index: Value of the mask that is not learnt from, one of the classes or not.
        class_weights: Weight of each of the K classes; equal ones if not given.
        dice_weight: Weight of Dice beside the cross-entropy; with 0 it is not computed.

    Raises:
        ValueError: If a weight is negative or not finite, or no class has any.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        ignore_index: int | None = None,
        class_weights: Sequence[float] | Tensor | None = None,
        dice_weight: float = 1.0,
    ) -> None:
        """Keep the weights as a buffer that no checkpoint holds."""
        super().__init__()
        if not 0 <= dice_weight < float('inf'):
            raise ValueError(f'dice_weight is {dice_weight}, expected a finite number, not negative')
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        if weights is not None and not (weights.isfinite().all() and weights.ge(0).all() and weights.any()):
            raise ValueError(f'class_weights are {weights.tolist()}, expected finite numbers, none negative, not all 0')
        self.ignore_index = ignore_index
        self.dice_weight = dice_weight
        self.register_buffer('class_weights', weights, persistent=False)

    def forward(self, logits: Float[Tensor, 'b k h w'], mask: Int[Tensor, 'b h w']) -> Float[Tensor, '']:
        """Compare logits with labels.

        Args:
            logits: Unnormalised log-probabilities of K classes.
            mask: Labels from 0 to K - 1, or *ignore_index*.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: If the mask has another size or a label that is no class, or there
                are not K class weights.
        """
        labelled = self._labelled(logits, mask)
        logits = logits.float()
        target = torch.where(labelled, mask, 0)
        weights = torch.ones_like(logits[0, :, 0, 0]) if self.class_weights is None else self.class_weights
        each = F.cross_entropy(logits, target, weight=weights, reduction='none')
        total = (weights[target] * labelled).sum()
        loss = (each * labelled).sum() / total.clamp(min=torch.finfo(total.dtype).tiny)
        if self.dice_weight:
            loss = loss + self.dice_weight * self._dice(logits, mask)
        return loss

    def _dice(self, logits: Float[Tensor, 'b k h w'], mask: Int[Tensor, 'b h w']) -> Float[Tensor, '']:
        """One minus the Dice coefficient, averaged over the classes that are not ignored."""
        scored = [k for k in range(logits.shape[1]) if k != self.ignore_index]
        dice = smp.losses.DiceLoss(
            'multiclass', classes=scored, ignore_index=self.ignore_index, class_weights=self.class_weights
        )
        return dice(logits, mask)

    def _labelled(self, logits: Float[Tensor, 'b k h w'], mask: Tensor) -> Tensor:
        """Which pixels have a label, once everything is known to fit."""
        expected = (logits.shape[0], *logits.shape[2:])
        if tuple(mask.shape) != expected:
            raise ValueError(
                f'mask is {tuple(mask.shape)}, expected {expected} as the logits are {tuple(logits.shape)}'
            )
        classes = logits.shape[1]
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ValueError(
                f'there are {len(self.class_weights)} class_weights, expected one for each of {classes} classes'
            )
        labelled = torch.ones_like(mask, dtype=torch.bool) if self.ignore_index is None else mask != self.ignore_index
        strange = labelled & ((mask < 0) | (mask >= classes))
        if strange.any():
            raise ValueError(
                f'mask holds {sorted(set(mask[strange].tolist()))[:5]}, expected labels from 0 to {classes - 1}'
                + ('' if self.ignore_index is None else f', or {self.ignore_index} where there is none')
            )
        return labelled


class MultiLabelLoss(nn.Module):
    """A binary loss for each label, averaged over samples and labels, in single precision.

    ``'asymmetric'`` is timm's asymmetric loss (https://arxiv.org/abs/2009.14119): of the
    many labels that a tile does not have, those that are easily denied hardly count.
    ``'bce'`` is binary cross-entropy.

    Args:
        kind: Which of them.

    Raises:
        ValueError: If there is no such loss.
    """

    def __init__(self, kind: str = 'asymmetric') -> None:
        super().__init__()
        kinds = {'asymmetric': AsymmetricLossMultiLabel, 'bce': nn.BCEWithLogitsLoss}
        if kind not in kinds:
            raise ValueError(f'loss is {kind!r}, expected one of {list(kinds)}')
        self.total = kinds[kind]()
        self.total.reduction = 'sum'  # set like this because timm before 1.0.31 takes no such argument, and always sums

    def forward(self, logits: Float[Tensor, 'b k'], label: Float[Tensor, 'b k']) -> Float[Tensor, '']:
        """Compare logits with labels.

        Args:
            logits: One a label.
            label: 1 where the tile has the label, else 0.

        Returns:
            The loss, a scalar.
        """
        loss: Tensor = self.total(logits.float(), label) / label.numel()
        return loss
