# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Cloud-Optimized GeoTIFFs of predictions: bands, legend and overview picture."""

import math
import struct
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from pyproj import CRS as ProjCRS
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.shutil import copy
from rasterio.windows import Window as RasterWindow
from torch import Tensor

from ..grid import Grid
from ..modality import Modality
from ..utils.atomic import atomic_file
from ..utils.checks import check_choice
from ..utils.cli.console import abbreviate, printable
from ..utils.figures import plain_text
from ..utils.plurals import counted
from ..utils.tensors.observed import observed
from ..utils.tensors.pooling import any_pool
from .tiling import Window


def seen_bits(batch: Mapping[str, Tensor], modalities: Mapping[str, Modality], size: tuple[int, int]) -> Tensor:
    """Return bit flags of the modalities that observed each pixel on at least one valid date.

    Args:
        batch: Batch; ``window`` is required if it has no images.
        modalities: Modalities of the model; bit i belongs to modality i.
        size: Height and width of the output.

    Returns:
        ``(B, H, W)`` int32. An output pixel is observed if any pixel inside it is. If the pixels of a modality
        are larger, the one that contains its centre decides.
    """
    any_tensor = next(batch[key] for key in ('window', *(m.valid_key for m in modalities.values())) if key in batch)
    bits = torch.zeros(len(any_tensor), *size, dtype=torch.int32, device=any_tensor.device)
    for index, modality in enumerate(modalities.values()):
        if modality.image_key not in batch:
            continue
        flags = observed(batch[modality.image_key]).any(-3)
        flags = flags if modality.temporal else flags[:, None]
        seen = (flags & batch[modality.valid_key][..., None, None]).any(1, keepdim=True)
        finer = seen.shape[-2] >= size[0] and seen.shape[-1] >= size[1]
        resized = any_pool(seen, size) if finer else F.interpolate(seen.float(), size, mode='nearest-exact') > 0
        bits |= resized[:, 0].int() << index
    return bits


#: Data type of the stored probabilities; ``'none'`` stores none.
Precision = Literal['uint8', 'uint16', 'none']
#: Stored value of probability 1: steps of 0.004 or 1/60000.
_ONE = {'uint8': 250, 'uint16': 60000}
#: Names of the bands of field boundaries, the last ones of a map.
FIELD_BANDS = ('field interior', 'field boundary', 'field distance')


@dataclass(frozen=True)
class MapBands:
    """Bands of a map: class, modalities, the probability of each class and, on request, the boundaries of fields.

    All bands of a GeoTIFF have one data type. It is ``uint8``, or ``uint16`` for ``precision='uint16'``, more
    than 254 classes or more than 7 modalities. Its maximum is nodata.

    Args:
        labels: Names of the K classes, in the order of their indices. Control characters are escaped.
        modalities: Names of the modalities; bit i of the second band belongs to modality i.
        precision: Data type of the probabilities; ``'none'`` omits them.
        fields: Whether there are bands of field boundaries: probabilities of interior and boundary, and the
            distance to the edge, 0 to 1.

    Raises:
        ValueError: If there are more than 15 modalities or 65534 classes, or *precision* is unknown.
    """

    labels: Sequence[str]
    modalities: Sequence[str]
    precision: Precision = 'uint8'
    fields: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, 'labels', tuple(map(printable, self.labels)))
        check_choice(probabilities=(self.precision, (*_ONE, 'none')))
        if len(self.modalities) > 15 or len(self.labels) > 65534:
            raise ValueError(
                f'got {len(self.modalities)} modalities and {len(self.labels)} classes, expected at most 15 and 65534'
            )

    @property
    def dtype(self) -> str:
        """Data type of all bands."""
        small = len(self.labels) < 255 and len(self.modalities) < 8 and self.precision != 'uint16'
        return 'uint8' if small else 'uint16'

    @property
    def nodata(self) -> int:
        """Nodata value of all bands."""
        return int(np.iinfo(self.dtype).max)

    @property
    def scale(self) -> float:
        """Scale of the probability bands: stored value times scale is the probability."""
        return 1 / _ONE[self.dtype]

    @property
    def names(self) -> list[str]:
        """Names of the bands."""
        shown = () if self.precision == 'none' else self.labels
        fields = FIELD_BANDS if self.fields else ()
        return ['class', 'modalities', *(f'probability {label}' for label in shown), *fields]

    @property
    def count(self) -> int:
        """Number of predicted values of a pixel: probabilities and, if any, the values of the bands of fields."""
        return len(self.labels) + len(FIELD_BANDS) * self.fields

    def encode(self, values: NDArray[np.float32], seen: NDArray[np.uint16]) -> NDArray[np.unsignedinteger]:
        """Return the bands ``(bands, H, W)`` of predicted values ``(count, H, W)`` and :func:`.seen_bits` ``(H, W)``.

        They are nodata where no modality observed anything or all probabilities are 0.
        """
        bands = np.empty((len(self.names), *seen.shape), self.dtype)
        probabilities = values[: len(self.labels)]
        bands[0], bands[1] = probabilities.argmax(0), seen
        for band, value in zip(bands[2:], values[len(self.labels) * (self.precision == 'none') :], strict=True):
            band[:] = np.rint(value / self.scale)
        bands[:, (seen == 0) | ~(probabilities.max(0) > 0)] = self.nodata
        return bands


