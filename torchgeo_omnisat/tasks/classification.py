# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""OmniSatClassification: which labels a tile has, from whatever modalities are there."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from matplotlib.figure import Figure
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample
from torchmetrics.classification import MultilabelF1Score

from ..losses import MultiLabelLoss
from ..modality import Modality, Which
from ..models import OmniSatClassifier
from ..transforms import ModalityDropout
from .finite import refuse_output
from .subsets import ClassificationScores
from .supervised import SupervisedTask


class OmniSatClassification(SupervisedTask):
    """Multi-label classification with an OmniSat; ``test`` scores every subset of the modalities.

    The target is ``label`` ``(B, K)``: the genera of TreeSatAI, the crops of PASTIS, the
    covers of FLAIR. A label whose probability is above one half is said to be there.
    Besides TorchGeo's metrics, of which ``AverageF1Score`` is the macro F1, there is
    ``WeightedF1Score``, weighted by how many samples have each label.

    Whatever of *modalities*, *label_names*, *patch_size*, *mean* and *std* is None is
    asked of the datamodule, and saved.

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
        freeze_backbone: Train the head alone; the backbone stays in evaluation.
        backbone_args: Further arguments of the builder, in plain types.
        loss: The asymmetric loss or binary cross-entropy; see :class:`.MultiLabelLoss`.
        modality_dropout: Probability that a training sample loses each of its modalities,
            or by name; see :class:`.ModalityDropout`.
        lr: Learning rate after the warm-up.
        weight_decay: Weight decay of AdamW.
        scheduler: A cosine by step, or TorchGeo's plateau of the validation loss.
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
        """Build the model if enough is known; otherwise the trainer has it built."""
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
        """TorchGeo's metrics and the weighted F1, once the labels are known."""
        if not self.told:
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
        """Probabilities of the labels, and where the tiles lie.

        Args:
            batch: A batch.
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
        """F1 for every subset."""
        return ClassificationScores(names, len(self.hparams['label_names']), which)

    def _listed(self, values: Tensor) -> str:
        """Names of the labels above one half."""
        held = [name for name, value in zip(self.hparams['label_names'], values.tolist(), strict=True) if value > 0.5]
        return ', '.join(held) or 'none'
