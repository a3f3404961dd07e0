# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Task for multi-label classification of tiles."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from matplotlib.figure import Figure
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample
from torchmetrics.classification import MultilabelF1Score

from ..evaluation.subsets import ClassificationScores
from ..losses import MultiLabelLoss
from ..modality import Modality, Which
from ..models import OmniSatClassifier
from ..transforms import ModalityDropout
from ..utils.finite import refuse_output
from .supervised import SupervisedTask


class OmniSatClassification(SupervisedTask):
    """Multi-label classification of tiles; ``test`` scores every subset of the modalities.

    The target is ``label`` ``(B, K)``: the genera of TreeSatAI, the crops of PASTIS, the
    covers of FLAIR. Labels are predicted at a threshold of 0.5.
    Besides TorchGeo's metrics, of which ``AverageF1Score`` is the macro F1, there is
    ``WeightedF1Score``, weighted by the number of samples with each label.

    If *modalities*, *label_names*, *patch_size*, *mean* or *std* are None, they are taken from
    the datamodule and saved in checkpoints.

    Args:
        backbone: Name of a builder in :mod:`torchgeo_omnisat.models`.
        modalities: Plain dictionaries of the modalities (:meth:`.Modality.as_dict`), or the
            modalities by name.
        label_names: Names of the K labels.
        patch_size: Side of a ground patch in metres.
        mean: Mean of every band by modality, in the units of the datasets.
        std: Standard deviation, in the same form. Images are normalised by these two whatever a
            datamodule measured, so that a checkpoint sees what it was trained on.
        weights: A checkpoint to take the backbone from; see :func:`.load_backbone`.
        freeze_backbone: Whether to train only the head; the backbone stays in evaluation mode.
        backbone_args: Further arguments of the builder, in plain types.
        loss: Asymmetric loss or binary cross-entropy; see :class:`.MultiLabelLoss`.
        modality_dropout: Probability that a training sample loses each of its modalities,
            or by name; see :class:`.ModalityDropout`.
        lr: Learning rate after the warm-up.
        weight_decay: Weight decay of AdamW.
        scheduler: Cosine schedule by step, or TorchGeo's reduction on a plateau of the validation loss.
        warmup: Fraction of the steps in which the learning rate rises to *lr*.
        patience: Epochs without progress before a plateau lowers the learning rate.
        sources: Mean and standard deviation by source, of a model that was trained on a mixture.
        statistics: The source whose statistics images are normalised with, where the model or *weights*
            know several and the data do not tell which; of one run, no checkpoint keeps it.
        subsets: Subsets of the modalities that ``test`` scores: all up to five modalities, and for more
            all of them, all but one, and single ones; ``'all'``; or names such as ``s1a+s2``. No
            checkpoint keeps it.
    """

    required: ClassVar[tuple[str, ...]] = ('modalities', 'label_names', 'patch_size')
    target: ClassVar[str] = 'label'
    headline: ClassVar[str] = 'AverageF1Score'

    def __init__(
        self,
        backbone: str = 'omnisat_small',
        modalities: Sequence[dict[str, Any]] | Mapping[str, Modality] | None = None,
        label_names: Sequence[str] | None = None,
        patch_size: float | None = None,
        mean: Mapping[str, Sequence[float]] | None = None,
        std: Mapping[str, Sequence[float]] | None = None,
        weights: str | None = None,
        freeze_backbone: bool = False,
        backbone_args: dict[str, Any] | None = None,
        loss: Literal['asymmetric', 'bce'] = 'asymmetric',
        modality_dropout: float | dict[str, float] = 0.2,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        scheduler: Literal['cosine', 'plateau'] = 'cosine',
        warmup: float = 0.05,
        patience: int = 10,
        sources: Mapping[str, dict[str, Any]] | None = None,
        statistics: str | None = None,
        subsets: Literal['auto', 'all'] | Sequence[str] = 'auto',
    ) -> None:
        """Build the model if all required arguments are given; otherwise the trainer builds it."""
        self.weights, self.statistics, self.subsets = weights, statistics, subsets
        super().__init__()

    def build(self) -> nn.Module:
        """Build the backbone with a head."""
        self.dropout = ModalityDropout(self.modalities, self.hparams['modality_dropout'])
        return OmniSatClassifier(self.build_backbone(), len(self.hparams['label_names']))

    def configure_losses(self) -> None:
        """Set the loss."""
        self.criterion = MultiLabelLoss(self.hparams['loss'])

    def configure_metrics(self) -> None:
        """Set up TorchGeo's metrics and the weighted F1, if the labels are configured."""
        if not self.is_configured:
            return
        names = self.hparams['label_names']
        # Read by the mix-in; left among the saved hyper-parameters, they would be unknown arguments.
        asked = {'task': 'multilabel', 'num_classes': None, 'num_labels': len(names), 'labels': names}
        self.hparams.update(asked | {'ignore_index': None})
        super().configure_metrics()
        for name in (*asked, 'ignore_index'):
            self.hparams.pop(name)
        for metrics in (self.train_metrics, self.val_metrics, self.test_metrics):
            metrics.add_metrics({'WeightedF1Score': MultilabelF1Score(len(names), average='weighted')})

    def predict_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """Predict the probabilities of the labels.

        Args:
            batch: Batch.
            batch_idx: Index of the batch.
            dataloader_idx: Index of the dataloader.

        Returns:
            ``probabilities`` ``(B, K)``, and ``bounds`` as in the batch or None.
        """
        logits = self(self.renormalise(batch))
        refuse_output(logits, batch, batch_idx, self.model)
        self.warn_without_modalities(batch)
        return {'probabilities': self.answer(logits), 'bounds': batch.get('bounds')}

    def answer(self, logits: Tensor) -> Tensor:
        """Return the probability of every label ``(B, K)``."""
        return logits.float().sigmoid()

    def draw(self, sample: Sample, answer: Tensor) -> Figure:
        """Draw a sample with its labels and the predicted labels."""
        said = f'{self._listed(sample["label"])}\nprediction: {self._listed(answer)}'
        figure: Figure = self.datamodule.plot(sample, suptitle=f'label: {said}')
        return figure

    def make_scores(self, names: Iterable[str], which: Which = 'auto') -> ClassificationScores:
        """Return the F1 scores of every subset."""
        return ClassificationScores(names, len(self.hparams['label_names']), which)

    def _listed(self, values: Tensor) -> str:
        """Return the names of the labels above 0.5."""
        held = [name for name, value in zip(self.hparams['label_names'], values.tolist(), strict=True) if value > 0.5]
        return ', '.join(held) or 'none'


class omnisat_classification(OmniSatClassification):
    """:class:`.OmniSatClassification` under its short name on the command line."""
