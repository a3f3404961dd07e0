# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Colours of maps and fields for viewers: QGIS styles, and the classes alone as a GeoTIFF with a colour table."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.shutil import copy

from .fields.segmentation import raster_window, windows_of
from .raster import BLOCK, CACHE, NODATA_COLOR, Colors

#: Side of the windows in which classes are copied, in pixels.
_WINDOW = 2048
#: Oldest version of QGIS for which the styles were tested.
_QGIS = '3.22.0'


def write_class_map(path: Path, output: Path, scratch: Path, labels: Sequence[str], colors: Colors) -> None:
    """Copy the classes of a map to a Cloud-Optimised GeoTIFF of one band with a colour table, as any viewer shows it.

    Args:
        path: Map, see :func:`.write_map`.
        output: GeoTIFF to write; it is not written atomically.
        scratch: Temporary file of about the same size, which is removed.
        labels: Names of the classes, which become tags.
        colors: Red, green and blue of every class, ``(K, 3)``.
    """
    with rasterio.Env(GDAL_CACHEMAX=CACHE):
        with rasterio.open(path) as file:
            kind = 'uint8' if len(labels) < 255 else 'uint16'
            nodata = int(np.iinfo(kind).max)
            profile = {'driver': 'GTiff', 'height': file.height, 'width': file.width, 'count': 1, 'dtype': kind}
            if file.crs is not None:
                profile |= {'crs': file.crs, 'transform': file.transform}
            layout = {'tiled': True, 'blockxsize': BLOCK, 'blockysize': BLOCK, 'bigtiff': 'IF_SAFER'}
            with rasterio.open(scratch, 'w', **profile, **layout, nodata=nodata, compress='lzw') as sink:
                sink.descriptions = ('class',)
                sink.update_tags(1, **{f'CLASS_{index}': label for index, label in enumerate(labels)})
                sink.write_colormap(1, {index: (*map(int, color), 255) for index, color in enumerate(colors)})
                sink.colorinterp = (ColorInterp.palette,)
                for window in windows_of(file.height, file.width, _WINDOW):
                    classes = file.read(1, window=raster_window(window))
                    classes = np.where(classes == file.nodata, nodata, classes).astype(kind)
                    sink.write(classes, 1, window=raster_window(window))
        copy(scratch, output, driver='COG', compress='DEFLATE', blocksize=BLOCK, resampling='NEAREST')
    scratch.unlink()


def write_raster_style(output: Path, labels: Sequence[str], colors: Colors) -> None:
    """Write a QGIS style that shows the first band of a raster in the colours and names of the classes."""
    root = ElementTree.Element('qgis', version=_QGIS, styleCategories='Symbology')
    pipe = ElementTree.SubElement(root, 'pipe')
    renderer = ElementTree.SubElement(
        pipe, 'rasterrenderer', type='paletted', band='1', opacity='1', alphaBand='-1', nodataColor=''
    )
    palette = ElementTree.SubElement(renderer, 'colorPalette')
    for index, (label, color) in enumerate(zip(labels, colors, strict=True)):
        ElementTree.SubElement(palette, 'paletteEntry', value=str(index), label=label, color=_hex(color), alpha='255')
    _write(root, output)


def write_field_style(output: Path, labels: Sequence[str], colors: Colors) -> None:
    """Write a QGIS style that shows fields, see :func:`.write_fields`, in the colours and names of their crops.

    Fields without a crop are grey: QGIS draws null only if there is a category with an empty value.
    """
    root = ElementTree.Element('qgis', version=_QGIS, styleCategories='Symbology')
    renderer = ElementTree.SubElement(
        root, 'renderer-v2', type='categorizedSymbol', attr='crop:name', symbollevels='0', enableorderby='0'
    )
    categories = ElementTree.SubElement(renderer, 'categories')
    symbols = ElementTree.SubElement(renderer, 'symbols')
    crops = [(label, label, color) for label, color in zip(labels, colors, strict=True)]
    for index, (value, label, color) in enumerate([*crops, ('', 'no crop', NODATA_COLOR)]):
        shown = {'render': 'true', 'symbol': str(index), 'value': value, 'label': label}
        ElementTree.SubElement(categories, 'category', shown, type='string')
        symbol = ElementTree.SubElement(symbols, 'symbol', type='fill', name=str(index), alpha='1')
        layer = ElementTree.SubElement(symbol, 'layer', {'class': 'SimpleFill'}, enabled='1', locked='0')
        values = {
            'color': f'{",".join(map(str, color))},200',
            'outline_color': '35,35,35,255',
            'outline_width': '0.3',
            'outline_style': 'solid',
            'style': 'solid',
        }
        for key, value in values.items():  # read by QGIS 3.x
            ElementTree.SubElement(layer, 'prop', k=key, v=value)
    _write(root, output)


def _hex(color: Sequence[int] | Colors) -> str:
    return '#{:02x}{:02x}{:02x}'.format(*map(int, color))


def _write(root: ElementTree.Element, output: Path) -> None:
    ElementTree.indent(root, ' ')
    text = ElementTree.tostring(root, encoding='unicode')
    output.write_text(f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{text}\n", encoding='utf-8')
