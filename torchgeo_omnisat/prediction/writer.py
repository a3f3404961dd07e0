# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Callback that writes predictions of an area as a GeoTIFF, strip by strip."""

import hashlib
import json
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from glob import escape
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.features import geometry_mask
from rasterio.windows import Window as RasterWindow
from rasterio.windows import transform as window_transform
from tqdm import tqdm

from ..grid import Grid
from ..utils.atomic import atomic_file, hidden_name, naming_errors, publish
from ..utils.checks import check_output_files
from ..utils.figures import save_figure
from ..utils.plurals import counted
from .fields.outlines import check_fields_output, write_fields
from .fields.segmentation import FieldOptions, segment_map
from .raster import MapBands, Precision, TileFolder, class_colors, draw_overview, write_map
from .styles import write_class_map, write_field_style, write_raster_style
from .tiling import Stitcher, Strip, Tiling, Window, share
from .vector import write_parcels

#: Number of digits of the digest in the name of a work folder.
_DIGITS = 16
#: File in a work folder with the inputs of its strips.
_MANIFEST = 'manifest.json'
#: File names of strips.
_STRIP = re.compile(r'([0-9]+)-([0-9]+)\.npz')
#: Seconds between two checks of the progress of other ranks.
_POLL_SECONDS = 0.2
#: Seconds to wait for the lock of the same rank in a run that is ending.
_LOCK_SECONDS = 10
#: Number of consecutive checks after which a missing rank is an error.
_MAX_CHECKS = 10
#: Tag of a map with the names of the files beside it, as JSON.
FILES_TAG = 'FILES'
#: Endings of all files that a writer may write beside a map ``NAME.tif``, with a name that begins with ``NAME``.
_ENDINGS = [
    *('.gpkg', '.json', '.png', '.qml', '.zarr', '_classes.tif', '_classes.qml'),
    *('_fields.gpkg', '_fields.parquet', '_fields.geoparquet', '_fields.qml'),
]


