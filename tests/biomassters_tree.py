# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Generated files in the layout of BioMassters."""

from pathlib import Path

import numpy as np
import pandas as pd

from .geo_tree import write

#: Months after September of each sensor.
MONTHS = {'S1': (0, 4, 11), 'S2': (0, 4)}


def write_biomassters(root: Path, chips: int = 10, size: int = 16) -> Path:
    """Write chips whose Sentinel-1 series shows their biomass; the upper half of the first one has no label, -1."""
    rng, rows = np.random.default_rng(0), []
    for number in range(chips):
        chip = f'{number:08x}'
        biomass = rng.uniform(0, 300, (size // 4, size // 4)).repeat(4, 0).repeat(4, 1).astype(np.float32)
        for sensor, months in MONTHS.items():
            for month in months:
                name = f'{chip}_{sensor}_{month:02d}.tif'
                image = -12.7 + biomass / 30 + rng.normal(size=(4 if sensor == 'S1' else 11, size, size))
                image = np.float32(image) if sensor == 'S1' else np.uint16(1000 + 10 * image**2)
                write(root / 'train_features' / name, image, crs=None)
                rows.append((chip, name, f'{chip}_agbm.tif', sensor, 'train', month))
        if number == 0:
            biomass[: size // 2] = -1
        write(root / 'train_agbm' / f'{chip}_agbm.tif', biomass, crs=None)
    columns = ['chip_id', 'filename', 'corresponding_agbm', 'satellite', 'split', 'month']
    pd.DataFrame(rows, columns=columns).to_csv(root / 'biomassters_features_metadata.csv', index=False)
    return root
