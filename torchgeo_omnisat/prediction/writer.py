# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""GeoTIFFWriter: what a task predicts over an area becomes a map, strip by strip."""

import hashlib
import json
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from rasterio.features import geometry_mask
from rasterio.windows import Window as RasterWindow
from rasterio.windows import transform as window_transform
from tqdm import tqdm

from ..grid import Grid
from ..utils.atomic import atomic_file, hidden_name, naming_errors, publish
from .raster import MapBands, Precision, TileFolder, class_colors, draw_overview, write_map
from .tiling import Stitcher, Strip, Tiling, Window, share
from .vector import write_parcels

#: Digits of the digest in the name of a folder of strips.
_DIGITS = 16
#: File of such a folder that says what its strips depend on.
_MANIFEST = 'manifest.json'
#: Names of strips.
_STRIP = re.compile(r'([0-9]+)-([0-9]+)\.npz')
#: Seconds between two looks at what other processes have finished.
_PAUSE = 0.2
#: Seconds that a process waits for the one of its rank in a run that has just ended.
_PATIENCE = 10
#: Number of looks in a row that must find a process gone.
_LOOKS = 10


class WorkFolder:
    """A hidden folder beside the output that holds its finished strips.

    Its name holds a digest of everything that the strips depend on, so another checkpoint
    or another area never mixes with what is there.

    Args:
        output: The file that is to be.
        key: What the strips depend on, in plain types.
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
        """Make the folder, and claim it for this run if this is its first process.

        Args:
            claim: Whether to refuse if another run works in it.
            rank: Rank of this process, whose lock says that it is alive.

        Raises:
            RuntimeError: If another run does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            if claim:
                self._lock.acquire(timeout=0)
            else:
                self._rank_lock = self._lock_of(rank)
                self._rank_lock.acquire(timeout=_PATIENCE)
        except Timeout:
            raise RuntimeError(
                f'{self.output} is being predicted by another run, which works in {self.path}: '
                'expected to be the only one, or another output'
            ) from None
        self._claimed = claim
        if claim:
            with atomic_file(self.path / _MANIFEST) as path:
                path.write_text(json.dumps(self.key, indent=1))

    def done(self) -> set[Strip]:
        """Return the strips that are finished."""
        found = (_STRIP.fullmatch(path.name) for path in self.path.glob('*-*.npz'))
        return {Strip(int(match[1]), int(match[2])) for match in found if match}

    def drop_damaged(self, shape: Callable[[Strip], tuple[int, int, int]]) -> list[Strip]:
        """Remove finished strips that cannot be read, as a power cut leaves them; they are predicted anew.

        Args:
            shape: Returns the shape of a strip, ``(bands, rows, columns)``.

        Returns:
            The strips.
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
        """Make sure that the folder is still there.

        Raises:
            RuntimeError: If somebody removed it.
        """
        if not (self.path / _MANIFEST).exists():
            raise RuntimeError(
                f'{self.path}, which holds the finished strips of {self.output}, was removed while predicting: '
                'expected it to stay until the map is complete; predict again'
            )

    def is_alive(self, rank: int) -> bool:
        """Return whether the process of a rank other than 0 works in the folder."""
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
        """Keep a finished strip, ``(bands, rows, columns)``.

        A process that repeats a strip, for want of another, may come when the map is finished
        and the folder gone: then there is nothing to keep.
        """
        try:
            with atomic_file(self.path / _name(strip), parents=False) as path:
                _compress(path, bands)
        except FileNotFoundError:
            if self._claimed:
                self.check()
            if self.path.exists():
                raise

    def load(self, strip: Strip) -> NDArray[Any]:
        """Load a finished strip.

        Raises:
            ValueError: If its file is broken.
        """
        path = self.path / _name(strip)
        try:
            with np.load(path) as file:
                return file['bands']
        except FileNotFoundError:
            self.check()
            raise
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f'{path} cannot be read ({error}), expected a finished strip: predict again, which makes it anew'
            ) from error

    def temporary(self, name: str) -> Path:
        """Return a path for an incomplete file, on the file system of the output."""
        path = self.path / name
        path.unlink(missing_ok=True)
        return path

    def close(self, finished: bool = False) -> None:
        """Let go of the folder, and remove it if it is no longer needed."""
        self._lock.release()
        if self._rank_lock is not None:
            self._rank_lock.release()
        if finished:
            shutil.rmtree(self.path, ignore_errors=True)

    def others(self) -> list[Path]:
        """Folders that unfinished runs with other arguments left for the same output."""
        name = self.path.name[:-_DIGITS]
        same = re.compile(f'{re.escape(name)}[0-9a-f]{{{_DIGITS}}}')
        found = self.output.parent.glob(f'{escape(name)}*')
        return sorted(path for path in found if same.fullmatch(path.name) and path != self.path)


def digest_state(state: Mapping[str, Any]) -> str:
    """SHA-256 of the tensors of a model."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        if hasattr(tensor, 'detach'):
            digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def _name(strip: Strip) -> str:
    """File of a strip."""
    return f'{strip.band:04d}-{strip.row:06d}.npz'


