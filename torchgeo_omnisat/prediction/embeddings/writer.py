# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Embedding maps: int8 codes of a unit vector per pixel, the sensors that observed it, and a STAC item."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from pyproj import Transformer

from ...grid import Grid, metres
from ...modality import Modality
from ...utils.checks import check_output_files, require_pyarrow
from ...utils.plurals import counted
from ...utils.tensors.quantization import FORMULA, NODATA, SCALE, SCHEME, quantize
from ..raster import Placement, TileFolder, write_cog
from ..tiling import Window
from ..writer import GeoTIFFWriter, WorkFolder, digest_state
from .tile_table import PERIOD, write_tile_table
from .zarr_store import check_zarr_output, require_zarr, write_zarr

#: Number of bits of the band of sensors; the sign bit would be nodata.
BITS = 7
#: Stored value of a cosine of 1.
COSINE_ONE = 127
#: File name of the table of single tiles.
TABLE = 'embeddings.parquet'
#: STAC extensions of an item.
EXTENSIONS = (
    'https://stac-extensions.github.io/embeddings/v0.0.1/schema.json',
    'https://stac-extensions.github.io/projection/v1.1.0/schema.json',
    'https://stac-extensions.github.io/raster/v1.1.0/schema.json',
)


@dataclass(frozen=True)
class EmbeddingBands:
    """Bands of an embedding map, all int8 with nodata -128.

    The first D bands, ``A00``, ``A01`` and so on, are the quantized unit vector. On request, a band ``cosine <subset>``
    follows for each subset of the modalities, nodata where none of them observed the pixel. The last band, ``sensors``,
    holds bit flags of the modalities that observed the pixel. Its tags ``BIT_0`` to ``BIT_6`` name them; the seventh
    bit stands for all modalities from the seventh on, whose names are joined by ``+``.

    Args:
        dim: Dimension D.
        modalities: Names of the modalities.
        cosines: Names of the subsets of the modalities whose embedding is compared with that of all.
    """

    dim: int
    modalities: Sequence[str]
    cosines: Sequence[str] = ()
    dtype: ClassVar[str] = 'int8'
    nodata: ClassVar[int] = NODATA

    @property
    def names(self) -> list[str]:
        """Names of the bands."""
        return [*(f'A{i:02}' for i in range(self.dim)), *(f'cosine {name}' for name in self.cosines), 'sensors']

    @property
    def bits(self) -> list[str]:
        """Name of the modalities of each bit of the band of sensors."""
        names = list(self.modalities)
        return names if len(names) <= BITS else [*names[: BITS - 1], '+'.join(names[BITS - 1 :])]

    def encode(self, values: NDArray[np.float32], seen: NDArray[np.uint16]) -> NDArray[np.int8]:
        """Return the bands ``(bands, H, W)`` of blended vectors and cosines ``(D + S, H, W)``.

        Vectors are normalised here, after they were blended, so that all have unit length. Pixels are nodata where
        no modality observed anything.

        Args:
            values: Vectors, followed by the cosines.
            seen: Bit flags of the modalities, see :func:`.seen_bits`.
        """
        vectors, cosines = values[: self.dim], values[self.dim :]
        length = np.sqrt((vectors**2).sum(0))
        bands = np.empty((len(self.names), *seen.shape), np.int8)
        bands[: self.dim] = quantize(vectors / np.maximum(length, 1e-12))
        for band, cosine, name in zip(bands[self.dim : -1], cosines, self.cosines, strict=True):
            subset = sum(1 << self.modalities.index(part) for part in set(name.split('+')))
            band[:] = np.where(seen & subset, np.rint(COSINE_ONE * np.clip(cosine, -1, 1)), NODATA)
        last = 1 << (BITS - 1)
        bands[-1] = np.where(seen >= last, (seen & (last - 1)) | last, seen)
        bands[:, (seen == 0) | (length == 0)] = NODATA
        return bands


