# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Base class of the datamodules."""

import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from functools import cached_property, partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets.utils import Sample

from ..batch import collate
from ..datasets.base import MultimodalDataset
from ..datasets.common.integrity import Report
from ..datasets.common.labelcounts import LabelCounts, count_tiles
from ..datasets.synthetic.writing import is_synthetic
from ..modality import Modality
from ..transforms import (
    Denormalize,
    MultimodalAugmentation,
    Normalize,
    RandomDihedral,
    RandomJitter,
    RandomSpeckle,
    RandomTemporalDropout,
)
from ..transforms.intensity import describe_not_simulated
from ..utils.checks import check_choice, check_integer
from ..utils.plurals import counted
from .common.plausibility import Guard, GuardMode, implausible_statistics, make_guard
from .common.sampling import DealtDataset, DealtSampler, Order, RandomOrder, ResumableDataModule, SpatialOrder
from .common.statistics import (
    FILENAME,
    BandMoments,
    Entries,
    as_bands,
    changed,
    is_measured,
    load_statistics,
    measure,
    measure_target,
    partial_of,
    save_statistics,
)

#: Splits that a stage reads.
_SPLITS = {'fit': ('train', 'val'), 'validate': ('val',), 'test': ('test',), 'predict': ('test',)}
#: Splits whose labels a stage needs.
LABELLED = {'fit': ('train', 'val'), 'validate': ('val',), 'test': ('test',)}


#: Arguments of datasets that a datamodule sets itself, and its choices of *missing*.
NOT_PASSED = ('split', 'folds', 'exclude', 'transforms')
Missing = Literal['error', 'allow']