def _compress(path: Path, bands: NDArray[Any]) -> None:
    """Write an archive as numpy does, but packed in a fifth of the time."""
    packed = zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1)
    with packed as archive, archive.open('bands.npy', 'w', force_zip64=True) as file:
        np.lib.format.write_array(file, bands, allow_pickle=False)


#: Megabytes that the open rows of a band may take; an area that is wider has several bands.
MEMORY = 64


class GeoTIFFWriter(BasePredictionWriter):
    """Writes what ``predict`` makes of an area as a Cloud-Optimised GeoTIFF.

    Its bands are the class; the modalities that measured the pixel, a bit each; and the
    probability of every class, stored as whole numbers with a scale. Names, colours and
    scale are inside. Where no modality measured anything, and outside of the datamodule's
    ``area`` if it has one, all bands are nodata.

    Tiles are blended where they overlap, in memory that is bounded, however large the area.
    Finished strips are kept in a hidden folder beside the output. A run that was
    interrupted goes on from there if the weights, the area, the files and the arguments are
    the same. Several processes (``--trainer.devices``) share the strips, which needs a disk
    that all of them see. The output appears under its name once it is whole.

    Tiles that make no area, such as those of PASTIS, become a GeoTIFF each in a folder, named by
    their ids.

    On the command line: ``--trainer.callbacks GeoTIFFWriter --trainer.callbacks.output
    map.tif``. A task adds one with the defaults if there is none.

    Args:
        output: The file; by default ``prediction.tif`` below the trainer's
            ``default_root_dir``. An older file is replaced. Of single tiles the folder,
            ``predictions`` by default.
        probabilities: How probabilities are stored: ``'uint8'`` in steps of 0.004, ``'uint16'``
            in steps of 1/60000, or ``'none'``.
        parcels: Whether to write a GeoPackage of the same name, of an area alone, see :func:`.write_parcels`.
        smallest_parcel: Hectares below which a parcel goes to its largest neighbour.
        overview: Whether to write a picture of the same name, of an area alone.
        colors: A colour for every class; by default the datamodule's ``colors``, if it has any.

    Raises:
        ValueError: If *smallest_parcel* is negative.
    """

    def __init__(
        self,
        output: str | None = None,
        probabilities: Precision = 'uint8',
        parcels: bool = False,
        smallest_parcel: float = 0.1,
        overview: bool = True,
        colors: Sequence[str] | None = None,
    ) -> None:
        super().__init__('batch')
        if smallest_parcel < 0:
            raise ValueError(f'smallest_parcel is {smallest_parcel}, expected hectares, 0 or more')
        self.output, self.probabilities, self.overview, self.colors = output, probabilities, overview, colors
        self.parcels, self.smallest_parcel = parcels, smallest_parcel
        self._trainer: Trainer | None = None
        self._work: WorkFolder | None = None
        self._tiles: TileFolder | None = None
        self._bar: tqdm[Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make Lightning keep no predictions, and the datamodule ask :meth:`plan` what to read.

        Raises:
            ValueError: If the datamodule has neither an area nor tiles that lie somewhere, parcels of
                single tiles are wanted, or *output* of a map is no GeoTIFF.
        """
        if stage != 'predict':
            return
        datamodule: Any = getattr(trainer, 'datamodule', None)
        dataset = getattr(datamodule, 'predict_dataset', None)
        single = getattr(datamodule, 'tiling', None) is None
        if not single and self.output and Path(self.output).suffix.lower() not in ('.tif', '.tiff'):
            raise ValueError(f"output of a map is {self.output!r}, expected the name of a GeoTIFF such as 'map.tif'")
        lies_somewhere = getattr(dataset, 'crs', None) is not None or hasattr(dataset, 'chip_crs')
        if single and not (lies_somewhere and hasattr(dataset, 'ids')):
            raise ValueError(
                f'GeoTIFFWriter maps an area, but {type(datamodule).__name__} has none: expected a datamodule with '
                '`grid` and `tiling` for prediction, such as MultimodalGeoDataModule, or a dataset with `crs` and `ids`'
            )
        if single and self.parcels:
            raise ValueError(
                f'parcels of the single tiles of {type(datamodule).__name__} are not made, expected an area'
            )
        self._trainer, self._module, self._datamodule = trainer, pl_module, datamodule
        trainer.predict_loop.return_predictions = False
        # Lightning misses the indices of samples, which a window makes superfluous; its loop says so once.
        trainer.predict_loop._warning_cache.add(
            "Couldn't infer the batch indices fetched from your dataloader: `DataLoader`"
        )
        if not single:
            datamodule.plan = self.plan

    def plan(self) -> tuple[Tiling, list[Strip]]:
        """Return the tiling, and the strips that this rank predicts.

        The datamodule calls this when it makes its dataloader: the weights are there by then.
        """
        trainer, module = self._trainer, self._module
        assert trainer is not None
        refuse: Any = getattr(module, 'refuse_random', None)
        if refuse is not None:
            refuse()  # before the folder of an older run is touched
        labels = self._legend()
        tiling: Tiling = self._datamodule.tiling
        columns = MEMORY * 2**20 // ((len(labels) + 2) * 4 * tiling.size)
        self._tiling = replace(tiling, band=columns)
        output = Path(self.output or Path(trainer.default_root_dir) / 'prediction.tif')
        self._work = WorkFolder(output, trainer.strategy.broadcast(self._key()))
        self._work.open(trainer.is_global_zero, trainer.global_rank)
        if trainer.is_global_zero and (damaged := self._work.drop_damaged(self._shape)):
            rank_zero_warn(f'{output}: {len(damaged)} strips of an earlier run were damaged, and are predicted anew')
        done = self._work.done()
        strips = self._tiling.strips()
        missing = trainer.strategy.broadcast([strip for strip in strips if strip not in done])
        self._shares = [share(missing or strips[-1:], rank, trainer.world_size) for rank in range(trainer.world_size)]
        self._strips = self._shares[trainer.global_rank]
        if len(missing) < len(strips):
            rank_zero_info(f'{output}: {len(missing)} of {len(strips)} strips are left to predict')
        if others := self._work.others():
            rank_zero_warn(f'runs with other arguments left {[str(p) for p in others]} unfinished: remove them by hand')
        return self._tiling, self._strips

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get ready for the first tile, and show tiles rather than batches as progress."""
        if self._work is None:
            self._legend()
            folder = Path(self.output or Path(trainer.default_root_dir) / 'predictions')
            self._tiles = TileFolder(folder, self._datamodule.predict_dataset, self._bands, self._colors)
            return
        self._stitcher = Stitcher(self._tiling, len(self._bands.labels))
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
        """Add the tiles of a batch, and keep every strip that is final with them."""
        probabilities = prediction['probabilities'].float().cpu().numpy()
        seen = prediction['seen'].cpu().numpy().astype(np.uint16)
        if not np.isfinite(probabilities).all():
            number = int(np.flatnonzero(~np.isfinite(probabilities).reshape(len(probabilities), -1).all(1))[0])
            place = None if prediction.get('window') is None else prediction['window'][number].tolist()
            raise ValueError(
                f'probabilities of tile {number} of batch {batch_idx} (window {place}) are NaN or infinite, which no '
                'map can hold: expected finite probabilities from predict_step'
            )
        if self._tiles is not None:
            places = [None] * len(seen) if prediction['bounds'] is None else prediction['bounds'].tolist()
            for index, *tile in zip(batch_indices or (), probabilities, seen, places, strict=True):
                self._tiles.write(index, *tile)
            return
        assert self._work is not None
        assert self._bar is not None
        for index, numbers in enumerate(prediction['window'].tolist()):
            window = Window(*numbers)
            self._check(window, probabilities[index])
            self._stitcher.add(window, probabilities[index], seen[index])
            if not self._windows:
                if self._wanted:
                    mean, bits = self._stitcher.finish()
                    self._work.save(self._strip, self._bands.encode(mean, self._clip(bits)))
                following = next(self._expected, None)
                if following is not None:
                    self._strip, self._wanted, self._windows = following
                    self._stitcher.begin(self._strip)
            self._bar.update()

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the strips of all processes together, in the first one."""
        if self._tiles is not None:
            rank_zero_info(f'Written: {len(self._tiles.ids)} tiles in {self._tiles.path}')
            return
        assert self._bar is not None
        assert self._work is not None
        self._bar.close()
        limit = trainer.limit_predict_batches  # 1 is a batch, 1.0 all of them
        if (isinstance(limit, int) or limit < 1) and not self._whole(self._work.done()):
            rank_zero_warn(f'limit_predict_batches left {self._work.output} unfinished: a run without it goes on')
        elif trainer.is_global_zero:
            self._await()
            self._finish()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of everything."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of everything; what is finished stays for another run."""
        self._release()

    def _legend(self) -> list[str]:
        """Settle what the bands are and how classes are coloured; the names of the classes."""
        task: Any = self._module
        labels = task.hparams['labels'] or [str(index) for index in range(task.hparams['num_classes'])]
        self._bands = MapBands(labels, list(task.modalities), self.probabilities)
        self._colors = class_colors(len(labels), self.colors or getattr(self._datamodule, 'colors', None))
        return labels

    def _walk(self) -> Iterator[tuple[Strip, bool, list[Window]]]:
        """Yield the rows of tiles that arrive, with the tiles of each."""
        for strip, wanted in self._tiling.passes(self._strips):
            yield strip, wanted, self._tiling.tiles(strip)

    def _check(self, window: Window, probabilities: Any) -> None:
        """Take a tile off the list of those that are to come."""
        if not self._windows or self._windows.pop(0) != window:
            raise ValueError(
                f'tile {tuple(window)} came out of order: expected the tiles of strips in the order of Tiling.passes, '
                'as tile_loader gives them'
            )
        if probabilities.shape != (len(self._bands.labels), window.height, window.width):
            grid: Grid = self._datamodule.grid
            raise ValueError(
                f'the model makes {probabilities.shape[1:]} pixels of a tile that has {window[2:]} on the grid, '
                f'expected its label_gsd, {self._module.hparams["label_gsd"]} m, to be a pixel of the grid, {grid.step}'
            )

    def _clip(self, seen: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """Return the observed bits of a strip, 0 outside the requested area."""
        area = getattr(self._datamodule, 'area', None)
        if area is not None:
            grid: Grid = self._datamodule.grid
            extent = self._tiling.extent(self._strip)
            corner = window_transform(
                RasterWindow(extent.column, extent.row, extent.width, extent.height), grid.transform
            )
            seen[geometry_mask([area], seen.shape, corner)] = 0
        return seen

    def _key(self) -> dict[str, Any]:
        """Everything that a strip depends on, in plain types."""
        grid: Grid = self._datamodule.grid
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
        }
        plain: dict[str, Any] = json.loads(json.dumps(key, default=str))
        return plain

    def _hyper_parameters(self) -> dict[str, Any]:
        """Return the hyper-parameters without facts of modalities that change no pixel of a map."""
        told = dict(self._module.hparams)
        kept = ('name', 'bands', 'gsd', 'temporal')
        return told | {'modalities': [{key: one[key] for key in kept} for one in told.get('modalities') or ()]}

    def _shape(self, strip: Strip) -> tuple[int, int, int]:
        extent = self._tiling.extent(strip)
        return len(self._bands.names), extent.height, extent.width

    def _await(self) -> None:
        """Wait until all processes are through.

        Raises:
            RuntimeError: If the folder of the strips is removed, or a process ends without its strips.
        """
        work = self._work
        assert work is not None
        ended = 0
        while not self._whole(done := work.done()):
            work.check()
            late = [rank for rank, strips in enumerate(self._shares) if not done.issuperset(strips)]
            gone = [rank for rank in late if rank == 0 or not work.is_alive(rank)]
            ended = ended + 1 if gone else 0
            if ended > _LOOKS:  # more than once, as another node's files may take a moment to be seen
                raise RuntimeError(
                    f'{work.output}: the processes of ranks {gone} ended without all of their strips, expected every '
                    'strip of the area; predict again, which goes on from the finished ones'
                )
            time.sleep(_PAUSE)

    def _whole(self, done: set[Strip]) -> bool:
        """Whether nothing of the area is left."""
        return done.issuperset(self._tiling.strips())

    def _finish(self) -> None:
        """Write the outputs under temporary names, and rename them."""
        assert self._work is not None
        work, output = self._work, self._work.output
        parts = ((self._tiling.extent(strip), work.load(strip)) for strip in self._tiling.strips())
        with naming_errors(output, work.path):
            results = self._make(work, parts)
        for temporary, final in results:
            publish(temporary, final)
        work.close(finished=True)
        rank_zero_info('Written: ' + ', '.join(str(final) for _, final in results))

    def _make(self, work: WorkFolder, parts: Iterable[tuple[Window, NDArray[Any]]]) -> list[tuple[Path, Path]]:
        """Write the outputs in the folder of the strips; the files and what they are to be called."""
        output, grid = work.output, self._datamodule.grid
        made = work.temporary('map.tif')
        tags = {
            'TIFFTAG_SOFTWARE': 'torchgeo_omnisat',
            'WEIGHTS_SHA256': work.key['weights'],
            'TILES': f'{self._tiling.size} pixels, every {self._tiling.stride}',
        }
        if not write_map(made, work.temporary('scratch.tif'), grid, self._bands, parts, self._colors, tags):
            work.close(finished=True)
            raise ValueError(
                f'none of the modalities {list(self._bands.modalities)} measured anything in the area {grid.bounds} '
                f'({grid.crs.to_string()}), expected an area that the data cover'
            )
        results = [(made, output)]
        if self.parcels:
            package = work.temporary('parcels.gpkg')
            write_parcels(made, package, self._bands.labels, self.smallest_parcel)
            results.append((package, output.with_suffix('.gpkg')))
        if self.overview:
            picture = work.temporary('overview.png')
            draw_overview(made, self._bands.labels, self._colors, output.stem).savefig(picture, dpi=150)
            results.append((picture, output.with_suffix('.png')))
        return results

    def _release(self) -> None:
        """Close the bar, unlock the folder, give Lightning its own bar back, and the datamodule its own tiles."""
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
