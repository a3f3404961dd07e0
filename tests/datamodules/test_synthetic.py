# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from argparse import ArgumentError
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from torchgeo_omnisat import datamodules
from torchgeo_omnisat.datamodules import PASTISMultimodalDataModule, SyntheticLandscapesDataModule
from torchgeo_omnisat.datasets import SyntheticLandscapes


@pytest.fixture(scope='module')
def datamodule(tmp_path_factory: pytest.TempPathFactory) -> SyntheticLandscapesDataModule:
    root = tmp_path_factory.mktemp('synthetic') / 'root'
    datamodule = SyntheticLandscapesDataModule(str(root), fold=2, num_tiles=10, size=8, dates=(2, 4), batch_size=3)
    assert not root.exists()
    datamodule.prepare_data()
    for stage in ('fit', 'test'):
        datamodule.setup(stage)
    return datamodule


def test_says_that_it_is_synthetic(datamodule: SyntheticLandscapesDataModule) -> None:
    assert datamodule.synthetic
    assert 'synthetic' in type(datamodule).__doc__.lower()


def test_so_does_the_datamodule_whose_layout_they_have(
    datamodule: SyntheticLandscapesDataModule, tmp_path: Path
) -> None:
    assert PASTISMultimodalDataModule(str(datamodule.train_dataset.path)).synthetic
    assert not PASTISMultimodalDataModule(str(tmp_path)).synthetic


def test_folds_are_the_official_split(datamodule: SyntheticLandscapesDataModule) -> None:
    splits = (datamodule.train_dataset, datamodule.val_dataset, datamodule.test_dataset)
    assert [sorted({patch.fold for patch in split.patches}) for split in splits] == [[2, 3, 4], [5], [1]]
    assert all(isinstance(split, SyntheticLandscapes) for split in splits)


def test_batches_are_normalised(datamodule: SyntheticLandscapesDataModule) -> None:
    batch = next(iter(datamodule.train_dataloader()))
    batch = datamodule.aug(batch)
    assert batch['image_s2'].shape[0] == batch['mask'].shape[0] == 3
    for name, modality in datamodule.modalities.items():
        assert datamodule.mean[name].shape == (len(modality.bands),)
        image = batch[modality.image_key][
            batch[modality.valid_key] if modality.temporal else batch[modality.valid_key][:, 0]
        ]
        assert image.mean().abs() < 1
        assert 0.3 < image.std() < 3
    assert set(torch.unique(batch['mask']).tolist()) <= set(range(20))


def test_memory_is_pinned_where_there_is_a_gpu(
    datamodule: SyntheticLandscapesDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda there=there: there)
        loaders = datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()
        assert [loader.pin_memory for loader in loaders] == [there] * 3


def test_a_sensor_can_be_left_out(datamodule: SyntheticLandscapesDataModule) -> None:
    root = str(datamodule.test_dataset.root)
    other = SyntheticLandscapesDataModule(
        root, num_tiles=10, size=8, dates=(2, 4), modalities=('spot',), bands={'spot': ('G',)}, max_dates=1
    )
    other.prepare_data()
    other.setup('test')
    batch = next(iter(other.test_dataloader()))
    assert batch['image_spot'].shape[1:] == (1, 80, 80)
    assert 'image_s2' not in batch


def test_command_line_can_set_every_argument() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SyntheticLandscapesDataModule)
    ours = parser.get_defaults().as_dict()
    assert ours.keys() >= {'root', 'fold', 'seed', 'batch_size', 'num_workers', 'exclude', 'speckle', 'batches'}
    assert not ours.keys() & {'missing', 'download', 'checksum', 'kwargs'}
    assert parser.parse_args(['--speckle=5', '--bands={s2: [B02]}']).bands == {'s2': ['B02']}
    reads = signature(SyntheticLandscapes).parameters
    both = ours.keys() & reads.keys() - {'exclude'}  # a report, of which the dataset gets names
    assert {name: ours[name] for name in both} == {name: reads[name].default for name in both}
    assert both >= {'root', 'num_tiles', 'seed', 'size', 'dates', 'modalities', 'bands', 'max_dates', 'date_range'}


@pytest.mark.parametrize('datamodule', [getattr(datamodules, name) for name in datamodules.__all__])
def test_every_argument_is_explained_and_no_other_is_taken(datamodule: Any) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(datamodule, 'data')
    told = {action.dest: action.help for action in parser._actions if action.dest.startswith('data.')}
    assert told.keys() >= {'data.batch_size', 'data.num_workers'} or datamodule is datamodules.MixedDataModule
    assert all(told.values())
    with pytest.raises(ArgumentError, match=r'nrecognized arguments: --data\.spekle'):
        parser.parse_args(['--data.spekle=5'])
    with pytest.raises(TypeError, match=r'spekle|required .* argument'):
        datamodule(spekle=5)


def test_unknown_fold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'fold.*\b6\b'):
        SyntheticLandscapesDataModule(str(tmp_path), fold=6)