def write_embeddings(
    path: Path,
    scratch: Path,
    grid: Grid | Placement,
    bands: EmbeddingBands,
    parts: Iterable[tuple[Window, NDArray[Any]]],
    tags: Mapping[str, str],
) -> int:
    """Write windows to a Cloud-Optimised GeoTIFF, with the values of a pixel next to each other.

    Args:
        path: Output file. It is not written atomically: the caller renames it.
        scratch: Temporary file of about the same size, which is removed.
        grid: Georeference of the pixels.
        bands: Bands of the file.
        parts: Windows and their bands, ``(bands, height, width)``; other pixels are nodata.
        tags: Tags of the file.

    Returns:
        Number of pixels that are not nodata.
    """

    def describe(file: Any) -> None:
        file.update_tags(**tags)
        file.descriptions = bands.names
        file.scales = [1.0] * bands.dim + [1 / COSINE_ONE] * len(bands.cosines) + [1.0]
        file.update_tags(len(bands.names), **{f'BIT_{bit}': name for bit, name in enumerate(bands.bits)})

    return write_cog(path, scratch, grid, bands, parts, describe, 'pixel')


class EmbeddingWriter(GeoTIFFWriter):
    """Prediction writer that writes the embeddings of an area as a Cloud-Optimised GeoTIFF.

    It works with any task, also fine-tuned ones. With a model that was pre-trained with ``embedding_dim``, vectors are
    those of its head. Otherwise, they are the principal components of its fused tokens and finest feature maps,
    computed on training tiles. These components are saved, because vectors can only be compared if they have the same.

    Pixels are int8: ``sign(x) * sqrt(abs(x)) * 127.5``, rounded, as in AlphaEarth; nodata is -128. See
    :class:`.EmbeddingBands` for the bands. Tags state the formula, the sensors, the digest of the weights, dimension
    and GSD. A STAC item of the same name is written beside the map, with the extensions `embeddings` 0.0.1,
    `projection` and `raster`.

    Tiles are blended, interrupted runs resumed, and strips shared by ranks as in :class:`.GeoTIFFWriter`. Tiles that
    do not form an area, such as those of PASTIS, are written to a folder as one GeoTIFF each, without an item.

    On the command line: ``--trainer.callbacks EmbeddingWriter --trainer.callbacks.output map.tif``. The task
    ``omnisat_pretraining`` adds a writer with default arguments if an area is predicted and there is none.

    Args:
        output: Output file, replaced if it exists; defaults to ``embeddings.tif`` in the trainer's
            ``default_root_dir``. For single tiles, a folder that defaults to ``embeddings``.
        cosine: Subsets of the modalities, such as ``s1a+s2``, whose embedding is compared with that of all, as one
            band with the cosine each.
        dim: Dimension of the principal components, for models without a head.
        gsd: GSD in metres of single tiles, for models without a head. Maps of an area have that of its grid.
        projection: File of the principal components, which is read if it exists and else written. By default, it is
            beside the checkpoint, or beside the output if there is none.
        zarr: Whether to write a Zarr store of the same name (``.zarr``) with the codes as well, in version 1 of the
            convention ``geoemb:``. Requires an area, and zarr: ``pip install torchgeo_omnisat[zarr]``.
        source_data: URLs of the datasets that the images are from, for the attribute ``geoemb:source_data`` of the
            Zarr store. By default, one URN for each sensor.
        parquet: Whether to write the mean vector of each tile to a GeoParquet, ``embeddings.parquet`` in the folder of
            single tiles. Requires pyarrow: ``pip install torchgeo_omnisat[parquet]``.
    """

    key: ClassVar[str] = 'embeddings'
    default_names: ClassVar[tuple[str, str]] = ('embeddings.tif', 'embeddings')

    def __init__(
        self,
        output: str | None = None,
        cosine: Sequence[str] = (),
        dim: int = 64,
        gsd: float = 10.0,
        projection: str | None = None,
        zarr: bool = False,
        source_data: Sequence[str] = (),
        parquet: bool = False,
    ) -> None:
        super().__init__(output, 'none', overview=False)
        if isinstance(cosine, str):
            raise ValueError(f"cosine is {cosine!r}, expected a list of subsets such as ['s1a+s2']")
        if isinstance(source_data, str):
            raise ValueError(f'source_data is {source_data!r}, expected a list of URLs')
        self.cosine, self.dim, self.gsd, self.projection = tuple(cosine), dim, gsd, projection
        self.zarr, self.source_data, self.parquet = zarr, tuple(source_data), parquet
        if zarr:
            require_zarr()
        if parquet:
            require_pyarrow(TABLE)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Validate task and datamodule, as :meth:`.GeoTIFFWriter.setup`.

        Raises:
            ValueError: If the task has no backbone, *cosine* has unknown modalities, *zarr* is True for single
                tiles, or *parquet* for an area.
        """
        if stage == 'predict' and not hasattr(pl_module, 'embedder'):
            raise ValueError(f'EmbeddingWriter got {type(pl_module).__name__}, expected a task of torchgeo_omnisat')
        datamodule = getattr(trainer, 'datamodule', None)
        is_area = getattr(datamodule, 'tiling', None) is not None
        if self.zarr and not is_area and stage == 'predict':
            raise ValueError(f'zarr is True for {type(datamodule).__name__}, with single tiles: expected an area')
        if self.parquet and is_area and stage == 'predict':
            raise ValueError(f'parquet is True for {type(datamodule).__name__}, with an area: expected single tiles')
        super().setup(trainer, pl_module, stage)

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
        """Write the tiles of a batch, as :meth:`.GeoTIFFWriter.write_on_batch_end`, with their dates in their tags."""
        if isinstance(self._tiles, EmbeddingFolder):
            task: Any = self._module
            self._tiles.periods = dict(zip(batch_indices or (), periods_of(batch, task.modalities), strict=True))
        super().write_on_batch_end(trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the strips, or the tiles as a table, of all ranks on rank 0."""
        super().on_predict_epoch_end(trainer, pl_module)
        if self.parquet and self._tiles is not None:
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                files = [self._tiles.path / f'{name}.tif' for name in self._tiles.ids]
                path = self._tiles.path / TABLE
                count = write_tile_table(path, files, self._bands.dim, self._weights)
                rank_zero_info(f'Written: {path} with {count} of {counted(len(files), "tile")}')

    def _check_outputs(self, output: Path) -> None:
        check_output_files('output', output, output.with_suffix('.json'))
        if self.zarr:
            check_zarr_output(output.with_suffix('.zarr'))

    def _beside(self, output: Path) -> list[Path]:
        return [output.with_suffix('.json'), *([output.with_suffix('.zarr')] if self.zarr else [])]

    @property
    def _channels(self) -> int:
        return self._bands.dim + len(self._bands.cosines)

    def _legend(self) -> None:
        task: Any = self._module
        names = list(task.modalities)
        chosen = [tuple(text.split('+')) for text in self.cosine]
        if unknown := [text for text, parts in zip(self.cosine, chosen, strict=True) if not set(parts) <= set(names)]:
            raise ValueError(f'cosine has {unknown}, expected subsets of {names}, joined by +')
        self._weights = digest_state(task.state_dict())
        self._embedder: Any = task.make_embedder(chosen, self.dim, self.gsd, self._projection_files(), self._weights)
        task.embedder = self._embedder
        self._bands = EmbeddingBands(self._embedder.dim, names, self.cosine)

    def _projection_files(self) -> list[Path]:
        if self.projection is not None:
            return [Path(self.projection).expanduser()]
        trainer: Any = self._trainer
        checkpoint = getattr(trainer, 'ckpt_path', None)
        is_area = getattr(self._datamodule, 'tiling', None) is not None
        paths = [self._output_path(trainer, is_area).with_suffix('.pca.npz')]
        return ([Path(checkpoint).with_suffix('.pca.npz')] if checkpoint and Path(checkpoint).exists() else []) + paths

    def _key(self) -> dict[str, Any]:
        return {**super()._key(), 'embedding': [self._embedder.source, self._embedder.digest]}

    def _tags(self, work: WorkFolder | None = None) -> dict[str, str]:
        tags = super()._tags(work) if work is not None else {'TIFFTAG_SOFTWARE': 'torchgeo_omnisat'}
        return {
            **tags,
            'WEIGHTS_SHA256': self._weights,
            'EMBEDDING_DIMENSION': str(self._bands.dim),
            'EMBEDDING_SOURCE': self._embedder.source,
            'SENSORS': ', '.join(self._bands.modalities),
            'QUANTIZATION': SCHEME,
            'QUANTIZATION_SCALE': str(SCALE),
            'QUANTIZATION_FORMULA': FORMULA,
        }

    def _open_folder(self, path: Path) -> TileFolder:
        tags = {**self._tags(), 'EMBEDDING_GSD': f'{self._embedder.gsd:g}'}
        return EmbeddingFolder(path, self._datamodule.predict_dataset, self._bands, tags)

    def _make(self, work: WorkFolder, parts: Iterable[tuple[Window, NDArray[Any]]]) -> list[tuple[Path, Path]]:
        grid, bands, output = self._datamodule.grid, self._bands, work.output
        tags = {**self._tags(work), 'EMBEDDING_GSD': f'{metres(grid.crs, grid.step):g}'}
        made = work.temporary('embeddings.tif')
        if not write_embeddings(made, work.temporary('scratch.tif'), grid, bands, parts, tags):
            self._refuse_empty(work)
        results = [(made, output)]
        if self.zarr:
            store = work.path / 'map.zarr'  # emptied if it is left from an interrupted run
            write_zarr(store, made, grid, bands, tags, self.source_data)
            results.append((store, output.with_suffix('.zarr')))
        item = work.temporary('item.json')
        times = getattr(getattr(self._datamodule, 'predict_dataset', None), 'time', None)
        period = None if times is None else (times.start, times.stop)
        item.write_text(json.dumps(stac_item(output.name, grid, bands, tags, period, self.zarr), indent=1))
        return [*results, (item, output.with_suffix('.json'))]

    def _release(self) -> None:
        if self._trainer is not None:
            module: Any = self._module
            module.embedder = None
        super()._release()


