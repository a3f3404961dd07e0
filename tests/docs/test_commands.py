# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Every command that README, CONTRIBUTING, the site and the tutorials print is run, word for word.

What the words name is there: DIR holds made-up PASTIS-HD, FILE.ckpt a checkpoint that was trained
on it, FILE.yaml an example of docs/configs. Training is stopped after a step; that is all that is
changed, and not by words.
"""

import re
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torchgeo.main
from lightning.pytorch.cli import LightningCLI

from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.commands import robustness
from torchgeo_omnisat.datasets.synthetic import dataset as synthetic

from ..prediction.embeddings.files import landscape, points, write_codes

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md'), *(ROOT / 'notebooks').glob('*.md'))
    if '_build' not in page.parts and 'tutorials' not in page.parts
]
#: What is not run here, and why.
NOT_RUN = {
    'make demo': 'takes minutes; its code runs in tests/commands',
    'make env': 'makes the environment that this runs in',
    'make test': 'is what runs this',
    'make test-slow': 'is what runs this',
    'make lint': 'is run beside the tests',
    'make bench': 'takes minutes; its ablation runs in tests/benchmarks',
    'make docs': 'is run beside the tests',
    'make build': 'downloads a build environment; what it builds is tested in tests/test_packaging.py',
    'make test-min': 'downloads another environment',
    'python benchmarks/ablation.py': 'takes hours; its rows run in tests/benchmarks',
    'python benchmarks/curves.py': 'takes hours; runs in tests/benchmarks',
    'python -m torchgeo_omnisat reproduce': 'takes hours; runs in tests/commands/test_reproduce.py',
    'pip install .': 'downloads; what it installs is tested in tests/test_packaging.py',
    'pip install git+https://git.example.org/torchgeo_omnisat': 'downloads; its address is tested in test_site.py',
    'git clone': 'downloads; its address is tested in test_site.py',
    'tensorboard --logdir lightning_logs': 'starts a server; figures for it are tested in tests/tasks/test_base.py',
    'torchgeo fit --config FILE.yaml --trainer.logger WandbLogger': 'needs wandb; parsed in test_examples.py',
    'cd torchgeo_omnisat': 'is the folder that the line above it makes',
    "pip install 'torchgeo_omnisat[parquet]'": 'downloads',
    'python -c': 'downloads; runs with a file in test_real.py',
    "pip install 'torchgeo_omnisat[onnx]'": 'downloads',
    'python -m torchgeo_omnisat fit --model omnisat --data ponds.PondsDataModule': (
        'needs the code of the page; its classes run in test_examples.py'
    ),
    'python -m torchgeo_omnisat fit --model covers.CoverFraction --data ponds.PondsDataModule': (
        'needs the code of the page; its classes run in test_examples.py'
    ),
    'torchgeo fit --model omnisat --model.backbone omnisat_tiny --model.backbone_args': (
        'downloads weights; such an encoder is trained in tests/models/encoders'
    ),
    'torchgeo predict --config FILE.yaml --ckpt_path FILE.ckpt --trainer.callbacks GeoTIFFWriter '
    '--trainer.callbacks.output map.tif --trainer.callbacks.fields true': (
        'needs a checkpoint with instances; such a map is predicted in tests/prediction/fields/test_maps.py'
    ),
    **{
        f'torchgeo fit --config docs/configs/{recipe}.yaml --config docs/configs/hardware/{hardware}.yaml': (
            'needs a GPU; parsed in test_recipes.py'
        )
        for recipe in ('pastis-hd', 'pretraining-hd')
        for hardware in ('one-24gb', 'one-80gb')
    },
    'torchgeo fit --model omnisat --data PASTISMultimodalDataModule --data.root DIR --data.splits SPLITS.csv': (
        'needs a list of tiles; read in tests/datamodules/test_pastis.py'
    ),
    'DATA=DIR sbatch docs/configs/slurm.sh': 'needs a cluster; run with one process in test_recipes.py',
    'torchgeo fit --config FILE.yaml --trainer.devices 4': 'needs four devices; parsed in test_examples.py',
    'torchgeo fit --config FILE.yaml --trainer.devices 4 --trainer.num_nodes 2 --trainer.strategy ddp': (
        'needs two machines; parsed in test_examples.py'
    ),
}
INLINE = re.compile(r'`((?:torchgeo (?:fit|validate|test|predict)|python -m torchgeo_omnisat \w+) [^`]+)`')


def lines():
    """The commands of all pages, without comments."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r'^```(?:sh|shell|bash)\n(.*?)^```$', text, re.M | re.S):
            found |= {
                shlex.join(shlex.split(line, comments=True)) for line in block.replace('\\\n', ' ').splitlines() if line
            }
        prose = re.sub(r'^```.*?^```$', '', text, flags=re.M | re.S)
        found |= {shlex.join(shlex.split(line)) for line in INLINE.findall(prose) if '...' not in line}
    return sorted(found - {''})


LINES = lines()
RUN = [
    line for line in LINES if not any(line == other or line.startswith((f'{other} ', f'{other}[')) for other in NOT_RUN)
]
pytestmark = pytest.mark.skipif(not (ROOT / 'docs').is_dir(), reason='the site is not here')


@pytest.fixture
def brief(monkeypatch):
    """A step of training, one batch of evaluation and a few small landscapes are enough, without other words."""
    begin = LightningCLI.instantiate_trainer
    few = {f'limit_{stage}_batches': 1 for stage in ('train', 'val', 'test')} | {'max_epochs': 1}
    monkeypatch.setattr(LightningCLI, 'instantiate_trainer', lambda self, **kwargs: begin(self, **kwargs | few))
    monkeypatch.setattr(robustness, 'Trainer', partial(robustness.Trainer, limit_test_batches=1))
    write = synthetic.write_landscapes
    small = {'num_tiles': 5, 'size': 16, 'dates': (2, 3)}
    monkeypatch.setattr(synthetic, 'write_landscapes', lambda root, recipe: write(root, replace(recipe, **small)))


