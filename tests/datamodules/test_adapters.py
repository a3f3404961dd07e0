# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""MappedDataModule: datasets shaped like TorchGeo's, made up, from YAML and in a mixture."""

import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torchgeo.datasets import NonGeoDataset
from torchgeo.main import main

import torchgeo_omnisat.plugin  # noqa: F401 (short names resolve among classes that are imported)
from torchgeo_omnisat.batch import check
from torchgeo_omnisat.datamodules import MappedDataModule, MixedDataModule

OPTICAL = {'name': 's2', 'bands': ['B03', 'B04', 'B08'], 'gsd': 10, 'temporal': False}
RADAR = {'name': 's1', 'bands': ['VV', 'VH'], 'gsd': 10, 'temporal': False}


class Made(NonGeoDataset):
    """Made-up samples of some shape, as many as its split is long."""

    shape: tuple[int, ...] = (3, 8, 8)
    splits = ('train', 'val', 'test')

    def __init__(self, root: str, split: str = 'train') -> None:
        assert split in self.splits
        self.length = 6 if split == self.splits[0] else 2

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        image = 1000 + 100 * torch.randn(self.shape, generator=generator)
        return {'image': image, **self.target(index)}

    def target(self, index: int) -> dict[str, Any]:
        return {}


class LikeEuroSAT(Made):
    def target(self, index: int) -> dict[str, Any]:
        return {'label': torch.tensor(index % 4)}


class LikeBigEarthNet(Made):
    shape = (5, 8, 8)

    def target(self, index: int) -> dict[str, Any]:
        return {'label': torch.eye(4, dtype=torch.int64)[index % 4]}


class LikeSEN12MS(Made):
    shape = (5, 8, 8)
    splits = ('train', 'test')

    def target(self, index: int) -> dict[str, Any]:
        return {'mask': torch.arange(4).view(4, 1, 1).expand(4, 8, 8)}


class LikeSSL4EO(Made):
    shape = (12, 8, 8)
    splits = ('s2c',)


def settings(kind: type[Made], root: Path, modalities: Any, keys: Any, **others: Any) -> dict[str, Any]:
    dataset = {'class_path': f'{__name__}.{kind.__name__}', 'init_args': {'root': str(root / kind.__name__)}}
    (root / kind.__name__).mkdir()
    return {'dataset': dataset, 'modalities': modalities, 'keys': keys, 'patch_size': 40.0, 'batch_size': 2} | others


BOTH = {'s1': {'key': 'image', 'channels': [0, 1]}, 's2': {'key': 'image', 'channels': [2, 3, 4]}}


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, dict[str, Any]]:
    days = ['2020-03-01', '2020-06-01', '2020-09-01', '2020-12-01']
    once = {split: {'split': 's2c'} for split in ('train', 'val', 'test')}
    return {
        'eurosat': settings(LikeEuroSAT, tmp_path, [OPTICAL], {'s2': 'image', 'label': 'label'}, num_classes=4),
        'bigearthnet': settings(LikeBigEarthNet, tmp_path, [RADAR, OPTICAL], BOTH | {'label': 'label'}, num_classes=4),
        'sen12ms': settings(
            LikeSEN12MS,
            tmp_path,
            [RADAR, OPTICAL],
            BOTH | {'mask': {'key': 'mask', 'channels': [2]}},
            num_classes=4,
            splits={'val': {'split': 'test'}},
        ),
        'ssl4eo': settings(
            LikeSSL4EO,
            tmp_path,
            [{**OPTICAL, 'name': 's2_seasons', 'temporal': True}],
            {'s2_seasons': {'key': 'image', 'dates': days}},
            splits=once,
        ),
    }


def test_each_gives_batches_in_our_keys(parts: dict[str, dict[str, Any]]) -> None:
    for told in parts.values():
        datamodule = MappedDataModule(**told)
        datamodule.prepare_data()
        datamodule.setup('fit')
        for loader, count in ((datamodule.train_dataloader(), 3), (datamodule.val_dataloader(), None)):
            batches = list(loader)
            assert count is None or len(batches) == count
            check(datamodule.on_after_batch_transfer(batches[0], 0), datamodule.modalities)
        for name, mean in datamodule.mean.items():
            assert (mean - 1000).abs().max() < 30, name
    sample = MappedDataModule(**parts['sen12ms']).make_dataset('train')[0]
    assert sample['mask'].unique().tolist() == [2]
    assert MappedDataModule(**parts['sen12ms']).label_gsd == 10
    sample['mask'][0, 0] = 255
    figure = MappedDataModule(**parts['sen12ms']).make_dataset('val').plot(sample | {'prediction': sample['mask']})
    assert [text.get_text() for text in figure.axes[-1].get_legend().get_texts()] == ['2  2']
    assert not hasattr(MappedDataModule(**parts['eurosat']), 'label_gsd')


