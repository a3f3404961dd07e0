# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodules of the user's own rasters: a region that is split on the ground, or folders of chips."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import geopandas as gpd
import numpy as np
import shapely
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.datasets.utils import Sample
from tqdm import tqdm

from ..batch import collate
from ..datasets.chips.dataset import ImageChips
from ..datasets.common.arguments import SPLITS, continuous_settings, name_classes
from ..datasets.common.classes import UnknownCodesError, class_names, refuse_ignored_class
from ..datasets.common.labelcounts import LabelCounts, count_labels, evenly_spaced
from ..datasets.geo.config import facts_of, image_dataset, label_dataset
from ..datasets.geo.join import MultimodalGeoDataset
from ..datasets.geo.parts import contents, file_table, unlike_files
from ..datasets.geo.polygons import Polygons
from ..datasets.geo.small import Places
from ..datasets.geo.tiles import AreaTiles, GeoTiles, disjoint
from ..datasets.io.fingerprint import Fingerprint, stamps
from ..datasets.io.opening import refuse_other_format
from ..datasets.rasters.georeference import bendable
from ..grid import Grid
from ..modality import half_up
from ..prediction import Tiling, area_loader, patch_pixels
from ..transforms import Normalize
from ..utils.checks import EmptySplitError, check_choice
from ..utils.plurals import counted
from ..utils.signatures import with_arguments_of
from .base import LABELLED, Missing, MultimodalDataModule
from .common.statistics import settings_group


