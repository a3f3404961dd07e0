# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""How fast the datasets read, beside ``numpy.fromfile`` of the same bytes.

Made-up files of full size are written to a temporary directory: PASTIS (a Sentinel-2 series of 40
dates, 128 pixels a side), TreeSatAI (an HDF5 file of 146, 115 and 235 dates) and FLAIR (an aerial
image of 512 pixels, GeoTIFF, once uncompressed and once as published: ZSTD, horizontal differences).
What counts are bytes of the requested dates and of the labels as they are stored; a dataset decodes
them, turns nodata into NaN and gives float32. Each round reads a sample by ``numpy.fromfile``, without any
decoding, and by the dataset, one straight after the other. Of each sample the fastest round counts,
because a round in which another process got the core tells of that one; the median of all pairs,
which it does not spare, is written beside it.

*disk* means that the kernel is told to forget the file before either reads it: archives of 50 GB
do not fit into memory, so this is how training reads, and what the bounds are for. *memory* leaves
the file in the kernel's cache. *workers* compares a loader of two processes with one of one.

    python benchmarks/reading.py
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from torch.utils.data import DataLoader

from torchgeo_omnisat.datasets import FLAIR, PASTISMultimodal, TreeSatAITimeSeries
from torchgeo_omnisat.utils.atomic import atomic_file

#: Seconds that one worker reads for, about, when two are compared with it.
PASS = 1.5
#: The least share of numpy.fromfile's speed, and the least gain by a second worker.
BOUNDS = {'PASTIS': 0.7, 'TreeSatAI (HDF5)': 0.5, 'FLAIR (GeoTIFF)': 0.5, 'workers': 1.6}


def write_pastis(root: Path, count: int) -> dict[int, list[tuple[Path, int, int]]]:
    """Series of 40 dates; where the bytes of each are: file, offset, length."""
    rng = np.random.default_rng(0)
    features, where = [], {}
    for folder in ('DATA_S2', 'ANNOTATIONS'):
        (root / folder).mkdir(parents=True)
    days = np.datetime64('2018-09-20') + 9 * np.arange(40).astype('timedelta64[D]')
    dates = {str(i): int(str(day).replace('-', '')) for i, day in enumerate(days)}
    for index in range(count):
        path = root / f'DATA_S2/S2_{10000 + index}.npy'
        np.save(path, rng.integers(-50, 9000, (40, 10, 128, 128)).astype(np.int16))
        np.save(root / f'ANNOTATIONS/TARGET_{10000 + index}.npy', rng.integers(0, 20, (3, 128, 128)).astype(np.uint8))
        properties = {'ID_PATCH': 10000 + index, 'Fold': 1, 'dates-S2': dates}
        ring = [[0, 0], [1280, 0], [1280, 1280], [0, 1280], [0, 0]]
        geometry = {'type': 'MultiPolygon', 'coordinates': [[ring]]}
        features.append({'type': 'Feature', 'properties': properties, 'geometry': geometry})
        target = root / f'ANNOTATIONS/TARGET_{10000 + index}.npy'
        where[index] = [_last(path, 40 * 10 * 128 * 128 * 2), _last(target, 3 * 128 * 128)]
    crs = {'type': 'name', 'properties': {'name': 'urn:ogc:def:crs:EPSG::2154'}}
    index_of = {'type': 'FeatureCollection', 'crs': crs, 'features': features}
    (root / 'metadata.geojson').write_text(json.dumps(index_of))
    return where


def write_treesatai(root: Path, count: int) -> dict[int, list[tuple[Path, int, int]]]:
    """HDF5 files of three series, stored as published: in one piece each."""
    rng = np.random.default_rng(0)
    where, labels = {}, {}
    for folder in ('sentinel-ts', 'labels'):
        (root / folder).mkdir(parents=True)
    for index in range(count):
        path, spans = root / f'sentinel-ts/Pinus_{index:04}_2019.h5', []
        with h5py.File(path, 'w') as file:
            for prefix, dates, bands in (('sen-2', 146, 10), ('sen-1-asc', 115, 2), ('sen-1-des', 235, 2)):
                data = file.create_dataset(
                    f'{prefix}-data', data=rng.uniform(0.01, 0.9, (dates, bands, 6, 6)).astype(np.float32)
                )
                spans.append((path, data.id.get_offset(), data.id.get_storage_size()))
                days = [str(d).replace('-', '') for d in np.datetime64('2019-01-01') + np.arange(dates)]
                pattern = 'S2A_MSIL2A_{}T104431_N0211_R008_T32UMD_x'
                if prefix == 'sen-2':
                    file['sen-2-masks'] = np.zeros((dates, 2, 6, 6), np.float32)
                else:
                    pattern = 'S1A_IW_GRDH_1SDV_{}T054940_x_1'
                names = np.array([pattern.format(day) for day in days], dtype='S')
                file[f'{prefix}-products'] = names
        where[index], labels[f'Pinus_{index:04}.tif'] = spans, [['Pinus', 1.0]]
    (root / 'labels/TreeSatBA_v9_60m_multi_labels.json').write_text(json.dumps(labels))
    return where


def write_flair(root: Path, count: int, **options: Any) -> dict[int, list[tuple[Path, int, int]]]:
    """Write aerial images of five bands, with creation options of GDAL; compressed files count as a whole."""
    rng = np.random.default_rng(0)
    where = {}
    for index in range(count):
        for folder, name, bands in (('aerial', 'img/IMG', 5), ('labels', 'msk/MSK', 1)):
            path = root / f'flair_{folder}_train/D001_2019/Z1_AA/{name}_{index:06}.tif'
            path.parent.mkdir(parents=True, exist_ok=True)
            image = rng.integers(1, 20, (bands, 512, 512)).astype(np.uint8)
            profile = {'driver': 'GTiff', 'dtype': 'uint8', 'count': bands, 'height': 512, 'width': 512} | options
            transform = from_origin(7e5, 6.6e6, 0.2, 0.2)
            with rasterio.open(path, 'w', **profile, crs='EPSG:2154', transform=transform) as file:
                file.write(image)
            size = path.stat().st_size if options else image.size
            where.setdefault(index, []).append(_last(path, size))
    return where


