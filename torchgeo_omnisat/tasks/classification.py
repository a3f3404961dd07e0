# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Task for multi-label classification of tiles."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample
from torchmetrics import Metric
from torchmetrics.classification import MultilabelConfusionMatrix, MultilabelF1Score

from ..losses import MultiLabelLoss
from ..modality import Modality
from ..models import OmniSatClassifier
from .supervised import SupervisedTask, classification_metrics


class OmniSatClassification(SupervisedTask):
    """Task for multi-label classification of tiles; ``test`` scores every subset of the modalities.

    The target is ``label`` ``(B, K)``: genera of TreeSatAI, crops of PASTIS, land cover of
    FLAIR. Labels are predicted at a threshold of 0.5.
    Besides TorchGeo's metrics, of which ``AverageF1Score`` is the macro F1, it logs
    ``WeightedF1Score``, weighted by the number of samples with each label.

    If *modalities*, *label_names*, *patch_size*, *mean* or *std* are None, they are taken from
    the datamodule and saved in checkpoints.

    Args:
        backbone: Name of a builder in :mod:`torchgeo_omnisat.models`.
        modalities: Plain dictionaries of the modalities (:meth:`.Modality.as_dict`), or the
            modalities by name.
        label_names: Names of the K labels, at least two.
        patch_size: Side of a ground patch in metres.
        loss: ``'asymmetric'`` or ``'bce'``; see :class:`.MultiLabelLoss`.
        **kwargs: Arguments of :class:`.SupervisedTask` and :class:`.OmniSatTask`.
    """

    required: ClassVar[tuple[str, ...]] = ('modalities', 'label_names', 'patch_size')
    target: ClassVar[str] = 'label'
    subset_metrics = {'macro_f1': 'AverageF1Score', 'weighted_f1': 'WeightedF1Score'}
    score_title = 'macro F1'
    summary = {'macro F1': 'AverageF1Score', 'weighted F1': 'WeightedF1Score', 'mean accuracy': 'AverageAccuracy'}

    def __init__(
        self,
        backbone: str = 'omnisat_small',
        modalities: Sequence[dict[str, Any]] | Mapping[str, Modality] | None = None,
        label_names: Sequence[str] | None = None,
        patch_size: float | None = None,
        *,
        loss: Literal['asymmetric', 'bce'] = 'asymmetric',
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone=backbone, modalities=modalities, patch_size=patch_size, **kwargs)

    def build(self) -> nn.Module:
        """Build the backbone with a head."""
        if len(names := self.hparams['label_names']) < 2:  # metrics have an axis of labels
            raise ValueError(f'label_names is {names}, expected at least two')
        return OmniSatClassifier(self.build_backbone(), len(names))

    def configure_losses(self) -> None:
        """Set the loss."""
        self.criterion = MultiLabelLoss(self.hparams['loss'])

    def make_metrics(self) -> dict[str, Metric]:
        """Return TorchGeo's metrics of multi-label classification, and the weighted F1."""
        names = self.hparams['label_names']
        weighted = MultilabelF1Score(len(names), average='weighted', validate_args=False)
        metrics = classification_metrics('multilabel', num_labels=len(names), labels=names)
        return metrics | {'WeightedF1Score': weighted}

    def make_confusion(self) -> Metric:
        """Return the confusion of presence and absence of each label, ``(K, 2, 2)``."""
        return MultilabelConfusionMatrix(len(self.hparams['label_names']))

    def classes_in(self, batch: Sample) -> Tensor:
        """Return the labels of each sample, ``(B, K)`` bool."""
        return self.truth(batch) > 0

    def predict_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """Predict the probabilities of the labels.

        Returns:
            ``probabilities`` ``(B, K)``, and ``bounds`` as in the batch or None.
        """
        found = super().predict_step(batch, batch_idx, dataloader_idx)
        return {'probabilities': found['prediction'], 'bounds': found['bounds']}

    def truth(self, batch: Sample) -> Tensor:
        """Return the labels as integers."""
        return self.target_of(batch).to(torch.int64)

    def answer(self, logits: Tensor) -> Tensor:
        """Return the probability of every label ``(B, K)``."""
        return logits.float().sigmoid()

    def draw(self, sample: Sample, answer: Tensor) -> Figure:
        """Draw a sample with its labels and the predicted labels."""
        title = f'{self._listed(sample["label"])}\nprediction: {self._listed(answer)}'
        figure: Figure = self.datamodule.plot(sample, suptitle=f'label: {title}')
        return figure

    def _listed(self, values: Tensor) -> str:
        held = [name for name, value in zip(self.hparams['label_names'], values.tolist(), strict=True) if value > 0.5]
        return ', '.join(held) or 'none'


class omnisat_classification(OmniSatClassification):
    """:class:`.OmniSatClassification` under its short name on the command line."""
