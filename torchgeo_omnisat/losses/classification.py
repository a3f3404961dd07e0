# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Losses of multi-label classification."""

from jaxtyping import Float
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor, nn


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
        """Choose the loss."""
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