class MultimodalDataModule(ResumableDataModule, NonGeoDataModule):
    """Datamodule base class for samples with several modalities.

    Batches are normalised on the device. Training batches are augmented before, in raw units (flips and rotations,
    temporal dropout, speckle), and after normalisation (jitter). Tasks, not datamodules, drop modalities.

    After :meth:`setup`, a datamodule has ``modalities`` by name, and ``mean`` and ``std`` by modality, tensors with a
    number per band in raw units, in addition to the attributes of TorchGeo's datamodules.

    Subclasses set the classes, and may override :meth:`selection`, :meth:`official` and :meth:`groups`. The constructor
    lists the arguments of the dataset, and passes on ``**kwargs``, so that the command line has them all.
    """

    #: Number of classes in the mask, including the ignored one.
    num_classes: int
    #: Names of the classes.
    labels: list[str]
    #: Class that is ignored in training and metrics; None if there is none.
    ignore_index: int | None = None
    #: Side of a token on the ground, in metres.
    patch_size: float
    #: GSD of the mask in metres; not set without masks.
    label_gsd: float
    #: Class of pixels outside of all fields; None if there is none.
    background: int | None = None
    #: Whether the mask has continuous values instead of classes, NaN where they are unknown.
    continuous: bool = False
    #: Unit of these values; None if it is unknown.
    target_unit: str | None = None
    #: Maximum number of evenly spaced tiles of a split whose labels are counted before training; None for all.
    max_counted: int | None = 200
    #: Maximum number of evenly spaced training samples for statistics, except for `stats`; None for all.
    max_measured: int | None = 1000
    #: Whether classes and splits are those of a published dataset, which may lack a rare class.
    published: bool = True

    dataset_class: Any
    #: Arguments of the dataset.
    kwargs: dict[str, Any]
    #: Report of `check`, whose samples with problems are excluded; None to exclude none.
    exclude: str | None = None
    modalities: dict[str, Modality]
    mean: dict[str, Tensor]  # type: ignore[assignment]
    std: dict[str, Tensor]  # type: ignore[assignment]

    def __init__(
        self,
        dataset_class: type[MultimodalDataset],
        batch_size: int = 4,
        num_workers: int = 0,
        exclude: str | None = None,
        dihedral: bool = True,
        temporal_dropout: float | tuple[float, float] = 0.2,
        speckle: float = 10.0,
        jitter: float = 0.05,
        batches: Literal['anywhere', 'region'] = 'anywhere',
        guard: GuardMode = 'warn',
        **kwargs: Any,
    ) -> None:
        """Initialize without reading files.

        Args:
            dataset_class: Class of the dataset.
            batch_size: Samples per batch.
            num_workers: Number of worker processes.
            exclude: Report of ``python -m torchgeo_omnisat check``, whose samples with problems are
                excluded from all splits. Their number is logged.
            dihedral: Whether to rotate and flip training tiles.
            temporal_dropout: Probability of dropping each date of a training time series, or its minimum and maximum,
                between which it is drawn for each series; 0 for none.
            speckle: Number of looks of the speckle added in training to radar images of a known unit; 0 for none.
            jitter: Maximum change of gain and offset in training, in standard deviations; 0 for none.
            batches: ``'anywhere'`` for random training batches, ``'region'`` for batches of neighbours on
                the ground, which are harder to distinguish.
            guard: Handling of validation, test and prediction data whose first tiles do not match the training
                data of the model (unit, offset, order of bands, nodata): ``'warn'`` warns of the likely cause,
                ``'error'`` raises, ``'off'`` skips the comparison.
            **kwargs: Arguments of the dataset.

        Raises:
            TypeError: If the dataset does not have an argument.
            ValueError: If an argument is invalid.
        """
        check_integer(1, batch_size=batch_size)
        check_integer(0, num_workers=num_workers)
        signature(dataset_class).bind_partial(**kwargs)  # rejects misspelt arguments before data are read
        check_choice(batches=(batches, ('anywhere', 'region')), guard=(guard, get_args(GuardMode)))
        super().__init__(dataset_class, batch_size, num_workers, **kwargs)
        self.exclude = exclude
        self.guard = guard
        #: Names of this datamodule and its modalities in a mixture.
        self.source: str | None = None
        self.names_in_mixture: dict[str, str] = {}
        self._guard: Guard | None = None
        self.dihedral = dihedral
        self.temporal_dropout = temporal_dropout
        self.speckle = speckle
        self.jitter = jitter
        self.batches = batches
        #: Modalities whose values are not augmented.
        self._cached: frozenset[str] = frozenset()
        self._reported: set[Any] = set()

    def add_defaults(self) -> None:
        """Add the default of each argument of the dataset that is not set to :attr:`kwargs`."""
        parameters = signature(self.dataset_class).parameters.values()
        defaults = {x.name: x.default for x in parameters if x.default is not x.empty and x.name not in NOT_PASSED}
        self.kwargs = defaults | self.kwargs

    @cached_property
    def report(self) -> Report:
        """Report of `check`.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file is not a report, or is about another dataset or root.
        """
        path = Path(self.exclude or '').expanduser()
        report = Report.read(path)
        if report.layout != self.dataset_class.layout:
            raise ValueError(
                f'exclude is {str(path)!r}, which is about {report.layout} in {report.root}, '
                f'expected a report about {self.dataset_class.layout}'
            )
        ours, theirs = self._root(), Path(report.root).resolve()
        if ours is not None and not (ours.is_relative_to(theirs) or theirs.is_relative_to(ours)):
            raise ValueError(
                f'exclude is {str(path)!r}, a report about {report.root}, but root is {ours}: run `python -m '
                'torchgeo_omnisat check --output FILE` on this root and use its report, or, if the same files were '
                'moved, set "root" in the report to this root'
            )
        return report

    def _root(self) -> Path | None:
        root = self.kwargs.get('root', getattr(self, 'root', None))
        if root is None and (parameter := signature(self.dataset_class).parameters.get('root')):
            root = parameter.default
        return Path(root).expanduser().resolve() if isinstance(root, str | Path) else None

    def exclusion(self) -> dict[str, Any]:
        """Return the dataset argument that excludes samples; empty if none are excluded."""
        return {} if self.exclude is None else {'exclude': tuple(self.report.samples_at_fault)}

    @rank_zero_only
    def report_excluded(self, datasets: Mapping[str, Any]) -> None:
        """Log how many samples of each split are excluded, and why."""
        if self.exclude is None:
            return
        kinds = self.report.samples_at_fault
        for split, dataset in datasets.items():
            reasons = Counter(', '.join(kinds[name]) for name in dataset.excluded)
            why = '; '.join(f'{count} {reason}' for reason, count in reasons.most_common())
            number, total = len(dataset.excluded), len(dataset.excluded) + len(dataset)
            share = f'of {total} samples of {split!r}'
            text = counted(number, f'{share} is', f'{share} are') + f' excluded by {self.exclude}'
            text += f': {why}' * bool(why)
            if split == 'train' or not number:
                rank_zero_info(text)
            else:
                warnings.warn(f'{text}. Metrics are of the remaining {counted(len(dataset), "sample")}', stacklevel=2)

    def selection(self, split: str) -> dict[str, Any]:
        """Return the arguments of the dataset that select ``'train'``, ``'val'`` or ``'test'``."""
        return {'split': split}

    def make_dataset(self, split: str, **changes: Any) -> Any:
        """Return the dataset of a split.

        Args:
            split: ``'train'``, ``'val'`` or ``'test'``.
            **changes: Arguments of the dataset to override.
        """
        requested = {'instances': True, 'instance_gsd': self.instance_gsd} if self.with_instances else {}
        takes = signature(self.dataset_class).parameters
        fields = {name: value for name, value in requested.items() if name in takes and value}
        return self.dataset_class(**{**self.kwargs, **fields, **self.selection(split), **self.exclusion(), **changes})

    @property
    def with_instances(self) -> bool:
        """Whether samples have the field of each pixel: by argument, or because the task trains or scores fields."""
        if self.kwargs.get('instances'):
            return True
        trainer = self.trainer
        if trainer is None or trainer.lightning_module is None or trainer.predicting:
            return False
        return bool(getattr(trainer.lightning_module, 'with_instances', False))

    @property
    def instance_gsd(self) -> float | None:
        """GSD of the field of each pixel in metres that the task requests; None for that of the labels."""
        gsd: float | None = getattr(getattr(self.trainer, 'lightning_module', None), 'field_gsd', None)
        return gsd

    def whole_series(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return arguments of a dataset with all bands and dates of some modalities; None for those in use."""
        whole = {'bands': None, 'max_dates': None, 'date_range': None}
        selects = names is not None and 'modalities' in signature(self.dataset_class).parameters
        chosen: dict[str, Any] = {'modalities': tuple(names or ())} if selects else {}
        return chosen | {name: value for name, value in whole.items() if name in self.kwargs}

    def official(self, dataset: Any, modality: Modality) -> BandMoments | None:
        """Return the published mean and standard deviation of all bands of a modality; None if there is none."""
        return None

    def groups(self, dataset: Any) -> list[str]:
        """Return the group of each sample. Statistics are computed by group and averaged."""
        return [dataset.split] * len(dataset)

    def measured_dataset(self, dataset: Any, names: Sequence[str]) -> Any:
        """Return the dataset for statistics of some modalities: the training split, all bands and dates."""
        return self.make_dataset('train', **self.whole_series(names))

    def measure(self) -> tuple[Any, Entries, Path | None]:
        """Compute the statistics of all training samples in one pass, and save them.

        An interrupted pass is resumed.

        Returns:
            The training split; mean and standard deviation of all bands by modality and group; and the file, None if
            it cannot be written.
        """
        train = self.make_dataset('train', **self.whole_series())
        about: dict[str, Any] = {
            'ids': train.ids,
            **{name: value for name, value in self.kwargs.items() if name != 'root'},
        }
        keep = partial_of(train.path)
        entries = measure(train, train.modalities, self.groups(train), None, self.num_workers, keep, about)
        return train, entries, save_statistics(train.path, entries)

    def statistics(self, dataset: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return mean and standard deviation of the training split, for the bands of *dataset*.

        Args:
            dataset: Any split, with the directory and the bands.

        Raises:
            ValueError: If a file is invalid, or there is no valid pixel.
        """
        every, entries = dataset.all_modalities, load_statistics(dataset.path)
        numbers = {name: self.official(dataset, every[name]) for name in dataset.modalities}
        needed = [name for name, official in numbers.items() if official is None or name in entries]
        if needed:
            # A dataset of one modality alone would exclude samples that lack it.
            whole = getattr(dataset, 'missing', None) == 'allow'
            train = self.measured_dataset(dataset, list(dataset.modalities) if whole else needed)
            numbers |= self._measured(train, entries, [name for name in needed if numbers[name] is None])
        mean, std = {}, {}
        for name, modality in dataset.modalities.items():
            channels = [every[name].bands.index(band) for band in modality.bands]
            mean[name], std[name] = (number[channels].float() for number in numbers[name] or ())
        return mean, std

    def _measured(self, train: Any, entries: Entries, needed: Collection[str]) -> dict[str, BandMoments]:
        """Return the statistics of a dataset, and compute those that are missing."""
        groups = self.groups(train)
        sizes = Counter(groups)
        kept = [name for name, m in train.modalities.items() if is_measured(entries, name, sizes, len(m.bands))]
        other = [name for name in train.modalities if name in entries and name not in kept]
        stale = {name: how for name in kept if (how := changed(train, entries, name, groups))}
        kept = [name for name in kept if name not in stale]
        for then, names in (
            ('they are computed again', [name for name in other if name in needed]),
            ('published statistics are used', [name for name in other if name not in needed]),
        ):
            if names:
                rank_zero_info(
                    f'{FILENAME} of {train.path} has statistics of {", ".join(names)} for other samples or settings '
                    f'than those of {counted(len(groups), "sample")} here: {then}'
                )
        for name, how in stale.items():
            rank_zero_info(
                f'{FILENAME} of {train.path} is older than the files of {name}: {how}; '
                + ('they are computed again' if name in needed else 'published statistics are used')
            )
        if lacking := [name for name in needed if name not in kept]:
            if getattr(train, 'missing', None) == 'allow':
                part = copy(train)
                part.modalities = {name: train.modalities[name] for name in lacking}
            else:
                part = self.measured_dataset(train, lacking)
            measured = measure(part, {name: part.modalities[name] for name in lacking}, groups, self.max_measured)
            save_statistics(train.path, measured)
            entries, kept = {**entries, **measured}, [*kept, *lacking]
        numbers = {}
        for name in kept:
            bands = [as_bands(entries[name][group]) for group in sizes if entries[name][group]['mean']]
            if not bands:
                raise no_valid_pixel(name, len(groups), train.path)
            mean, std = torch.stack([torch.stack(group) for group in bands]).mean(0)
            numbers[name] = (mean, std)
        return numbers

    @cached_property
    def target_moments(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the values in the masks of the training split; None if masks have classes."""
        return measure_target(self) if self.continuous else None

    @property
    def target_mean(self) -> float | None:
        """Mean of the values in the masks of the training split; None if masks have classes."""
        return None if self.target_moments is None else self.target_moments[0]

    @property
    def target_std(self) -> float | None:
        """Standard deviation of the values in the masks of the training split; None if masks have classes."""
        return None if self.target_moments is None else self.target_moments[1]

    @property
    def label_names(self) -> list[str]:
        """Names of the classes of ``label``, in order: all but the ignored one."""
        return [name for index, name in enumerate(self.labels) if index != self.ignore_index]

    @property
    def origin(self) -> str:
        """Name of the data source in checkpoints."""
        return type(self).__name__

    @property
    def synthetic(self) -> bool:
        """Whether the samples are synthetic, so that results are reported as such."""
        return 'root' in self.kwargs and is_synthetic(Path(self.kwargs['root']).expanduser())

    def prepare_data(self) -> None:
        """Download the data of a stage, and compute statistics, on rank zero only."""
        stage = self.trainer.state.fn if self.trainer else 'fit'
        self.report_labels(LABELLED.get(stage or 'fit', ()))
        if stage == 'fit':
            _ = self.target_moments
        self.statistics(self.make_dataset(self.splits_of(stage or 'fit')[0]))

    def splits_of(self, stage: str) -> tuple[str, ...]:
        """Return the splits that a stage reads: ``'fit'``, ``'validate'``, ``'test'`` or ``'predict'``."""
        return _SPLITS[stage]

    def left_out(self) -> list[str]:
        """Return the splits without tiles; ``'train'`` needs some."""
        return []

    def setup(self, stage: str) -> None:
        """Create the datasets of a stage, and load or compute statistics.

        Args:
            stage: ``'fit'``, ``'validate'``, ``'test'`` or ``'predict'``, which predicts
                the test split.
        """
        if stage == 'fit':
            self.begin()
        self.report_labels(LABELLED.get(stage, ()))
        first, *others = self.splits_of(stage)
        empty = self.left_out() if others else ()
        made = {split: self.make_dataset(split) for split in (first, *others) if split not in empty}
        self.report_excluded(made)
        self.train_dataset = made.get('train', self.train_dataset)
        self.val_dataset = made.get('val', self.val_dataset)
        if stage == 'predict':
            self.predict_dataset = made[first]
        else:
            self.test_dataset = made.get('test', self.test_dataset)
        dataset: Any = next(iter(made.values()))
        self.modalities = dict(dataset.modalities)
        if stage == 'fit':
            self.report_disabled_augmentations()
        self.mean, self.std = self.statistics(dataset)
        if stage == 'fit':
            self.warn_of_empty_splits()
            self.warn_of_implausible_statistics()
        self.aug = Normalize(self.modalities, self.mean, self.std)
        self.train_aug = self.augmentation()
        self.collate_fn = partial(collate, modalities=self.modalities, crs=getattr(dataset, 'crs', None))

    def label_counts(self, split: str, most: int | None = None, target: str | None = None) -> LabelCounts:
        """Count the labels of a split by class; images are only read if labels require it.

        Args:
            split: ``'train'``, ``'val'`` or ``'test'``.
            most: Maximum number of evenly spaced tiles to read; None for all.
            target: ``'mask'`` or ``'label'``; by default the mask, if samples have one.

        Raises:
            ValueError: If masks have labels that are not a class, with the tiles and labels.
        """
        dataset: Any = self.make_dataset(split)
        return count_tiles(dataset, self.labels, self.label_names, self.ignore_index, split, most, target)

    def report_labels(self, splits: Sequence[str]) -> None:
        """Log the label counts of some splits once, and warn of missing labels, if the task uses labels.

        At most :attr:`max_counted` tiles of a split are read. Classes without a tile are warned of if all tiles were
        read and the classes are the user's; published splits may lack a rare class.

        Raises:
            ValueError: If labels are not a class, or no training tile has a label.
        """
        task = self.trainer.lightning_module if self.trainer else None
        target = getattr(task, 'target', None)
        named = getattr(self, 'labels', None)
        if target not in ('mask', 'label') or self.continuous or not named or self.max_counted == 0:
            return
        for split in splits:
            if split not in self.left_out() and self._is_first('labels', split):
                self._report_labels(split, self.label_counts(split, self.max_counted, target))

    def _report_labels(self, split: str, counts: LabelCounts) -> None:
        if not counts.total:
            return  # the task raises an error with the missing key
        rank_zero_info(counts.summary(split))
        rare = self.published and (counts.unit == 'tile' or counts.labelled)
        warned = [] if rare else counts.warnings(split, self.ignore_index)
        if split == 'train' and warned and not counts.labelled and not counts.of:
            raise ValueError(f'{warned[0]}; expected some labels')
        for text in warned:
            rank_zero_warn(text)

    def statistics_of_model(
        self, modalities: Mapping[str, Modality]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
        """Return mean and standard deviation of the model in prediction.

        Returns:
            Both by modality; None if the model lacks some, or the stage is not ``'predict'``.
        """
        trainer, bands = self.trainer, {name: len(m.bands) for name, m in modalities.items()}
        statistics_of = getattr(trainer.lightning_module, 'statistics_of', None) if trainer else None
        if trainer is None or not trainer.predicting or statistics_of is None:
            return None
        _, stored = statistics_of({'mean': None, 'std': None, 'data': self.origin}, list(bands))
        mean, std = ({name: torch.tensor(stored[kind].get(name, [])) for name in bands} for kind in ('mean', 'std'))
        known = all(len(part[name]) == count for part in (mean, std) for name, count in bands.items())
        return (mean, std) if known else None

    def val_dataloader(self) -> Any:
        """Return the loader of validation tiles; an empty list, of which Lightning warns, if there are none."""
        if self.val_dataset is None and 'val' in self.left_out():
            return []
        return super().val_dataloader()

    def report_disabled_augmentations(self) -> None:
        """Log once which augmentations are disabled because the kind or unit of a modality is unknown."""
        if self._is_first('facts') and (line := describe_not_simulated(self.modalities.values())):
            rank_zero_info(line)

    def warn_of_implausible_statistics(self) -> None:
        """Warn once of statistics that contradict the unit of a modality."""
        for name, modality in self.modalities.items() if self._is_first('statistics') else ():
            for sentence in implausible_statistics(modality, self.mean[name].tolist(), self.std[name].tolist()):
                rank_zero_warn(sentence)

    def lost_splits(self) -> list[str]:
        """Return the requested splits that have no tile."""
        return []

    def warn_of_empty_splits(self) -> None:
        """Warn once of requested splits that have no tile."""
        for split in self.lost_splits() if self._is_first('splits') else ():
            rank_zero_warn(describe_left_out(split))

    def _is_first(self, *report: str) -> bool:
        """Return whether a report was not requested before."""
        is_first = report not in self._reported
        self._reported.add(report)
        return is_first

    def augmentation(self) -> MultimodalAugmentation:
        """Return the training augmentation: geometry, time and speckle in raw units, then the rest."""
        known = self.modalities
        varied = {name: modality for name, modality in known.items() if name not in self._cached}
        steps: list[nn.Module] = []
        if self.dihedral:
            steps.append(RandomDihedral(known))
        if self.temporal_dropout and varied:
            steps.append(RandomTemporalDropout(varied, self.temporal_dropout))
        if self.speckle and varied:
            steps.append(RandomSpeckle(varied, self.speckle))
        steps.append(cast(nn.Module, self.aug))  # the same instance, so that it warns of constant bands once
        if self.jitter and varied:
            steps.append(RandomJitter(varied, self.jitter))
        return MultimodalAugmentation(known, *steps)

    def _keep_values_of_cached(self) -> None:
        """Exclude modalities whose embeddings are cached by their values from augmentations that change values."""
        task = self.trainer.lightning_module if self.trainer else None
        known: frozenset[str] = getattr(task, 'cached_modalities', frozenset())
        cached = frozenset(name for name in self.modalities if self.names_in_mixture.get(name, name) in known)
        if cached == self._cached:
            return
        self._cached = cached
        self.train_aug = self.augmentation()
        rank_zero_info(
            f'Jitter, speckle and temporal dropout are off for {sorted(cached)}: their frozen encoders cache the '
            'embeddings of unchanged values. cache_size: 0 of the encoder turns the cache off and the augmentation on'
        )

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Augment or normalise a batch, after comparing the first ones with the statistics of the model (*guard*).

        Raises:
            ValueError: If the first tiles are implausible and *guard* is ``'error'``.
        """
        trainer = self.trainer
        if trainer and trainer.training:
            self._keep_values_of_cached()
        if self.guard != 'off' and trainer and trainer.state.fn in ('validate', 'test', 'predict'):
            if self._guard is None:
                numbers = {kind: getattr(self, kind, None) for kind in ('mean', 'std')}
                measured = {'data': self.origin, 'source': self.source, **numbers}
                names = self.names_in_mixture
                self._guard = make_guard(trainer, self.modalities, measured, names, self.guard)
            self._guard.look(batch)
        done: Sample = super().on_after_batch_transfer(batch, dataloader_idx)
        return done

    def teardown(self, stage: str) -> None:
        """Conclude the comparison of the first batches."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.conclude()

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot a normalised sample, on any device.

        Args:
            sample: Sample of a batch, with ``prediction`` if there is one.
            show_titles: Whether to write titles.
            suptitle: Title of the figure.
        """
        sample = {key: value.detach().cpu() for key, value in sample.items()}
        raw = Denormalize(self.modalities, self.mean, self.std)(sample)
        dataset = self._valid_attribute('val_dataset', 'test_dataset', 'predict_dataset', 'train_dataset')
        return dataset.plot(raw, show_titles=show_titles, suptitle=suptitle)

    def order(self, dataset: MultimodalDataset, size: int) -> Order:
        """Return the order of the training samples.

        Args:
            dataset: Training split, with ``positions`` (N, 2) in metres for *batches* ``'region'``.
            size: Samples per batch of all ranks together.

        Raises:
            ValueError: If positions are required and unknown.
        """
        if self.batches == 'anywhere':
            return RandomOrder(len(dataset))
        positions = getattr(dataset, 'positions', None)
        if positions is None:
            raise ValueError(
                f"batches='region' requires positions of samples, but {type(dataset).__name__} has none: expected a "
                "dataset with positions (N, 2) in metres, or batches='anywhere'"
            )
        return SpatialOrder(positions, size)

    def _dataloader_factory(self, split: str) -> DataLoader[Sample]:
        """Return a data loader; that of the training split can resume, and has a batch even if the split is smaller."""
        dataset = self._valid_attribute(f'{split}_dataset', 'dataset')
        batch_size = self._valid_attribute(f'{split}_batch_size', 'batch_size')
        settings: dict[str, Any] = {
            'num_workers': self.num_workers,
            'collate_fn': self.collate_fn,
            'persistent_workers': self.num_workers > 0,
            'pin_memory': torch.cuda.is_available(),
        }
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if split != 'train':
            settings['generator'] = torch.Generator()  # workers must not draw a seed from the user's generator
            if processes > 1:
                settings['sampler'] = DealtSampler(dataset, batch_size, rank, processes, fill=split != 'predict')
                dataset = DealtDataset(dataset)
                # If there are fewer tiles than ranks, some ranks predict none.
                self.allow_zero_length_dataloader_with_multiple_devices = split == 'predict'
            return DataLoader(dataset, batch_size=batch_size, **settings)
        drop_last = len(dataset) // processes >= batch_size
        order = self.order(dataset, batch_size * processes)
        return self.resumable_loader(dataset, order, batch_size, drop_last, **settings)


def describe_left_out(split: str) -> str:
    """Return the warning of a split without a tile."""
    return (
        f'{split!r} is skipped: it has no tile with labels. Change split; its fractions along an axis are of the '
        'extent of the labels, not of their area'
    )


def no_valid_pixel(name: str, samples: int, path: Path) -> ValueError:
    """Return the error of a modality without valid pixels."""
    return ValueError(
        f'{name!r} has no valid pixel in {counted(samples, "training sample")} of {path}, expected some for '
        'its mean and standard deviation; remove it from modalities'
    )
