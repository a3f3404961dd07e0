# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Every configuration of docs/configs trains, validates and tests for a batch, on made-up data in the right files."""

import re
from pathlib import Path

import pytest
import torchgeo.main
import yaml

from torchgeo_omnisat import plugin

CONFIGS = Path(__file__).parents[2] / 'docs' / 'configs'
#: The made-up data that each configuration reads, by the directory that it names.
DATA = {
    'belgium-crops': {'data/belgium-crops': 'belgium'},
    'biomassters': {'data/BioMassters': 'biomassters'},
    'canopy': {'data/region': 'region'},
    'chips': {'data/chips': 'chips'},
    'flair': {'data/FLAIR': 'flair'},
    'flair-hub': {'data/FLAIR-HUB': 'flair-hub'},
    'geobench2': {'data/geobenchv2/pastis': 'geobench2'},
    'mixed': {'data/PASTIS-R': 'pastis', 'data/FLAIR': 'flair'},
    'pastis': {'data/PASTIS-R': 'pastis'},
    'pastis-hd': {'data/PASTIS-HD': 'pastis'},
    'pretraining': {'data/PASTIS-R': 'pastis'},
    'pretraining-hd': {'data/PASTIS-HD': 'pastis'},
    'rasters': {'data/region': 'region'},
    'synthetic': {},
    'treesatai': {'data/TreeSatAI': 'treesatai'},
}
pytestmark = pytest.mark.skipif(not CONFIGS.is_dir(), reason='the site is not here')


def test_every_configuration_is_tried():
    assert sorted(DATA) == sorted(path.stem for path in CONFIGS.glob('*.yaml'))


def test_every_configuration_says_how_it_is_used():
    for path in CONFIGS.glob('*.yaml'):
        assert re.search(rf'^#   torchgeo fit +--config docs/configs/{path.name}', path.read_text(), re.M), path.name


@pytest.mark.usefixtures('validation_figures')
@pytest.mark.slow
@pytest.mark.parametrize('name', DATA)
def test_configuration_runs(name, made, linked):
    for place, which in DATA[name].items():
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).symlink_to(made(which))
    plugin.load()
    few = ['--trainer.fast_dev_run', '1', '--trainer.accelerator', 'cpu', '--trainer.enable_progress_bar', 'false']
    if name in ('flair-hub', 'belgium-crops', 'treesatai'):  # of batches too large for a test
        few += ['--data.batch_size', '1' if name == 'flair-hub' else '2']
    if name == 'synthetic':
        few += ['--data.num_tiles', '5', '--data.dates', '[2,3]']
    if 'num_workers' in yaml.safe_load((CONFIGS / f'{name}.yaml').read_text())['data']['init_args']:
        few += ['--data.num_workers', '0']
    torchgeo.main.main(['fit', '--config', str(CONFIGS / f'{name}.yaml'), *few])
