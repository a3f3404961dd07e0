# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Rasters of continuous labels, from training to a map on the command line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml
from lightning.pytorch import Trainer

from tests.geo_tree import UTM, X, Y, write
from torchgeo_omnisat.commands import baseline
from torchgeo_omnisat.commands.robustness import load_task
from torchgeo_omnisat.datamodules import ChipsDataModule, MultimodalGeoDataModule, adapters
from torchgeo_omnisat.prediction import GeoTIFFWriter, ValueWriter
from torchgeo_omnisat.tasks import OmniSatClassification, OmniSatRegression, OmniSatSegmentation
from torchgeo_omnisat.validation import walk
from torchgeo_omnisat.validation.tables import band_table, class_table

RASTERS: dict[str, Any] = {'s2': {'path': 's2', 'gsd': 10}, 'dem': {'path': 'dem', 'gsd': 10, 'temporal': False}}
CANOPY = {'path': 'canopy.tif', 'continuous': True, 'value_unit': 'm'}
OTHER = {'axis': 'x', 'fractions': [0.4, 0.2, 0.4]}
QUIET: dict[str, Any] = {
    'accelerator': 'cpu', 'logger': False, 'enable_progress_bar': False, 'enable_checkpointing': False,
    'enable_model_summary': False, 'num_sanity_val_steps': 0,
}  # fmt: skip


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 x 96 pixels of 10 m: canopy height in decimetres as int16, without a label in the first two rows."""
    root, rng = tmp_path_factory.mktemp('canopy'), np.random.default_rng(0)
    height = np.kron(rng.uniform(0, 30, (8, 24)), np.ones((4, 4)))
    for day in ('20210301', '20210601'):
        image = np.stack([1000 + 50 * height, 3000 - 40 * height]) + rng.normal(0, 20, (2, 32, 96))
        write(root / f's2/a_{day}.tif', image.astype(np.float32))
    write(root / 'dem/dem.tif', rng.normal(size=(32, 48)).astype(np.float32))  # the western half
    stored = np.rint(10 * height).astype(np.int16)
    stored[:2] = -999
    path = write(root / 'canopy.tif', stored, nodata=-999)
    with rasterio.open(path, 'r+') as file:
        file.scales, file.offsets = (0.1,), (0.0,)
    np.save(root / 'height.npy', np.where(stored == -999, np.nan, stored / 10))
    return root


def make(root: Path, **changes: Any) -> MultimodalGeoDataModule:
    given: dict[str, Any] = {'rasters': RASTERS, 'mask': CANOPY, 'tile_size': 160, 'batch_size': 2}
    return MultimodalGeoDataModule(str(root), **given | changes)


def test_scale_and_nodata_of_the_file_apply(root: Path) -> None:
    tiles = make(root).make_dataset('train', every=True)
    height, found = np.load(root / 'height.npy'), tiles[0]['mask']
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, height[:16, :16], rtol=1e-6)


def test_finer_pixels_are_averaged(root: Path) -> None:
    found = make(root, label_gsd=20).make_dataset('train', every=True)[0]['mask'].numpy()
    blocks = np.load(root / 'height.npy')[:16, :16].reshape(8, 2, 8, 2).mean((1, 3))
    np.testing.assert_allclose(found[1:], blocks[1:], rtol=1e-5)
    assert np.isnan(found[0]).all()


def test_statistics_are_those_of_the_training_area_and_follow_the_file(root: Path, tmp_path: Path) -> None:
    datamodule = make(root)
    train = np.load(root / 'height.npy')[:, :58]  # 60 % of 96 columns
    known = train[np.isfinite(train)]
    assert datamodule.target_mean == pytest.approx(known.mean(), rel=1e-5)
    assert datamodule.target_std == pytest.approx(known.std(), rel=1e-5)
    before = (root / 'canopy.tif').read_bytes()
    with rasterio.open(root / 'canopy.tif', 'r+') as file:
        file.write(np.full((32, 96), 70, np.int16), 1)
    try:
        assert make(root).target_moments == pytest.approx((7.0, 0.0), abs=1e-5)
    finally:
        (root / 'canopy.tif').write_bytes(before)


@pytest.fixture(scope='module')
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('trained') / 'last.ckpt'
    task = OmniSatRegression('omnisat_tiny')
    trainer = Trainer(**QUIET, max_epochs=1, default_root_dir=path.parent)
    trainer.fit(task, datamodule=make(root))
    trainer.save_checkpoint(path)
    return path


def test_values_are_drawn(root: Path) -> None:
    datamodule = make(root)
    datamodule.setup('fit')
    batch = datamodule.aug(datamodule.collate_fn([datamodule.train_dataset[0]]))
    sample = {key: value[0] for key, value in batch.items()}
    figure = datamodule.plot({**sample, 'prediction': sample['mask'] + 1})
    assert {'mask', 'prediction'} <= {ax.get_title() for ax in figure.axes}


def test_checkpoint_has_the_target(root: Path, trained: Path) -> None:
    task = OmniSatRegression.load_from_checkpoint(trained)
    datamodule = make(root)
    assert (task.hparams['target_mean'], task.hparams['target_std']) == datamodule.target_moments
    assert task.hparams['target_unit'] == 'm'
    assert task.hparams['label_gsd'] == 10
    assert isinstance(load_task(trained), OmniSatRegression)


def test_map_in_the_unit_of_the_target(root: Path, trained: Path, tmp_path: Path) -> None:
    task = OmniSatRegression.load_from_checkpoint(trained)
    box = [X + 100, Y - 320, X + 700, Y]
    datamodule = make(root, mask=None, predict_area=box, overlap=0.5)
    Trainer(**QUIET, callbacks=[ValueWriter(str(tmp_path / 'map.tif'))]).predict(task, datamodule=datamodule)
    with rasterio.open(tmp_path / 'map.tif') as file:
        assert file.dtypes == ('float32', 'float32')
        assert np.isnan(file.nodata)
        assert file.crs == UTM
        assert file.descriptions == ('value', 'modalities')
        assert file.units[0] == 'm'
        assert file.tags(2) == {'BIT_0': 's2', 'BIT_1': 'dem'}
        values, seen = file.read()
        west = int((X + 100 - file.transform.c) // 10)
    shown = np.isfinite(values)
    assert (np.isfinite(seen) == shown).all()
    assert shown.sum() == 60 * 32
    assert set(np.unique(seen[shown])) == {1.0, 3.0}
    assert (seen[:, west : west + 38] == 3).all()
    assert abs(values[shown].mean() - task.hparams['target_mean']) < 5 * task.hparams['target_std']
    assert (tmp_path / 'map.png').exists()


def test_one_tile_is_the_prediction_of_the_task(root: Path, trained: Path, tmp_path: Path) -> None:
    task = OmniSatRegression.load_from_checkpoint(trained)
    datamodule = make(root, mask=None, predict_area=[X, Y - 160, X + 160, Y], overlap=0.0)
    Trainer(**QUIET, callbacks=[ValueWriter(str(tmp_path / 'map.tif'), False)]).predict(task, datamodule=datamodule)
    batch = datamodule.aug(next(iter(datamodule.predict_dataloader())))
    with torch.no_grad():
        values = task.eval().predict_step(batch, 0)['values']
    assert values is not None
    with rasterio.open(tmp_path / 'map.tif') as file:
        np.testing.assert_allclose(file.read(1), values[0, 0].numpy(), rtol=1e-4, atol=1e-3)


def test_resumed_map_is_the_same(root: Path, trained: Path, tmp_path: Path) -> None:
    task, files = OmniSatRegression.load_from_checkpoint(trained), []
    for name, limit in (('whole.tif', 1.0), ('part.tif', 3), ('part.tif', 1.0)):
        writer = ValueWriter(str(tmp_path / name), overview=False)
        trainer = Trainer(**QUIET, callbacks=[writer], limit_predict_batches=limit)
        trainer.predict(task, datamodule=make(root, mask=None, overlap=0.5, batch_size=1))
        files.append(tmp_path / name)
    assert files[0].read_bytes() == files[2].read_bytes()


def test_tasks_and_writers_that_do_not_fit(root: Path, trained: Path, tmp_path: Path) -> None:
    task = OmniSatRegression.load_from_checkpoint(trained)
    trainer = Trainer(**QUIET, callbacks=[GeoTIFFWriter(str(tmp_path / 'map.tif'))])
    with pytest.raises(ValueError, match='ValueWriter'):
        trainer.predict(task, datamodule=make(root, mask=None))
    with pytest.raises(ValueError, match='omnisat_regression'):
        ValueWriter().setup(Trainer(**QUIET), OmniSatSegmentation('omnisat_tiny'), 'predict')
    with pytest.raises(ValueError, match='classes'):
        Trainer(**QUIET).fit(OmniSatSegmentation('omnisat_tiny'), datamodule=make(root))
    with pytest.raises(ValueError, match='continuous'):
        Trainer(**QUIET).fit(OmniSatClassification('omnisat_tiny'), datamodule=make(root))
    with pytest.raises(ValueError, match='chips'):
        ChipsDataModule(str(root), RASTERS, CANOPY)


@pytest.mark.parametrize('settings', [{'continuous': 'yes'}, {'value_unit': 3}, {'continuous': False}])
def test_invalid_settings_of_the_mask(root: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r'yes|3|continuous: true'):
        make(root, mask={**CANOPY, **settings})


@pytest.mark.parametrize(
    'changes', [{'labels': ['a', 'b']}, {'num_classes': 3}, {'mask': {**CANOPY, 'classes': {1: 'a'}}}]
)
def test_values_have_no_classes(root: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='continuous'):
        make(root, **changes)


def test_baseline_is_scored_on_the_same_split(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datamodule = make(root)
    train, test = datamodule.make_dataset('train', every=True), datamodule.make_dataset('test')
    scores = baseline.score_values(train, test, 2000)
    values = torch.stack([test[index]['mask'] for index in range(len(test))])
    known = values[values.isfinite()].double()
    assert scores['mean']['MAE'] == pytest.approx((known - datamodule.target_mean).abs().mean().item(), rel=0.05)
    assert scores['mean']['R2'] <= 0
    assert scores['pixel-wise MLP']['R2'] > 0.5
    settings = {'root': str(root), 'rasters': RASTERS, 'mask': CANOPY, 'tile_size': 160}
    config = {'data': {'class_path': 'MultimodalGeoDataModule', 'init_args': settings}}
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
    assert baseline.main(['--config', str(tmp_path / 'config.yaml'), '--max-pixels', '2000']) == 0
    with pytest.raises(SystemExit, match='1'):
        baseline.main(['--config', str(tmp_path / 'config.yaml'), '--classifiers', 'forest'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split()[:4] == ['mean', 'MAE', f'{scores["mean"]["MAE"]:.4g}', 'm,']
    assert f'R2 {scores["pixel-wise MLP"]["R2"]:.3f}' in lines[-1]


def test_shards_keep_the_target(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datamodule = make(root)
    datamodule.setup('fit')
    description = json.loads(json.dumps(adapters.describe_samples(datamodule)))
    monkeypatch.setattr(adapters, 'read_description', lambda root: description)
    sharded = adapters.ShardedDataModule(str(root))
    assert (sharded.target_mean, sharded.target_std) == datamodule.target_moments
    assert (sharded.continuous, sharded.target_unit) == (True, 'm')
    description['target']['std'] = -1.0
    with pytest.raises(ValueError, match='target'):
        adapters.ShardedDataModule(str(root))


def test_check_accepts_values(root: Path) -> None:
    report = walk(make(root))
    assert not [problem for problem in report.problems if problem.part == 'mask']
    assert report.samples['train'] > 0
    height = np.load(root / 'height.npy')
    row = report.statistics['bands'][-1]
    assert (row['modality'], row['unit']) == ('mask', 'm')
    assert row['maximum'] == pytest.approx(np.nanmax(height), rel=1e-5)
    train = report.statistics['splits'][0]
    assert (train['labelled_tiles'], train['tiles']) == (train['tiles'],) * 2
    assert 0 < train['labelled'] < train['of']
    assert class_table(report).startswith('Labels\ntrain: ')
    assert 'mask      value  m' in band_table(report)


@pytest.fixture
def without_test_labels(root: Path) -> Iterator[Path]:
    before = (root / 'canopy.tif').read_bytes()
    with rasterio.open(root / 'canopy.tif', 'r+') as file:
        values = file.read(1)
        values[:, 70:] = -999
        file.write(values, 1)
    yield root
    (root / 'canopy.tif').write_bytes(before)


def test_split_without_values(without_test_labels: Path) -> None:
    datamodule = make(without_test_labels)
    [problem] = [problem for problem in walk(datamodule).problems if problem.part == 'mask']
    assert "'test'" in problem.reason
    with pytest.raises(ValueError, match='test tiles'):
        baseline.score_values(datamodule.make_dataset('train', every=True), datamodule.make_dataset('test'), 100)


def test_model_is_tested_on_another_region(root: Path, trained: Path) -> None:
    datamodule = make(root, split=OTHER)
    task = OmniSatRegression.load_from_checkpoint(trained)
    assert task.hparams['target_mean'] != datamodule.target_mean
    Trainer(**QUIET, limit_val_batches=1).validate(task, datamodule=datamodule, verbose=False)


def test_resumed_training_keeps_the_scale_of_the_target(root: Path, trained: Path) -> None:
    task = OmniSatRegression('omnisat_tiny')
    trainer = Trainer(**QUIET, max_epochs=1)
    trainer.fit(task, datamodule=make(root, split=OTHER), ckpt_path=str(trained), weights_only=False)
    saved = OmniSatRegression.load_from_checkpoint(trained)
    assert task.scale == saved.scale
    assert (task.criterion.std, task.criterion.mean) == saved.scale


def test_other_unit_is_an_error(root: Path, trained: Path) -> None:
    task = OmniSatRegression.load_from_checkpoint(trained)
    with pytest.raises(ValueError, match="'cm'"):
        Trainer(**QUIET).test(task, datamodule=make(root, mask={**CANOPY, 'value_unit': 'cm'}), verbose=False)
