# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of continuous values: a float32 band in the unit of the target, and the sensors that observed the pixel."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import rasterio
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..grid import Grid
from ..utils.cli.console import abbreviate
from ..utils.figures import plain_text, save_figure
from .raster import SIDE, Placement, TileFolder, write_cog
from .tiling import Window
from .writer import GeoTIFFWriter, WorkFolder


@dataclass(frozen=True)
class ValueBands:
    """Bands of a map of values, both float32 with nodata NaN.

    The first band, ``value``, is the predicted value in the unit of the target. The second one, ``modalities``, holds
    bit flags of the modalities that observed the pixel. Its tags ``BIT_0``, ``BIT_1`` and so on name them.

    Args:
        modalities: Names of the modalities.
        unit: Unit of the values; None if it is unknown.
    """

    modalities: Sequence[str]
    unit: str | None = None
    names: ClassVar[list[str]] = ['value', 'modalities']
    dtype: ClassVar[str] = 'float32'
    nodata: ClassVar[float] = float('nan')
    count: ClassVar[int] = 1

    def encode(self, values: NDArray[np.float32], seen: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Return the bands ``(2, H, W)`` of blended values ``(1, H, W)`` and :func:`.seen_bits` ``(H, W)``.

        Pixels are NaN where no modality observed anything.
        """
        bands = np.stack([values[0], seen]).astype(np.float32)
        bands[:, seen == 0] = np.nan
        return bands


def write_value_map(
    path: Path,
    scratch: Path,
    grid: Grid | Placement,
    bands: ValueBands,
    parts: Iterable[tuple[Window, NDArray[Any]]],
    tags: Mapping[str, str] | None = None,
) -> int:
    """Write windows to a Cloud-Optimised GeoTIFF.

    Args:
        path: Output file. It is not written atomically: the caller renames it.
        scratch: Temporary file of about the same size, which is removed.
        grid: Georeference of the pixels.
        bands: Bands of the file.
        parts: Windows and their bands, ``(2, height, width)``; other pixels are nodata.
        tags: Additional tags of the file.

    Returns:
        Number of pixels that are not nodata.
    """

    def describe(file: Any) -> None:
        file.update_tags(**(tags or {}))
        file.descriptions = bands.names
        if bands.unit:
            file.set_band_unit(1, bands.unit)
        file.update_tags(2, **{f'BIT_{index}': name for index, name in enumerate(bands.modalities)})

    return write_cog(path, scratch, grid, bands, parts, describe, 'band', predictor=3)


@plain_text()  # a unit may contain $
def draw_values(path: Path, unit: str | None, title: str = '') -> Figure:
    """Plot the values of a map, read at the resolution of the plot, with a colour bar."""
    with rasterio.open(path) as file:
        factor = max(1.0, max(file.height, file.width) / SIDE)
        values = file.read(1, out_shape=(max(1, round(file.height / factor)), max(1, round(file.width / factor))))
        bounds, crs = file.bounds, file.crs
    figure = Figure(figsize=(9, 6.5), layout='constrained')
    axes = figure.add_subplot()
    low, high = np.nanquantile(values, (0.02, 0.98)) if np.isfinite(values).any() else (0.0, 1.0)
    extent = (bounds.left, bounds.right, bounds.bottom, bounds.top)
    image = axes.imshow(values, extent=extent, interpolation='nearest', vmin=low, vmax=high)
    axes.set_facecolor('#dcdce0')
    axes.ticklabel_format(useOffset=False, style='plain')
    axes.tick_params(labelsize=7)
    axes.set_xlabel(crs.to_string() if crs and crs.is_epsg_code else '', fontsize=8)
    axes.set_title(abbreviate(title, 100), fontsize=10)
    figure.colorbar(image, ax=axes, extend='both', shrink=0.8).set_label(abbreviate(unit or 'value', 40))
    return figure


class ValueWriter(GeoTIFFWriter):
    """Prediction writer that writes the continuous values of an area as a Cloud-Optimised GeoTIFF.

    The bands are the value in the unit of the target, and bit flags of the modalities that observed the pixel; see
    :class:`.ValueBands`. Pixels are NaN where no modality observed anything, and outside the ``area`` of the
    datamodule, if it has one.

    Tiles are blended, interrupted runs resumed, and strips shared by ranks as in :class:`.GeoTIFFWriter`. Tiles that
    do not form an area, such as chips, are written to a folder as one GeoTIFF each.

    On the command line: ``--trainer.callbacks ValueWriter --trainer.callbacks.output map.tif``. The task
    ``omnisat_regression`` adds a writer with default arguments if an area is predicted and there is none.

    Args:
        output: Output file, replaced if it exists; defaults to ``prediction.tif`` in the trainer's
            ``default_root_dir``. For single tiles, a folder that defaults to ``predictions``.
        overview: Whether to write a picture of the same name. Single tiles have none.
    """

    key: ClassVar[str] = 'values'

    def __init__(self, output: str | None = None, overview: bool = True) -> None:
        super().__init__(output, 'none', overview=overview, styles=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Validate task and datamodule, as :meth:`.GeoTIFFWriter.setup`.

        Raises:
            ValueError: If the task does not predict values.
        """
        if stage == 'predict' and 'target_mean' not in pl_module.hparams:
            raise ValueError(f'ValueWriter got {type(pl_module).__name__}, expected omnisat_regression')
        super().setup(trainer, pl_module, stage)

    def _legend(self) -> None:
        task: Any = self._module
        self._bands = ValueBands(list(task.modalities), task.hparams['target_unit'])

    def _open_folder(self, path: Path) -> TileFolder:
        return ValueFolder(path, self._datamodule.predict_dataset, self._bands)

    def _make(self, work: WorkFolder, parts: Iterable[tuple[Window, NDArray[Any]]]) -> list[tuple[Path, Path]]:
        made, output = work.temporary('map.tif'), work.output
        scratch = work.temporary('scratch.tif')
        if not write_value_map(made, scratch, self._grid, self._bands, parts, self._tags(work)):
            self._refuse_empty(work)
        results = [(made, output)]
        if self.overview:
            picture = work.temporary('overview.png')
            save_figure(draw_values(made, self._bands.unit, output.stem), picture, dpi=150)
            results.append((picture, output.with_suffix('.png')))
        return results


class ValueFolder(TileFolder):
    """Folder with the values of every sample of a dataset, named by its id; see :class:`.TileFolder`."""

    def __init__(self, path: Path, dataset: Any, bands: Any) -> None:
        super().__init__(path, dataset, bands, np.zeros((0, 3), np.uint8))

    def _save(self, path: Path, place: Placement, parts: Iterable[tuple[Window, NDArray[Any]]]) -> None:
        bands: Any = self.bands
        write_value_map(path, path.with_name('scratch'), place, bands, parts)
