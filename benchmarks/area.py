# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Peak memory of predicting an area, which must not grow with the area.

The area is synthetic and virtual: Sentinel-2 of two dates at 10 m, made up when a tile is
read. ``omnisat_tiny`` with random weights predicts it, in tiles of 128 pixels that overlap by
a quarter, through the same trainer, writer and GeoTIFF as ``torchgeo predict``. Every size
runs in a process of its own; memory is that process's peak resident memory, imports included.

    python benchmarks/area.py                       # 1024 and 8192 pixels a side
    python benchmarks/area.py --sides 1024 2048     # quicker
    python benchmarks/area.py --sides 640 640x8192  # as wide, so as many open rows, but not as high
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

#: Most that the largest area may take beyond the smallest one, in MB.
BOUND = 300
BANDS = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')
CLASSES = 20


def measure(side: str, threads: int) -> dict[str, Any]:
    """Predict one area in this process."""
    height, width = (int(number) for number in f'{side}x{side}'.split('x')[:2])
    import numpy as np
    import rasterio
    import torch
    from lightning.pytorch import LightningDataModule, Trainer
    from pyproj import CRS
    from rasterio import Affine

    from torchgeo_omnisat import Modality, collate
    from torchgeo_omnisat.grid import Grid
    from torchgeo_omnisat.prediction import GeoTIFFWriter, Tiling, area_loader
    from torchgeo_omnisat.tasks import OmniSatSegmentation

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    modalities = {'s2': Modality('s2', BANDS, 10, True)}

    class VirtualTiles:
        """A plane of waves, the same whichever window it is read in."""

        def __getitem__(self, window: Sequence[int]) -> dict[str, torch.Tensor]:
            row, column, height, width = window
            y, x = np.arange(row, row + height)[:, None], np.arange(column, column + width)
            phase = np.arange(2 * len(BANDS)).reshape(2, -1, 1, 1)
            image = np.sin(x / 31 + phase) + np.cos(y / 17 - phase) + np.sin((x + y) / (5 + phase))
            return {
                'window': torch.tensor(window),
                'image_s2': torch.from_numpy(image.astype(np.float32)),
                'dates_s2': torch.tensor([18000, 18180]),
                'valid_s2': torch.ones(2, dtype=torch.bool),
            }

    class Area(LightningDataModule):
        """What the writer needs of a datamodule."""

        plan: Any = None
        batch_size, num_workers = 4, 0
        grid = Grid(CRS.from_epsg(32631), Affine(10, 0, 600000, 0, -10, 5600000), height, width)
        tiling = Tiling(height, width, 128, 0.25, patch=4)
        predict_dataset = VirtualTiles()
        collate_fn = partial(collate, modalities=modalities)

        def predict_dataloader(self) -> Any:
            return area_loader(self)

    task = OmniSatSegmentation('omnisat_tiny', modalities, CLASSES, patch_size=40.0, label_gsd=10.0)
    task.allow_random = True  # only time and memory count
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / 'map.tif'
        trainer = Trainer(
            accelerator='cpu',
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[GeoTIFFWriter(str(output))],
        )
        start = time.perf_counter()
        trainer.predict(task, datamodule=Area())
        elapsed = time.perf_counter() - start
        with rasterio.open(output) as file:
            assert file.shape == (height, width)
        return {
            'rows': height,
            'columns': width,
            'megabytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            'tiles': len(Area.tiling.rows) * len(Area.tiling.columns),
            'seconds': elapsed,
            'file_megabytes': output.stat().st_size / 2**20,
        }


def main() -> None:
    """Measure every size in a fresh process, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sides', nargs='+', default=['1024', '8192'], help='pixels a side, or rows x columns')
    parser.add_argument('--threads', type=int, default=1, help='threads of PyTorch (default: 1)')
    parser.add_argument('--output', type=Path, default=Path('benchmarks/results/area.json'))
    parser.add_argument('--one', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.threads)))
        return
    results = []
    for side in args.sides:
        command = [sys.executable, __file__, '--one', side, '--threads', str(args.threads)]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        results.append(json.loads(lines[-1]))
    print('| synthetic area | tiles | peak memory | more than the first | file |\n| --- | --- | --- | --- | --- |')
    first = results[0]['megabytes']
    for row in results:
        print(
            f'| {row["rows"]} x {row["columns"]} px | {row["tiles"]} | {row["megabytes"]:.0f} MB '
            f'| {row["megabytes"] - first:+.0f} MB | {row["file_megabytes"]:.0f} MB |'
        )
    most = max(row['megabytes'] for row in results) - first
    print(f'{most:.0f} MB more than the first, at most {BOUND} MB allowed: {"pass" if most <= BOUND else "FAIL"}')
    from torchgeo_omnisat.utils.atomic import atomic_file

    with atomic_file(args.output) as temporary:
        temporary.write_text(json.dumps({'synthetic': True, 'classes': CLASSES, 'rows': results}, indent=1) + '\n')


if __name__ == '__main__':
    main()
