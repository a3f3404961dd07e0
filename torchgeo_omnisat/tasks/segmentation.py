# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Task for semantic segmentation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from ..evaluation.subsets import SubsetRow
from ..losses import CrossEntropyDice, FieldLoss, FieldTargets, field_targets
from ..modality import Modality, Which, finer_factor
from ..models import OmniSatSegmenter
from ..models.omnisat import OmniSatOutput
from ..models.segmentation import FieldMaps, resize
from ..prediction import seen_bits
from ..utils.checks import check_choice
from ..utils.plurals import counted
from ..utils.tensors.finite import refuse_output
from .console.results import SMALLEST
from .dense import FLIPS, DenseTask, flipped_back
from .fields import LOGGED, FoundFields, SubsetFieldScores, find_fields, observed_fields, repeat_pixels, smallest_pixels
from .supervised import classification_metrics

#: Maximum number of classes.
MOST_CLASSES = 4096
#: Maximum number of classes of a confusion matrix.
MOST_CONFUSED = 512
#: Keys of the targets of fields in a training batch.
_TARGETS = ('field_extent', 'field_distance')


class OmniSatSegmentation(DenseTask):
    """Task for semantic segmentation; ``test`` scores every subset of the modalities.

    If *modalities*, *num_classes*, *labels*, *ignore_index*, *background*, *patch_size*, *label_gsd*, *mean* or
    *std* are None, they are taken from the datamodule and saved in checkpoints.

    If the ignored label is one of the classes, its logit becomes minus infinity before
    argmax and softmax. It is then neither predicted nor scored.

    Args:
        backbone: Name of a builder in :mod:`torchgeo_omnisat.models`.
        modalities: Plain dictionaries of the modalities (:meth:`.Modality.as_dict`), or the
            modalities by name.
        num_classes: Number of classes K, including an ignored one.
        labels: Names of the K classes.
        ignore_index: Label ignored in loss and metrics.
        patch_size: Side of a ground patch in metres.
        label_gsd: GSD of the mask in metres.
        loss: ``'ce+dice'`` for cross-entropy with Dice, or ``'ce'``.
        class_weights: Weight of each class in the loss.
        modality_dropout: Probability of dropping each modality of a training tile, or probabilities by name; see
            :class:`.ModalityDropout`.
        subset_weight: If positive, each step trains on the tile with all modalities, and with those
            that remain after dropout. The loss of the latter has this weight relative to the
            former; the tile is encoded once. If 0, only the remaining ones are used.
        distill: Weight of a distillation loss: the divergence of the class probabilities after dropout
            from those of all modalities. If positive, tiles are used as with *subset_weight*.
        decoder_width: Channels of the decoder and the experts at the GSD of the labels, see
            :class:`.OmniSatSegmenter`. A checkpoint without this hyper-parameter has 32. The baselines have none.
        decoder_dropout: Probability of dropping each of these channels before the logits in training, see
            :class:`.OmniSatSegmenter`.
        experts: Whether each modality has a head on its own feature maps, whose logits are added to those of the
            decoder; see :class:`.OmniSatSegmenter`. The baselines have none. A checkpoint without this
            hyper-parameter was trained without experts.
        expert_weight: Weight of the loss of each expert alone, averaged over the modalities (deep supervision).
        instances: Whether to delineate fields, the instances of crops: the model has a second head for their extent
            and the distance to their edge, see :class:`.OmniSatSegmenter`, and batches have ``instances``.
        instance_weight: Weight of the loss of this head, see :class:`.FieldLoss`.
        field_gsd: GSD in metres of the maps of this head, *label_gsd* divided by a whole number; None for *label_gsd*.
            Sensors with finer feature maps than those of the labels then show boundaries that the labels cannot.
        background: Class outside of fields, which the scores of fields exclude; None if there is none.
        lr: Learning rate after the warm-up.
        tta: Whether validation, test and prediction average the class probabilities over each tile, its two flips and
            its rotation by 180 degrees (test-time augmentation), at four times the cost. Not saved in checkpoints.
        **kwargs: Arguments of :class:`.SupervisedTask` and :class:`.OmniSatTask`.

    Raises:
        ValueError: If an argument is invalid or does not fit the others. Arguments that come from the
            datamodule are validated when the trainer builds the model.
    """

    required: ClassVar[tuple[str, ...]] = ('modalities', 'num_classes', 'patch_size', 'label_gsd')
    optional: ClassVar[tuple[str, ...]] = ('labels', 'ignore_index', 'background')
    weights_of_losses = (*DenseTask.weights_of_losses, 'distill', 'instance_weight')
    older: ClassVar[Mapping[str, Any]] = {**DenseTask.older, 'instances': False, 'field_gsd': None}
    subset_metrics = {'mean_iou': 'AverageJaccardIndex', 'overall_accuracy': 'OverallAccuracy'}
    score_title = 'mean IoU'
    summary = {'mean IoU': 'AverageJaccardIndex', 'mean F1': 'AverageF1Score', 'overall accuracy': 'OverallAccuracy'}

    def __init__(
        self,
        backbone: str = 'omnisat_small',
        modalities: Sequence[dict[str, Any]] | Mapping[str, Modality] | None = None,
        num_classes: int | None = None,
        labels: Sequence[str] | None = None,
        ignore_index: int | None = None,
        patch_size: float | None = None,
        label_gsd: float | None = None,
        *,
        loss: Literal['ce+dice', 'ce'] = 'ce+dice',
        class_weights: Sequence[float] | None = None,
        modality_dropout: float | dict[str, float] = 0.3,
        subset_weight: float = 1.0,
        distill: float = 0.0,
        decoder_width: int = 48,
        decoder_dropout: float = 0.0,
        experts: bool = True,
        expert_weight: float = 1.0,
        instances: bool = False,
        instance_weight: float = 1.0,
        field_gsd: float | None = None,
        background: int | None = None,
        lr: float = 4e-3,
        tta: bool = False,
        **kwargs: Any,
    ) -> None:
        self.tta = tta
        kwargs |= {'patch_size': patch_size, 'modality_dropout': modality_dropout, 'lr': lr}
        super().__init__(backbone=backbone, modalities=modalities, **kwargs)

    @property
    def ignored(self) -> int | None:
        """The class whose label is ignored; None if it is not a class."""
        index: int | None = self.hparams['ignore_index']
        return index if index is not None and 0 <= index < self.hparams['num_classes'] else None

    @property
    def with_instances(self) -> bool:
        """Whether the task delineates fields, so that its datamodule reads their instances."""
        return bool(self.hparams['instances'])

    @property
    def field_gsd(self) -> float | None:
        """GSD of the maps of fields in metres, for the datamodule; None if it is that of the labels."""
        gsd: float | None = self.hparams.get('field_gsd') if self.with_instances else None
        return gsd

    @property
    def field_factor(self) -> int:
        """GSD of the labels over that of the maps of fields, a whole number."""
        return finer_factor(self.hparams['label_gsd'], self.field_gsd, 'field_gsd')

    def build(self) -> nn.Module:
        """Build the backbone with a decoder."""
        classes = self.hparams['num_classes']
        if not 1 <= classes <= MOST_CLASSES:  # metrics count all pairs of classes
            raise ValueError(f'num_classes is {classes}, expected 1 to {MOST_CLASSES}')
        if (background := self.hparams['background']) not in (None, *range(classes)):
            raise ValueError(f'background is {background}, expected None or a class from 0 to {classes - 1}')
        return OmniSatSegmenter(
            self.build_backbone(),
            classes,
            self.hparams['label_gsd'],
            self.decoder_width,
            experts=self.with_experts,
            instances=self.with_instances,
            field_gsd=self.hparams.get('field_gsd'),
            dropout=self.decoder_dropout,
        )

    def configure_losses(self) -> None:
        """Set the loss, once all required hyper-parameters are set."""
        super().configure_losses()
        if self.is_configured:
            dice = {'ce+dice': 1.0, 'ce': 0.0}
            check_choice(loss=(self.hparams['loss'], dice))
            weights, classes = self.hparams['class_weights'], self.hparams['num_classes']
            if weights is not None and len(weights) != classes:
                found, expected = counted(len(weights), 'entry'), counted(classes, 'class')
                raise ValueError(f'class_weights has {found}, expected one for each of {expected}')
            self.criterion = CrossEntropyDice(self.hparams['ignore_index'], weights, dice[self.hparams['loss']])
            if self.with_instances:
                self.field_criterion = FieldLoss()

    def make_metrics(self) -> dict[str, Metric]:
        """Return TorchGeo's metrics of semantic segmentation."""
        labels, classes = self.hparams['labels'], self.hparams['num_classes']
        if labels is not None and len(labels) != classes:
            raise ValueError(f'labels are {labels}, expected one for each of {counted(classes, "class")}')
        ignored = self.hparams['ignore_index']
        return classification_metrics('multiclass', num_classes=classes, labels=labels, ignore_index=ignored)

    def make_confusion(self) -> Metric | None:
        """Return the confusion matrix of the classes of pixels; None if there is one class, or very many."""
        classes, ignored = self.hparams['num_classes'], self.hparams['ignore_index']
        return MulticlassConfusionMatrix(classes, ignore_index=ignored) if 1 < classes <= MOST_CONFUSED else None

    def classes_in(self, batch: Sample) -> Tensor:
        """Return which classes cover more than a fiftieth of each sample, ``(B, K)`` bool."""
        mask, classes = self.truth(batch).flatten(1), self.hparams['num_classes']
        known = [sample[(sample >= 0) & (sample < classes)] for sample in mask]
        counts = torch.stack([sample.bincount(minlength=classes) for sample in known])
        if self.ignored is not None:
            counts[:, self.ignored] = 0
        return counts > SMALLEST * mask.shape[1]

    def labelled(self, batch: Sample) -> Tensor:
        """Return which samples of a batch have a labelled pixel, ``(B,)``."""
        mask, ignored = batch['mask'], self.hparams['ignore_index']
        return super().labelled(batch) if ignored is None else (mask != ignored).flatten(1).any(1)

    @property
    def trains_on_both(self) -> bool:
        """Whether each step trains on all modalities, and on those that remain after dropout."""
        return bool(self.hparams['subset_weight'] or self.hparams['distill']) and self.drops

    def distillation_loss(self, student: Tensor, teacher: Tensor, batch: Sample) -> Tensor | float:
        """Return the weighted divergence of the class probabilities; see *distill*."""
        if not self.hparams['distill']:
            return 0.0
        mask, ignored = self.target_of(batch), self.hparams['ignore_index']
        if self.ignored is not None:
            before, after = slice(self.ignored), slice(self.ignored + 1, None)
            student, teacher = (torch.cat([x[:, before], x[:, after]], 1) for x in (student, teacher))
        counted = torch.ones_like(mask, dtype=torch.bool) if ignored is None else mask != ignored
        return self.hparams['distill'] * divergence(student, teacher, counted)

    def infer_from(
        self, out: OmniSatOutput, opinions: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, FieldMaps | None]:
        """Return the same from the output of the backbone, and of the experts if it was already computed.

        With *tta* it is the output for :meth:`views`, and the logits are logarithms of the mean probabilities.
        """
        more: FieldMaps | None = None
        if self.with_instances:
            logits, more = self.model.decode_fields(out, opinions)
        else:
            logits = self.model.decode(out, opinions)
        if not self.flips:
            return logits, more
        if more is not None:
            more = FieldMaps(mean_of_views(more.extent), flipped_back(more.distance).mean(0))
        return mean_of_views(logits), more

    def loss(self, logits: Tensor, more: FieldMaps | None, batch: Sample) -> Tensor:
        """Return the loss of classes and, with *instances*, of the boundaries of fields."""
        loss, mask, ignored = super().loss(logits, more, batch), self.target_of(batch), self.hparams['ignore_index']
        if more is None:
            return loss
        labelled = torch.ones_like(mask, dtype=torch.bool) if ignored is None else mask != ignored
        labelled = repeat_pixels(labelled, self.field_factor)
        of_fields: Tensor = self.field_criterion(more.extent, more.distance, self._field_targets(batch), labelled)
        return loss + self.hparams['instance_weight'] * of_fields

    def learn(self, batch: Sample) -> tuple[Tensor, Tensor]:
        """Return output and loss of a training batch; the targets of fields are computed once for all its losses."""
        if self.with_instances:
            batch = {**batch, **dict(zip(_TARGETS, field_targets(self.instances_of(batch)), strict=True))}
        return super().learn(batch)

    def _field_targets(self, batch: Sample) -> FieldTargets:
        if _TARGETS[0] in batch:
            return FieldTargets(*(batch[key] for key in _TARGETS))
        return field_targets(self.instances_of(batch))

    def on_test_start(self) -> None:
        """Set up the metrics of every subset of the modalities, with *instances* also those of fields."""
        super().on_test_start()
        if self.with_instances:
            self.field_scores = self.make_field_scores(self.scored_names, self.subsets)

    def make_field_scores(self, names: Sequence[str], which: Which) -> SubsetFieldScores:
        """Return the metrics of fields for the given subsets of the modalities *names*."""
        settings = {name: self.hparams[name] for name in ('num_classes', 'background', 'ignore_index')}
        settings['label_gsd'] = self.hparams['label_gsd'] / self.field_factor
        return SubsetFieldScores(names, which, **settings).to(self.device)

    def score_subset(
        self, subset: tuple[str, ...], output: tuple[Tensor, Any] | None, batch: Sample, available: Tensor
    ) -> None:
        """Update the metrics of one subset of the modalities."""
        super().score_subset(subset, output, batch, available)
        if not self.with_instances:
            return
        found, classes, mask = None, None, repeat_pixels(self.truth(batch), self.field_factor)
        if output is not None:
            found = self.find_fields(*output, batch, subset)
            classes = repeat_pixels(self.classes(output[0]), self.field_factor)
        self.field_scores.update(
            subset, found, classes, self.instances_of(batch), mask, available, self.labelled(batch)
        )

    def find_fields(self, logits: Tensor, maps: FieldMaps, batch: Sample, subset: Sequence[str]) -> FoundFields:
        """Return the predicted fields of a batch where some modalities of *subset* observed something."""
        known = {name: self.modalities[name] for name in subset}
        seen = seen_bits(batch, known, (logits.shape[-2], logits.shape[-1]))
        return self._fields_of(logits, maps, repeat_pixels(seen > 0, self.field_factor))

    def _fields_of(self, logits: Tensor, maps: FieldMaps, observed: Tensor) -> FoundFields:
        smallest = smallest_pixels(self.hparams['label_gsd'] / self.field_factor)
        height, width = maps.distance.shape[-2:]
        probabilities = resize(self.without_ignored(logits).softmax(1), (height, width))
        return find_fields(probabilities, maps, observed, smallest, self.hparams['background'])

    def subset_rows(self) -> list[SubsetRow]:
        """Return the rows of ``subsets.csv``; with *instances*, also write ``fields.csv`` with the scores by class."""
        rows = super().subset_rows()
        if not self.with_instances:
            return rows
        pairs = zip(rows, self.field_scores.rows(), strict=True)
        rows = [row._replace(scores={**row.scores, **scores}) for row, scores in pairs]
        self.log_subsets(rows, LOGGED)
        whole = {f'test_{name}': rows[0].scores[column] for column, name in LOGGED.items()}
        self.log_dict({name: score for name, score in whole.items() if not math.isnan(score)})
        folder = self.folder
        if self.trainer.is_global_zero and not getattr(self.trainer, 'fast_dev_run', False):
            labels = self.hparams['labels'] or [str(index) for index in range(self.hparams['num_classes'])]
            self.field_scores.write_classes(folder / 'fields.csv', rows, labels)
        return rows

    def instances_of(self, batch: Sample) -> Tensor:
        """Return the field of each pixel of a batch, ``(B, H, W)`` at the GSD of the maps of fields.

        Instances at the GSD of the labels are repeated.

        Raises:
            ValueError: If the batch has none, or they have neither GSD.
        """
        if 'instances' not in batch:
            raise ValueError(
                f"instances of {type(self).__name__} is True, which requires the key 'instances', but batches have "
                f'{sorted(batch)}: expected PASTIS or synthetic landscapes, polygons as labels, or instances=False'
            )
        instances, factor = batch['instances'], self.field_factor
        count, height, width = self.target_of(batch).shape
        fine = count, factor * height, factor * width
        if tuple(instances.shape) == (count, height, width):
            instances = repeat_pixels(instances, factor)
        if tuple(instances.shape) != fine:
            raise ValueError(
                f'instances have shape {tuple(instances.shape)}, expected that of the mask, {(count, height, width)}'
                + f', or with field_gsd {fine}' * (factor > 1)
            )
        return instances

    def predict_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """Predict the probabilities of the classes, with their position.

        Returns:
            ``probabilities`` ``(B, K, H, W)``, ``bounds`` and ``transform`` as in the batch
            or None, and ``seen``, see :func:`.seen_bits`. For tiles of an area also ``window``,
            as in the batch. With *instances* also ``extent`` ``(B, 3, H, W)``, the probabilities of other,
            interior and boundary, and ``distance`` ``(B, H, W)``, from 0 to 1 at the edge and in the middle of a
            field; both are 0 where no modality observed anything, and have the GSD *field_gsd*.
        """
        if self.embedder is not None:
            return self.predict_embeddings(batch, batch_idx)
        if 'window' in batch:
            return self._predict_tiles(batch, batch_idx)
        batch = self.with_image(batch)
        logits, more = self.infer(self.renormalise(batch))
        refuse_output(logits, batch, batch_idx, self.model)
        self.warn_without_modalities(batch)
        seen = seen_bits(batch, self.modalities, (logits.shape[-2], logits.shape[-1]))
        return {
            'probabilities': self.without_ignored(logits).softmax(dim=1),
            'seen': seen,
            'bounds': batch.get('bounds'),
            'transform': batch.get('transform'),
            **observed_fields(more, seen),
        }

    def _predict_tiles(self, batch: Sample, batch_idx: int) -> dict[str, Tensor | None]:
        """Return the output of :meth:`predict_step` for tiles of an area; unobserved pixels are nodata."""
        windows = batch['window']
        size = int(windows[0, 2]), int(windows[0, 3])
        more: FieldMaps | None
        if any(modality.image_key in batch for modality in self.modalities.values()):
            logits, more = self.infer(self.renormalise(batch))
            refuse_output(logits, batch, batch_idx, self.model)
            probabilities = self.without_ignored(logits).softmax(dim=1)
        else:
            probabilities = torch.zeros(len(windows), self.hparams['num_classes'], *size, device=windows.device)
            empty = repeat_pixels(torch.zeros(len(windows), 4, *size, device=windows.device), self.field_factor)
            more = FieldMaps(empty[:, :3], empty[:, 3]) if self.with_instances else None
        seen = seen_bits(batch, self.modalities, size)
        return {
            'probabilities': probabilities,
            'seen': seen,
            'window': windows,
            'bounds': None,
            'transform': None,
            **observed_fields(more, seen),
        }

    def without_ignored(self, logits: Tensor) -> Tensor:
        """Return the logits ``(B, K, H, W)`` with minus infinity for an ignored class."""
        if self.ignored is None:
            return logits
        is_ignored = torch.arange(logits.shape[1], device=logits.device) == self.ignored
        return logits.masked_fill(is_ignored[:, None, None], -torch.inf)

    def classes(self, logits: Tensor) -> Tensor:
        """Return the class of every pixel ``(B, H, W)``, never an ignored one."""
        return self.without_ignored(logits).argmax(dim=1)

    def answer(self, logits: Tensor) -> Tensor:
        """Return the predicted classes."""
        return self.classes(logits)

    def truth(self, batch: Sample) -> Tensor:
        """Return the mask as integers."""
        return self.target_of(batch).to(torch.int64)

    def overlays(self, logits: Tensor, more: FieldMaps | None) -> Sample:
        """Return the predicted fields of the first sample, with *instances*."""
        if more is None:
            return {}
        maps = FieldMaps(more.extent[:1], more.distance[:1])
        everywhere = torch.ones_like(maps.distance, dtype=torch.bool)
        return {'fields': self._fields_of(logits[:1], maps, everywhere).ids[0].cpu()}

    def draw(self, sample: Sample, answer: Tensor) -> Figure:
        """Draw a sample with the predicted classes, and the outlines of its fields."""
        figure: Figure = self.datamodule.plot({**sample, 'prediction': answer})
        return figure


class omnisat(OmniSatSegmentation):
    """:class:`.OmniSatSegmentation` under its short name on the command line."""


def mean_of_views(logits: Tensor) -> Tensor:
    """Return the logarithm of the mean probabilities ``(B, K, H, W)`` of the logits of all views of B samples."""
    return flipped_back(logits.float().log_softmax(1)).logsumexp(0) - math.log(len(FLIPS))


def divergence(student: Tensor, teacher: Tensor, counted: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of class probabilities, averaged over *counted* pixels ``(B, H, W)``.

    This is knowledge distillation (Hinton, Vinyals and Dean, arXiv 1503.02531) at temperature one, of logits ``(B, K,
    H, W)``. The teacher has no gradient.
    """
    wanted = teacher.detach().float().log_softmax(1)
    of_pixels = F.kl_div(student.float().log_softmax(1), wanted, log_target=True, reduction='none').sum(1)
    return (of_pixels * counted).sum() / counted.sum().clamp(min=1)
