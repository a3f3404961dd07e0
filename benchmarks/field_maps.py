# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Time and peak memory of segmenting and outlining the fields of a map, which must not grow with its pixels.

The map is synthetic: fields are the cells of a jittered grid of 16 pixels, with noise, in a pattern that repeats
after 1024 pixels. One process writes it in blocks. Another one segments it and writes its fields to a GeoPackage, as
after ``torchgeo predict`` with fields. Memory is the peak resident memory of the second process, imports included.

    python benchmarks/field_maps.py                     # 1024, 2048 and 8192 pixels a side
    python benchmarks/field_maps.py --sides 1024 2048   # quicker
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CLASSES = 8
#: Mean distance between the centres of fields in pixels.
STEP = 16
#: Side of the pattern in pixels.
PERIOD = 1024
#: Labels and sensors of the map.
LABELS = [f'crop {index}' for index in range(CLASSES)]
SENSORS = ['s2', 's1a']


def write(folder: Path, side: int) -> None:
    """Write a map of *side* pixels a side to a folder."""
    import numpy as np
    from pyproj import CRS
    from rasterio import Affine

    from torchgeo_omnisat.grid import Grid
    from torchgeo_omnisat.prediction.fields.segmentation import windows_of
    from torchgeo_omnisat.prediction.raster import MapBands, class_colors, write_map

    grid = Grid(CRS.from_epsg(32631), Affine(10, 0, 600000, 0, -10, 5600000), side, side)
    bands = MapBands(LABELS, SENSORS, fields=True)

    def hashed(i: Any, j: Any, k: float) -> Any:
        value = np.sin(i * 12.9898 + j * 78.233 + k * 37.719) * 43758.5453
        return value - np.floor(value)

    def pattern() -> Any:
        """Return the bands of the pattern."""
        y, x = np.mgrid[:PERIOD, :PERIOD].astype(float)
        nearest = np.full(y.shape, np.inf)
        second, crop = nearest.copy(), np.zeros(y.shape)
        for a in (-1, 0, 1):
            for b in (-1, 0, 1):
                rows, columns = np.floor(y / STEP) + a, np.floor(x / STEP) + b
                i, j = rows % (PERIOD // STEP), columns % (PERIOD // STEP)
                far = np.hypot(y - (rows + hashed(i, j, 1)) * STEP, x - (columns + hashed(i, j, 2)) * STEP)
                closer = far < nearest
                second = np.where(closer, nearest, np.minimum(second, far))
                crop = np.where(closer, np.floor(hashed(i, j, 3) * CLASSES), crop)
                nearest = np.minimum(nearest, far)
        gap = second - nearest
        boundary, distance = np.exp(-gap), np.clip(gap / STEP + 0.1 * hashed(y, x, 4), 0, 1)
        other = 1.0 * (hashed(np.floor(y / 64), np.floor(x / 64), 5) > 0.9)
        classes = np.where(np.arange(CLASSES)[:, None, None] == crop, 0.79, 0.03)
        fields = np.stack([(1 - other) * (1 - boundary), (1 - other) * boundary, distance])
        return bands.encode(np.concatenate([classes, fields]).astype(np.float32), np.full(y.shape, 3, np.uint16))

    def parts() -> Iterator[Any]:
        values = pattern()
        for window in windows_of(side, side, PERIOD):
            yield window, values

    write_map(folder / 'map.tif', folder / 'scratch.tif', grid, bands, parts(), class_colors(CLASSES))


def measure(folder: Path) -> dict[str, Any]:
    """Segment and outline the fields of the map in a folder in this process."""
    from torchgeo_omnisat.prediction.fields.outlines import write_fields
    from torchgeo_omnisat.prediction.fields.segmentation import segment_map

    imported, start = peak(), time.process_time()
    table = segment_map(folder / 'map.tif', folder / 'ids.tif', folder / 'scratch.tif')
    segmented, middle = peak(), time.process_time()
    output = folder / 'fields.gpkg'
    count = write_fields(folder / 'map.tif', folder / 'ids.tif', table, output, LABELS, SENSORS)
    return {
        'fields': count,
        'import_megabytes': imported,
        'segmentation_megabytes': segmented,
        'megabytes': peak(),
        'segmentation_seconds': middle - start,
        'outline_seconds': time.process_time() - middle,
        'file_megabytes': output.stat().st_size / 2**20,
    }


def peak() -> float:
    """Return the peak resident memory of this process so far in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure every size, or run one step in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sides', nargs='+', type=int, default=[1024, 2048, 8192], help='pixels a side')
    parser.add_argument('--output', type=Path, default=Path('benchmarks/results/field_maps.json'))
    parser.add_argument('--write', type=Path, help=argparse.SUPPRESS)
    parser.add_argument('--measure', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write(args.write, *args.sides)
    elif args.measure:
        print(json.dumps(measure(args.measure)))
    else:
        measure_all(args.sides, args.output)


def measure_all(sides: Sequence[int], path: Path) -> None:
    """Write and measure maps of every size in fresh processes, and save the results."""
    results = []
    print('| map | fields | segmentation | outlines | peak memory: imports | segmentation | all | file |')
    print('| --- |' + ' --- |' * 7)
    for side in sides:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__]
            subprocess.run([*command, '--write', folder, '--sides', str(side)], check=True)
            measured = subprocess.run([*command, '--measure', folder], check=True, stdout=subprocess.PIPE, text=True)
        row = {'side': side, **json.loads(measured.stdout.splitlines()[-1])}
        results.append(row)
        print(
            f'| {side} x {side} px | {row["fields"]} | {row["segmentation_seconds"]:.1f} s '
            f'| {row["outline_seconds"]:.1f} s | {row["import_megabytes"]:.0f} MB '
            f'| {row["segmentation_megabytes"]:.0f} MB | {row["megabytes"]:.0f} MB | {row["file_megabytes"]:.0f} MB |',
            flush=True,
        )
    from torchgeo_omnisat.utils.atomic import atomic_file

    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({'synthetic': True, 'rows': results}, indent=1) + '\n')


if __name__ == '__main__':
    main()
