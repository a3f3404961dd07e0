# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.landscapes.treesatai import TreeSatAIRecipe, write_treesatai
from torchgeo_omnisat.datamodules import FLAIRDataModule, PASTISMultimodalDataModule, TreeSatAITimeSeriesDataModule
from torchgeo_omnisat.datasets import TreeSatAITimeSeries
from torchgeo_omnisat.datasets.treesatai import GENERA


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five made-up plots, of which three train."""
    root = tmp_path_factory.mktemp('treesatai') / 'synthetic'
    write_treesatai(root, TreeSatAIRecipe(num_tiles=5, dates=5))
    return root


class TestDataModule:
    def test_what_a_task_asks_for(self, root: Path) -> None:
        datamodule = TreeSatAITimeSeriesDataModule(str(root), batch_size=2)
        datamodule.setup('fit')
        assert (datamodule.num_classes, datamodule.patch_size, datamodule.ignore_index) == (15, 10.0, None)
        assert datamodule.label_names == datamodule.labels == list(GENERA)
        assert not hasattr(datamodule, 'label_gsd')
        assert list(datamodule.modalities) == ['s2', 's1a', 's1d', 'aerial']
        assert [len(datamodule.make_dataset(split)) for split in ('train', 'val', 'test')] == [3, 1, 1]
        assert datamodule.synthetic

    def test_statistics_are_those_of_valid_training_pixels(self, root: Path) -> None:
        datamodule = TreeSatAITimeSeriesDataModule(str(root), bands={'s2': ('B08',)}, max_dates=1)
        datamodule.setup('test')
        train = TreeSatAITimeSeries(root, split='train')
        pixels = torch.cat([s['image_s2'][s['valid_s2']][:, 6].flatten() for s in (train[i] for i in range(3))])
        torch.testing.assert_close(datamodule.mean['s2'], pixels.mean()[None])
        torch.testing.assert_close(datamodule.std['s2'], pixels.std(correction=0)[None])
        kept = json.loads((root / 'STATISTICS.json').read_text())
        assert {len(kept[name]['train']['mean']) for name in ('s1a', 's1d')} == {2}

    def test_batches_are_normalised(self, root: Path) -> None:
        datamodule = TreeSatAITimeSeriesDataModule(str(root), batch_size=3)
        datamodule.setup('fit')
        batch = datamodule.aug(next(iter(datamodule.train_dataloader())))
        assert batch['label'].shape == (3, 15)
        for name, modality in datamodule.modalities.items():
            image = batch[modality.image_key]
            values = image[batch[modality.valid_key]] if modality.temporal else image
            assert values[values.isfinite()].mean().abs() < 0.05, name
            assert not values.isinf().any()

    def test_plot_shows_raw_units(self, root: Path) -> None:
        datamodule = TreeSatAITimeSeriesDataModule(str(root), batch_size=1)
        datamodule.setup('fit')
        batch = datamodule.aug(next(iter(datamodule.val_dataloader())))
        figure = datamodule.plot({key: value[0] for key, value in batch.items()}, suptitle='a plot')
        assert figure.get_suptitle() == 'a plot'

    def test_nothing_to_measure(self, root: Path, tmp_path: Path) -> None:
        own = Path(shutil.copytree(root, tmp_path / 'own'))
        (own / 'STATISTICS.json').unlink(missing_ok=True)
        datamodule = TreeSatAITimeSeriesDataModule(str(own), modalities=('s2',), cloud_probability=0)
        with pytest.raises(ValueError, match=r"'s2'.*\b3 "):
            datamodule.setup('fit')


def test_label_names_of_the_others() -> None:
    pastis, flair = PASTISMultimodalDataModule(), FLAIRDataModule()
    assert pastis.label_names == pastis.labels[1:19]
    assert flair.label_names == flair.labels[:12]


class TestWriter:
    def test_seed_determines_every_plot(self, root: Path, tmp_path: Path) -> None:
        write_treesatai(tmp_path / 'more', TreeSatAIRecipe(num_tiles=6, dates=5))
        some, more = (TreeSatAITimeSeries(path, split=None) for path in (root, tmp_path / 'more'))
        assert set(some.names) < set(more.names)
        for index, name in enumerate(some.names):
            a, b = some[index], more[more.names.index(name)]
            assert a.keys() == b.keys()
            for key in a:
                torch.testing.assert_close(a[key], b[key], rtol=0, atol=0, equal_nan=True)

    def test_root_of_other_plots(self, root: Path) -> None:
        write_treesatai(root, TreeSatAIRecipe(num_tiles=5, dates=5))
        with pytest.raises(ValueError, match=r'seed=0.*expected seed=1'):
            write_treesatai(root, TreeSatAIRecipe(num_tiles=5, dates=5, seed=1))

    def test_it_has_the_faults_of_the_real_ones(self, root: Path) -> None:
        dataset = TreeSatAITimeSeries(root, split=None)
        samples = [dataset[index] for index in range(len(dataset))]
        assert all(len(sample['dates_s1d']) == 4 for sample in samples)
        assert any(sample['image_s1d'].isnan().any() for sample in samples)
        assert any(not sample['valid_s2'].all() for sample in samples)

    @pytest.mark.parametrize('wrong', [{'num_tiles': 4}, {'seed': -1}, {'dates': 1}, {'dates': 51}])
    def test_arguments(self, wrong: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=f'{next(iter(wrong))} must be at '):
            TreeSatAIRecipe(**wrong)
