# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""``torchgeo predict``: from folders of rasters and a checkpoint to a map, in one command."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml
from torchgeo.main import main

import torchgeo_omnisat.plugin  # noqa: F401 (short names resolve among classes that are imported)
from tests.geo_tree import X, Y, ramp, write

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter", 'ignore:.*many workers'),
]
DATA: dict[str, Any] = {
    'rasters': {
        's2': {'path': 's2', 'gsd': 10},
        's1': {'path': 's1', 'gsd': 20, 'decibels': True},
    },
    'mask': {'path': 'labels'},
    'labels': ['a', 'b', 'c'],
    'colors': ['red', 'lime', 'blue'],
    'tile_size': 80,
    'batch_size': 2,
    'length': 2,
    'split': {'train': [X, Y - 80, X + 80, Y], 'test': [X + 80, Y - 80, X + 160, Y]},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """8 x 24 px of 10 m over the turn of a year, labels on the western 16, coarser radar on the western 12."""
    root = tmp_path / 'region'
    for number, stamp in enumerate(('20201220', '20210110')):
        write(root / f's2/a_{stamp}.tif', ramp(8, 24, 2) + number, bands=('B04', 'B08'))
    write(root / 's1/a_20210301.tif', -ramp(4, 6) / 100, step=20, bands=('VV',))
    write(root / 'labels/crops.tif', (np.arange(8 * 16).reshape(8, 16) % 3).astype(np.uint8))
    return root


def test_one_command_makes_a_map(root: Path, tmp_path: Path) -> None:
    config = tmp_path / 'config.yaml'
    data = {'class_path': 'MultimodalGeoDataModule', 'init_args': DATA | {'root': str(root)}}
    config.write_text(yaml.safe_dump({'data': data}, sort_keys=False))
    words = ['--model', 'omnisat', '--config', str(config), '--trainer.accelerator', 'cpu', '--trainer.devices', '1']
    words += ['--trainer.logger', 'false', '--trainer.default_root_dir', str(tmp_path), '--trainer.max_steps', '1']
    torch.manual_seed(0)
    main(['fit', *words, '--model.backbone', 'omnisat_tiny'])
    (checkpoint,) = tmp_path.rglob('*.ckpt')
    main(['predict', *words, '--ckpt_path', str(checkpoint)])
    output = tmp_path / 'maps' / 'fields.tif'
    write_to = ['--trainer.callbacks', 'GeoTIFFWriter', '--trainer.callbacks.output', str(output)]
    main(['predict', *words, '--ckpt_path', str(checkpoint), *write_to, '--trainer.callbacks.parcels', 'true'])
    with rasterio.open(output) as file, rasterio.open(next((root / 's2').iterdir())) as wanted:
        assert (file.crs, file.transform, file.shape) == (wanted.crs, wanted.transform, wanted.shape)
        assert file.descriptions[2:] == ('probability a', 'probability b', 'probability c')
        assert [file.colormap(1)[code][:3] for code in range(3)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
        bands = file.read()
    assert (bands[1] == np.repeat([3, 1], [12, 12])).all()
    with rasterio.open(tmp_path / 'prediction.tif') as file:
        assert np.array_equal(file.read(), bands)
    names = ['fields.gpkg', 'fields.png', 'fields.qml', 'fields.tif', 'fields_classes.qml', 'fields_classes.tif']
    assert sorted(path.name for path in output.parent.iterdir()) == names