@pytest.mark.usefixtures('validation_figures')
def test_a_mixture_from_yaml_is_trained_on_and_one_of_it_after(
    parts: dict[str, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    modules = {name: {'class_path': 'MappedDataModule', 'init_args': told} for name, told in parts.items()}
    modules['eurosat']['init_args']['batch_size'] = 3
    config = tmp_path / 'mixture.yaml'
    data = {'class_path': 'MixedDataModule', 'init_args': {'datamodules': modules, 'temperature': 2.0}}
    config.write_text(yaml.safe_dump({'data': data}))
    words = ['--model', 'omnisat_pretraining', '--model.backbone', 'omnisat_tiny', '--config', str(config)]
    words += ['--trainer.accelerator', 'cpu', '--trainer.max_steps', '4', '--trainer.limit_val_batches', '1']
    words += ['--trainer.logger', 'false', '--trainer.default_root_dir', str(tmp_path)]
    main(['fit', *words])
    (checkpoint,) = tmp_path.rglob('*.ckpt')
    saved = torch.load(checkpoint, weights_only=True)['hyper_parameters']['modalities']
    assert sorted(modality['name'] for modality in saved) == ['s1', 's2', 's2_seasons']
    config.write_text(yaml.safe_dump({'data': modules['sen12ms']}))
    words[words.index('--model') + 1], words[words.index('4')] = 'omnisat', '3'
    main(['fit', *words, '--model.weights', str(checkpoint), '--trainer.default_root_dir', str(tmp_path / 'one')])
    (tuned,) = (tmp_path / 'one').rglob('*.ckpt')
    saved = torch.load(tuned, weights_only=True)['hyper_parameters']['modalities']
    assert sorted(modality['name'] for modality in saved) == ['s1', 's2']
    assert re.search(r'loaded: [^;]*\bs2\b', caplog.text)
    assert list((tmp_path / 'one').rglob('figures/val/0/*.png'))


def test_what_they_agree_on_is_known(parts: dict[str, dict[str, Any]]) -> None:
    pair = {name: MappedDataModule(**parts[name]) for name in ('eurosat', 'bigearthnet')}
    mixture = MixedDataModule(pair)  # type: ignore[arg-type]
    mixture.setup('fit')
    assert (mixture.num_classes, mixture.patch_size) == (4, 40.0)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'dataset': {'class_path': 'torchgeo.datasets.Nothing'}},
            r"class_path of dataset is 'torchgeo.datasets.Nothing', expected a NonGeoDataset: .*no attribute 'Nothing'",
        ),
        ({'dataset': 'EuroSAT'}, r"dataset is 'EuroSAT', expected class_path and init_args"),
        ({'dataset': {'class_path': 'torchgeo.datasets.NAIP'}}, r"'torchgeo.datasets.NAIP', expected a NonGeoDataset"),
        ({'splits': {'training': {}}}, r"splits has \['training'\], expected some of \['train', 'val', 'test'\]"),
        ({'labels': ['a']}, r"labels are \['a'\], expected one for each of 4 classes"),
        ({'num_classes': None}, r'labels is None, and so is num_classes; expected the names of at least 2 classes'),
    ],
)
def test_errors(parts: dict[str, dict[str, Any]], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MappedDataModule(**{**parts['eurosat'], **changes})


@pytest.mark.parametrize('name', ['split', 'path', 'spekle'])
def test_what_only_its_dataset_takes_is_refused(parts: dict[str, dict[str, Any]], name: str) -> None:
    with pytest.raises(TypeError, match=f"keyword argument '{name}'"):
        MappedDataModule(**parts['eurosat'], **{name: 'val'})


class Masks(Made):
    """Masks of three classes, of which a split may lack some or have others."""

    values: tuple[int, ...] = (0, 1, 2)

    def target(self, index: int) -> dict[str, Any]:
        return {'mask': torch.full((8, 8), self.values[index % len(self.values)])}


@pytest.mark.parametrize('step', ['prepare_data', 'setup'])
@pytest.mark.parametrize(
    ('values', 'most', 'told'),
    [
        ((0, 1, 99), None, r"masks of 'train' have the labels 99 \(128 pixels\) in 2 of 6 tiles, first in tile 2"),
        ((0, -1, 2), None, r'-1 \(128 pixels\).*expected classes 0 to 2 or 255 for no label'),
        ((0, 1, 99), 3, r'99 \(128 pixels\) in 2 of the 3 of 6 tiles that were read'),
        ((255,), None, "'train' has no labelled pixel.*384 pixels are 255"),
        ((0, 1), None, r"no pixel of 'train' has the label \['c'\]"),
        ((0, 1), 3, ''),
        ((255,), 3, "'train' has no labelled pixel in the 3 of 6 tiles that were read"),
        ((0, 1, 2), None, ''),
    ],
)
def test_masks_are_looked_at_before_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    values: tuple[int, ...],
    most: int | None,
    told: str,
) -> None:
    monkeypatch.setattr(Masks, 'values', values)
    given = settings(Masks, tmp_path, [OPTICAL], {'s2': 'image', 'mask': 'mask'}, labels=['a', 'b', 'c'])
    datamodule = MappedDataModule(**given, ignore_index=255)
    datamodule.max_counted = most
    state = SimpleNamespace(fn='fit')
    datamodule.trainer = SimpleNamespace(lightning_module=SimpleNamespace(target='mask'), state=state)  # type: ignore[assignment]
    run = datamodule.prepare_data if step == 'prepare_data' else lambda: datamodule.setup('fit')
    if 99 in values or -1 in values or (255 in values and most is None):
        with pytest.raises(ValueError, match=told):
            run()
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        run()
    assert re.search(told, ' '.join(str(warning.message) for warning in caught))
    assert bool(told) == any("'train'" in str(warning.message) for warning in caught)


def test_labels_that_are_no_class_are_named(tmp_path: Path) -> None:
    given = settings(LikeEuroSAT, tmp_path, [OPTICAL], {'s2': 'image', 'label': 'label'}, num_classes=3)
    with pytest.raises(ValueError, match='label is 3, expected a class from 0 to 2'):
        MappedDataModule(**given).label_counts('train')
