# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Base class of supervised tasks: loss and metrics of a target, for every subset of the modalities."""

import functools
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample
from torchgeo.tasks import ClassificationMixin
from torchmetrics import ClasswiseWrapper, Metric, MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassStatScores

from ..batch import FILLER
from ..evaluation.classes import metric_title
from ..evaluation.plots import write_subsets
from ..evaluation.subsets import SubsetRow, SubsetScores, without_torchmetrics_warnings, write_table
from ..modality import Modality, Which, as_modalities
from ..models.omnisat import OmniSatOutput
from ..transforms import ModalityDropout
from ..utils.tensors.devices import readable
from ..utils.tensors.finite import refuse_output
from .base import OmniSatTask
from .console.results import Examples, print_above, report, take_verbose


class MeanLoss(Metric):
    """Mean loss of an epoch over all ranks, weighted by the number of labelled samples of each batch."""

    total: Tensor
    weight: Tensor
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state('total', torch.zeros(()), dist_reduce_fx='sum')
        self.add_state('weight', torch.zeros(()), dist_reduce_fx='sum')

    def update(self, loss: Tensor, weight: Tensor) -> None:
        """Add the loss of a batch; batches without labelled samples are ignored."""
        self.total += torch.where(weight > 0, loss.detach().float() * weight, 0.0)
        self.weight += weight

    def compute(self) -> Tensor:
        """Return mean loss and number of labelled samples, ``(2,)``; the mean is NaN without any."""
        return torch.stack([self.total / self.weight, self.weight])


def warn_without_labels(trainer: Any, stage: str) -> None:
    """Warn of an epoch without labels, and stop callbacks from monitoring its metrics.

    A callback whose monitor is missing would end training, and a loss of 0 would be the best value.
    """
    changes = []
    for callback in trainer.callbacks:
        monitor = getattr(callback, 'monitor', None) or ''
        if not monitor.startswith(f'{stage}_') or monitor in trainer.callback_metrics:
            continue
        if isinstance(callback, ModelCheckpoint):
            callback.monitor = None
            changes.append(f'ModelCheckpoint keeps the latest state instead of the best {monitor!r}')
        elif isinstance(callback, EarlyStopping):
            callback.strict = False
            changes.append(f'EarlyStopping cannot watch {monitor!r}')
    rank_zero_warn('; '.join([f'{stage!r} has no labels, so its loss and metrics are not logged', *changes]))


def check_classes(who: str, theirs: Sequence[str] | None, ours: Sequence[str] | None, order_alone: bool) -> None:
    """Validate that the data have the classes of the model, if known, in the same order, or the order alone."""
    if not theirs or not ours or list(theirs) == list(ours) or _numbered(theirs) or _numbered(ours):
        return
    missing, extra = ([name for name in one if name not in other] for one, other in ((ours, theirs), (theirs, ours)))
    if not missing and not extra:
        raise ValueError(
            f'{who} has the labels {list(theirs)}, but the model was trained with another order of them: '
            f'expected labels: [{", ".join(ours)}]'
        )
    if not order_alone:
        raise ValueError(
            f'{who} has the labels {list(theirs)}, but the model was trained for {list(ours)}: '
            f'{missing or "none"} are missing and {extra or "none"} unknown; expected '
            f'labels: [{", ".join(ours)}]'
        )


def check_parts(parts: Mapping[str, Any], attribute: str) -> None:
    """Validate that all parts of a mixture have the same classes in the same order."""
    available = {name: list(getattr(part, attribute, None) or ()) for name, part in parts.items()}
    named = {name: labels for name, labels in available.items() if labels and not _numbered(labels)}
    first = next(iter(named), '')
    for name, labels in named.items():
        if labels != named[first]:
            raise ValueError(
                f'labels of {name!r} are {labels} and those of {first!r} are {named[first]}, expected the same in the '
                f'same order: class 0 would be {labels[0]!r} in one source and {named[first][0]!r} in the other'
            )


def _numbered(names: Sequence[str]) -> bool:
    """Return whether the names are only the indices of the classes."""
    return list(names) == [str(number) for number in range(len(names))]