def split_ground(dataset: MultimodalGeoDataset, split: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Divide the area of a dataset into splits.

    Args:
        dataset: Dataset to divide.
        split: ``{'axis': 'x', 'fractions': (0.6, 0.2, 0.2)}``, from west to east, or ``'y'``,
            from south to north; or one or several boxes (xmin, ymin, xmax, ymax) for each of
            ``'train'``, ``'val'`` and ``'test'``; or ``{'file': 'regions.gpkg'}``, a vector file whose column
            ``split`` (or *column*) has the split of each polygon.
        root: Directory that the path of the file is relative to.

    Returns:
        Geometries by split in the CRS of *dataset*, empty for splits without an area.

    Raises:
        ValueError: If *split* is invalid, or splits overlap.
    """
    if 'fractions' in split and split.keys() <= {'fractions', 'axis'}:
        parts = _by_fractions(dataset, **split)
    elif 'file' in split and split.keys() <= {'file', 'column'}:
        parts = _by_file(dataset, root, **split)
    elif split and set(split) <= set(SPLITS):
        parts = {name: _boxes(name, split[name]) for name in split}
    else:
        raise ValueError(
            f"split is {dict(split)!r}, expected {{'axis': 'x', 'fractions': [0.6, 0.2, 0.2]}}, boxes for {SPLITS}, or "
            "{'file': a vector file with polygons}"
        )
    grounds = {name: dataset.area.intersection(parts.get(name, shapely.Polygon())) for name in SPLITS}
    grounds = {name: ground if ground.area else shapely.Polygon() for name, ground in grounds.items()}  # no bare lines
    disjoint([(name, ground) for name, ground in grounds.items() if not ground.is_empty])
    return grounds


def _by_fractions(dataset: MultimodalGeoDataset, fractions: Sequence[float], axis: str = 'x') -> dict[str, Any]:
    if axis not in ('x', 'y') or len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"split has axis {axis!r}, fractions {fractions}, expected 'x' or 'y' and three that sum to 1")
    xmin, ymin, xmax, ymax = dataset.area.bounds
    (low, high), origin = ((xmin, xmax), dataset.corner[0]) if axis == 'x' else ((ymin, ymax), dataset.corner[1])
    edges = low + np.cumsum([0.0, *fractions]) * (high - low)
    inner = origin + dataset.lattice * np.floor((edges[1:-1] - origin) / dataset.lattice + 0.5)
    edges = np.array([low, *inner.clip(low, high), high])
    if axis == 'x':
        return {name: shapely.box(edges[i], ymin, edges[i + 1], ymax) for i, name in enumerate(SPLITS)}
    return {name: shapely.box(xmin, edges[i], xmax, edges[i + 1]) for i, name in enumerate(SPLITS)}


def _by_file(dataset: MultimodalGeoDataset, root: Path, file: str, column: str = 'split') -> dict[str, Any]:
    path = root / Path(file).expanduser()
    frame = read_polygons(path, dataset.crs)
    if column not in frame or not set(frame[column]) & set(SPLITS):
        raise ValueError(f'{path} has the columns {list(frame.columns)}, expected {column!r} with some of {SPLITS}')
    return {name: frame.geometry[frame[column] == name].union_all() for name in SPLITS}


def read_polygons(path: Path, crs: Any) -> gpd.GeoDataFrame:
    """Read the polygons of a vector file in a CRS."""
    try:
        refuse_other_format(str(path))
        frame = gpd.read_file(path).to_crs(crs)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected a vector file with polygons') from error
    # Self-intersecting polygons have no union.
    return frame.set_geometry(shapely.make_valid(frame.geometry.array, method='structure', keep_collapsed=False))


def read_area(area: Sequence[float] | str | Mapping[str, Any], crs: Any, root: Path) -> Any:
    """Return an area as one geometry in *crs*: a box, a vector file below *root*, or ``bounds`` and their ``crs``."""
    if isinstance(area, str):
        path = root / Path(area).expanduser()
        geometry = read_polygons(path, crs).union_all()
        if not geometry.area:
            raise ValueError(f'{path} has no polygons, expected the area to predict')
        return geometry
    settings = dict(area) if isinstance(area, Mapping) else {'bounds': area, 'crs': crs}
    bounds = settings.get('bounds')
    if settings.keys() != {'bounds', 'crs'} or bounds is None or len(bounds) != 4 or not _ascending(bounds):
        raise ValueError(
            f'predict_area is {area}, expected xmin, ymin, xmax, ymax, a vector file, or these bounds and their crs'
        )
    return gpd.GeoSeries([bendable(shapely.box(*bounds))], crs=settings['crs']).to_crs(crs).iloc[0]


def _ascending(bounds: Sequence[float]) -> bool:
    return bounds[0] < bounds[2] and bounds[1] < bounds[3]


def _boxes(name: str, boxes: Any) -> Any:
    boxes = boxes or []
    several = [boxes] if boxes and not isinstance(boxes[0], Sequence) else boxes
    if any(len(box) != 4 or not _ascending(box) for box in several):
        raise ValueError(f'split has {boxes} for {name!r}, expected xmin, ymin, xmax, ymax, or several of them')
    return shapely.union_all([shapely.box(*box) for box in several])


class RastersDataModule(MultimodalDataModule):
    """Base class of the datamodules of the user's own rasters."""

    ignore_index: int
    published = False
    #: Remaining tiles of an interrupted prediction, see :class:`.GeoTIFFWriter`; None if maps are not tiled.
    plan: Any = None

    def __init__(
        self,
        dataset_class: Any,
        root: str = 'data',
        rasters: dict[str, dict[str, Any]] | None = None,
        mask: dict[str, Any] | None = None,
        labels: list[str] | None = None,
        num_classes: int | None = None,
        ignore_index: int = 255,
        colors: list[str] | None = None,
        modalities: tuple[str, ...] | None = None,
        patch_size: float = 40.0,
        **kwargs: Any,
    ) -> None:
        """Initialize without reading files.

        Args:
            dataset_class: Class of the dataset.
            root: Directory of the data and of their statistics.
            rasters: Settings by name of the modality.
            mask: Settings of the labels; None for pre-training or prediction.
            labels: Names of the classes; defaults to those of ``classes``.
            num_classes: Number of classes; defaults to that of *labels*.
            ignore_index: Value of pixels without a label.
            colors: Colour of each class, for figures and maps.
            modalities: Names of the *rasters* to use; None for all.
            patch_size: Side of a token on the ground in metres.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.
        """
        super().__init__(dataset_class, **kwargs)
        if self.kwargs:
            raise TypeError(f'got an unexpected keyword argument {next(iter(self.kwargs))!r}')
        self.given_rasters = dict(rasters or {})
        self.check_names(modalities=modalities)
        if not rasters:
            raise ValueError("rasters is empty, expected settings by name such as {'s2': {'path': 's2', 'gsd': 10}}")
        self.root = Path(root).expanduser()
        self.rasters = {name: dict(rasters[name]) for name in modalities or rasters}
        self.mask = mask
        self.continuous, self.target_unit = continuous_settings(mask)
        classes = [name for name in ('classes', 'other') if self.continuous and name in (mask or {})]
        if self.continuous and (classes or labels or num_classes):
            raise ValueError(
                f'continuous of the mask is true, but there are {classes or "labels or num_classes"}: expected '
                'continuous values or classes'
            )
        if labels is None and mask and mask.get('classes'):
            labels = class_names(mask['classes'], mask.get('other'))
        self.labels = name_classes(labels, num_classes, least=0 if mask is None or self.continuous else 2)
        self.num_classes = len(self.labels)
        refuse_ignored_class(self.labels, ignore_index)
        self.ignore_index = ignore_index
        self.colors = colors
        self.patch_size = patch_size

    def check_names(self, **arguments: tuple[str, ...] | None) -> None:
        """Raise ValueError for names of modalities that are not among the rasters.

        Args:
            **arguments: Names by argument; None for all.
        """
        for argument, names in arguments.items():
            if isinstance(names, str) or not set(names or ()) <= set(self.given_rasters):
                raise ValueError(f'{argument} is {names!r}, expected some of the rasters {list(self.given_rasters)}')


class MultimodalGeoDataModule(RastersDataModule):
    """Datamodule of rasters of a region, with spatial splits, and prediction of one map.

    All arguments are plain values, so that a YAML file can contain them:

    .. code-block:: yaml

        root: /data/region
        rasters:
          s2: {path: s2, gsd: 10, kind: optical, unit: dn}
          s1: {path: s1, gsd: 10, kind: radar, unit: db}
          aerial: {path: aerial, gsd: 0.2, temporal: false, kind: optical, unit: dn}
        mask: {path: fields.gpkg, column: crop, outside: none}
        labels: [none, wheat, maize]
        label_gsd: 10
        split: {axis: x, fractions: [0.6, 0.2, 0.2]}

    Training tiles are random windows of the training area. Validation and test tiles are adjacent. The map covers
    all rasters, or *predict_area*.
    """

    @with_arguments_of(RastersDataModule, without=('dataset_class',))
    def __init__(
        self,
        root: str = 'data',
        rasters: dict[str, dict[str, Any]] | None = None,
        mask: dict[str, Any] | None = None,
        *,
        required: tuple[str, ...] = (),
        crs: str | None = None,
        label_gsd: float | None = None,
        tile_size: float = 320.0,
        train_tile_size: float | None = None,
        train_places: Places = 'anywhere',
        length: int | None = None,
        split: dict[str, Any] | None = None,
        predict_area: list[float] | str | dict[str, Any] | None = None,
        overlap: float = 0.25,
        instances: bool = False,
        **kwargs: Any,
    ) -> None:
        """Initialize without reading files.

        Args:
            root: Directory of the data and of their statistics.
            rasters: Settings by name of the modality: ``path`` below *root*, ``gsd``, and arguments of
                :class:`~torchgeo_omnisat.datasets.RasterTimeSeries`, including ``kind`` and ``unit``.
                ``kind`` ``'sentinel2'``, ``'sentinel1'`` or ``'stac'`` selects another reader.
                Or ``class_path`` and ``init_args`` of another geodataset, with ``kind`` and ``unit``.
            mask: Settings of the labels, in the same form. Polygons have a ``column`` with the name or index of
                the class; other areas have no label, or the class ``outside``. Points label their pixel.
                ``classes`` maps codes to names, such as ``{10: tree, 20: shrub}``, and ``other`` is the class of
                all other codes. ``continuous: true`` reads a raster of values, such as canopy height, instead of
                classes, in the unit ``value_unit``, such as ``m``. Training is restricted to the area of the labels.
                None for pre-training or prediction.
            required: Modalities that tiles must have; other areas are excluded.
            crs: CRS of tiles and maps, in metres; defaults to the first such CRS of raster labels,
                *rasters* and polygons.
            label_gsd: GSD of labels and maps in metres; by default that of raster labels, or else of
                the first of *rasters*.
            tile_size: Side of a tile in metres.
            train_tile_size: Side of random training tiles in metres, at most *tile_size*, the default. Smaller tiles
                are cut from blocks of ground, of which up to 512 MB stay in memory. A single pixel suits encoders
                without spatial context.
            train_places: Places of random training tiles: ``'anywhere'``, or around a random labelled pixel,
                ``'labels'``.
            length: Number of training tiles per epoch; defaults to the number of adjacent tiles.
            split: Areas of training, validation and test: fractions along an axis, boxes, or
                a vector file (:func:`.split_ground`); 60, 20 and 20 % from west to east by default.
            predict_area: Area to predict: xmin, ymin, xmax, ymax in *crs*; a vector file of
                polygons; or ``{'bounds': [5, 50, 6, 51], 'crs': 'EPSG:4326'}``. None for the area of the rasters.
            overlap: Overlap of neighbouring tiles in prediction, as a fraction.
            instances: Whether tiles have ``instances``, the polygon of each pixel.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.
        """
        super().__init__(GeoTiles, root, rasters, mask, **kwargs)
        self.check_names(required=required)
        self.required = tuple(required)
        self.crs = crs
        self.tile_size = float(tile_size)
        self.train_tile_size = self.tile_size if train_tile_size is None else float(train_tile_size)
        if not 0 < self.train_tile_size <= self.tile_size:
            raise ValueError(f'train_tile_size is {train_tile_size} m, expected at most tile_size, {tile_size} m')
        check_choice(train_places=(train_places, get_args(Places)))
        self.train_places = train_places
        self.length = length
        self.split = split or {'axis': 'x', 'fractions': (0.6, 0.2, 0.2)}
        self.predict_area = predict_area
        self.overlap = overlap
        self.instances = instances
        self._label_gsd = label_gsd
        self._excluded: dict[str, list[str]] = {}

    @cached_property
    def labelled(self) -> MultimodalGeoDataset:
        """Dataset of the rasters in the area of the labels; everywhere without labels."""
        mask = None if self.mask is None else label_dataset(self.mask, self.root, self.labels, self.ignore_index)
        if isinstance(mask, Polygons) and mask.sparse:
            mask.widen(self.tile_size)  # so that a tile fits around a single point
        return self._join(mask)

    @cached_property
    def unlabelled(self) -> MultimodalGeoDataset:
        """Dataset of the rasters in all of their area."""
        return self.labelled.unlabelled()

    @cached_property
    def grounds(self) -> dict[str, Any]:
        """Area of each split, in the CRS of the tiles; the surroundings of points if labels are points."""
        grounds = split_ground(self.labelled, self.split, self.root)
        labels = self.labelled.labels
        if labels is not None and labels.sparse:
            near = labels.around(self.tile_size)
            grounds = {name: ground.intersection(near) for name, ground in grounds.items()}
        if self.exclude is None:
            return grounds
        boxes = {name: self._tile_box(name) for name in self.report.samples_at_fault}
        for split, ground in grounds.items():
            self._excluded[split] = [name for name, box in boxes.items() if ground.intersection(box).area > 0]
        return {name: ground.difference(shapely.union_all([*boxes.values()])) for name, ground in grounds.items()}

    def _tile_box(self, name: str) -> Any:
        try:
            x, y = map(float, name.split('_'))
        except ValueError:
            raise ValueError(f'exclude is {self.exclude!r}, which names {name!r}, expected X_Y of a tile') from None
        half = self.tile_size / 2
        return shapely.box(x - half, y - half, x + half, y + half)

    @property
    def label_gsd(self) -> float:  # type: ignore[override]
        """GSD of labels and maps in metres."""
        return self.labelled.label_gsd if self._label_gsd is None else self._label_gsd

    @property
    def background(self) -> int | None:  # type: ignore[override]
        """Class of pixels outside of all polygons; None if they have no label."""
        labels = None if self.labelled.labels is None else self.labelled.labels.dataset
        return labels.outside if isinstance(labels, Polygons) and labels.outside != labels.nodata else None

    @property
    def with_instances(self) -> bool:
        """Whether tiles have the field of each pixel: by argument, or because the task trains or scores fields."""
        return self.instances or super().with_instances

    def make_dataset(self, split: str, every: bool = False, **changes: Any) -> GeoTiles:
        """Return the tiles of a split; training tiles are random, or adjacent with *every*.

        Raises:
            ValueError: If the split has no area, or is smaller than a tile.
        """
        if self.grounds[split].is_empty:
            bounds, name = tuple(map(round, self.labelled.area.bounds)), self.labelled.crs.name
            raise EmptySplitError(
                f'split {self.split} leaves no labelled ground for {split!r}, expected some of {bounds}, {name}'
            )
        dataset = self.labelled.clip(self.grounds[split])
        dataset.instances, dataset.instance_gsd = self.with_instances, self.instance_gsd
        tiles = GeoTiles(dataset, self.tile_size, None, str(self.root), split)
        if split == 'train' and not every:
            side = self.train_tile_size
            count = self.length or max(1, round(self.grounds[split].area / side**2))
            block = self.tile_size if side < self.tile_size else None
            tiles = GeoTiles(dataset, side, count, str(self.root), split, self.train_places, block)
        tiles.excluded = self._excluded.get(split, [])
        return tiles

    def label_counts(self, split: str, most: int | None = None, target: str | None = None) -> LabelCounts:
        """Count the labels of a split by class, once; no image is read.

        Raises:
            ValueError: If labels have unknown codes, or the split has no area.
        """
        counted: dict[str, tuple[str, LabelCounts]] = self.__dict__.setdefault('_label_counts', {})
        now = self._label_files()
        if split not in counted or counted[split][0] != now:
            counted[split] = now, count_labels(self.make_dataset(split, every=True), self.labels)
        return counted[split][1]

    def whole_series(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the arguments of the dataset for statistics: all tiles, once."""
        return {'every': True}

    def contents(self) -> str:
        """Return a table of the rasters with files, dates, pixels and bands."""
        return contents(self.labelled)

    def left_out(self) -> list[str]:
        """Return the splits without an area, except for training, which must have one."""
        return [name for name, ground in self.grounds.items() if name != 'train' and ground.is_empty]

    def lost_splits(self) -> list[str]:
        """Return the splits without an area although their fraction is not 0, or they have a box."""
        fractions = dict(zip(SPLITS, self.split.get('fractions', ()), strict=False))
        return [name for name in self.left_out() if fractions.get(name) or name in self.split]

    def groups(self, dataset: Any) -> list[str]:
        """Return one group for all samples, named after the settings that its statistics depend on."""
        ground = {
            key: value for key, value in (self.mask or {}).items() if key not in ('classes', 'other')
        } or self.mask
        settings: list[Any] = [self.rasters, ground, self.required, self.split, self.tile_size, str(self.crs)]
        settings += [] if self.exclude is None else [sorted(self.report.samples_at_fault)]
        return [settings_group(settings)] * len(dataset)

    def prepare_data(self) -> None:
        """Compute the statistics of the training area, on rank zero only, unless a model for prediction has them.

        Labels are counted first, because computing statistics would stop at the first tile with an unknown code.
        """
        stage = self.trainer.state.fn if self.trainer else 'fit'
        self._refuse_unlike_files()
        self.report_labels(LABELLED.get(stage or 'fit', ()))
        if self.continuous and stage == 'fit':
            _ = self.target_moments
        if self.statistics_of_model(self.labelled.modalities) is None:
            self.statistics(self.make_dataset('train', every=True))

    def setup(self, stage: str) -> None:
        """Create the tiles of a stage, or the map to predict, and load or compute statistics."""
        self._refuse_unlike_files()
        if stage == 'predict':
            self._setup_map()
        else:
            super().setup(stage)
        self.collate_fn = partial(collate, modalities=self.modalities, crs=self.labelled.crs)

    def statistics(self, dataset: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return mean and standard deviation of the model in prediction, or else of the training area."""
        known = self.statistics_of_model(self.labelled.modalities)
        return known or super().statistics(self.make_dataset('train', every=True))

    def predict_dataloader(self) -> DataLoader[Sample]:
        """Return the loader of the overlapping tiles of the map."""
        return area_loader(self)

    def fingerprint(self) -> list[Any]:
        """Return the files and settings that identify a map, so that an interrupted prediction can resume."""
        paths = [path for name in self.rasters for path in self.unlabelled.image_files(name)]
        return [*stamps(paths, self.root), self.predict_area, self.rasters]

    def _setup_map(self) -> None:
        dataset = self.unlabelled
        self.area = dataset.area
        if self.predict_area is not None:
            ground = read_area(self.predict_area, dataset.crs, self.root)
            try:
                self.area = dataset.clip(ground).area
            except ValueError as error:
                raise ValueError(f'predict_area is {self.predict_area!r}: {error}') from None
        # Tiles start on the common pixel grid of all modalities, and so does the map.
        around = Grid.over(dataset.crs, self.area.bounds, dataset.lattice, dataset.corner).bounds
        self.grid = Grid.over(dataset.crs, around, self.label_gsd, dataset.corner)
        size = half_up(self.tile_size / self.label_gsd)
        patch = patch_pixels(dataset.step, self.label_gsd)
        self.tiling = Tiling(self.grid.height, self.grid.width, size, self.overlap, patch)
        self.predict_dataset = AreaTiles(dataset.clip(self.area), self.grid)  # type: ignore[assignment]
        self.modalities = dataset.modalities
        self.mean, self.std = self.statistics(dataset)
        self.aug = Normalize(self.modalities, self.mean, self.std)

    def _refuse_unlike_files(self) -> None:
        unlike = unlike_files(self.labelled)
        if unlike:
            _, message = next(iter(unlike.values()))
            more = f' (as {counted(len(unlike) - 1, "more file")})' if len(unlike) > 1 else ''
            raise ValueError(message + more)

    def report_labels(self, splits: Sequence[str]) -> None:
        """Log the label counts of some splits, and warn of missing labels, if the task uses labels.

        Raises:
            ValueError: If labels have unknown codes, or the training split has no labels.
        """
        task = self.trainer.lightning_module if self.trainer else None
        if self.mask is None or self.continuous or getattr(task, 'target', 'mask') is None:
            return
        now = self._label_files()
        for split in splits:
            if not self.grounds[split].is_empty and self._is_first('labels', split, now):
                self._report_labels(split, self.label_counts(split))

    def _label_files(self) -> str:
        """Return a digest that changes if a label file is rewritten."""
        labels = self.labelled.labels
        return Fingerprint.of(stamps([] if labels is None else labels.files(), self.root)).digest

    def _join(self, mask: Any) -> MultimodalGeoDataset:
        gsd = {name: float(settings['gsd']) for name, settings in self.rasters.items() if 'gsd' in settings}
        images = {name: image_dataset(name, settings, self.root) for name, settings in self.rasters.items()}
        settings = {} if mask is None or self.mask is None or isinstance(mask, Polygons) else self.mask
        coded = {key: settings[key] for key in ('classes', 'other') if key in settings}
        ranges = {} if not self.mask or 'date_range' not in self.mask else {'mask': tuple(self.mask['date_range'])}
        return MultimodalGeoDataset(
            images,
            mask,
            self.required,
            crs=self.crs,
            gsd=gsd,
            label_gsd=self._label_gsd,
            patch_size=self.patch_size,
            date_ranges=ranges,
            ignore_index=self.ignore_index,
            labels=self.labels,
            continuous=self.continuous,
            facts={name: facts_of(settings) for name, settings in self.rasters.items()},
            **coded,
        )


#: Number of masks whose nodata value is compared with the classes; others have the same.
CHECKED_MASKS = 20


class ChipsDataModule(RastersDataModule):
    """Datamodule of image chips, with masks of the same names, with or without a CRS.

    All arguments are plain values, so that a YAML file can contain them:

    .. code-block:: yaml

        root: /data/chips
        rasters:
          s2: {path: images, gsd: 10, kind: optical, unit: dn}
          s1: {path: radar, gsd: 10, kind: radar, unit: db}
        mask: {path: masks, classes: {0: other, 1: water}}
        split: {fractions: [0.6, 0.2, 0.2]}

    Files of the same name are one chip. No pixel is resampled. ``predict`` writes a map for each chip in its CRS.
    """

    max_counted = None

    @with_arguments_of(RastersDataModule, without=('dataset_class',))
    def __init__(
        self,
        root: str = 'data',
        rasters: dict[str, dict[str, Any]] | None = None,
        mask: dict[str, Any] | None = None,
        *,
        tile_size: float | None = None,
        label_gsd: float | None = None,
        split: dict[str, Any] | None = None,
        predict_split: Literal['train', 'val', 'test', 'all'] = 'test',
        missing: Missing = 'allow',
        **kwargs: Any,
    ) -> None:
        """Initialize without reading files.

        Args:
            root: Directory of the data and of their statistics.
            rasters: Settings by name of the modality: ``path``, a directory below *root*, ``gsd``, and arguments of
                :class:`~torchgeo_omnisat.datasets.RasterTimeSeries`. ``temporal`` is false by default. In
                ``filename_regex``, the group ``id`` is the chip, and the group ``date`` the date in a time series.
            mask: Settings of the masks: ``path``, ``classes``, ``other`` and others. None for pre-training or
                prediction.
            tile_size: Side in metres of a square at the centre of each chip; by default samples are whole chips,
                which must have the same size.
            label_gsd: GSD of labels and maps in metres, a multiple of that of the masks, the default.
            split: How chips are split: fractions of blocks on the ground, folders, or lists
                (:func:`.split_chips`); by default 60, 20 and 20 % of blocks of 5 km.
            predict_split: Chips to predict, with or without masks: those of a split, or ``'all'``.
            missing: How to handle missing files: ``'error'`` raises, ``'allow'`` leaves the modality out of the
                sample. A missing mask is an error, except in prediction.
            **kwargs: Arguments of :class:`.MultimodalDataModule`.
        """
        check_choice(predict_split=(predict_split, (*SPLITS, 'all')))
        if mask and mask.get('continuous'):
            raise ValueError(
                'continuous of the mask is true, which chips do not support: expected MultimodalGeoDataModule, or '
                'MappedDataModule with a dataset of TorchGeo'
            )
        super().__init__(ImageChips, root, rasters, mask, **kwargs)
        self.kwargs = {
            'root': root,
            'rasters': self.rasters,
            'mask': mask,
            'labels': self.labels,
            'splits': split,
            'tile_size': tile_size,
            'label_gsd': label_gsd,
            'ignore_index': self.ignore_index,
            'missing': missing,
        }
        self.predict_split = predict_split

    @cached_property
    def chips(self) -> ImageChips:
        """Dataset of all chips."""
        return ImageChips(**{**self.kwargs, 'split': 'all', 'missing': 'check'})

    @property
    def label_gsd(self) -> float:  # type: ignore[override]
        """GSD of labels and maps in metres."""
        return self.chips.label_gsd

    def make_dataset(self, split: str, **changes: Any) -> ImageChips:
        """Return the dataset of a split; ``'predict'`` are the chips of *predict_split* without masks.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If the split has no chip, or the files of a chip have different extents.
        """
        settings = {'missing': self.kwargs['missing'], **self.exclusion(), **changes}
        if split != 'predict':
            return self.chips.part(split, **settings)
        return self.chips.part(self.predict_split, with_masks=False, **settings)

    def whole_series(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return no arguments: samples always have all bands and dates."""
        return {}

    def splits_of(self, stage: str) -> tuple[str, ...]:
        """Return the splits that a stage reads; those of prediction are without masks."""
        return ('predict',) if stage == 'predict' else super().splits_of(stage)

    def left_out(self) -> list[str]:
        """Return the splits without a chip, except for training, which must have some."""
        return [name for name, ids in self.chips.assigned.items() if name != 'train' and not ids]

    def groups(self, dataset: Any) -> list[str]:
        """Return one group for all samples, named after the settings that its statistics depend on."""
        known = {key: value for key, value in self.kwargs.items() if key in ('rasters', 'tile_size')}
        return [settings_group([known, dataset.ids])] * len(dataset)

    def statistics(self, dataset: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return mean and standard deviation of the model in prediction, or else of the training split."""
        return self.statistics_of_model(dataset.modalities) or super().statistics(dataset)

    def prepare_data(self) -> None:
        """Check files and labels, and compute the statistics of the training split, on rank zero only."""
        stage = (self.trainer.state.fn if self.trainer else None) or 'fit'
        for split in self.splits_of(stage):
            if split == 'predict' or split not in self.left_out():
                self.make_dataset(split)  # a missing mask is an error before labels are counted
        super().prepare_data()

    def setup(self, stage: str) -> None:
        """Create the chips of a stage, load or compute statistics, and log the split."""
        if stage == 'fit':
            rank_zero_info(self.describe_split())
        super().setup(stage)

    def label_counts(self, split: str, most: int | None = None, target: str | None = None) -> LabelCounts:
        """Count the labels of a split by class; no image is read.

        Raises:
            ValueError: If masks have unknown codes, with all of them.
        """
        dataset = self.make_dataset(split, missing='check')
        counts, unknown = LabelCounts.none(self.labels, self.ignore_index), list[UnknownCodesError]()
        masked = dataset.masked()
        chosen = [masked[place] for place in evenly_spaced(len(masked), most)]
        counts.of = len(masked) if len(chosen) < len(masked) else 0
        for index in tqdm(chosen, desc=f'Labels of {split}', disable=None, leave=False):
            try:
                counts.add_mask(dataset.read_mask(index), self.labels, self.ignore_index)
            except UnknownCodesError as error:
                unknown.append(error)
        if unknown:
            raise UnknownCodesError.joined(unknown)
        nodata = dataset.nodata_classes(masked[:CHECKED_MASKS]).items()
        counts.nodata = [(path, value, self.labels[number]) for path, (value, number) in nodata]
        return counts

    def contents(self) -> str:
        """Return a table of the files, and the number of chips by split."""
        names, chips = self.chips.names, self.chips
        rows = [(chips.modalities[name], chips.files[name].index, chips.describe_crs(name)) for name in names]
        return f'{file_table(rows)}\n{self.describe_split()}'

    def describe_split(self) -> str:
        """Return the number of chips by split as text."""
        counts = {split: len(ids) for split, ids in self.chips.assigned.items()}
        rest = len(self.chips) - sum(counts.values())
        listed = ', '.join(f'{count} {split}' for split, count in counts.items())
        return f'Chips: {listed}' + f', {rest} in no split' * (rest > 0) + f', by {dict(self.chips.splits)}'