class WorkFolder:
    """Hidden folder beside the output that holds the finished strips.

    Its name contains a digest of all inputs of the strips, so strips of different checkpoints or
    areas never mix.

    Args:
        output: Output file.
        key: All inputs of the strips, in plain types.
    """

    def __init__(self, output: Path, key: Mapping[str, Any]) -> None:
        self.output, self.key = output, dict(key)
        text = json.dumps(self.key, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
        self.path = output.with_name(hidden_name(output.name, f'.{digest}'))
        self._lock = FileLock(self.path / 'lock')
        self._rank_lock: FileLock | None = None
        self._claimed = False

    def open(self, claim: bool, rank: int = 0) -> None:
        """Create the folder and lock it.

        Args:
            claim: Whether to lock the folder for this run, as rank 0 does; other ranks lock a separate file.
            rank: Rank of this process.

        Raises:
            RuntimeError: If another run has locked it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            if claim:
                self._lock.acquire(timeout=0)
            else:
                self._rank_lock = self._lock_of(rank)
                self._rank_lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout:
            raise RuntimeError(
                f'{self.output} is being predicted by another run in {self.path}, expected no other run: wait for '
                'it or choose another output'
            ) from None
        self._claimed = claim
        if claim:
            with atomic_file(self.path / _MANIFEST) as path:
                path.write_text(json.dumps(self.key, indent=1))

    def done(self) -> set[Strip]:
        """Return the strips that are finished."""
        matches = (_STRIP.fullmatch(path.name) for path in self.path.glob('*-*.npz'))
        return {Strip(int(match[1]), int(match[2])) for match in matches if match}

    def drop_damaged(self, shape: Callable[[Strip], tuple[int, int, int]]) -> list[Strip]:
        """Remove damaged strips, as after a power failure, so that they are predicted again.

        Args:
            shape: Function that returns the shape of a strip, ``(bands, rows, columns)``.
        """
        damaged = []
        for strip in sorted(self.done()):
            try:
                whole = self.load(strip).shape == shape(strip)
            except ValueError:
                whole = False
            if not whole:
                (self.path / _name(strip)).unlink(missing_ok=True)
                damaged.append(strip)
        return damaged

    def check(self) -> None:
        """Check that the folder still exists."""
        if not (self.path / _MANIFEST).exists():
            raise RuntimeError(
                f'{self.path} was removed during prediction, expected it to hold the finished strips of '
                f'{self.output} until the map is complete: predict again'
            )

    def is_alive(self, rank: int) -> bool:
        """Return whether the process of a rank other than 0 holds its lock."""
        lock = self._lock_of(rank)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def _lock_of(self, rank: int) -> FileLock:
        return FileLock(self.path / f'rank-{rank}.lock')

    def save(self, strip: Strip, bands: NDArray[Any]) -> None:
        """Store a finished strip, ``(bands, rows, columns)``.

        A rank without strips repeats one; nothing is stored if the folder has been removed because the
        map is complete.
        """
        try:
            with atomic_file(self.path / _name(strip), parents=False) as path:
                _compress(path, bands)
        except FileNotFoundError:
            if self._claimed:
                self.check()
            if self.path.exists():
                raise

    def save_date(self, strip: Strip, date: int) -> None:
        """Store the last acquisition date of a strip, if any, before the strip itself."""
        if date:
            with suppress(FileNotFoundError), atomic_file(self.path / _date_name(strip), parents=False) as path:
                path.write_text(str(date))

    def load_date(self, strip: Strip) -> int:
        """Load the last acquisition date of a strip in days since 1970-01-01; 0 if it is not known."""
        path = self.path / _date_name(strip)
        return int(path.read_text()) if path.exists() else 0

    def load(self, strip: Strip) -> NDArray[Any]:
        """Load a finished strip."""
        path = self.path / _name(strip)
        try:
            with np.load(path) as file:
                return file['bands']
        except FileNotFoundError:
            self.check()
            raise
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f'{path} cannot be read ({error}), expected a finished strip: predict again to replace it'
            ) from error

    def temporary(self, name: str) -> Path:
        """Return a path for an incomplete file, on the file system of the output."""
        path = self.path / name
        path.unlink(missing_ok=True)
        return path

    def close(self, finished: bool = False) -> None:
        """Release the locks, and remove the folder if the map is finished."""
        self._lock.release()
        if self._rank_lock is not None:
            self._rank_lock.release()
        if finished:
            removed = self.path.with_name(f'{self.path.name}.old')
            with suppress(OSError):
                self.path.rename(removed)  # other ranks may still repeat a strip, and write into a folder of this name
            for path in (removed, self.path):
                shutil.rmtree(path, ignore_errors=True)

    def others(self) -> list[Path]:
        """Return the folders of unfinished runs with other arguments for the same output."""
        name = self.path.name[:-_DIGITS]
        same = re.compile(f'{re.escape(name)}[0-9a-f]{{{_DIGITS}}}')
        paths = self.output.parent.glob(f'{escape(name)}*')
        return sorted(path for path in paths if same.fullmatch(path.name) and path != self.path)


def digest_state(state: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the tensors of a model."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        if hasattr(tensor, 'detach'):
            digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def _name(strip: Strip) -> str:
    return f'{strip.band:04d}-{strip.row:06d}.npz'


def _classes_path(output: Path) -> Path:
    return output.with_name(f'{output.stem}_classes.tif')


def _named_after(output: Path) -> list[Path]:
    """Return all files that may be written beside a map and have its name."""
    return [output.absolute().with_name(f'{output.stem}{ending}') for ending in _ENDINGS]


def stale_files(output: Path, written: Iterable[Path]) -> list[Path]:
    """Return the files that an earlier run wrote beside a map and that are not written again.

    They have the name of the map, and its tag lists them. Other existing files of such a name cause a warning.

    Args:
        output: Map, before it is replaced.
        written: Files of the new map.
    """
    new, listed = {path.absolute() for path in written}, _listed(output)
    old = [path for path in _named_after(output) if path not in new and _is_output(path)]
    stale = [path for path in old if path in listed]
    if others := [str(path) for path in old if path not in stale]:
        rank_zero_warn(
            f'{others} are not part of the new map {output}, but may belong to an earlier one: remove them if so'
        )
    return stale


def unlisted_files(output: Path, planned: Iterable[Path]) -> list[Path]:
    """Return existing files that a new map replaces although the tag of the map before it does not list them.

    They have the name of the map, but may be of other origin, such as a style that was saved in QGIS.

    Args:
        output: Map, before it is replaced.
        planned: Files that are written beside the new map.
    """
    new = {path.absolute() for path in planned} - set(_listed(output))
    return [path for path in _named_after(output) if path in new and _is_output(path)]


def _listed(output: Path) -> list[Path]:
    """Return the files beside a map that its tag lists; none if there is no such map."""
    names: Any = ()
    with suppress(RasterioError, ValueError), rasterio.open(output) as file:
        names = json.loads(file.tags().get(FILES_TAG, '[]'))
    return [path for path in _named_after(output) if isinstance(names, list) and path.name in names]


def _is_output(path: Path) -> bool:
    return path.is_file() or (path / 'zarr.json').is_file()


def _date_name(strip: Strip) -> str:
    return f'{strip.band:04d}-{strip.row:06d}.date'


def _compress(path: Path, bands: NDArray[Any]) -> None:
    """Write an .npz file with fast compression, which takes a fifth of the time of ``numpy.savez_compressed``."""
    packed = zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1)
    with packed as archive, archive.open('bands.npy', 'w', force_zip64=True) as file:
        np.lib.format.write_array(file, bands, allow_pickle=False)


#: Memory of a row of tiles in MB; wider areas are divided into column bands.
MEMORY = 64


class GeoTIFFWriter(BasePredictionWriter):
    """Prediction writer that writes an area as a Cloud-Optimised GeoTIFF.

    The bands are the class, bit flags of the modalities that observed the pixel, and the probability of every
    class, stored as integers with a scale. Tags hold names, colours and scale. All bands are nodata where no
    modality observed anything, and outside the ``area`` of the datamodule, if it has one.

    Overlapping tiles are blended in bounded memory, regardless of the size of the area. Finished strips are
    stored in a hidden folder beside the output. An interrupted run is resumed from them if weights, area, files
    and arguments are the same. Several ranks (``--trainer.devices``) divide the strips, which requires a shared
    file system. The output is renamed to its final name once it is complete. Files beside it of an earlier map of the
    same name, which the tag ``FILES`` of that map lists, are replaced or removed.

    Tiles that do not form an area, such as those of PASTIS, are written to a folder as one GeoTIFF each, named
    by their ids.

    On the command line: ``--trainer.callbacks GeoTIFFWriter --trainer.callbacks.output
    map.tif``. A task adds a writer with default arguments if there is none.

    Args:
        output: Output file, replaced if it exists; defaults to ``prediction.tif`` in the trainer's
            ``default_root_dir``. For single tiles, a folder that defaults to ``predictions``.
        probabilities: Data type of the stored probabilities: ``'uint8'`` in steps of 0.004, ``'uint16'``
            in steps of 1/60000, or ``'none'``.
        parcels: Whether to write parcels to a GeoPackage of the same name, see :func:`.write_parcels`. Requires
            an area.
        smallest_parcel: Minimum area of a parcel in hectares; smaller ones are merged into their largest neighbour.
        fields: Whether to delineate fields and write them to ``<name>_fields.gpkg``, see :func:`.write_fields`, or the
            name of a GeoPackage (``.gpkg``) or GeoParquet (``.parquet``). The map has three more bands for them.
            Requires an area and a model that was trained with ``instances``. If this model has a ``field_gsd``, all
            bands have it: class probabilities are interpolated bilinearly, and the modalities repeated.
        field_options: Settings of the fields.
        overview: Whether to write a picture of the same name. Single tiles have none.
        styles: Whether to write QGIS styles (``.qml``) beside map and fields, and ``<name>_classes.tif``: the classes
            alone with a colour table, as any viewer shows it, with its style. Single tiles have none.
        colors: Colour of every class; defaults to ``colors`` of the datamodule, if it has any.
    """

    _bands: Any
    #: Key of the predictions of a task.
    key: ClassVar[str] = 'probabilities'
    #: Default names of a map, and of the folder of single tiles.
    default_names: ClassVar[tuple[str, str]] = ('prediction.tif', 'predictions')

    def __init__(
        self,
        output: str | None = None,
        probabilities: Precision = 'uint8',
        parcels: bool = False,
        smallest_parcel: float = 0.1,
        overview: bool = True,
        colors: Sequence[str] | None = None,
        fields: bool | str = False,
        field_options: FieldOptions | None = None,
        styles: bool = True,
    ) -> None:
        super().__init__('batch')
        if smallest_parcel < 0:
            raise ValueError(f'smallest_parcel is {smallest_parcel}, expected an area in hectares, at least 0')
        self.output, self.probabilities, self.overview, self.colors = output, probabilities, overview, colors
        self.parcels, self.smallest_parcel = parcels, smallest_parcel
        self.fields, self.field_options, self.styles = fields, field_options or FieldOptions(), styles
        if isinstance(fields, str):
            check_fields_output(Path(fields))
        #: Number of pixels of the map per pixel of the labels, along each axis.
        self._factor = 1
        self._trainer: Trainer | None = None
        self._work: WorkFolder | None = None
        self._tiles: TileFolder | None = None
        self._bar: tqdm[Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Turn off Lightning's collection of predictions, and set :meth:`plan` as the plan of the datamodule.

        Raises:
            ValueError: If the datamodule has neither an area nor georeferenced tiles, parcels or fields of single
                tiles are requested, or *output* of a map is not a GeoTIFF,
                or an output is a folder.
        """
        if stage != 'predict':
            return
        if self.key == 'probabilities' and 'target_mean' in pl_module.hparams:
            raise ValueError(
                f'{type(self).__name__} got {type(pl_module).__name__}, expected a task that predicts '
                'classes; ValueWriter writes continuous values'
            )
        datamodule: Any = getattr(trainer, 'datamodule', None)
        dataset = getattr(datamodule, 'predict_dataset', None)
        single = getattr(datamodule, 'tiling', None) is None
        if not single and self.output and Path(self.output).suffix.lower() not in ('.tif', '.tiff'):
            raise ValueError(f"output is {self.output!r}, expected the name of a GeoTIFF such as 'map.tif'")
        if not single:
            self._check_outputs(self._output_path(trainer))
        is_georeferenced = getattr(dataset, 'crs', None) is not None or hasattr(dataset, 'chip_crs')
        if single and not (is_georeferenced and hasattr(dataset, 'ids')):
            raise ValueError(
                f'{type(self).__name__} got {type(datamodule).__name__} without an area, expected a datamodule with '
                '`grid` and `tiling`, such as MultimodalGeoDataModule, or a dataset with `crs` and `ids`'
            )
        if single and self.parcels:
            raise ValueError(f'parcels is True for {type(datamodule).__name__}, with single tiles: expected an area')
        if single and self.fields:
            raise ValueError(
                f'fields is {self.fields!r} for {type(datamodule).__name__}, with single tiles: expected an area'
            )
        self._trainer, self._module, self._datamodule = trainer, pl_module, datamodule
        trainer.predict_loop.return_predictions = False
        # Lightning warns that it finds no batch indices, which are not needed because batches have `window`.
        trainer.predict_loop._warning_cache.add(
            "Couldn't infer the batch indices fetched from your dataloader: `DataLoader`"
        )
        if not single:
            datamodule.plan = self.plan

    def _output_path(self, trainer: Trainer, is_area: bool = True) -> Path:
        return Path(self.output or Path(trainer.default_root_dir) / self.default_names[not is_area]).expanduser()

    def _check_outputs(self, output: Path) -> None:
        """Check that no file that is written is a folder."""
        check_output_files('output', output)
        fields = [self._fields_path(output)] if self.fields else []
        check_output_files('fields', *fields)
        check_output_files('output', *self._beside(output))

    def _beside(self, output: Path) -> list[Path]:
        """Return the files that are written besides the map."""
        fields = [self._fields_path(output)] if self.fields else []
        classes = [_classes_path(output)] if self.styles else []
        styles = [path.with_suffix('.qml') for path in (output, *classes, *fields)] if self.styles else []
        parcels = [output.with_suffix('.gpkg')] if self.parcels else []
        overview = [output.with_suffix('.png')] if self.overview else []
        return parcels + fields + classes + styles + overview

    def plan(self) -> tuple[Tiling, list[Strip]]:
        """Return the tiling, and the strips that this rank predicts.

        The datamodule calls this when it creates its dataloader, after the weights are loaded.
        """
        trainer, module = self._trainer, self._module
        assert trainer is not None
        refuse: Any = getattr(module, 'refuse_random', None)
        if refuse is not None:
            refuse()  # before the folder of an earlier run changes
        self._legend()
        tiling: Tiling = self._datamodule.tiling
        columns = MEMORY * 2**20 // ((self._channels + 2) * 4 * tiling.size * self._factor**2)
        tiling = replace(tiling, band=max(1, columns))
        self._tiling, self._grid = tiling.finer(self._factor), self._datamodule.grid.finer(self._factor)
        output = self._output_path(trainer)
        self._fields_path(output)
        grid: Grid = self._grid
        if self.fields and not grid.crs.is_projected:
            raise ValueError(f'CRS of the map is {grid.crs.to_string()}, expected a projected one for areas of fields')
        self._work = WorkFolder(output, trainer.strategy.broadcast(self._key()))
        self._work.open(trainer.is_global_zero, trainer.global_rank)
        if trainer.is_global_zero and (damaged := self._work.drop_damaged(self._shape)):
            rank_zero_warn(f'{counted(len(damaged), "damaged strip")} of an earlier run of {output}: predicted again')
        done = self._work.done()
        strips = self._tiling.strips()
        missing = trainer.strategy.broadcast([strip for strip in strips if strip not in done])
        self._shares = [share(missing or strips[-1:], rank, trainer.world_size) for rank in range(trainer.world_size)]
        self._strips = self._shares[trainer.global_rank]
        if len(missing) < len(strips):
            rank_zero_info(f'{output}: {len(missing)} of {counted(len(strips), "strip")} left to predict')
        if trainer.is_global_zero and (foreign := unlisted_files(output, self._beside(output))):
            rank_zero_warn(
                f'{[str(path) for path in foreign]} will be replaced with {output}, but the map does not list them as '
                'its own: move them or choose another output to keep them'
            )
        if others := self._work.others():
            rank_zero_warn(
                f'runs of {output} with other arguments are unfinished: remove {[str(path) for path in others]} if '
                'they are not to be resumed'
            )
        return tiling, self._strips

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare for the first tile, and replace Lightning's progress bar with one of tiles."""
        if self._work is None:
            self._legend()
            self._tiles = self._open_folder(self._output_path(trainer, is_area=False))
            return
        self._stitcher = Stitcher(self._tiling, self._channels)
        self._latest = 0
        self._expected = self._walk()
        self._strip, self._wanted, self._windows = next(self._expected)
        self._stitcher.begin(self._strip)
        shown = trainer.progress_bar_callback
        visible = shown is not None and not getattr(shown, 'is_disabled', False) and trainer.is_global_zero
        if shown is not None:
            shown.disable()
        total = sum(len(self._tiling.tiles(strip)) for strip, _ in self._tiling.passes(self._strips))
        self._bar = tqdm(total=total, desc='Predicting', unit=' tiles', disable=not visible)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Add the tiles of a batch, and store every strip that is final."""
        probabilities = prediction[self.key].float().cpu().numpy()
        seen = prediction['seen'].cpu().numpy().astype(np.uint16)
        if self.fields:
            extent, distance = (prediction[key].float().cpu().numpy() for key in ('extent', 'distance'))
            if self._factor > 1:
                size: dict[str, Any] = {'scale_factor': self._factor, 'mode': 'bilinear', 'align_corners': False}
                probabilities = F.interpolate(torch.from_numpy(probabilities), **size).numpy()
                seen = seen.repeat(self._factor, 1).repeat(self._factor, 2)
            probabilities = np.concatenate([probabilities, extent[:, 1:], distance[:, None]], axis=1)
        if not np.isfinite(probabilities).all():
            index = int(np.flatnonzero(~np.isfinite(probabilities).reshape(len(probabilities), -1).all(1))[0])
            place = None if prediction.get('window') is None else prediction['window'][index].tolist()
            raise ValueError(
                f'{self.key} of tile {index} of batch {batch_idx} (window {place}) are NaN or infinite, expected '
                f'finite {self.key} from predict_step'
            )
        if self._tiles is not None:
            places = [None] * len(seen) if prediction['bounds'] is None else prediction['bounds'].tolist()
            for index, *tile in zip(batch_indices or (), probabilities, seen, places, strict=True):
                self._tiles.write(index, *tile)
            return
        assert self._work is not None
        assert self._bar is not None
        latest = self._latest_dates(batch)
        for index, numbers in enumerate(prediction['window'].tolist()):
            self._latest = max(self._latest, latest[index])
            window = Window(*(self._factor * number for number in numbers))
            self._check(window, probabilities[index])
            self._stitcher.add(window, probabilities[index], seen[index])
            if not self._windows:
                if self._wanted:
                    mean, bits = self._stitcher.finish()
                    self._work.save_date(self._strip, self._latest)
                    self._work.save(self._strip, self._bands.encode(mean, self._clip(bits)))
                following = next(self._expected, None)
                self._latest = 0
                if following is not None:
                    self._strip, self._wanted, self._windows = following
                    self._stitcher.begin(self._strip)
            self._bar.update()

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the strips of all ranks on rank 0."""
        if self._tiles is not None:
            rank_zero_info(f'Written: {counted(len(self._tiles.ids), "tile")} in {self._tiles.path}')
            return
        assert self._bar is not None
        assert self._work is not None
        self._bar.close()
        limit = trainer.limit_predict_batches  # 1 is a batch, 1.0 all of them
        if (isinstance(limit, int) or limit < 1) and not self._is_complete(self._work.done()):
            rank_zero_warn(
                f'limit_predict_batches is {limit}, so {self._work.output} is unfinished: predict without it to resume'
            )
        elif trainer.is_global_zero:
            self._await()
            self._finish()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release all resources."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release all resources; finished strips are kept for another run."""
        self._release()

    @property
    def _channels(self) -> int:
        """Number of channels of a prediction, which are blended."""
        count: int = self._bands.count
        return count

    def _open_folder(self, path: Path) -> TileFolder:
        """Return the folder of the files of single tiles."""
        return TileFolder(path, self._datamodule.predict_dataset, self._bands, self._colors)

    def _legend(self) -> None:
        """Set the bands and colours; the weights are loaded."""
        task: Any = self._module
        labels = task.hparams['labels'] or [str(index) for index in range(task.hparams['num_classes'])]
        if self.fields and not task.hparams.get('instances'):
            raise ValueError(
                f'fields is {self.fields!r}, but instances of the model is {task.hparams.get("instances")}: expected '
                'a model that was trained with --model.instances true'
            )
        self._bands = MapBands(labels, list(task.modalities), self.probabilities, bool(self.fields))
        self._factor = task.field_factor if self.fields else 1
        self._colors = class_colors(len(labels), self.colors or getattr(self._datamodule, 'colors', None))

    def _latest_dates(self, batch: Any) -> list[int]:
        """Return the last date of a valid image of each tile, in days since 1970-01-01; 0 if none is known."""
        latest = np.zeros(len(batch['window']), np.int64)
        task: Any = self._module
        for modality in task.modalities.values():
            if self.fields and modality.dates_key in batch and modality.valid_key in batch:
                dates = (batch[modality.dates_key] * batch[modality.valid_key]).cpu().numpy()
                latest = np.maximum(latest, dates.max(axis=1, initial=0))
        return [int(date) for date in latest]

    def _fields_path(self, output: Path) -> Path:
        """Return the file of fields beside a map.

        Raises:
            ValueError: If it has the name of the map or of the map of classes, but for its extension.
        """
        path = output.with_name(f'{output.stem}_fields.gpkg')
        if isinstance(self.fields, str):
            path = Path(self.fields).expanduser()
        for taken in (output, _classes_path(output)):
            if path.with_suffix('').absolute() == taken.with_suffix('').absolute():
                raise ValueError(
                    f'fields is {self.fields!r}, which has the name of the map {taken}, expected another name: their '
                    'styles would be one file'
                )
        return path

    def _walk(self) -> Iterator[tuple[Strip, bool, list[Window]]]:
        for strip, wanted in self._tiling.passes(self._strips):
            yield strip, wanted, self._tiling.tiles(strip)

    def _check(self, window: Window, probabilities: Any) -> None:
        if not self._windows or self._windows.pop(0) != window:
            raise ValueError(f'tile {tuple(window)} is out of order, expected that of Tiling.passes, as of tile_loader')
        if probabilities.shape != (self._channels, window.height, window.width):
            raise ValueError(
                f'predictions of a tile of {window[2:]} pixels have {probabilities.shape[1:]} pixels, expected the '
                f'same: label_gsd is {self._module.hparams.get("label_gsd")} m, pixels of the grid are '
                f'{self._datamodule.grid.step}'
            )

    def _clip(self, seen: NDArray[np.uint16]) -> NDArray[np.uint16]:
        area = getattr(self._datamodule, 'area', None)
        if area is not None:
            extent = self._tiling.extent(self._strip)
            corner = window_transform(
                RasterWindow(extent.column, extent.row, extent.width, extent.height), self._grid.transform
            )
            seen[geometry_mask([area], seen.shape, corner)] = 0
        return seen

    def _key(self) -> dict[str, Any]:
        grid: Grid = self._grid
        files = getattr(self._datamodule, 'fingerprint', lambda: None)()
        area = getattr(self._datamodule, 'area', None)
        key = {
            'weights': digest_state(self._module.state_dict()),
            'hyper_parameters': self._hyper_parameters(),
            'precision': str(self._trainer.precision) if self._trainer else None,
            'grid': [grid.crs.to_wkt(), list(grid.transform)[:6], grid.height, grid.width],
            'tiling': asdict(self._tiling),
            'bands': [self._bands.names, list(self._bands.modalities), self._bands.dtype],
            'batch_size': getattr(self._datamodule, 'batch_size', None),
            'area': None if area is None else area.wkt,
            'files': files,
            'tta': getattr(self._module, 'tta', False),
        }
        plain: dict[str, Any] = json.loads(json.dumps(key, default=str))
        return plain

    def _hyper_parameters(self) -> dict[str, Any]:
        values = dict(self._module.hparams)
        kept = ('name', 'bands', 'gsd', 'temporal')
        return values | {'modalities': [{key: one[key] for key in kept} for one in values.get('modalities') or ()]}

    def _shape(self, strip: Strip) -> tuple[int, int, int]:
        extent = self._tiling.extent(strip)
        return len(self._bands.names), extent.height, extent.width

    def _await(self) -> None:
        """Wait until the strips of all ranks are finished."""
        work = self._work
        assert work is not None
        ended = 0
        while not self._is_complete(done := work.done()):
            work.check()
            late = [rank for rank, strips in enumerate(self._shares) if not done.issuperset(strips)]
            gone = [rank for rank in late if rank == 0 or not work.is_alive(rank)]
            ended = ended + 1 if gone else 0
            if ended > _MAX_CHECKS:  # files of another node may become visible with a delay
                raise RuntimeError(
                    f'ranks {gone} ended before finishing their strips of {work.output}, expected all strips: '
                    'predict again to resume'
                )
            time.sleep(_POLL_SECONDS)

    def _is_complete(self, done: set[Strip]) -> bool:
        return done.issuperset(self._tiling.strips())

    def _finish(self) -> None:
        assert self._work is not None
        work, output = self._work, self._work.output
        parts = ((self._tiling.extent(strip), work.load(strip)) for strip in self._tiling.strips())
        with naming_errors(output, work.path):
            results = self._make(work, parts)
        # Before the map is replaced, whose tag lists them: a run that is killed here removes them when it is resumed.
        for path in stale_files(output, [final for _, final in results]):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            rank_zero_info(f'Removed: {path}, which belonged to the map that is replaced')
        for temporary, final in results:
            if final.parent == output.parent:
                publish(temporary, final, replace_folder=True)
            else:  # perhaps another file system
                with atomic_file(final) as path:
                    shutil.copyfile(temporary, path)
        work.close(finished=True)
        rank_zero_info('Written: ' + ', '.join(str(final) for _, final in results))

    def _make(self, work: WorkFolder, parts: Iterable[tuple[Window, NDArray[Any]]]) -> list[tuple[Path, Path]]:
        """Write the outputs to the work folder, and return their temporary and final paths."""
        output, grid = work.output, self._grid
        made = work.temporary('map.tif')
        if not write_map(made, work.temporary('scratch.tif'), grid, self._bands, parts, self._colors, self._tags(work)):
            self._refuse_empty(work)
        results = [(made, output)]
        if self.parcels:
            package = work.temporary('parcels.gpkg')
            write_parcels(made, package, self._bands.labels, self.smallest_parcel)
            results.append((package, output.with_suffix('.gpkg')))
        results += self._make_fields(work, made) if self.fields else []
        if self.styles:
            classes, beside = work.temporary('classes.tif'), _classes_path(output)
            write_class_map(made, classes, work.temporary('scratch.tif'), self._bands.labels, self._colors)
            results.append((classes, beside))
            for name, of in (('map.qml', output), ('classes.qml', beside)):
                write_raster_style(style := work.temporary(name), self._bands.labels, self._colors)
                results.append((style, of.with_suffix('.qml')))
        if self.overview:
            picture = work.temporary('overview.png')
            save_figure(draw_overview(made, self._bands.labels, self._colors, output.stem), picture, dpi=150)
            results.append((picture, output.with_suffix('.png')))
        return results

    def _make_fields(self, work: WorkFolder, made: Path) -> list[tuple[Path, Path]]:
        """Write the fields of the map to the work folder, and return the temporary and final paths."""
        output, options = self._fields_path(work.output), self.field_options
        temporary, ids = work.temporary(f'fields{output.suffix}'), work.temporary('ids.tif')
        table = segment_map(made, ids, work.temporary('scratch.tif'), options)
        task: Any = self._module
        count = write_fields(
            made,
            ids,
            table,
            temporary,
            self._bands.labels,
            self._bands.modalities,
            options,
            background=task.hparams.get('background'),
            date=max(map(work.load_date, self._tiling.strips())) or None,
            area=getattr(self._datamodule, 'area', None),
        )
        small, large = table.removed
        rank_zero_info(
            f'{counted(count, "field")}; removed {small} below {options.smallest:g} ha, {large} above '
            f'{options.largest:g} ha'
        )
        results = [(temporary, output)]
        if self.styles:
            style = work.temporary('fields.qml')
            write_field_style(style, self._bands.labels, self._colors)
            results.append((style, output.with_suffix('.qml')))
        return results

    def _tags(self, work: WorkFolder) -> dict[str, str]:
        beside = {path.absolute() for path in self._beside(work.output)} & set(_named_after(work.output))
        return {
            'TIFFTAG_SOFTWARE': 'torchgeo_omnisat',
            'WEIGHTS_SHA256': work.key['weights'],
            'TILES': f'{self._tiling.size} pixels, every {self._tiling.stride}',
            FILES_TAG: json.dumps(sorted(path.name for path in beside)),
        }

    def _refuse_empty(self, work: WorkFolder) -> NoReturn:
        grid = self._grid
        work.close(finished=True)
        raise ValueError(
            f'no modality of {list(self._bands.modalities)} has observed pixels in the area {grid.bounds} '
            f'({grid.crs.to_string()}), expected an area that the data cover'
        )

    def _release(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._work is not None:
            self._work.close()
            self._work = None
        self._tiles = None
        if self._trainer is not None:
            shown = self._trainer.progress_bar_callback
            if shown is not None:
                shown.enable()
            if getattr(self._datamodule, 'plan', None) == self.plan:
                self._datamodule.plan = None
            self._trainer = None
