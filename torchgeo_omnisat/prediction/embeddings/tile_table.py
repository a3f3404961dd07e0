# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""GeoParquet with one vector per tile, from the GeoTIFFs of single tiles."""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
import shapely
from pyproj import CRS, Transformer

from ...utils.atomic import atomic_file
from ...utils.checks import require_pyarrow
from ...utils.tensors.quantization import NODATA, dequantize

#: Tags of a tile with the first and last date of its images.
PERIOD = ('START_DATETIME', 'END_DATETIME')
#: Number of tiles of a row group.
ROWS = 1024
_DEGREES = CRS.from_epsg(4326)


def write_tile_table(path: Path, files: Sequence[Path], dim: int, weights: str) -> int:
    """Write the mean vector of each tile to a GeoParquet file, atomically.

    Columns: ``id``; ``geometry``, the outline of the tile in EPSG:4326, null without georeference; ``embedding``, the
    mean of the vectors of its pixels, normalised to unit length, null if there is none; ``sensors``, the names of those
    that observed any pixel; ``start_datetime`` and ``end_datetime``, the first and last date of its images, if known.

    Args:
        path: Output file.
        files: GeoTIFFs of the tiles. Those that do not exist, or that are of other weights, are omitted.
        dim: Dimension of the vectors.
        weights: Digest of the weights.

    Returns:
        Number of tiles.

    Raises:
        ImportError: If pyarrow is not installed.
    """
    require_pyarrow(path)
    import pyarrow as arrow
    from pyarrow import parquet

    time = arrow.timestamp('ms', 'UTC')
    schema = arrow.schema(
        {
            'id': arrow.string(),
            'geometry': arrow.binary(),
            'embedding': arrow.list_(arrow.float32(), dim),
            'sensors': arrow.list_(arrow.string()),
            'start_datetime': time,
            'end_datetime': time,
        }
    )
    column = {'encoding': 'WKB', 'geometry_types': ['Polygon'], 'crs': _DEGREES.to_json_dict()}
    geo = {'version': '1.0.0', 'primary_column': 'geometry', 'columns': {'geometry': column}}
    schema = schema.with_metadata({'geo': json.dumps(geo), 'weights_sha256': weights})
    count = 0
    with atomic_file(path) as made, parquet.ParquetWriter(made, schema) as writer:
        for begin in range(0, len(files), ROWS):
            rows = list(_rows(files[begin : begin + ROWS], dim, weights))
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
            count += len(rows)
    return count


def _rows(files: Sequence[Path], dim: int, weights: str) -> Iterator[dict[str, Any]]:
    for path in files:
        if not path.is_file():
            continue
        with rasterio.open(path) as file:
            tags, bits = file.tags(), file.tags(file.count)
            if tags.get('WEIGHTS_SHA256') != weights:
                continue
            codes = file.read()
            outline = _outline(file)
        observed = codes[-1] != NODATA
        mean = dequantize(codes[:dim, observed]).mean(1) if observed.any() else np.zeros(dim, np.float32)
        length = float(np.linalg.norm(mean))
        flags = int(np.bitwise_or.reduce(codes[-1, observed].astype(np.int64), initial=0))
        start, end = (pd.Timestamp(tags[name]) if name in tags else None for name in PERIOD)
        yield {
            'id': path.stem,
            'geometry': None if outline is None else shapely.to_wkb(outline),
            'embedding': (mean / length).tolist() if length else None,
            'sensors': [bits[f'BIT_{bit}'] for bit in range(8) if flags >> bit & 1],
            'start_datetime': start,
            'end_datetime': end,
        }


def _outline(file: Any) -> shapely.Polygon | None:
    if file.crs is None:
        return None
    corners = [
        file.transform @ place for place in ((0, 0), (0, file.height), (file.width, file.height), (file.width, 0))
    ]
    transform = _to_degrees(file.crs.to_wkt()).transform
    return shapely.Polygon([transform(*corner) for corner in corners])


@functools.lru_cache
def _to_degrees(wkt: str) -> Transformer:
    return Transformer.from_crs(wkt, _DEGREES, always_xy=True)
