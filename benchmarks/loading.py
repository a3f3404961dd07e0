# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Number of worker processes that supply GPUs with tiles: simulated, from measured reading and counted operations.

Synthetic files of full size are written to a temporary directory: PASTIS-HD (61 dates of Sentinel-2, 70 of each orbit
of Sentinel-1, SPOT of 1280 pixels) and FLAIR (an aerial image of 512 pixels, ZSTD, without Sentinel-2). The datamodule
of the recipe reads and collates batches in this process, as a worker does. What counts is processor time per tile, with
files in the page cache, so that neither other programs nor disks matter: a disk must deliver the MB/s of
``docs/howto/training.md`` besides. A GPU needs its peak rate, times an assumed utilisation, over the operations of a
step that ``cost.py`` counted, in tiles a second. **No GPU was timed**, and its processor may be faster than this one.

    python benchmarks/loading.py
"""

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from cost import HARDWARE, RECIPES, RESULT, read
from rasterio.transform import from_origin
from reading import write_zstd

from torchgeo_omnisat import datamodules
from torchgeo_omnisat.utils.atomic import atomic_file

HERE = Path(__file__).parent
#: Assumed fractions of the peak rate.
UTILISATIONS = (0.1, 0.3)
#: Tiles of each dataset.
TILES = 15


def write_pastis_hd(root: Path, count: int) -> None:
    """Write tiles of PASTIS-HD with random values, in five folds."""
    rng = np.random.default_rng(0)
    spot = root / 'DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019'
    for folder in ('DATA_S2', 'DATA_S1A', 'DATA_S1D', 'ANNOTATIONS', spot.relative_to(root)):
        (root / folder).mkdir(parents=True)
    dates = RECIPES['pastis-hd'].dates
    days = {name: np.datetime64('2018-09-20') + 5 * np.arange(n).astype('timedelta64[D]') for name, n in dates.items()}
    stamps = {
        f'dates-{name.upper()}': {str(i): int(str(day).replace('-', '')) for i, day in enumerate(found)}
        for name, found in days.items()
    }
    features = []
    for index in range(count):
        number, left = 10000 + index, 700_000 + 2000 * index
        np.save(root / f'DATA_S2/S2_{number}.npy', rng.integers(1, 9000, (dates['s2'], 10, 128, 128)).astype(np.int16))
        for name in ('S1A', 'S1D'):
            image = rng.normal(-12, 4, (dates[name.lower()], 3, 128, 128)).astype(np.float16)
            np.save(root / f'DATA_{name}/{name}_{number}.npy', image)
        mask = rng.integers(0, 20, (3, 128, 128)).astype(np.uint8)
        np.save(root / f'ANNOTATIONS/TARGET_{number}.npy', mask)
        profile = {'driver': 'GTiff', 'dtype': 'uint8', 'count': 3, 'height': 1280, 'width': 1280, 'crs': 'EPSG:2154'}
        path = spot / f'SPOT6_RVB_1M00_2019_{number}.tif'
        with rasterio.open(path, 'w', **profile, transform=from_origin(left, 6_601_280, 1, 1)) as file:
            file.write(rng.integers(1, 255, (3, 1280, 1280)).astype(np.uint8))
        corners = [[left, 6_600_000], [left + 1280, 6_600_000], [left + 1280, 6_601_280], [left, 6_601_280]]
        geometry = {'type': 'MultiPolygon', 'coordinates': [[[*corners, corners[0]]]]}
        properties = {'ID_PATCH': number, 'Fold': index % 5 + 1, **stamps}
        features.append({'type': 'Feature', 'properties': properties, 'geometry': geometry})
    crs = {'type': 'name', 'properties': {'name': 'urn:ogc:def:crs:EPSG::2154'}}
    index_of = {'type': 'FeatureCollection', 'crs': crs, 'features': features}
    (root / 'metadata.geojson').write_text(json.dumps(index_of))


def seconds_per_tile(dataset: Any, collate: Any, batch_size: int, rounds: int) -> float:
    """Return the processor time of a tile in a batch of a worker, the median of some rounds over the whole dataset."""
    found = []
    for _ in range(rounds + 1):
        begin = time.process_time()
        for start in range(0, len(dataset), batch_size):
            collate([dataset[index] for index in range(start, min(start + batch_size, len(dataset)))])
        found.append((time.process_time() - begin) / len(dataset))
    return statistics.median(found[1:])  # the first round fills the caches


def measure(rounds: int, directory: Path | None) -> dict[str, float]:
    """Return the processor time of a tile by recipe, in seconds."""
    found = {}
    with tempfile.TemporaryDirectory(dir=directory) as name:
        for recipe, write in (('pastis-hd', write_pastis_hd), ('flair', write_zstd)):
            root = Path(name) / recipe
            write(root, TILES)
            config = read(recipe)['data']
            told = {**config['init_args'], 'root': str(root)}
            if recipe == 'flair':
                told['modalities'] = ['aerial']
            data: Any = getattr(datamodules, config['class_path'])(**told)
            dataset = data.make_dataset('train')
            found[recipe] = seconds_per_tile(dataset, data.collate_fn, 8, rounds)
    return found


def rows(seconds: dict[str, float], counts: dict[str, Any]) -> list[list[str]]:
    """Return the lines of the table."""
    lines = []
    for recipe, found in counts.items():
        cpu = seconds['flair' if recipe == 'flair' else 'pastis-hd']
        for hardware in HARDWARE:
            gpus = read(f'hardware/{hardware.name}')['trainer']['devices']
            wanted = [gpus * share * hardware.peak / found['step'] for share in UTILISATIONS]
            tiles = [f'{rate:.0f}' for rate in wanted]
            workers = [str(math.ceil(rate * cpu / gpus)) for rate in wanted]
            lines.append([f'`{recipe}`', f'`{hardware.name}`', f'{1 / cpu:.1f}', *tiles, *workers])
    return lines


def main() -> None:
    """Measure, print the table and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5, help='how often each tile is read')
    parser.add_argument('--directory', type=Path, help='where to write the files; a temporary directory unless given')
    parser.add_argument('--output', type=Path, default=HERE / 'results' / 'loading.json')
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds = measure(args.rounds, args.directory)
    machine = {'processor': platform.processor() or platform.machine(), 'cores': os.cpu_count()}
    with atomic_file(args.output) as temporary:
        temporary.write_text(json.dumps({'machine': machine, 'CPU seconds per tile': seconds}, indent=1) + '\n')
    shares = [f'{share:.0%}' for share in UTILISATIONS]
    head = ['recipe', 'hardware', 'tiles/s per worker', *(f'tiles/s at {share}' for share in shares)]
    head += [f'workers per GPU at {share}' for share in shares]
    print(f'| {" | ".join(head)} |\n|{" --- |" * len(head)}')
    for line in rows(seconds, json.loads(RESULT.read_text())['counts']):
        print(f'| {" | ".join(line)} |')


if __name__ == '__main__':
    main()