class EmbeddingFolder(TileFolder):
    """Folder with the embeddings of every sample of a dataset, named by its id; see :class:`.TileFolder`."""

    def __init__(self, path: Path, dataset: Any, bands: Any, tags: Mapping[str, str]) -> None:
        super().__init__(path, dataset, bands, np.zeros((0, 3), np.uint8))
        self.tags = tags
        #: First and last date of the images of samples.
        self.periods: dict[int, tuple[str, str] | None] = {}
        self._period: tuple[str, str] | None = None

    def write(self, index: int, probabilities: NDArray[np.float32], seen: NDArray[np.uint16], bounds: Any) -> None:
        """Write the file of a sample atomically."""
        self._period = self.periods.get(index)
        super().write(index, probabilities, seen, bounds)

    def _save(self, path: Path, place: Placement, parts: Iterable[tuple[Window, NDArray[Any]]]) -> None:
        bands: Any = self.bands
        tags = {**self.tags, **dict(zip(PERIOD, self._period or (), strict=False))}
        write_embeddings(path, path.with_name('scratch'), place, bands, parts, tags)


def periods_of(batch: Mapping[str, Any], modalities: Mapping[str, Modality]) -> list[tuple[str, str] | None]:
    """Return the first and last date of the valid images of each sample; None without a date."""
    dates = [
        (batch[modality.dates_key] * batch[modality.valid_key]).cpu().numpy()
        for modality in modalities.values()
        if modality.dates_key in batch and modality.valid_key in batch
    ]
    size = len(next(iter(batch.values())))
    joined = np.concatenate(dates, 1) if dates else np.zeros((size, 0), np.int64)
    found: list[tuple[str, str] | None] = []
    for days in joined:
        known = days[days != 0].astype('datetime64[D]')
        found.append((f'{known.min()}T00:00:00Z', f'{known.max()}T00:00:00Z') if len(known) else None)
    return found


