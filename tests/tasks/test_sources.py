# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Sources: a model of a mixture sees the images of each source as it did in training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule

from torchgeo_omnisat.datamodules import MixedDataModule, MultimodalGeoDataModule
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation, export_hub
from torchgeo_omnisat.tasks.normalization import Sources, choose

from ..geo_tree import write
from .helpers import make_trainer

#: What the images of each source are made of the same ones: a factor, and what is added.
UNITS = {'a': (1.0, 0.0), 'b': (2.0, 5000.0), 'c': (0.01, -3.0)}


def make(folder: Path, name: str, modality: str = 's2', **changes: Any) -> MultimodalGeoDataModule:
    """Rasters of two days beside labels, in the units of a source; written once."""
    root, rng = folder / name, np.random.default_rng(0)
    labels = np.arange(32)[:, None] // 8 % 2 + np.zeros((1, 96), int)
    factor, offset = UNITS[name]
    if not root.exists():
        write(root / 'labels.tif', labels.astype(np.uint8))
        for day in ('20210601', '20210701'):
            image = 1000 + 800 * labels + rng.normal(0, 50, (2, 32, 96))
            write(root / f's2/S2_{day}.tif', (factor * image + offset).astype(np.float32))
    rasters = {modality: {'path': 's2', 'gsd': 10}}
    told = {'labels': ['x', 'y'], 'tile_size': 160.0, 'batch_size': 2, 'dihedral': False, 'temporal_dropout': 0.0}
    told |= {'split': {'axis': 'x', 'fractions': [0.34, 0.33, 0.33]}, **changes}
    return MultimodalGeoDataModule(str(root), rasters, {'path': 'labels.tif'}, **told)


def mixture(folder: Path, *names: str, **changes: Any) -> MixedDataModule:
    return MixedDataModule({name: make(folder, name) for name in names}, **changes)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('sources')


@pytest.fixture(scope='module')
def mixed(folder: Path) -> Path:
    """A checkpoint that was trained on a and b."""
    trainer = make_trainer(folder / 'mixed', max_steps=2)
    trainer.fit(OmniSatSegmentation('omnisat_tiny'), datamodule=mixture(folder, 'a', 'b'))
    trainer.save_checkpoint(folder / 'mixed.ckpt')
    return folder / 'mixed.ckpt'