def write_zstd(root: Path, count: int) -> dict[int, list[tuple[Path, int, int]]]:
    """Write aerial images that are compressed as published ones are."""
    return write_flair(root, count, compress='ZSTD', predictor=2)


def _last(path: Path, length: int) -> tuple[Path, int, int]:
    """Return the position of the last bytes of a file, which hold its array."""
    return path, path.stat().st_size - length, length


def forget(paths: set[Path]) -> None:
    """Have the kernel drop what it keeps of files."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def seconds(action: Callable[[], Any]) -> float:
    """How long something takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def raw(spans: list[tuple[Path, int, int]]) -> None:
    """Read only the bytes."""
    for path, offset, length in spans:
        np.fromfile(path, np.uint8, count=length, offset=offset)


def speed(dataset: Any, where: dict[int, list[tuple[Path, int, int]]], rounds: int, cold: bool) -> dict[str, float]:
    """Ratio of speeds and milliseconds of both, each sample by the fastest of some rounds; median over samples.

    Args:
        dataset: What reads.
        where: The bytes of each sample.
        rounds: How often each is read.
        cold: Whether the kernel has forgotten the file.
    """
    times: dict[int, list[list[float]]] = {index: [] for index in where}
    for index, spans in list(where.items()) * rounds:
        paths = {path for path, _, _ in spans}
        both = []
        for action in (lambda spans=spans: raw(spans), lambda index=index: dataset[index]):
            action()
            if cold:
                forget(paths)
            both.append(1e3 * seconds(action))
        times[index].append(both)
    paired = statistics.median(raw / ours for rows in times.values() for raw, ours in rows)
    best = [[min(column) for column in zip(*rows, strict=True)] for rows in times.values()]
    fromfile, ours = (statistics.median(column) for column in zip(*best, strict=True))
    ratio = statistics.median(raw / ours for raw, ours in best)
    return {'ratio': ratio, 'fromfile_ms': fromfile, 'dataset_ms': ours, 'median_of_pairs': paired}


def scaling(dataset: Any, where: dict[int, list[tuple[Path, int, int]]], rounds: int) -> float:
    """How much faster two workers read batches of 8 from memory than one, in the median of pairs of passes."""
    ratios = []
    alone = min(seconds(lambda index=index: dataset[index]) for index in where)
    samples = list(where) * math.ceil(PASS / (alone * len(where)))
    for _ in range(rounds):
        times = []
        for workers in (1, 2):
            loader = DataLoader(dataset, sampler=samples, batch_size=8, num_workers=workers, collate_fn=_size)
            batches = iter(loader)
            for _ in range(2):  # the workers are up
                next(batches)
            times.append(seconds(lambda batches=batches: sum(batches)))
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def _size(samples: list[dict[str, torch.Tensor]]) -> int:
    """Return the number of bytes instead of the samples, so that their transfer is not measured."""
    return sum(value.numel() for sample in samples for value in sample.values())


def main() -> None:
    """Write, read, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', type=int, default=24, help='samples of each dataset')
    parser.add_argument('--rounds', type=int, default=5, help='how often each is measured')
    parser.add_argument('--directory', type=Path, help='where to write the files; a temporary directory unless told')
    parser.add_argument('--output', type=Path, default=Path('benchmarks/results/reading.json'))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=args.directory) as name:
        root = Path(name)
        for title, write, make in (
            ('PASTIS', write_pastis, lambda root: PASTISMultimodal(root, modalities=('s2',))),
            ('TreeSatAI (HDF5)', write_treesatai, lambda root: TreeSatAITimeSeries(root, split=None)),
            ('FLAIR (GeoTIFF)', write_flair, lambda root: FLAIR(root, modalities=('aerial',))),
            ('FLAIR (ZSTD)', write_zstd, lambda root: FLAIR(root, modalities=('aerial',))),
        ):
            where = write(root / title, args.count)
            dataset = make(root / title)
            for cold in (True, False):
                row = speed(dataset, where, args.rounds, cold)
                bound = {'bound': BOUNDS[title]} if cold and title in BOUNDS else {}
                rows[f'{title}, from {"disk" if cold else "memory"}'] = row | bound
            gain = scaling(dataset, where, args.rounds)
            rows[f'{title}, two workers against one'] = {'ratio': gain, 'bound': BOUNDS['workers']}
    load = os.getloadavg()[0]
    with atomic_file(args.output) as temporary:
        temporary.write_text(json.dumps({'cores': os.cpu_count(), 'load': load, 'rows': rows}, indent=1) + '\n')
    print(f'{os.cpu_count()} cores, load {load:.1f}\n')
    print('| reading | ratio | bound | ms: fromfile, dataset |\n| --- | --- | --- | --- |')
    for title, row in rows.items():
        verdict = f'{row["bound"]}: {"pass" if row["ratio"] >= row["bound"] else "FAIL"}' if 'bound' in row else ''
        times = f'{row["fromfile_ms"]:.2f}, {row["dataset_ms"]:.2f}' if 'fromfile_ms' in row else ''
        print(f'| {title} | {row["ratio"]:.2f} | {verdict} | {times} |')


if __name__ == '__main__':
    main()
