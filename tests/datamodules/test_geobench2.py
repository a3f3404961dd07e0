# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from tests.conftest import SHARED
from tests.tortilla_tree import write_geobench2
from torchgeo_omnisat.datamodules import GeoBench2DataModule
from torchgeo_omnisat.tasks import OmniSatClassification, OmniSatRegression, OmniSatSegmentation

MINI = SHARED / 'biomassters-mini'
TASKS = {'pastis': OmniSatSegmentation, 'treesatai': OmniSatClassification, 'biomassters': OmniSatRegression}


def trainer(folder: Path) -> Trainer:
    return Trainer(
        accelerator='cpu', max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_train_batches=1, default_root_dir=folder,
    )  # fmt: skip


def test_labels_of_each_dataset() -> None:
    pastis, trees, biomass = (GeoBench2DataModule(name=name) for name in ('pastis', 'treesatai', 'biomassters'))
    assert (pastis.num_classes, pastis.ignore_index, pastis.patch_size, pastis.label_gsd) == (20, 19, 40, 10)
    assert len(pastis.label_names) == 18
    assert (trees.label_names[0], len(trees.label_names), trees.patch_size) == ('Abies', 15, 10)
    assert not hasattr(trees, 'label_gsd')
    assert (biomass.continuous, biomass.label_gsd) == (True, 10)
    with pytest.raises(ValueError, match='flair2'):
        GeoBench2DataModule(name='flair2')  # type: ignore[arg-type]


def test_statistics_are_those_of_the_training_split(tmp_path: Path) -> None:
    root = write_geobench2(tmp_path / 'biomassters', 'biomassters')
    data = GeoBench2DataModule(str(root), 'biomassters', modalities=('s2',))
    data.setup('fit')
    dataset = data.make_dataset('train')
    pixels = torch.cat([dataset[index]['image_s2'].movedim(1, 0).flatten(1) for index in range(len(dataset))], 1)
    torch.testing.assert_close(data.mean['s2'].flatten(), pixels.nanmean(1), rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures('validation_figures')
@pytest.mark.slow
@pytest.mark.parametrize('name', TASKS)
def test_trains_and_scores_every_subset(tmp_path: Path, name: str) -> None:
    root = write_geobench2(tmp_path / name, name)
    data = GeoBench2DataModule(str(root), name, batch_size=2)  # type: ignore[arg-type]
    task = TASKS[name]('omnisat_tiny')
    runs = trainer(tmp_path)
    runs.fit(task, data)
    (scores,) = runs.test(task, data, verbose=False)
    subsets = {key.partition('/')[2] for key in scores if '/' in key}
    assert {'+'.join(sorted(data.modalities)), *data.modalities} <= subsets


@pytest.mark.usefixtures('validation_figures')
@pytest.mark.skipif(not MINI.is_dir(), reason='the shared data are not here')
@pytest.mark.slow
def test_published_file_is_scored(tmp_path: Path) -> None:
    (tmp_path / 'biomassters.tortilla').symlink_to(MINI / 'biomassters.tortilla')
    data = GeoBench2DataModule(str(tmp_path), 'biomassters', batch_size=2, max_dates=3)
    task = OmniSatRegression('omnisat_tiny')
    runs = trainer(tmp_path)
    runs.fit(task, data)
    (scores,) = runs.test(task, data, verbose=False)
    assert 0 < scores['test_RMSE'] < 1000
    assert scores['test_R2/s1'] != scores['test_R2/s1+s2']
