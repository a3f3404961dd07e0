# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""OmniSatSegmentation: a class for every pixel, from whatever modalities are there."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample
from torchgeo.tasks import ClassificationMixin

from ..losses import CrossEntropyDice
from ..modality import Modality
from ..models import OmniSatSegmenter
from ..transforms import ModalityDropout
from .base import OmniSatTask
from .robustness import SubsetScores, write_figure, write_table


class OmniSatSegmentation(ClassificationMixin, OmniSatTask):
    """Semantic segmentation with an OmniSat; ``test`` scores every subset of the modalities.

    Whatever of *modalities*, *num_classes*, *labels*, *ignore_index*, *patch_size*,
    *label_gsd*, *mean* and *std* is None is asked of the datamodule, and saved.

    Where the ignored label is one of the classes, its logit becomes minus infinity before
    argmax and softmax, so that it neither wins nor counts.

    Args:
        backbone: Name of a builder in :mod:`torchgeo_omnisat.models`.
        modalities: Plain dictionaries of the modalities (:meth:`.Modality.as_dict`), or the
            modalities by name.
        num_classes: Number of classes K, an ignored one among them.
        labels: Names of the K classes.
        ignore_index: Label that is neither learnt nor scored.
        patch_size: Side of a ground patch in metres.
        label_gsd: Metres a pixel of the mask.
        mean: Mean of every band by modality, in the units of the datasets.
        std: Standard deviation, likewise. Images are normalised by these two whatever a
            datamodule measured, so that a checkpoint sees what it was trained on.
        weights: A checkpoint to take the backbone from; see :func:`.load_backbone`.
        freeze_backbone: Train the decoder alone; the backbone stays in evaluation.
        backbone_args: Further arguments of the builder, in plain types.
        loss: Cross-entropy, alone or with Dice.
        class_weights: Weight of each class in the loss.
        modality_dropout: Probability that a training sample loses each of its modalities,
            or by name; see :class:`.ModalityDropout`.
        lr: Learning rate after the warm-up.
        weight_decay: Weight decay of AdamW.
        scheduler: A cosine by step, or TorchGeo's plateau of the validation loss.
        warmup: Fraction of the steps in which the learning rate rises to *lr*.
        patience: Epochs without progress before a plateau lowers the learning rate.
    """

    required: ClassVar[tuple[str, ...]] = ('modalities', 'num_classes', 'patch_size', 'label_gsd')
    optional: ClassVar[tuple[str, ...]] = ('labels', 'ignore_index')

    #: Batches of each validation of which a figure is drawn.
    figures = 4

    def __init__(
        self,
        backbone: str = 'omnisat_small',
        modalities: Sequence[dict[str, Any]] | Mapping[str, Modality] | None = None,
        num_classes: int | None = None,
        labels: Sequence[str] | None = None,
        ignore_index: int | None = None,
        patch_size: float | None = None,
        label_gsd: float | None = None,
        mean: Mapping[str, Sequence[float]] | None = None,
        std: Mapping[str, Sequence[float]] | None = None,
        weights: str | None = None,
        freeze_backbone: bool = False,
        backbone_args: dict[str, Any] | None = None,
        loss: Literal['ce+dice', 'ce'] = 'ce+dice',
        class_weights: Sequence[float] | None = None,
        modality_dropout: float | dict[str, float] = 0.2,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        scheduler: Literal['cosine', 'plateau'] = 'cosine',
        warmup: float = 0.05,
        patience: int = 10,
    ) -> None:
        """Build the model if enough is known; otherwise the trainer has it built."""
        self.weights = weights
        super().__init__()

    @property
    def ignored(self) -> int | None:
        """The class whose label is ignored; None if the ignored label is no class."""
        index: int | None = self.hparams['ignore_index']
        return index if index is not None and 0 <= index < self.hparams['num_classes'] else None

    def build(self) -> nn.Module:
        """The backbone with a decoder."""
        self.dropout = ModalityDropout(self.modalities, self.hparams['modality_dropout'])
        return OmniSatSegmenter(self.build_backbone(), self.hparams['num_classes'], label_gsd=self.hparams['label_gsd'])

    def configure_losses(self) -> None:
        """The loss, once the classes are known."""
        if self.told:
            dice = {'ce+dice': 1.0, 'ce': 0.0}
            if self.hparams['loss'] not in dice:
                raise ValueError(f'loss is {self.hparams["loss"]!r}, expected one of {list(dice)}')
            self.criterion = CrossEntropyDice(
                self.hparams['ignore_index'], self.hparams['class_weights'], dice[self.hparams['loss']]
            )

    def configure_metrics(self) -> None:
        """TorchGeo's metrics, once the classes are known."""
        if not self.told:
            return
        labels, classes = self.hparams['labels'], self.hparams['num_classes']
        if labels is not None and len(labels) != classes:
            raise ValueError(f'there are {len(labels)} labels, expected one for each of {classes} classes: {labels}')
        # Read by the mix-in; left among the saved hyper-parameters, they would be unknown arguments.
        self.hparams.update(task='multiclass', num_labels=None)
        super().configure_metrics()
        for name in ('task', 'num_labels'):
            self.hparams.pop(name)

    def training_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The loss of a batch, some modalities of which are dropped.

        Args:
            batch: A batch with ``mask``.
            batch_idx: Index of the batch.
            dataloader_idx: Index of the dataloader.

        Returns:
            The loss.
        """
        batch = self.renormalise(batch)
        logits = self(self.dropout(batch))
        self.train_metrics.update(self.classes(logits), batch['mask'])
        loss: Tensor = self.criterion(logits, batch['mask'])
        self.log('train_loss', loss, batch_size=len(logits), prog_bar=True)
        self.say_blind(batch)
        return loss + self.idle()

    def validation_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and metrics of a batch, and a figure of its first sample.

        Args:
            batch: A batch with ``mask``.
            batch_idx: Index of the batch.
            dataloader_idx: Index of the dataloader.
        """
        logits = self(self.renormalise(batch))
        self._score(logits, batch, 'val')
        if batch_idx < self.figures and hasattr(self.datamodule, 'plot') and not self.trainer.sanity_checking:
            sample = {key: value[0].detach().cpu() for key, value in batch.items()}
            sample['prediction'] = self.classes(logits)[0].cpu()
            self.show(f'val/{batch_idx}', lambda: self.datamodule.plot(sample))

    def on_test_start(self) -> None:
        """Make room for the scores of every subset of the modalities that the data has."""
        theirs = getattr(self.datamodule, 'modalities', None) or self.modalities
        names = [name for name in self.modalities if name in theirs]
        self.subset_scores = SubsetScores(names, self.hparams['num_classes'], self.hparams['ignore_index'])
        self.subset_scores.to(self.device)

    def test_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and metrics with all modalities, and a count for every subset; each is encoded once.

        Args:
            batch: A batch with ``mask``.
            batch_idx: Index of the batch.
            dataloader_idx: Index of the dataloader.
        """
        out = self.model.backbone(self.renormalise(batch))
        logits = self.model.decode(out)
        self._score(logits, batch, 'test')
        order = list(self.modalities)
        for subset in self.subset_scores.subsets:
            held = out.available[:, [order.index(name) for name in subset]]
            prediction = None
            if subset == self.subset_scores.subsets[0]:
                prediction = self.classes(logits)
            elif held.any():
                prediction = self.classes(self.model.decode(self.model.backbone.restrict(out, subset)))
            self.subset_scores.update(subset, prediction, batch['mask'], held)

    def on_train_epoch_end(self) -> None:
        """Log the metrics of an epoch of training."""
        with _no_false_alarm():
            super().on_train_epoch_end()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of a validation."""
        with _no_false_alarm():
            super().on_validation_epoch_end()

    def on_test_epoch_end(self) -> None:
        """Log everything; write ``subsets.csv`` and ``subsets.png`` below :attr:`folder`.

        In a ``fast_dev_run`` no file is written.
        """
        with _no_false_alarm():
            super().on_test_epoch_end()
        rows = self.subset_scores.compute()
        self.log_dict({f'test_AverageJaccardIndex/{row.subset}': row.mean_iou for row in rows if row.samples})
        folder = self.folder
        if self.trainer.is_global_zero and not getattr(self.trainer, 'fast_dev_run', False):
            data = type(self.datamodule).__name__ if self.datamodule else 'dataloaders'
            data = 'synthetic' if getattr(self.datamodule, 'synthetic', False) else data
            write_table(rows, folder / 'subsets.csv', data)
            write_figure(rows, folder / 'subsets.png', data)
            rank_zero_info(f'Scores of {len(rows)} subsets of the modalities: {folder / "subsets.csv"}')

    def predict_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """Probabilities of the classes, and where they lie.

        Args:
            batch: A batch.
            batch_idx: Index of the batch.
            dataloader_idx: Index of the dataloader.

        Returns:
            ``probabilities`` ``(B, K, H, W)``, ``bounds`` and ``transform`` as in the batch
            or None, and ``window`` if the batch has one.
        """
        logits = self(self.renormalise(batch))
        self.say_blind(batch)
        where = {'window': batch['window']} if 'window' in batch else {}
        return {
            'probabilities': self.without_ignored(logits).softmax(dim=1),
            'bounds': batch.get('bounds'),
            'transform': batch.get('transform'),
            **where,
        }

    def without_ignored(self, logits: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)`` in which an ignored class is minus infinity."""
        if self.ignored is None:
            return logits
        return logits.index_fill(1, torch.tensor([self.ignored], device=logits.device), -torch.inf)

    def classes(self, logits: Tensor) -> Tensor:
        """The class of every pixel ``(B, H, W)``, never an ignored one."""
        return self.without_ignored(logits).argmax(dim=1)

    def _score(self, logits: Tensor, batch: Sample, stage: str) -> None:
        """Log the loss and update the metrics of a stage."""
        loss = self.criterion(logits, batch['mask'])
        self.log(f'{stage}_loss', loss, batch_size=len(logits), sync_dist=True)
        getattr(self, f'{stage}_metrics').update(self.classes(logits), batch['mask'])
        self.say_blind(batch)


@contextmanager
def _no_false_alarm() -> Iterator[None]:
    """Without torchmetrics' warning about metrics that share their state with another one."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'The ``compute`` method of metric Multiclass')
        yield