def probability_bands(file: Any) -> list[int]:
    """Return the numbers of the bands of an open map with the probabilities of the classes, from 3."""
    return [number for number in range(3, file.count + 1) if file.descriptions[number - 1] not in FIELD_BANDS]


#: Side of a block in pixels, and size of GDAL's block cache in MB.
BLOCK, CACHE = 256, 64
#: TIFF tag of a colour table.
_COLORMAP = 320

Colors = NDArray[np.uint8]


@dataclass(frozen=True)
class Placement:
    """Georeference of pixels that are not a :class:`.Grid`: rotated ones, or ones without CRS."""

    crs: ProjCRS | None
    transform: Affine
    height: int
    width: int


def write_map(
    path: Path,
    scratch: Path,
    grid: Grid | Placement,
    bands: MapBands,
    parts: Iterable[tuple[Window, NDArray[Any]]],
    colors: Colors,
    tags: Mapping[str, str] | None = None,
) -> int:
    """Write windows to a GeoTIFF, add overviews, and copy it to the layout of a COG.

    Args:
        path: Output file. It is not written atomically: the caller renames it.
        scratch: Temporary file of about the same size, which is removed.
        grid: Georeference of the pixels.
        bands: Bands; class names and modalities become tags.
        parts: Windows and their bands, ``(bands, height, width)``; other pixels are nodata.
        colors: Red, green and blue of every class, ``(K, 3)``.
        tags: Additional tags of the file.

    Returns:
        Number of pixels that are not nodata.
    """

    def describe(file: Any) -> None:
        _set_tags(file, bands, tags or {})

    # GDAL's COG driver and `write_colormap` support colour tables in files of one or two bands only: with them
    # tests/prediction/test_raster.py::test_parts_come_back fails. So GDAL reserves the tables, which are then filled.
    written = write_cog(path, scratch, grid, bands, parts, describe, 'band', photometric='PALETTE')
    set_colors(path, colors)
    return written


def write_cog(
    path: Path,
    scratch: Path,
    grid: Grid | Placement,
    bands: Any,
    parts: Iterable[tuple[Window, NDArray[Any]]],
    describe: Callable[[Any], None],
    interleave: Literal['band', 'pixel'],
    **options: Any,
) -> int:
    """Write windows to a GeoTIFF, add overviews, and copy it to the layout of a COG.

    Args:
        path: Output file.
        scratch: Temporary file, which is removed.
        grid: Georeference of the pixels.
        bands: Object with the ``names``, ``dtype`` and ``nodata`` of the bands, which are nodata together.
        parts: Windows and their bands, ``(bands, height, width)``; other pixels are nodata.
        describe: Function that sets names, scales and tags of the open file.
        interleave: Whether the values of a band or those of a pixel are next to each other.
        **options: Further creation options of the output.

    Returns:
        Number of pixels that are not nodata.
    """
    profile = profile_of(grid, len(bands.names), bands.dtype, bands.nodata)
    layout = {'tiled': True, 'blockxsize': BLOCK, 'blockysize': BLOCK, 'bigtiff': 'IF_SAFER', 'interleave': interleave}
    written = 0
    with rasterio.Env(GDAL_CACHEMAX=CACHE):
        with rasterio.open(scratch, 'w', **profile, **layout, compress='lzw') as file:
            describe(file)
            for window, values in parts:
                file.write(values, window=RasterWindow(window.column, window.row, window.width, window.height))
                written += int(((values[-1] != bands.nodata) & ~np.isnan(values[-1])).sum())
        if factors := overview_factors(grid):
            with rasterio.open(scratch, 'r+') as file:
                file.build_overviews(factors, Resampling.nearest)
        copy(scratch, path, driver='GTiff', **layout, compress='DEFLATE', copy_src_overviews=True, **options)
    scratch.unlink()
    return written


