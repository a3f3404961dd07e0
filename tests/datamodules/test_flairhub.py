# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torchgeo.datamodules.flair import AERIAL_RGBI_MEAN

from tests.datamodules.test_pastis import trainer
from tests.landscapes.flairhub import FLAIRHUBRecipe, write_flairhub
from torchgeo_omnisat.batch import check
from torchgeo_omnisat.datamodules import FLAIRHUBMultimodalDataModule
from torchgeo_omnisat.datasets import FLAIRHUBMultimodal
from torchgeo_omnisat.tasks import OmniSatSegmentation


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up patches, beside which statistics are kept."""
    root = tmp_path_factory.mktemp('hub') / 'root'
    write_flairhub(root, FLAIRHUBRecipe(areas=5, dates=4))
    return root


class TestFLAIRHUBMultimodalDataModule:
    def test_official_splits(self, root: Path) -> None:
        datamodule = FLAIRHUBMultimodalDataModule(str(root), modalities=('spot',))
        for stage in ('fit', 'test', 'predict'):
            datamodule.setup(stage)
        splits = (datamodule.train_dataset, datamodule.val_dataset, datamodule.test_dataset, datamodule.predict_dataset)
        assert [len(split) for split in splits] == [12, 4, 4, 4]
        assert [split.ids[0][:9] for split in splits] == ['D005-2018', 'D004-2021', 'D012-2019', 'D012-2019']
        assert datamodule.synthetic

    @pytest.mark.parametrize(('dataset_type', 'count', 'ignored'), [('land_cover', 19, 18), ('crop_type', 23, None)])
    def test_says_what_a_task_asks(self, root: Path, dataset_type: str, count: int, ignored: int | None) -> None:
        datamodule = FLAIRHUBMultimodalDataModule(str(root), dataset_type=dataset_type)
        datamodule.setup('fit')
        assert (datamodule.num_classes, len(datamodule.labels), datamodule.ignore_index) == (count, count, ignored)
        assert (datamodule.patch_size, datamodule.label_gsd) == (10.24, 0.2)
        assert all(modality.pixels(datamodule.patch_size * 5) for modality in datamodule.modalities.values())
        assert list(datamodule.modalities) == list(datamodule.mean) == list(datamodule.std)
        batch = next(iter(datamodule.train_dataloader()))
        check(batch, datamodule.modalities)
        assert batch['label'].shape[1] == len(datamodule.label_names)

    def test_series_are_normalised(self, root: Path) -> None:
        datamodule = FLAIRHUBMultimodalDataModule(str(root), modalities=('aerial', 's2', 's1a'), batch_size=12)
        datamodule.setup('fit')
        assert torch.equal(datamodule.mean['aerial'], AERIAL_RGBI_MEAN)
        train = FLAIRHUBMultimodal(root, modalities=('s2', 's1a'))
        for name in ('s2', 's1a'):
            frames = torch.cat(
                [sample[f'image_{name}'][sample[f'valid_{name}']] for sample in (train[i] for i in range(12))]
            )
            pixels = frames.transpose(0, 1).flatten(1).double()
            assert torch.allclose(datamodule.mean[name].double(), pixels.mean(1), rtol=1e-4)
            assert torch.allclose(datamodule.std[name].double(), pixels.std(1, correction=0), rtol=1e-4)

    @pytest.mark.parametrize('argument', [{'split_column': 'split_0'}, {'dataset_type': 'trees'}])
    def test_invalid_arguments(self, argument: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(argument))):
            FLAIRHUBMultimodalDataModule(**argument)

    def test_command_line_takes_every_argument(self, root: Path) -> None:
        parser = ArgumentParser()
        parser.add_class_arguments(FLAIRHUBMultimodalDataModule, 'data')
        config = parser.parse_args([f'--data.root={root}', '--data.domains=[D004-2021]', '--data.decibels=true'])
        assert list(config.data.domains) == ['D004-2021']

    @pytest.mark.slow
    def test_trains_and_shows(self, root: Path) -> None:
        datamodule = FLAIRHUBMultimodalDataModule(str(root), modalities=('aerial', 's2', 's1d'), batch_size=2)
        task = OmniSatSegmentation(backbone='omnisat_tiny')
        trainer(limit_train_batches=1, limit_val_batches=1).fit(task, datamodule=datamodule)
        sample = {key: value[0] for key, value in next(iter(datamodule.val_dataloader())).items()}
        assert datamodule.plot(sample).axes