class SupervisedTask(OmniSatTask):
    """Base class of tasks that predict a target in the batch; ``test`` scores every subset of the modalities.

    A new task is one subclass. It sets :attr:`target`, :attr:`required` and :attr:`subset_metrics`, and implements
    :meth:`build`, :meth:`configure_losses`, which sets ``criterion``, :meth:`make_metrics` and :meth:`answer`. The
    arguments of its constructor are its hyper-parameters. Its model has the attribute ``backbone`` and the method
    ``decode(out)``, which returns logits from the output of the backbone.

    Args:
        backbone: Name of a builder in :mod:`torchgeo_omnisat.models`.
        modalities: Plain dictionaries of the modalities (:meth:`.Modality.as_dict`), or the
            modalities by name.
        modality_dropout: Probability of dropping each modality of a training sample, or
            probabilities by name; see :class:`.ModalityDropout`.
        subsets: Subsets of the modalities that ``test`` scores: ``'auto'`` for all subsets of up to five
            modalities, else all, all but one, and single ones; ``'all'``; or names such as ``s1a+s2``.
            Not saved in checkpoints.
        **kwargs: Arguments of :class:`OmniSatTask`.
    """

    #: Key of the target in the batch.
    target: ClassVar[str]
    #: Metric by column of ``subsets.csv``. The first one is the main score, logged for every subset.
    subset_metrics: ClassVar[Mapping[str, str]]
    #: Name of the main score in figures and reports.
    score_title: ClassVar[str] = 'score'
    #: Metrics in the summary of a test on the console, by title; those of :attr:`subset_metrics` if empty.
    summary: ClassVar[Mapping[str, str]] = {}
    #: Whether the main score is better if it is higher, ``'max'``, or lower, ``'min'``.
    score_mode: ClassVar[str] = 'max'
    #: Whether the target is a continuous value instead of classes.
    continuous: ClassVar[bool] = False
    #: The argument ``subsets``.
    subsets: Which = 'auto'
    ignore = (*OmniSatTask.ignore, 'subsets')
    criterion: nn.Module
    dropout: ModalityDropout
    #: Batches of each validation of which a figure is drawn.
    figures = 4
    heads_count: ClassVar[bool] = True
    #: Whether the results of the current validation or test are printed.
    _verbose: bool = False
    #: Confusion matrix of the current test or separate validation.
    confusion: Metric | None
    _examples: Examples | None = None

    def __init__(
        self,
        backbone: str = 'omnisat_small',
        modalities: Sequence[dict[str, Any]] | Mapping[str, Modality] | None = None,
        modality_dropout: float | dict[str, float] = 0.2,
        subsets: Literal['auto', 'all'] | Sequence[str] = 'auto',
        **kwargs: Any,
    ) -> None:
        self.subsets = subsets
        super().__init__(backbone=backbone, modalities=modalities, **kwargs)

    @abstractmethod
    def answer(self, logits: Tensor) -> Tensor:
        """Return the prediction that the metrics compare with the target."""

    @abstractmethod
    def make_metrics(self) -> Mapping[str, Metric]:
        """Return the metrics by name; each stage logs them with its prefix. All hyper-parameters are set."""

    @classmethod
    def validation_score(cls) -> tuple[str, str, str]:
        """Return the logged name of the main validation score, its title, and ``'max'`` or ``'min'``."""
        return f'val_{next(iter(cls.subset_metrics.values()))}', cls.score_title, cls.score_mode

    def draw(self, sample: Sample, answer: Tensor) -> Figure:
        """Draw a sample with the plot method of the datamodule; subclasses may add the prediction."""
        figure: Figure = self.datamodule.plot(sample)
        return figure

    def make_scores(self, names: Iterable[str], which: Which = 'auto') -> SubsetScores:
        """Return the metrics of subsets of the named modalities; see :func:`.subsets`."""
        metrics = self.make_metrics()
        chosen = {column: metrics[name] for column, name in self.subset_metrics.items()}
        return SubsetScores(names, which, chosen, self.score_title)

    def labelled(self, batch: Sample) -> Tensor:
        """Return which samples of a batch have a label, ``(B,)``."""
        target = self.target_of(batch)
        return torch.ones(len(target), dtype=torch.bool, device=target.device)

    def configure_model(self) -> None:
        """Build the model as :meth:`.OmniSatTask.configure_model`.

        Raises:
            ValueError: If the labels of the datamodule are classes instead of continuous values, or vice versa.
        """
        found = getattr(self.datamodule, 'continuous', self.continuous)
        if found != self.continuous and not self.trainer.predicting:
            kinds = 'continuous values', 'classes'
            ours, theirs = kinds if self.continuous else kinds[::-1]
            raise ValueError(
                f'{type(self).__name__} predicts {ours}, but {type(self.datamodule).__name__} has labels of {theirs}: '
                'expected omnisat_regression for a mask with continuous: true, and another task, such as omnisat, for '
                'classes'
            )
        super().configure_model()

    def configure_models(self) -> None:
        """Build the model and the modality dropout, if all required hyper-parameters are set."""
        super().configure_models()
        if self.is_configured:
            self.dropout = ModalityDropout(self.modalities, self.hparams['modality_dropout'])

    def configure_metrics(self) -> None:
        """Set up the metrics and the mean loss of each stage, once all hyper-parameters are set."""
        if not self.is_configured:
            return
        metrics = MetricCollection(dict(self.make_metrics()))
        self.train_metrics = metrics.clone(prefix='train_')
        self.val_metrics = metrics.clone(prefix='val_')
        self.test_metrics = metrics.clone(prefix='test_')
        self.train_mean_loss, self.val_mean_loss, self.test_mean_loss = MeanLoss(), MeanLoss(), MeanLoss()

    def training_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the loss of a batch, with some modalities dropped."""
        if batch_idx == 0:  # a training resumed after the last batch of an epoch skips the end of that epoch
            for metric in self._counting().values():
                metric.reset()
        batch = self.drop_location(self.renormalise(self.with_image(batch)))
        logits, loss = self.learn(batch)
        update(self.train_metrics, self.answer(logits), self.truth(batch))
        labelled = self.labelled(batch).sum()
        self._loss_of('train').update(loss, labelled)
        if not readable(labelled):
            logged = torch.where(labelled > 0, loss.detach(), torch.nan)  # whether there is a label is not read
            self.log('train_loss', logged, batch_size=len(logits), prog_bar=True)
        elif labelled > 0:
            self.log('train_loss', loss, batch_size=len(logits), prog_bar=True)
        self.warn_without_modalities(batch)
        return loss + self.zero_loss_over_all_parameters()

    def learn(self, batch: Sample) -> tuple[Tensor, Tensor]:
        """Return logits and loss of a normalised training batch, after modality dropout."""
        logits = self(self.dropout(batch))
        return logits, self.criterion(logits, self.target_of(batch))

    def validation_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update loss and metrics, and draw the first sample of some batches."""
        batch = self.with_image(batch)
        logits, more = self.infer(self.renormalise(batch))
        refuse_output(logits, batch, batch_idx, self.model)
        self._score(logits, more, batch, 'val')
        if batch_idx < self.figures and hasattr(self.datamodule, 'plot') and not self.trainer.sanity_checking:
            answer = self.answer(logits)[0].cpu()
            sample = self._first_of(batch) | self.overlays(logits, more)
            self.show(f'val/{batch_idx}', lambda: self.draw(sample, answer))

    def infer(self, batch: Sample) -> tuple[Tensor, Any]:
        """Return the logits of a normalised batch, and further outputs of the model, if the task has any."""
        return self(batch), None

    def infer_from(self, out: OmniSatOutput) -> tuple[Tensor, Any]:
        """Return the same from the output of the backbone."""
        return self.model.decode(out), None

    def views(self, batch: Sample) -> Sample:
        """Return the batch that is encoded for :meth:`infer_from` in a test."""
        return batch

    def loss(self, logits: Tensor, more: Any, batch: Sample) -> Tensor:
        """Return the loss of the output of :meth:`infer`."""
        loss: Tensor = self.criterion(logits, self.target_of(batch))
        return loss

    def overlays(self, logits: Tensor, more: Any) -> Sample:
        """Return further entries of the first sample for :meth:`draw`, from the output of :meth:`infer`."""
        return {}

    def _first_of(self, batch: Sample, index: int = 0) -> Sample:
        keys = [key for modality in self.known.values() for key in modality.keys]
        keys += ['mask', 'label', 'instances', self.target]
        return {key: batch[key][index].detach().cpu() for key in keys if key in batch}

    def make_confusion(self) -> Metric | None:
        """Return a metric of the confusion of classes, ``(K, K)``, or by label, ``(K, 2, 2)``; None without classes."""
        return None

    def classes_in(self, batch: Sample) -> Tensor | None:
        """Return which classes each sample shows, ``(B, K)`` bool, to choose examples; None without classes."""
        return None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; empty for continuous values."""
        names = self.hparams.get('labels') or self.hparams.get('label_names')
        return list(names or map(str, range(self.hparams.get('num_classes') or 0)))

    def on_validation_start(self) -> None:
        """Start the confusion matrix of a validation outside of training, whose results are printed."""
        super().on_validation_start()
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._verbose = take_verbose(self.trainer.validate_loop)
            self._start_confusion()

    def _start_confusion(self) -> None:
        confusion = self.make_confusion()
        self.confusion = None if confusion is None else confusion.to(self.device)

    def on_test_start(self) -> None:
        """Set up the metrics of every subset of the modalities that the data have, and the confusion matrix."""
        super().on_test_start()
        trainer: Any = self.trainer
        self._verbose = take_verbose(trainer.test_loop)
        self._start_confusion()
        draws = trainer.is_global_zero and self.figures and hasattr(self.datamodule, 'plot')
        shown = draws and not trainer.fast_dev_run
        self._examples = Examples(self.folder / 'examples', self.class_names) if shown else None
        self.subset_scores = self.make_scores(self.scored_names, self.subsets).to(self.device)
        if self._uses_location:
            self.withheld_scores = self.make_scores(self.scored_names, ()).to(self.device)

    @property
    def _uses_location(self) -> bool:
        """Whether the model has the location as a modality, or prototypes of regions."""
        return self.model.backbone.location is not None or self.model.backbone.context is not None

    @property
    def scored_names(self) -> list[str]:
        """Modalities of the model that the data have."""
        theirs = as_modalities(getattr(self.datamodule, 'modalities', None) or self.modalities)
        return [name for name in self.modalities if name in theirs]

    def test_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update loss and metrics, and the metrics of every subset; each modality is encoded once.

        A location that the model uses is known for every subset. The score without it is that of all modalities with
        images.
        """
        batch = self.with_image(batch)
        out = self.model.backbone(self.views(self.renormalise(batch)))
        logits, more = self.infer_from(out)
        refuse_output(logits, batch, batch_idx, self.model)
        self._score(logits, more, batch, 'test')
        self._draw_example(logits, batch)
        order = list(self.modalities)
        for subset in () if FILLER in batch else self.subset_scores.subsets:
            available = out.available[: len(logits), [order.index(name) for name in subset]]
            output: tuple[Tensor, Any] | None = None
            if subset == self.subset_scores.subsets[0]:
                output = logits, more
            elif available.any():
                output = self.infer_from(self.model.backbone.restrict(out, subset))
            self.score_subset(subset, output, batch, available)
        if self._uses_location and FILLER not in batch:
            (names,) = self.withheld_scores.subsets
            available = out.available[: len(logits), [order.index(name) for name in names]]
            located = out.location is not None or out.coordinates is not None
            withheld = self.infer_from(self.model.backbone.withhold_location(out))[0] if located else logits
            found = self.answer(withheld), self.truth(batch), available, self.labelled(batch)
            self.withheld_scores.update(names, *found)

    def _draw_example(self, logits: Tensor, batch: Sample) -> None:
        """Draw a sample with classes that no earlier example shows."""
        examples = self._examples
        if examples is None or FILLER in batch:
            return
        there = self.classes_in(batch)
        index = examples.choose(there)
        if index is not None:
            sample, answer = self._first_of(batch, index), self.answer(logits[index : index + 1])[0].cpu()
            examples.add(None if there is None else there[index], lambda: self.draw(sample, answer))

    def score_subset(
        self, subset: tuple[str, ...], output: tuple[Tensor, Any] | None, batch: Sample, available: Tensor
    ) -> None:
        """Update the metrics of one subset of the modalities.

        Args:
            subset: Names of its S modalities.
            output: Output of :meth:`infer_from`; None if no sample has any of the modalities.
            batch: Batch with the targets.
            available: Modalities available in each sample, ``(B, S)`` bool.
        """
        answer = None if output is None else self.answer(output[0])
        self.subset_scores.update(subset, answer, self.truth(batch), available, self.labelled(batch))

    def predict_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """Predict the target.

        Returns:
            ``prediction``, as :meth:`answer` returns it, and ``bounds`` as in the batch or None. With
            :class:`.EmbeddingWriter`, the output of :meth:`predict_embeddings`.
        """
        if self.embedder is not None:
            return self.predict_embeddings(batch, batch_idx)
        batch = self.with_image(batch)
        logits = self(self.renormalise(batch))
        refuse_output(logits, batch, batch_idx, self.model)
        self.warn_without_modalities(batch)
        return {'prediction': self.answer(logits), 'bounds': batch.get('bounds')}

    def on_train_epoch_end(self) -> None:
        """Log the metrics of an epoch of training."""
        self._finish('train')

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of a validation; print them if it is not part of a training."""
        scores = self._finish('val')
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._report(scores)

    def on_test_epoch_end(self) -> None:
        """Log the metrics, print a summary, and write scores, confusion matrix and subsets below :attr:`folder`.

        A ``fast_dev_run`` writes no files.
        """
        scores = self._finish('test')
        rows, headline = self.subset_rows(), next(iter(self.subset_metrics))
        self.log_subsets(rows, {headline: self.subset_metrics[headline]})
        if self._uses_location:
            score = self.withheld_scores.compute()[0].scores[headline]
            self.log(f'test_{self.subset_metrics[headline]}_without_location', score)
        folder = self.folder
        writes = not getattr(self.trainer, 'fast_dev_run', False)
        if self.trainer.is_global_zero and writes:
            write_table(rows, folder / 'subsets.csv', self._data_name)
            write_subsets(rows, folder / 'subsets.png', self._data_name)
        if self._examples is not None:
            self._examples.write()
        self._report(scores, rows, folder if writes else None)

    @property
    def _data_name(self) -> str:
        if getattr(self.datamodule, 'synthetic', False):
            return 'synthetic'
        return type(self.datamodule).__name__ if self.datamodule else 'dataloaders'

    def _report(self, scores: Mapping[str, float], rows: Sequence[SubsetRow] = (), folder: Path | None = None) -> None:
        """Print the results of a test or a validation if they are requested, and write those of a test."""
        confusion = self.confusion
        if confusion is not None:
            confusion.compute()  # on every rank
        if not self.trainer.is_global_zero:
            return
        stage = 'Test' if self.trainer.testing else 'Validation'
        summary = self.summary or {metric_title(column): name for column, name in self.subset_metrics.items()}
        ignored = getattr(self, 'ignored', None)
        title = f'{stage} on data: {self._data_name}'
        text = report(title, scores, summary, confusion, self.class_names, ignored, rows, folder)
        self.confusion = self._examples = None
        if self._verbose:
            print_above(self.trainer, text)
        elif folder is not None:
            rank_zero_info(f'Metrics of every subset of the modalities: {folder / "subsets.csv"}')

    def subset_rows(self) -> list[SubsetRow]:
        """Return the rows of ``subsets.csv``, the largest subsets first."""
        return self.subset_scores.compute()

    def log_subsets(self, rows: Sequence[SubsetRow], names: Mapping[str, str]) -> None:
        """Log scores of every subset as ``test_<name>/<subset>``, for the names of metrics by column."""
        for row in rows:
            if not row.samples:
                continue
            scores = {f'test_{name}/{row.subset}': row.scores[column] for column, name in names.items()}
            self.log_dict({name: score for name, score in scores.items() if not math.isnan(score)})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the metric states of the current epoch, summed over all ranks."""
        super().on_save_checkpoint(checkpoint)
        if self.is_configured:
            checkpoint['train_metrics'] = {
                name: {
                    'updates': metric.update_count,
                    **{key: self.trainer.strategy.reduce(v.clone(), reduce_op='sum') for key, v in _states(metric)},
                }
                for name, metric in self._counting().items()
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the metric states if training is resumed: the sum on rank 0, nothing on the others."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get('hyper_parameters', {})
        for name in ('labels', 'label_names'):
            check_classes('the data or the configuration', self.hparams.get(name), saved.get(name), order_alone=False)
        trainer = self._trainer
        if trainer is None or trainer.state.fn != TrainerFn.FITTING or not self.is_configured:
            return
        for name, metric in self._counting().items():
            counted = checkpoint.get('train_metrics', {}).get(name, {})
            metric._update_count = counted.get('updates', 0)
            for key, value in _states(metric):
                if key in counted and trainer.is_global_zero:
                    setattr(metric, key, counted[key].to(value.device))

    def check_classes(self, who: str, datamodule: Any) -> None:
        """Validate the classes and the ignored label of a datamodule."""
        for name in ('labels', 'label_names'):
            if name in self.hparams:
                theirs = getattr(datamodule, name, None)
                check_classes(who, theirs, self.hparams[name], order_alone=self.trainer.predicting)
                check_parts(getattr(datamodule, 'datamodules', {}), name)
        theirs, ours = getattr(datamodule, 'ignore_index', None), self.hparams.get('ignore_index')
        if theirs is None or ours is None or theirs == ours:
            return
        if 0 <= theirs < self.hparams['num_classes']:
            raise ValueError(
                f'ignore_index of {who} is {theirs}, the index of a class, but the model was trained with {ours}: '
                f'pixels without a label would count as class {theirs}; expected ignore_index {ours} in both'
            )

    def target_of(self, batch: Sample) -> Tensor:
        """Return the target of a batch.

        Raises:
            ValueError: If the batch has no such target.
        """
        if self.target not in batch:
            others = [key for key in ('mask', 'label', 'target') if key in batch]
            raise ValueError(
                f'{type(self).__name__} requires {self.target!r}, but batches have {others or "no labels"}: expected '
                'data with such labels, or another task'
            )
        return batch[self.target]

    def truth(self, batch: Sample) -> Tensor:
        """Return the target as the metrics expect it."""
        return self.target_of(batch)

    def _score(self, logits: Tensor, more: Any, batch: Sample, stage: str) -> None:
        if FILLER in batch:
            return
        loss = self.loss(logits, more, batch)
        self._loss_of(stage).update(loss, self.labelled(batch).sum())
        answer, truth = self.answer(logits), self.truth(batch)
        update(getattr(self, f'{stage}_metrics'), answer, truth)
        if (confusion := getattr(self, 'confusion', None)) is not None:
            confusion.update(answer, truth)
        self.warn_without_modalities(batch)

    def _counting(self) -> dict[str, Metric]:
        return {**dict(self.train_metrics.items()), 'mean_loss': self.train_mean_loss}

    def _loss_of(self, stage: str) -> MeanLoss:
        mean: MeanLoss = getattr(self, f'{stage}_mean_loss')
        return mean

    def _finish(self, stage: str) -> dict[str, float]:
        """Log the loss and the metrics of an epoch, unless it has no labels, and return them without their prefix."""
        found: dict[str, float] = {}
        mean, metrics = self._loss_of(stage), getattr(self, f'{stage}_metrics')
        loss, weight = mean.compute().unbind()
        mean.reset()
        if weight > 0:
            with without_torchmetrics_warnings():
                scores = metrics.compute()
            if not self.trainer.sanity_checking:  # Lightning discards what is logged there
                if stage != 'train':
                    self.log(f'{stage}_loss', loss, sync_dist=True)
                shown, _, _ = self.validation_score()
                self.log_dict({name: score for name, score in scores.items() if name != shown})
                if shown in scores:
                    self.log(shown, scores[shown], prog_bar=True)
            values = {f'{stage}_loss': loss, **scores}
            found = {name.removeprefix(f'{stage}_'): float(value) for name, value in values.items()}
        elif not self.trainer.sanity_checking:
            warn_without_labels(self.trainer, stage)
        metrics.reset()
        return found


def update(metrics: MetricCollection, answer: Tensor, truth: Tensor) -> None:
    """Update metrics with predictions and targets.

    On an accelerator, metrics of classes are updated from one confusion matrix, because torchmetrics selects the
    pixels that count, for which the host waits.
    """
    parts: list[Any] = [_inner(metric) for metric in metrics.values(copy_state=False)]
    of_classes = MulticlassStatScores | MulticlassConfusionMatrix
    if readable(answer) or not all(isinstance(part, of_classes) for part in parts):
        metrics.update(answer, truth)
        return
    matrices: dict[tuple[int, int | None], Tensor] = {}
    for metric, part in zip(metrics.values(copy_state=False), parts, strict=True):
        key = part.num_classes, part.ignore_index
        if key not in matrices:
            matrices[key] = confusion_matrix(answer, truth, *key)
        for counted in {id(metric): metric, id(part): part}.values():
            counted._computed, counted._update_count = None, counted._update_count + 1
        _add_counts(part, matrices[key])


def confusion_matrix(answer: Tensor, truth: Tensor, classes: int, ignored: int | None) -> Tensor:
    """Return the number of pixels of each true and predicted class, ``(K, K)``, without those that are ignored."""
    pair = truth.flatten() * classes + answer.flatten()
    if ignored is not None:
        pair = pair.masked_fill(truth.flatten() == ignored, classes**2)
    counts = torch.zeros(classes**2 + 1, dtype=torch.int64, device=pair.device)
    return counts.scatter_add_(0, pair, torch.ones_like(pair))[:-1].view(classes, classes)


def _add_counts(metric: Any, matrix: Tensor) -> None:
    if isinstance(metric, MulticlassConfusionMatrix):
        metric.confmat = metric.confmat + matrix
        return
    right = matrix.diagonal()
    extra, missed = matrix.sum(0) - right, matrix.sum(1) - right
    if metric.average == 'micro':
        right, extra, missed = right.sum(), extra.sum(), missed.sum()
        none = matrix.sum() * metric.num_classes - right - extra - missed
    else:
        none = matrix.sum() - right - extra - missed
    metric._update_state(right, extra, none, missed)


def _inner(metric: Any) -> Any:
    return metric.metric if isinstance(metric, ClasswiseWrapper) else metric


def _states(metric: Metric) -> list[tuple[str, Tensor]]:
    return [(key, value) for key, value in metric.metric_state.items() if isinstance(value, Tensor)]


def classification_metrics(task: Literal['multiclass', 'multilabel'], **settings: Any) -> dict[str, Metric]:
    """Return the metrics of TorchGeo's classification and segmentation tasks by name, without prefix."""
    labels = settings.pop('labels', None)
    labels = None if labels is None else tuple(labels)
    return dict(_metrics_of(torch.get_default_device(), task, labels, **settings))


@functools.cache  # each use copies them, which takes less time than TorchGeo's method
def _metrics_of(
    device: torch.device, task: str, labels: tuple[str, ...] | None, **settings: int | None
) -> Mapping[str, Metric]:
    mixin = ClassificationMixin()
    mixin.hparams.update(dict.fromkeys(('num_classes', 'num_labels', 'ignore_index')) | settings, task=task)
    mixin.hparams.update(labels=None if labels is None else list(labels))
    mixin.configure_metrics()
    metrics = dict(mixin.train_metrics.items(keep_base=True, copy_state=False))
    for metric in metrics.values():
        _inner(metric).validate_args = False  # the loss has validated the labels
    return metrics