@pytest.fixture(scope='session')
def trained(made, tmp_path_factory):
    """Checkpoints of a step, by what they were trained on, a folder for the hub and a report of `check`."""
    folder = tmp_path_factory.mktemp('trained')
    told = {
        'pastis': ['--model', 'omnisat', '--data', 'PASTISMultimodalDataModule', '--data.root', str(made('pastis'))],
        'region': ['--config', str(ROOT / 'docs/configs/rasters.yaml'), '--data.root', str(made('region'))],
        'canopy': ['--config', str(ROOT / 'docs/configs/canopy.yaml'), '--data.root', str(made('region'))],
    }
    few = ['--trainer.max_epochs', '1', '--trainer.limit_train_batches', '1', '--trainer.limit_val_batches', '0']
    for name, words in told.items():
        main(['fit', *words, *few, '--trainer.default_root_dir', str(folder / name), '--trainer.logger', 'false'])
        (checkpoint,) = (folder / name).rglob('*.ckpt')
        shutil.copy(checkpoint, folder / f'{name}.ckpt')
    for sensor, names in {'S2': '[s2]', 'S1': '[s1a,s1d]'}.items():
        one = [*told['pastis'], '--model.backbone', 'omnisat_tiny', '--data.modalities', names]
        main(['fit', *one, *few, '--trainer.default_root_dir', str(folder / sensor), '--trainer.logger', 'false'])
        shutil.copy(*(folder / sensor).rglob('*.ckpt'), folder / f'{sensor}.ckpt')
    main(['check', *told['pastis'][2:], '--output', str(folder / 'problems.json')])
    main(['shard', *told['pastis'][2:], '--output', str(folder / 'shards')])
    main(['export', '--ckpt', str(folder / 'pastis.ckpt'), '--output', str(folder / 'hub')])
    return folder


@pytest.fixture(scope='session')
def embeddings(tmp_path_factory):
    """A folder of small embedding maps around 5.33 E, 50.64 N, and points of three classes."""
    folder, origin = tmp_path_factory.mktemp('embeddings'), (664400.0, 5612600.0)
    vectors, classes = landscape()
    for name in ('map.tif', 'embeddings.tif', '2020.tif', '2024.tif'):
        write_codes(folder / name, vectors, origin=origin)
    points(folder / 'points.gpkg', classes, origin=origin)
    return folder


def status(run, words):
    """What a program would exit with."""
    try:
        return run(words) or 0
    except SystemExit as error:  # help and --print_config
        return error.code or 0


@pytest.mark.usefixtures('validation_figures')
@pytest.mark.slow
@pytest.mark.parametrize('line', RUN)
def test_command_runs(line, linked, made, trained, embeddings, brief, monkeypatch):
    program, *words = shlex.split(line)
    if {'classify', 'similar', 'change'} & set(words):
        for path in embeddings.iterdir():
            shutil.copy(path, path.name)
    if 'SyntheticLandscapesDataModule' not in words:  # which writes its own
        Path('DIR').symlink_to(made('pastis'))
    Path('data/region').symlink_to(made('region'))
    Path('data/PASTIS-R').symlink_to(made('pastis'))
    for config in ('FILE.yaml', 'AREA.yaml'):
        Path(config).symlink_to(ROOT / 'docs/configs/rasters.yaml')
    for checkpoint in ('A.ckpt', 'B.ckpt', 'FILE.ckpt', 'LAST.ckpt'):
        Path(checkpoint).symlink_to(trained / ('region.ckpt' if '--config' in words else 'pastis.ckpt'))
    Path('CANOPY.yaml').symlink_to(ROOT / 'docs/configs/canopy.yaml')
    Path('CANOPY.ckpt').symlink_to(trained / 'canopy.ckpt')
    for checkpoint in ('S1.ckpt', 'S2.ckpt'):
        Path(checkpoint).symlink_to(trained / checkpoint)
    if 'export' not in words:
        Path('FOLDER').symlink_to(trained / 'hub')
    if '--output' not in words:
        Path('NEW.yaml').symlink_to(ROOT / 'docs/configs/rasters.yaml')
        Path('problems.json').symlink_to(trained / 'problems.json')
        Path('SHARDS').symlink_to(trained / 'shards')
    if 'report' in words:
        folder, map_ = (Path(words[words.index(word) + 1]) for word in ('report', '--map'))
        folder.mkdir(parents=True)
        (folder / 'config.yaml').write_text('model: {}')
        shutil.copy(embeddings / 'map.tif', map_)
    monkeypatch.setattr('sys.argv', [program, *words])
    if program == 'python':
        assert words[:2] == ['-m', 'torchgeo_omnisat']
        run, words = main, words[2:]
    else:
        assert program == 'torchgeo'
        run = torchgeo.main.main
    assert status(run, words) == 0


def test_what_is_not_run_is_there():
    targets = (ROOT / 'Makefile').read_text()
    for line in set(LINES) - set(RUN):
        program, target, *_ = line.split()
        assert program != 'make' or f'\n{target}:' in targets, line


def test_commands_are_found():
    assert len(RUN) > 25
    assert {'torchgeo fit --model omnisat', 'python -m torchgeo_omnisat --help'} <= set(RUN)