def stac_item(
    name: str,
    grid: Grid,
    bands: EmbeddingBands,
    tags: Mapping[str, str],
    period: tuple[Any, Any] | None,
    zarr: bool = False,
) -> dict[str, Any]:
    """Return the STAC item of an embedding map.

    Its extensions are ``embeddings`` 0.0.1, ``projection`` and ``raster``.

    STAC requires ``datetime``, or else both start and end. If the dates of the images are unknown, it is the time of
    processing, and ``description`` states so.

    The extension states type and dimensions in collections only. In an item, they are among the runtime parameters.

    Args:
        name: Name of the file, in the same folder as the item.
        grid: Pixel grid of the map.
        bands: Bands of the map.
        tags: Tags of the map.
        period: First and last date of the images; None, or pandas' first and last timestamp, if they are unknown.
        zarr: Whether there is a Zarr store of the same name, which becomes another asset.
    """
    xmin, ymin, xmax, ymax = grid.bounds
    to_degrees = Transformer.from_crs(grid.crs, 'EPSG:4326', always_xy=True)
    corners = [(xmin, ymin), (xmax, ymin), (xmax, ymax), (xmin, ymax), (xmin, ymin)]
    now = _timestamp(datetime.now(UTC))
    if period is None or period[0].year <= pd.Timestamp.min.year or period[1].year >= pd.Timestamp.max.year:
        times: dict[str, str | None] = {
            'datetime': now,
            'description': 'datetime is the time of processing: the dates of images are unknown',
        }
    else:
        times = {'datetime': None, 'start_datetime': _timestamp(period[0]), 'end_datetime': _timestamp(period[1])}
    parameters = {key.lower(): tags[key] for key in ('WEIGHTS_SHA256', 'EMBEDDING_SOURCE') if key in tags}
    gsd = float(tags['EMBEDDING_GSD'])
    store = {'href': f'./{Path(name).stem}.zarr', 'type': 'application/vnd.zarr; version=3', 'roles': ['data']}
    return {
        'type': 'Feature',
        'stac_version': '1.0.0',
        'stac_extensions': list(EXTENSIONS),
        'id': Path(name).stem,
        'bbox': list(to_degrees.transform_bounds(*grid.bounds)),
        'geometry': {'type': 'Polygon', 'coordinates': [[list(to_degrees.transform(*xy)) for xy in corners]]},
        'properties': {
            **times,
            'created': now,
            'gsd': gsd,
            'data_type': 'int8',
            'emb:runtime_parameters': {
                'type': 'pixel',
                'dimensions': bands.dim,
                'sensors': list(bands.modalities),
                'tiles': tags.get('TILES'),
                **parameters,
            },
            'emb:postprocessing': {'format': 'text', 'expression': 'blend overlapping tiles; L2 normalise; quantize'},
            'emb:quantization': {
                'method': f'{SCHEME}: {FORMULA}',
                'original_dtype': 'float32',
                'quantized_dtype': 'int8',
                'scale': [1 / SCALE],
                'offset': [0.0],
            },
            'proj:epsg': grid.crs.to_epsg(),
            'proj:wkt2': grid.crs.to_wkt(),
            'proj:shape': [grid.height, grid.width],
            'proj:transform': list(grid.transform)[:6],
        },
        'links': [],
        'assets': {
            'embeddings': {
                'href': f'./{name}',
                'type': 'image/tiff; application=geotiff; profile=cloud-optimized',
                'roles': ['data'],
                'raster:bands': [{'data_type': 'int8', 'nodata': NODATA, 'description': band} for band in bands.names],
            },
            **({'zarr': store} if zarr else {}),
        },
    }


def _timestamp(time: Any) -> str:
    return f'{time:%Y-%m-%dT%H:%M:%S}Z'
