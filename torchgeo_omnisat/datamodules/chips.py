# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""ChipsDataModule: folders of image chips and masks, each chip in its own CRS."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from tqdm import tqdm

from ..datasets.arguments import name_classes
from ..datasets.chips.dataset import ImageChips
from ..datasets.chips.splits import SPLITS
from ..datasets.classes import UnknownCodesError, class_names, refuse_ignored_class
from ..datasets.geo.parts import file_table
from ..datasets.labelcounts import LabelCounts
from .base import MultimodalDataModule

#: Of so many masks the nodata is compared with the classes; others have the same.
LOOKED = 20


class ChipsDataModule(MultimodalDataModule):
    """Chips: images that are samples already, with masks of the same names, anywhere on the Earth or nowhere.

    Everything is in the arguments, which are plain, so that a YAML file can hold them:

    .. code-block:: yaml

        root: /data/chips
        rasters:
          s2: {path: images, gsd: 10, kind: optical, unit: dn}
          s1: {path: radar, gsd: 10, kind: radar, unit: db}
        mask: {path: masks, classes: {0: other, 1: water}}
        split: {fractions: [0.6, 0.2, 0.2]}

    Files of one name are one chip. No pixel is resampled; ``predict`` writes a map for each chip in its own CRS.
    """

    ignore_index: int
    published = False
    max_counted = None
    #: Its presence makes `predict` write maps, see :class:`.GeoTIFFWriter`; chips are not tiled, so it stays None.
    plan: Any = None

    def __init__(
        self,
        root: str = 'data',
        rasters: dict[str, dict[str, Any]] | None = None,
        mask: dict[str, Any] | None = None,
        labels: list[str] | None = None,
        num_classes: int | None = None,
        ignore_index: int = 255,
        colors: list[str] | None = None,
        modalities: tuple[str, ...] | None = None,
        patch_size: float = 40.0,
        tile_size: float | None = None,
        label_gsd: float | None = None,
        split: dict[str, Any] | None = None,
        predict_split: Literal['train', 'val', 'test', 'all'] = 'test',
        missing: Literal['error', 'allow'] = 'allow',
        **kwargs: Any,
    ) -> None:
        """Keep the arguments; nothing is read yet.

        Args:
            root: Directory of the data, where statistics are kept too.
            rasters: Settings by name of the modality: ``path``, a folder below *root*, ``gsd``, and arguments of
                :class:`~torchgeo_omnisat.datasets.RasterTimeSeries`. ``temporal`` is false by default. The group
                ``id`` of ``filename_regex`` tells the files of one chip, the group ``date`` those of a series.
            mask: Settings of the masks: ``path``, ``classes``, ``other`` and the like. None to pretrain or predict.
            labels: Names of the classes; those of ``classes`` by default.
            num_classes: Their number; as many as *labels* by default.
            ignore_index: The label of what has none.
            colors: A colour a class, for figures and maps.
            modalities: Which of *rasters* to use; None for all.
            patch_size: Side of the ground that a token stands for, in metres.
            tile_size: Side in metres of the square that is cut from the centre of each chip; by default samples
                are whole chips, which then have to be of one size.
            label_gsd: GSD of labels and maps in metres, a multiple of those of the masks; theirs by default.
            split: How chips are split: fractions of blocks on the ground, folders, or lists
                (:func:`.split_chips`); by default 60, 20 and 20 % of blocks of 5 km.
            predict_split: Chips to predict, masks or not: those of a split, or ``'all'``.
            missing: What it is that a chip has no file of a sensor: an ``'error'``, or, if ``'allow'``, a modality
                absent from that sample. A missing mask is an error, but to predict.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.

        Raises:
            ValueError: If an argument is not as described.
        """
        if isinstance(modalities, str) or not set(modalities or ()) <= set(rasters or {}):
            raise ValueError(f'modalities is {modalities!r}, expected some of the rasters {list(rasters or {})}')
        if predict_split not in (*SPLITS, 'all'):
            raise ValueError(f'predict_split is {predict_split!r}, expected one of {[*SPLITS, "all"]}')
        if labels is None and mask and mask.get('classes'):
            labels = class_names(mask['classes'], mask.get('other'))
        self.labels = name_classes(labels, num_classes, least=0 if mask is None else 2)
        super().__init__(
            ImageChips,
            root=root,
            rasters={name: dict((rasters or {})[name]) for name in modalities or rasters or {}},
            mask=mask,
            labels=self.labels,
            splits=split,
            tile_size=tile_size,
            label_gsd=label_gsd,
            ignore_index=ignore_index,
            missing=missing,
            **kwargs,
        )
        self.mask = mask
        self.num_classes = len(self.labels)
        refuse_ignored_class(self.labels, ignore_index)
        self.ignore_index = ignore_index
        self.colors = colors
        self.patch_size = patch_size
        self.predict_split = predict_split

    @cached_property
    def chips(self) -> ImageChips:
        """Every chip."""
        return ImageChips(**{**self.kwargs, 'split': 'all', 'missing': 'check'})

    @property
    def label_gsd(self) -> float:  # type: ignore[override]
        """GSD of labels and maps in metres."""
        return self.chips.label_gsd

    def make_dataset(self, split: str, **changes: Any) -> ImageChips:
        """Return the chips of a split.

        Args:
            split: ``'train'``, ``'val'``, ``'test'``, or ``'predict'`` for those of *predict_split* without masks.
            **changes: ``missing`` may differ from the datamodule's.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If the split has no chip, or the files of a chip do not fit each other.
        """
        settings = {'missing': self.kwargs['missing'], **self.exclusion(), **changes}
        if split != 'predict':
            return self.chips.part(split, **settings)
        return self.chips.part(self.predict_split, with_masks=False, **settings)

    def whole_series(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return nothing: samples have all their bands and dates."""
        return {}

    def splits_of(self, stage: str) -> tuple[str, ...]:
        """Return the splits that a stage reads; prediction has chips of its own, without masks."""
        return ('predict',) if stage == 'predict' else super().splits_of(stage)

    def left_out(self) -> list[str]:
        """Return the splits that have no chip; training needs some."""
        return [name for name, ids in self.chips.assigned.items() if name != 'train' and not ids]

    def groups(self, dataset: Any) -> list[str]:
        """One group, named after all that its statistics depend on."""
        known = {key: value for key, value in self.kwargs.items() if key in ('rasters', 'tile_size')}
        told = [known, dataset.ids]
        digest = hashlib.sha256(json.dumps(told, default=str, sort_keys=True).encode()).hexdigest()[:12]
        return [f'train {digest}'] * len(dataset)

    def statistics(self, dataset: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return mean and standard deviation of the model that predicts, or else of the training split.

        Args:
            dataset: Any split.
        """
        return self.statistics_of_model(dataset.modalities) or super().statistics(dataset)

    def prepare_data(self) -> None:
        """Look at files and labels, and measure the training split, in one process alone."""
        stage = (self.trainer.state.fn if self.trainer else None) or 'fit'
        for split in self.splits_of(stage):
            if split == 'predict' or split not in self.left_out():
                self.make_dataset(split)  # a missing mask is an error before labels are counted
        super().prepare_data()

    def setup(self, stage: str) -> None:
        """Make the chips of a stage and learn the statistics; say how they were split.

        Args:
            stage: ``'fit'``, ``'validate'``, ``'test'`` or ``'predict'``.
        """
        if stage == 'fit':
            rank_zero_info(self.describe_split())
        super().setup(stage)

    def label_counts(self, split: str, most: int | None = None, target: str | None = None) -> LabelCounts:
        """Return what a split has of each class; masks are read, images are not.

        Args:
            split: ``'train'``, ``'val'`` or ``'test'``.
            most: At most so many chips, spread evenly over the split, are read; None for all.
            target: Ignored: chips have masks.

        Raises:
            ValueError: If codes of the masks stand for no class, with all of them.
        """
        dataset = self.make_dataset(split, missing='check')
        counts, unknown = LabelCounts.none(self.labels, self.ignore_index), list[UnknownCodesError]()
        masked = dataset.masked()
        chosen = masked
        if most is not None and most < len(masked):
            counts.of = len(masked)
            chosen = [masked[index] for index in np.linspace(0, len(masked) - 1, most).round().astype(int).tolist()]
        for index in tqdm(chosen, desc=f'Labels of {split}', disable=None, leave=False):
            try:
                counts.add_mask(dataset.read_mask(index), self.labels, self.ignore_index)
            except UnknownCodesError as error:
                unknown.append(error)
        if unknown:
            raise UnknownCodesError.joined(unknown)
        nodata = dataset.nodata_classes(masked[:LOOKED]).items()
        counts.nodata = [(path, value, self.labels[number]) for path, (value, number) in nodata]
        return counts

    def contents(self) -> str:
        """Return a table of the files, and how the chips are split."""
        names, chips = self.chips.names, self.chips
        rows = [(chips.modalities[name], chips.files[name].index, chips.describe_crs(name)) for name in names]
        return f'{file_table(rows)}\n{self.describe_split()}'

    def describe_split(self) -> str:
        """Return how many chips each split has."""
        counts = {split: len(ids) for split, ids in self.chips.assigned.items()}
        rest = len(self.chips) - sum(counts.values())
        said = ', '.join(f'{count} {split}' for split, count in counts.items())
        return f'Chips: {said}' + f', {rest} in no split' * (rest > 0) + f', by {dict(self.chips.splits)}'