def class_colors(count: int, colors: Sequence[Any] | None = None) -> Colors:
    """Return red, green and blue of every class, ``(K, 3)``, by default of a colour map of matplotlib."""
    if colors is None:
        wheel = colormaps['tab10' if count <= 10 else 'tab20'] if count <= 20 else colormaps['gist_rainbow']
        colors = [wheel(index if count <= 20 else index / (count - 1)) for index in range(count)]
    if len(colors) != count:
        raise ValueError(
            f'colors has {counted(len(colors), "entry")}, expected one for each of {counted(count, "class")}'
        )
    return np.rint(255 * np.array([to_rgb(color) for color in colors])).astype(np.uint8)


def set_colors(path: Path, colors: Colors) -> int:
    """Fill the colour tables of image and overviews of a GeoTIFF, and return their number.

    GDAL allocates them for ``photometric='PALETTE'``, but does not fill them in files of several bands. The layout of
    the file does not change. Values from K up become black.
    """
    with path.open('r+b') as file:
        tables = list(_color_tables(file))
        for order, offset, entries in tables:
            table = np.zeros((3, entries), f'{order}u2')
            table[:, : len(colors)] = colors.T.astype(np.uint16) * 257
            file.seek(offset)
            file.write(table.tobytes())
    return len(tables)


def _color_tables(file: BinaryIO) -> Iterable[tuple[str, int, int]]:
    """Yield byte order, offset and number of entries of each colour table of a TIFF or BigTIFF."""
    head = file.read(16)
    order = {b'II': '<', b'MM': '>'}[head[:2]]
    big = struct.unpack_from(f'{order}H', head, 2) == (43,)
    word, count_format, entry = ('Q', 'Q', 20) if big else ('I', 'H', 12)
    (place,) = struct.unpack_from(order + word, head, 8 if big else 4)
    while place:
        file.seek(place)
        (count,) = struct.unpack(order + count_format, file.read(struct.calcsize(count_format)))
        entries = file.read(count * entry)
        (place,) = struct.unpack(order + word, file.read(struct.calcsize(word)))
        for begin in range(0, len(entries), entry):
            tag, _, values, offset = struct.unpack_from(f'{order}HH{word}{word}', entries, begin)
            if tag == _COLORMAP:
                yield order, offset, values // 3


def _set_tags(file: Any, bands: MapBands, tags: Mapping[str, str]) -> None:
    file.update_tags(**tags)
    file.descriptions = bands.names
    file.colorinterp = [ColorInterp.palette] + [ColorInterp.undefined] * (len(bands.names) - 1)
    file.update_tags(1, **{f'CLASS_{index}': label for index, label in enumerate(bands.labels)})
    file.update_tags(2, **{f'BIT_{index}': name for index, name in enumerate(bands.modalities)})
    file.scales = [1.0, 1.0, *(bands.scale for _ in bands.names[2:])]


def profile_of(grid: Grid | Placement, count: int, dtype: str, nodata: float) -> dict[str, Any]:
    """Return the profile of a GeoTIFF on a grid."""
    profile: dict[str, Any] = {
        'driver': 'GTiff',
        'height': grid.height,
        'width': grid.width,
        'count': count,
        'dtype': dtype,
        'nodata': nodata,
    }
    if grid.crs is not None:
        code = grid.crs.to_epsg()
        profile['crs'] = CRS.from_wkt(grid.crs.to_wkt('WKT1_GDAL')) if code is None else code
        profile['transform'] = grid.transform
    return profile


def overview_factors(grid: Grid | Placement) -> list[int]:
    """Return the decimation factors of the overviews; the last one fits in a block."""
    blocks = max(grid.height, grid.width) / BLOCK
    return [2**level for level in range(1, math.ceil(math.log2(max(1, blocks))) + 1)]


#: Maximum side of the map in the overview picture, in pixels.
SIDE = 1024
#: Colour of nodata.
NODATA_COLOR = (220, 220, 224)