class Looker(LightningModule):
    """Meets the data as a task does, and keeps the images as that task sees them."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task = task
        self.seen: list[torch.Tensor] = []

    def configure_model(self) -> None:
        self.task.configure_model()

    def setup(self, stage: str) -> None:
        self.task._trainer = self.trainer

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.seen += [value for key, value in self.task.renormalise(batch).items() if key.startswith('image')]


def seen(task: Any, datamodule: Any, folder: Path) -> torch.Tensor:
    """All test images as a task sees them."""
    looker = Looker(task)
    make_trainer(folder).test(looker, datamodule=datamodule, verbose=False)
    return torch.cat(looker.seen)


def load(path: Path, **changes: Any) -> OmniSatSegmentation:
    return OmniSatSegmentation.load_from_checkpoint(path, weights_only=True, **changes)


@pytest.mark.parametrize('name', ['a', 'b'])
def test_a_source_alone_looks_as_in_training(mixed: Path, folder: Path, tmp_path: Path, name: str) -> None:
    images = seen(load(mixed), make(folder, name), tmp_path)
    assert images.mean().abs() < 0.3
    assert images.std() == pytest.approx(1, abs=0.3)


def test_the_mixture_itself_looks_as_in_training(mixed: Path, folder: Path, tmp_path: Path) -> None:
    images = seen(load(mixed), mixture(folder, 'b', 'a'), tmp_path)
    half = len(images) // 2
    torch.testing.assert_close(images[:half], images[half:], atol=1e-3, rtol=1e-3)


def test_the_checkpoint_keeps_sources(mixed: Path, folder: Path) -> None:
    task = load(mixed)
    a, b = (task.hparams['sources'][name] for name in ('a', 'b'))
    assert task.hparams['mean'] == a['mean']
    assert 'statistics' not in task.hparams
    np.testing.assert_allclose(b['mean']['s2'], 2 * np.array(a['mean']['s2']) + 5000, rtol=1e-4)
    np.testing.assert_allclose(b['std']['s2'], 2 * np.array(a['std']['s2']), rtol=1e-4)
    assert (a['data'], b['data']) == ('MultimodalGeoDataModule', 'MultimodalGeoDataModule')


def test_other_data_ask_which_source_they_are(mixed: Path, folder: Path, tmp_path: Path) -> None:
    """c is neither, and of the same datamodule: it is asked for, and taken as it is told."""
    with pytest.raises(ValueError, match=r"\['a', 'b'\]"):
        seen(load(mixed), make(folder, 'c'), tmp_path)
    told = [seen(load(mixed, statistics=name), make(folder, 'b'), tmp_path) for name in ('a', 'b')]
    assert told[0].mean() > 5
    assert told[1].mean().abs() < 0.3
    with pytest.raises(ValueError, match=r"'c'.*\['a', 'b'\]"):
        seen(load(mixed, statistics='c'), make(folder, 'c'), tmp_path)


def test_a_map_asks_too(mixed: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    """Nothing is measured for a map, so it has to be told; it is then the one that the source itself would get."""
    with pytest.raises(ValueError, match=r"\['a', 'b'\]"):
        make_trainer(tmp_path).predict(load(mixed), datamodule=make(folder, 'b'))
    for name in ('a', 'b'):
        datamodule = make(folder, name)
        make_trainer(tmp_path, limit_predict_batches=1).predict(load(mixed, statistics=name), datamodule=datamodule)
        expected = load(mixed).hparams['sources'][name]['mean']['s2']
        assert datamodule.mean['s2'].tolist() == pytest.approx(expected)


def test_weights_hand_over_the_source_that_fits(mixed: Path, folder: Path, tmp_path: Path) -> None:
    export_hub(mixed, tmp_path / 'hub')
    for name, weights in (('a', mixed), ('b', tmp_path / 'hub')):
        task = OmniSatSegmentation('omnisat_tiny', weights=str(weights))
        make_trainer(tmp_path, fast_dev_run=1).fit(task, datamodule=make(folder, name))
        assert task.hparams['mean'] == load(mixed).hparams['sources'][name]['mean']
        assert task.hparams['sources'] is None
    with pytest.raises(ValueError, match=r"\['a', 'b'\]"):
        make_trainer(tmp_path).fit(
            OmniSatSegmentation('omnisat_tiny', weights=str(mixed)), datamodule=make(folder, 'c')
        )
    task = OmniSatSegmentation('omnisat_tiny', weights=str(mixed), statistics='b')
    with pytest.warns(UserWarning, match='standard deviations from'):
        make_trainer(tmp_path, fast_dev_run=1).fit(task, datamodule=make(folder, 'c'))
    assert task.hparams['mean'] == load(mixed).hparams['sources']['b']['mean']


def test_weights_of_a_mixture_for_another_mixture(mixed: Path, folder: Path, tmp_path: Path) -> None:
    pretraining = OmniSatPretraining('omnisat_tiny', weights=str(mixed), tile_weight=0, patch_weight=0)
    make_trainer(tmp_path, max_steps=1).fit(pretraining, datamodule=mixture(folder, 'b', 'a'))
    before, after = load(mixed).hparams['sources'], pretraining.hparams['sources']
    assert list(after) == ['b', 'a']
    assert all(after[name]['mean'] == before[name]['mean'] for name in after)


def test_another_name_in_the_mixture(folder: Path, tmp_path: Path) -> None:
    rename = {'b': {'s2': 's2_b'}}
    trainer = make_trainer(tmp_path, max_steps=2)
    task = OmniSatSegmentation('omnisat_tiny')
    trainer.fit(task, datamodule=mixture(folder, 'a', 'b', rename=rename))
    assert task.hparams['mean'].keys() == {'s2', 's2_b'}
    for wrong in ({}, {'statistics': 'a'}):
        task.statistics = wrong.get('statistics')
        with pytest.raises(ValueError, match=r"'s2_b'.*'b'"):
            seen(task, make(folder, 'b'), tmp_path)
    task.statistics = None
    for datamodule in (mixture(folder, 'b', rename=rename), make(folder, 'b', modality='s2_b')):
        images = seen(task, datamodule, tmp_path)
        assert images.mean().abs() < 0.3


def test_checkpoint_of_before_sources_were_kept(mixed: Path, folder: Path, tmp_path: Path) -> None:
    old = torch.load(mixed, weights_only=True)
    del old['hyper_parameters']['sources']
    torch.save(old, tmp_path / 'old.ckpt')
    images = seen(load(tmp_path / 'old.ckpt'), mixture(folder, 'a', 'b'), tmp_path)
    half = len(images) // 2
    torch.testing.assert_close(images[:half], images[half:], atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match=r"statistics.*'b'"):
        seen(load(tmp_path / 'old.ckpt', statistics='b'), make(folder, 'b'), tmp_path)


def test_told_statistics_are_those_of_every_source(folder: Path, tmp_path: Path) -> None:
    told = {'mean': {'s2': [0.0, 0.0]}, 'std': {'s2': [1000.0, 1000.0]}}
    task = OmniSatSegmentation('omnisat_tiny', **told)  # type: ignore[arg-type]
    images = seen(task, mixture(folder, 'a', 'b'), tmp_path)
    assert task.hparams['sources'] is None
    half = len(images) // 2
    torch.testing.assert_close(2 * images[:half] + 5, images[half:], atol=1e-2, rtol=1e-3)


SOURCES: Sources = {
    'a': {'data': 'A', 'mean': {'s2': [1.0], 's1': [2.0]}, 'std': {'s2': [1.0], 's1': [1.0]}},
    'b': {'data': 'B', 'mean': {'s2': [5.0]}, 'std': {'s2': [1.0]}},
    'c': {'data': 'B', 'mean': {'aerial': [9.0], 's2': [7.0]}, 'std': {'aerial': [1.0], 's2': [1.0]}},
}


class TestChoose:
    @pytest.mark.parametrize(
        ('names', 'measured', 'statistics', 'expected'),
        [
            (['s2', 's1'], {'data': 'X'}, None, ('a', [1.0])),  # the only one that has both
            (['s2'], {'data': 'A'}, None, ('a', [1.0])),  # the only one of its datamodule
            (['s2'], {'data': 'B', 'mean': {'s2': [7.0]}, 'std': {'s2': [1.0]}}, None, ('c', [7.0])),  # equal numbers
            (['s2'], {'data': 'A'}, 'b', ('b', [5.0])),
            (['s2', 's1'], {'data': 'A'}, 'b', ('b, a', [5.0])),  # there is one of s1 alone
        ],
    )
    def test_the_one_that_fits(
        self, names: list[str], measured: dict[str, Any], statistics: str | None, expected: tuple[str, list[float]]
    ) -> None:
        source, taken = choose(SOURCES, measured, names, statistics)
        assert (source, taken['mean']['s2']) == expected

    @pytest.mark.parametrize('measured', [{'data': 'X'}, {'data': 'B'}])
    def test_unclear(self, measured: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"\['a', 'b', 'c'\]"):
            choose(SOURCES, measured, ['s2'])

    def test_equal_sources_are_clear(self) -> None:
        twins = {'one': SOURCES['b'], 'two': SOURCES['b']}
        assert choose(twins, {'data': 'X'}, ['s2']) == ('one', {'mean': {'s2': [5.0]}, 'std': {'s2': [1.0]}})
