# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from torch.utils.data import ConcatDataset
from torchgeo.datasets import DatasetNotFoundError, RGBBandsMissingError

from tests.conftest import SHARED, save
from tests.flair_tree import DATES, aerial, labels, series, write_image, write_products, write_tree
from torchgeo_omnisat.batch import check, collate
from torchgeo_omnisat.datasets import FLAIR
from torchgeo_omnisat.datasets.flair import CLASSES, TEST_DOMAINS, VAL_DOMAINS, split_of
from torchgeo_omnisat.modality import subsets

ZONE = 'D001_2019/Z1_AA'
MINI = SHARED / 'flair-mini'


def day(date: str) -> int:
    return int(np.datetime64(date).astype(int))


@pytest.fixture(scope='module')
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that no test changes."""
    return write_tree(tmp_path_factory.mktemp('flair'))


@pytest.fixture
def own(tree: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(tree, tmp_path / 'own'))


class TestFLAIR:
    def test_sample_keeps_the_contract(self, tree: Path) -> None:
        dataset = FLAIR(tree)
        assert list(dataset.modalities) == ['aerial', 's2']
        assert [dataset.modalities[name].pixels(102.4) for name in dataset.modalities] == [512, 10]
        for sample in (dataset[0], dataset[1]):
            check(sample, dataset.modalities, batched=False)
            assert sample['image_aerial'].shape == (5, 256, 256)
            assert sample['image_s2'].shape == (4, 10, 5, 5)
            assert (sample['dates_s2'].diff() > 0).all()
            assert sample['mask'].dtype == torch.int64
        check(collate([dataset[0], dataset[1]], dataset.modalities), dataset.modalities)

    def test_values_are_those_of_the_files(self, tree: Path) -> None:
        sample = FLAIR(tree)[1]
        with rasterio.open(aerial(tree, '000002')) as file:
            stored = file.read().astype(np.float32)
        assert np.array_equal(sample['image_aerial'][:4], stored[:4])
        assert np.array_equal(sample['image_aerial'][4], stored[4] / np.float32(5))
        assert sample['image_aerial'][4].max() == 51
        assert sample['dates_aerial'].tolist() == [day('2019-08-26')]
        data = np.load(series(tree, ZONE, 'data.npy'))
        order = [1, 2, 3, 0]
        assert np.array_equal(sample['image_s2'], data[order, :, 6:11, 7:12].astype(np.float32))
        assert sample['dates_s2'].tolist() == [
            day('2019-01-15'), day('2019-03-01'), day('2019-04-20'), day('2019-06-01'),
        ]  # fmt: skip
        assert sample['valid_s2'].all()

    @pytest.mark.parametrize(('num_classes', 'ignore_index', 'scored'), [(13, 12, 12), (19, None, 19)])
    def test_classes(self, own: Path, num_classes: int, ignore_index: int | None, scored: int) -> None:
        mask = np.ones((1, 256, 256), np.uint8)
        mask[0, :, 0], mask[0, :, 1], mask[0, :, 2], mask[0, :, 3] = 12, 13, 18, 19
        write_image(labels(own, '000001'), mask)
        dataset = FLAIR(own, num_classes=num_classes)
        sample = dataset[0]
        expected = [11, 12, 12, 12, 0] if num_classes == 13 else [11, 12, 17, 18, 0]
        assert sample['mask'][7, :5].tolist() == expected
        assert dataset.ignore_index == ignore_index
        assert len(sample['label']) == scored
        present = [0, 11] if num_classes == 13 else [0, 11, 12, 17, 18]
        assert sample['label'].nonzero().flatten().tolist() == present
        assert len(dataset.classes) == len(dataset.colors) == num_classes
        assert (dataset.classes[0], dataset.classes[11], dataset.classes[-1]) == ('building', 'plowed land', 'other')

    def test_official_domains(self, tree: Path) -> None:
        assert [FLAIR(tree, split).patches[0].number for split in FLAIR.splits] == ['000001', '000473', '000500']
        assert (len(VAL_DOMAINS), len(TEST_DOMAINS)) == (8, 10)
        assert not set(VAL_DOMAINS) & set(TEST_DOMAINS)
        assert [split_of(d) for d in ('D004_2021', 'D051_2019', 'D015_2020')] == ['val', 'train', 'test']

    def test_domains_of_the_first_release(self, own: Path) -> None:
        assert FLAIR(own, 'train', release=1).ids == FLAIR(own, 'train').ids
        with pytest.raises(DatasetNotFoundError, match='flair_1_labels_test'):
            FLAIR(own, 'test', release=1)
        for content in ('aerial', 'labels'):
            (source,) = (own / f'flair_2_{content}_test').iterdir()
            shutil.copytree(source, own / f'flair_1_{content}_test' / 'D012_2019')
        dataset = FLAIR(own, 'test', release=1)
        assert [name.partition('/')[0] for name in dataset.ids] == ['D012_2019'] * len(dataset)
        assert len(dataset) > 0
        assert list(dataset.modalities) == ['aerial']
        assert dataset[0]['image_aerial'].isfinite().all()
        assert [split_of('D012_2019', release) for release in (1, 2)] == ['test', 'train']
        assert [split_of('D015_2020', release) for release in (1, 2)] == ['train', 'test']
        with pytest.raises(ValueError, match='s2'):
            FLAIR(own, 'test', ('aerial', 's2'), release=1)
        with pytest.raises(ValueError, match='3'):
            FLAIR(own, release=3)

    def test_length_add_and_text(self, tree: Path) -> None:
        dataset = FLAIR(tree)
        assert len(dataset) == 2
        both = dataset + FLAIR(tree, 'val')
        assert isinstance(both, ConcatDataset)
        assert len(both) == 3
        assert 'size: 2' in str(dataset)
        with pytest.raises(IndexError):
            dataset[2]

    def test_pickles_for_workers(self, tree: Path) -> None:
        dataset = FLAIR(tree)
        again = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(again[1]['image_s2'], dataset[1]['image_s2'])

    def test_transforms_come_last(self, tree: Path) -> None:
        assert FLAIR(tree, transforms=lambda sample: {'n': len(sample)})[0]['n'] == 9

    def test_bounds_are_exact_and_in_torchgeo_order(self, tree: Path) -> None:
        sample = FLAIR(tree)[0]
        xmin, xmax, xres, ymin, ymax, yres, tmin, tmax, tres = sample['bounds'].tolist()
        assert (xmin, xres, ymax, yres) == (961436.8, 0.2, 6329262.4, 0.2)
        assert xmax - xmin == pytest.approx(51.2)
        assert ymax - ymin == pytest.approx(51.2)
        assert (tmin, tmax, tres) == (day('2019-01-15') * 86400, (day('2019-08-26') + 1) * 86400, 1)
        assert FLAIR.crs.to_epsg() == 2154

    def test_full_size(self, tmp_path: Path) -> None:
        dataset = FLAIR(write_tree(tmp_path, size=512))
        assert dataset[0]['image_s2'].shape[-2:] == (10, 10)
        stored = np.load(series(tmp_path, 'D004_2021/Z6_NU', 'data.npy'))
        sample = FLAIR(tmp_path, 'val')[0]
        assert np.array_equal(sample['image_s2'][3], stored[0, :, 0:10, 1:11])


class TestModalities:
    @pytest.mark.parametrize('names', subsets(('s2', 'aerial')))
    def test_every_subset(self, tree: Path, names: tuple[str, ...]) -> None:
        dataset = FLAIR(tree, modalities=names)
        assert tuple(dataset.modalities) == names
        everything, sample = FLAIR(tree)[0], dataset[0]
        assert {key for key in sample if key.startswith('image')} == {f'image_{name}' for name in names}
        for key in sample.keys() - {'bounds'}:
            assert torch.equal(sample[key], everything[key])

    def test_bands(self, tree: Path) -> None:
        bands = {'aerial': ('nDSM', 'R'), 's2': ('B08',)}
        some, every = FLAIR(tree, bands=bands)[0], FLAIR(tree)[0]
        assert torch.equal(some['image_aerial'], every['image_aerial'][[4, 0]])
        assert torch.equal(some['image_s2'], every['image_s2'][:, [6]])

    def test_aerial_alone_without_super_areas(self, tmp_path: Path) -> None:
        dataset = FLAIR(write_tree(tmp_path, size=40, s2=False))
        assert list(dataset.modalities) == ['aerial']
        assert dataset[0]['image_aerial'].shape == (5, 40, 40)

    def test_aerial_without_a_date(self, own: Path) -> None:
        (own / 'flair_aerial_metadata.json').unlink()
        sample = FLAIR(own, modalities=('aerial',))[0]
        assert (sample['dates_aerial'].tolist(), sample['valid_aerial'].tolist()) == ([0], [True])
        assert sample['bounds'][6:8].isnan().all()

    def test_metadata_under_another_name_and_of_other_patches(self, own: Path) -> None:
        (own / 'flair_aerial_metadata.json').unlink()
        entries = {'IMG_000001.tif': {'date': '2020-01-02'}, 'IMG_999999': {'date': 'never'}, 'IMG_000002': {}}
        (own / 'flair-2_aerial_metadata.json').write_text(json.dumps(entries))
        dataset = FLAIR(own, modalities=('aerial',))
        assert [dataset[i]['dates_aerial'].item() for i in range(2)] == [day('2020-01-02'), 0]

    def test_missing_images_may_be_allowed(self, own: Path) -> None:
        aerial(own, '000001').unlink()
        with pytest.raises(FileNotFoundError, match=r'IMG_000001\.tif.*1'):
            FLAIR(own)
        dataset = FLAIR(own, missing='allow')
        assert 'image_aerial' not in dataset[0]
        batch = collate([dataset[0], dataset[1]], dataset.modalities)
        assert batch['valid_aerial'].tolist() == [[False], [True]]
        with pytest.warns(UserWarning, match=r"1.*2 samples.*image.*\['aerial'\]"):
            dataset = FLAIR(own, modalities=('aerial',), missing='allow')
        assert ([id[-6:] for id in dataset.ids], [id[-6:] for id in dataset.unseen]) == (['000002'], ['000001'])

    def test_missing_super_area_may_be_allowed(self, own: Path) -> None:
        for path in (labels(own, '000001'), aerial(own, '000001')):
            other = Path(str(path.parent).replace('Z1_AA', 'Z9_AA'))
            other.mkdir(parents=True)
            path.rename(other / path.name)
        with pytest.raises(FileNotFoundError, match=r'Z9_AA/sen/SEN2_'):
            FLAIR(own)
        dataset = FLAIR(own, missing='allow')
        assert ['image_s2' in dataset[i] for i in range(2)] == [True, False]
        with pytest.warns(UserWarning, match=r"1.*2 samples.*image.*\['s2'\]"):
            dataset = FLAIR(own, modalities=('s2',), missing='allow')
        assert (len(dataset), dataset.unseen) == (1, [dataset.ids[0].replace('Z1_AA/IMG_000002', 'Z9_AA/IMG_000001')])
        assert 'image_s2' in dataset[0]


class TestClouds:
    def mask(self, root: Path, value: int, channel: int, share: float, patch: slice = np.s_[6:11]) -> None:
        masks = np.zeros((4, 2, 12, 14), np.uint8)
        part = np.zeros(25, np.uint8)
        part[: round(share * 25)] = value
        masks[2, channel, patch, 7:12] = part.reshape(5, 5)
        save(series(root, ZONE, 'masks.npy'), masks)

    @pytest.mark.parametrize('channel', [0, 1])
    @pytest.mark.parametrize(
        ('value', 'share', 'clear'), [(60, 0.52, False), (59, 1, True), (100, 0.48, True), (100, 1, False)]
    )
    def test_published_rule(self, own: Path, channel: int, value: int, share: float, clear: bool) -> None:
        self.mask(own, value, channel, share)
        dataset = FLAIR(own, modalities=('s2',))
        assert dataset[1]['valid_s2'].tolist() == [True, clear, True, True]
        assert dataset[1]['image_s2'].isfinite().all()

    def test_snow_and_clouds_count_together_and_only_in_the_patch(self, own: Path) -> None:
        masks = np.zeros((4, 2, 12, 14), np.uint8)
        masks[2, 0, 6:8, 7:12] = masks[2, 1, 8, 7:12] = 90
        masks[3, :, :6] = 100
        save(series(own, ZONE, 'masks.npy'), masks)
        assert FLAIR(own, modalities=('s2',))[1]['valid_s2'].tolist() == [True, False, True, True]

    def test_thresholds_are_arguments(self, own: Path) -> None:
        self.mask(own, 40, 1, 0.2)
        valid = FLAIR(own, modalities=('s2',), cloud_probability=40, cloud_cover=0.2)[1]['valid_s2']
        assert valid.tolist() == [True, False, True, True]
        self.mask(own, 100, 1, 1)
        assert FLAIR(own, modalities=('s2',), cloud_cover=1.1)[1]['valid_s2'].all()

    def test_unknown_probabilities_hide_the_ground(self, own: Path) -> None:
        masks = np.zeros((4, 2, 12, 14), np.float32)
        masks[2, 1] = np.nan
        save(series(own, ZONE, 'masks.npy'), masks)
        assert FLAIR(own, modalities=('s2',))[1]['valid_s2'].tolist() == [True, False, True, True]

    def test_dates_to_be_read_are_chosen_among_clear_ones(self, own: Path) -> None:
        self.mask(own, 100, 0, 1)
        sample = FLAIR(own, modalities=('s2',), max_dates=3)[1]
        assert sample['dates_s2'].tolist() == [day('2019-01-15'), day('2019-04-20'), day('2019-06-01')]
        save(series(own, ZONE, 'masks.npy'), np.full((4, 2, 12, 14), 100, np.uint8))
        sample = FLAIR(own, modalities=('s2',), max_dates=3)[1]
        assert sample['valid_s2'].tolist() == [False] * 3

    def test_frames_of_a_day_are_merged_clear_ones_alone(self, own: Path) -> None:
        data = np.ones((4, 10, 12, 14), np.int16) * np.array([100, 200, 400, 800], np.int16)[:, None, None, None]
        save(series(own, ZONE, 'data.npy'), data)
        write_products(series(own, ZONE, 'products.txt'), ('20190601', '20190601', '20190601', '20190115'))
        self.mask(own, 100, 1, 1)
        sample = FLAIR(own, modalities=('s2',))[1]
        assert sample['image_s2'][:, 0, 0, 0].tolist() == [800, 150]
        assert sample['valid_s2'].tolist() == [True, True]


class TestNotMeasured:
    def test_zero_in_all_bands(self, own: Path) -> None:
        data = np.load(series(own, ZONE, 'data.npy'))
        data[1] = 0
        data[2, :, 6, 7] = 0
        data[3, 0, 6, 7] = 0
        save(series(own, ZONE, 'data.npy'), data)
        sample = FLAIR(own, modalities=('s2',))[1]
        assert sample['valid_s2'].tolist() == [False, True, True, True]
        assert sample['image_s2'][1, :, 0, 0].isnan().all()
        assert sample['image_s2'][1].isnan().sum() == 10
        assert sample['image_s2'][2, 0, 0, 0] == 0

    def test_aerial_image_that_its_mask_hides(self, own: Path) -> None:
        with rasterio.open(aerial(own, '000001'), 'r+') as file:
            file.write_mask(np.zeros(file.shape, np.uint8))
        sample = FLAIR(own, modalities=('aerial',))[0]
        assert sample['image_aerial'].isnan().all()
        assert not sample['valid_aerial'].any()

    def test_beyond_the_super_area(self, own: Path) -> None:
        path = own / 'flair-2_centroids_sp_to_patch.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | {'IMG_000001.tif': [0, 12]}))
        image = FLAIR(own, modalities=('s2',))[0]['image_s2'][3]
        data = np.load(series(own, ZONE, 'data.npy'))[0]
        assert np.array_equal(image[:, 2:, :4], data[:, 0:3, 10:14])
        assert image.isfinite().sum() == 10 * 3 * 4

    def test_empty_series_is_absent(self, own: Path) -> None:
        save(series(own, ZONE, 'data.npy'), np.zeros((0, 10, 12, 14), np.int16))
        save(series(own, ZONE, 'masks.npy'), np.zeros((0, 2, 12, 14), np.uint8))
        write_products(series(own, ZONE, 'products.txt'), ())
        assert 'image_s2' not in FLAIR(own)[0]


class TestPlot:
    def test_shows_everything(self, tree: Path, tmp_path: Path) -> None:
        dataset = FLAIR(tree)
        sample = dataset[0]
        sample['prediction'] = sample['mask'].clone()
        figure = dataset.plot(sample, suptitle='Patch')
        titles = {ax.get_title() for ax in figure.axes}
        dates = {f'{d[:4]}-{d[4:6]}-{d[6:]}' for d in DATES}
        assert {'aerial: true colour', 'mask', 'prediction', *dates} <= titles
        assert figure.get_suptitle() == 'Patch'
        figure.savefig(tmp_path / 'figure.png')
        assert not any(ax.get_title() for ax in dataset.plot(sample, show_titles=False).axes)

    @pytest.mark.parametrize(
        ('bands', 'title'),
        [(('NIR', 'R', 'G'), 'colour infrared'), (('nDSM', 'R'), 'R'), (('nDSM',), 'nDSM')],
    )
    def test_other_bands(self, tree: Path, bands: tuple[str, ...], title: str) -> None:
        dataset = FLAIR(tree, modalities=('aerial',), bands={'aerial': bands})
        assert f'aerial: {title}' in {ax.get_title() for ax in dataset.plot(dataset[0]).axes}

    def test_needs_bands_that_make_a_picture(self, tree: Path) -> None:
        dataset = FLAIR(tree, modalities=('s2',), bands={'s2': ('B11', 'B12')})
        with pytest.raises(RGBBandsMissingError):
            dataset.plot(dataset[0])


@pytest.mark.skipif(not MINI.exists(), reason='no real data beside the checkout')
class TestRealData:
    def test_patches(self) -> None:
        dataset = FLAIR(MINI)
        assert list(dataset.modalities) == ['aerial']
        assert [patch.number for patch in dataset.patches] == ['034217', '050549']
        sample = dataset[0]
        check(sample, dataset.modalities, batched=False)
        assert sample['dates_aerial'].tolist() == [day('2019-08-26')]
        assert sample['label'].nonzero().flatten().tolist() == [3, 4, 7]
        assert torch.bincount(sample['mask'].flatten(), minlength=13)[[3, 4, 7]].tolist() == [52912, 208152, 1080]
        assert sample['image_aerial'].amax((1, 2)).tolist() == [225, 231, 225, 137, 51]
        assert sample['bounds'][[0, 1, 3, 4]].tolist() == pytest.approx([831081.6, 831184.0, 6829076.8, 6829179.2])
        assert [patch.number for patch in FLAIR(MINI, 'val').patches] == ['000473']
        dataset.plot(sample)

    def test_metadata_puts_the_centre_where_the_bounds_do(self) -> None:
        known: dict[str, Any] = json.loads((MINI / 'flair_aerial_metadata.json').read_text())
        dataset = FLAIR(MINI, num_classes=len(CLASSES))
        for index, patch in enumerate(dataset.patches):
            xmin, xmax, _, ymin, ymax = dataset[index]['bounds'][:5].tolist()
            entry = known[f'IMG_{patch.number}']
            assert (xmin + xmax) / 2 == pytest.approx(entry['patch_centroid_x'])
            assert (ymin + ymax) / 2 == pytest.approx(entry['patch_centroid_y'])