@plain_text()  # a class may be called $x$
def draw_overview(path: Path, labels: Sequence[str], colors: Colors, title: str = '') -> Figure:
    """Plot the classes of a map, read at the resolution of the plot, with their fractions in the legend."""
    with rasterio.open(path) as file:
        factor = max(1.0, max(file.height, file.width) / SIDE)
        shape = max(1, round(file.height / factor)), max(1, round(file.width / factor))
        classes = file.read(1, out_shape=shape)
        nodata, bounds, crs = file.nodata, file.bounds, file.crs
    table = np.tile(np.array(NODATA_COLOR, np.uint8), (int(nodata) + 1, 1))
    table[: len(colors)] = colors
    figure = Figure(figsize=(9, 6.5), layout='constrained')
    axes = figure.add_subplot()
    axes.imshow(table[classes], extent=(bounds.left, bounds.right, bounds.bottom, bounds.top), interpolation='nearest')
    axes.ticklabel_format(useOffset=False, style='plain')
    axes.tick_params(labelsize=7)
    axes.set_xlabel(crs.to_string() if crs and crs.is_epsg_code else '', fontsize=8)
    axes.set_title(abbreviate(title, 100), fontsize=10)
    counts = np.bincount(classes.ravel(), minlength=len(labels))[: len(labels)]
    total = max(1, int(counts.sum()))
    shown = [
        Patch(facecolor=_rgb(colors[index]), label=f'{abbreviate(labels[index])}  {counts[index] / total:.1%}')
        for index in range(len(labels))
        if counts[index]
    ]
    if counts.sum() < classes.size:
        shown.append(Patch(facecolor=_rgb(NODATA_COLOR), label='nodata'))
    axes.legend(handles=shown, loc='upper left', bbox_to_anchor=(1.01, 1.0), fontsize=8, frameon=False)
    return figure


def _rgb(color: Sequence[int] | Colors) -> tuple[float, float, float]:
    red, green, blue = (float(part) / 255 for part in color)
    return red, green, blue


class TileFolder:
    """Folder with a GeoTIFF for every sample of a dataset, named by its id.

    Args:
        path: Folder. Existing files of these samples are replaced, others are kept.
        dataset: Dataset with ``ids`` and ``crs``, or ``chip_crs``: the CRS of each sample, None without
            georeference. If tiles are rotated, also ``corners`` ``(N, 3, 2)``: upper left, upper right and
            lower left corner of each.
        bands: Bands of the files.
        colors: Colours of the classes, ``(K, 3)``.

    Raises:
        ValueError: If two samples would have the same file.
    """

    def __init__(self, path: Path, dataset: Any, bands: MapBands, colors: Colors) -> None:
        self.path, self.dataset, self.bands, self.colors = path, dataset, bands, colors
        self.corners: NDArray[np.float64] | None = getattr(dataset, 'corners', None)
        self.ids = _file_names(dataset.ids)
        #: CRS of each sample.
        self.crs: Sequence[ProjCRS | None] = (
            dataset.chip_crs if hasattr(dataset, 'chip_crs') else [ProjCRS.from_user_input(dataset.crs)] * len(self.ids)
        )
        path.mkdir(parents=True, exist_ok=True)

    def write(self, index: int, probabilities: NDArray[np.float32], seen: NDArray[np.uint16], bounds: Any) -> None:
        """Write the file of a sample atomically."""
        name, (height, width) = self.ids[index], seen.shape
        crs = self.crs[index]
        transform = Affine.identity() if crs is None else self._transform(index, bounds, height, width)
        place = Placement(crs, transform, height, width)
        path = self.path / f'{name}.tif'
        parts = [(Window(0, 0, height, width), self.bands.encode(probabilities, seen))]
        with atomic_file(path) as made, warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)  # chips without CRS
            self._save(made, place, parts)

    def _save(self, path: Path, place: Placement, parts: Iterable[tuple[Window, NDArray[Any]]]) -> None:
        write_map(path, path.with_name('scratch'), place, self.bands, parts, self.colors)

    def _transform(self, index: int, bounds: Any, height: int, width: int) -> Affine:
        if self.corners is not None:
            corner, right, low = self.corners[index]
            (a, d), (b, e) = (right - corner) / width, (low - corner) / height
            return Affine(a, b, corner[0], d, e, corner[1])
        xmin, xmax, step, ymin, ymax = (float(number) for number in bounds[:5]) if bounds is not None else [np.nan] * 5
        if not np.allclose([(xmax - xmin) / width, (ymax - ymin) / height], step, rtol=1e-3):
            raise ValueError(
                f'sample {self.ids[index]!r} of {type(self.dataset).__name__} has bounds {bounds} and {height} x '
                f'{width} pixels, expected bounds of that number of pixels, or a dataset with corners'
            )
        return Affine(step, 0, xmin, 0, -step, ymax)


def _file_names(ids: Iterable[str]) -> list[str]:
    owners: dict[str, str] = {}
    for id in ids:
        name = id.replace('/', '-')
        if name in owners:
            raise ValueError(
                f'samples {owners[name]!r} and {id!r} would both be written to {name}.tif, expected ids that differ by '
                'more than / and -: rename one of them'
            )
        owners[name] = id
    return list(owners)
