# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The output of `check` on its page is what `check` prints."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.geo_tree import X, Y, write
from torchgeo_omnisat.commands.check import table
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule
from torchgeo_omnisat.validation import walk

PAGE = Path(__file__).parents[2] / 'docs/howto/check.md'
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason='the site is not here')


def region(root: Path) -> dict[str, Any]:
    """Write a region with a wrong unit, a file with other bands and a class without a pixel; return its settings."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :96]
    fields = ((rows // 16 + columns // 16) % 2).astype(np.uint8)
    for day, gain in (('20210402', 1.0), ('20210614', 1.3), ('20210811', 1.1)):
        bands = [gain * (400 + 300.0 * fields + 900 * band) + rng.normal(0, 40, fields.shape) for band in (0, 1)]
        write(root / f's2/S2_{day}.tif', np.stack(bands).astype(np.uint16), bands=('B04', 'B08'))
    beside = np.ones((3, 64, 96), np.uint16)
    write(root / 's2/S2_20210902.tif', beside, origin=(X + 5000, Y), bands=('B04', 'B08', 'SCL'))
    for day in ('20210405', '20210616'):
        power = 0.05 + 0.1 * fields + rng.normal(0, 0.005, fields.shape)
        write(root / f's1/S1_{day}.tif', power[:, :48].astype(np.float32), bands=('VV',))
    write(root / 'crops.tif', fields)
    rasters = {
        's2': {'path': 's2', 'kind': 'optical', 'unit': 'dn'},
        's1': {'path': 's1', 'kind': 'radar', 'unit': 'db'},
    }
    return {
        'root': str(root),
        'rasters': rasters,
        'mask': {'path': 'crops.tif'},
        'labels': ['wheat', 'maize', 'meadow'],
        'tile_size': 160,
    }


def test_the_page_shows_what_is_printed(tmp_path: Path) -> None:
    datamodule = MultimodalGeoDataModule(**region(tmp_path))
    report = walk(datamodule)
    printed = f'Files\n{datamodule.contents()}\n\n{table(report)}'.replace(str(tmp_path), '/data/region')
    (shown,) = re.findall(r'^```text\n(Files\n.*?)^```$', PAGE.read_text(), re.M | re.S)
    assert [line.rstrip() for line in printed.splitlines()] == [line.rstrip() for line in shown.splitlines()], printed
