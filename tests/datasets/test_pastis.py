# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import json
import pickle
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.lib.format import open_memmap
from torch.utils.data import ConcatDataset
from torchgeo.datasets import RGBBandsMissingError

from tests.conftest import SHARED, SPOT, edit, save, write_pastis, write_spot
from torchgeo_omnisat.batch import check, collate
from torchgeo_omnisat.datasets import PASTISMultimodal
from torchgeo_omnisat.datasets.pastis import FOLDS
from torchgeo_omnisat.modality import subsets


def day(date: str) -> int:
    return int(np.datetime64(date).astype(int))


class TestPASTISMultimodal:
    def test_sample_keeps_the_contract(self, pastis: Path) -> None:
        dataset = PASTISMultimodal(pastis)
        assert list(dataset.modalities) == ['s2', 's1a', 's1d', 'spot']
        assert [m.gsd for m in dataset.modalities.values()] == [10, 10, 10, 1]
        for sample in map(dataset.__getitem__, range(len(dataset))):
            check(sample, dataset.modalities, batched=False)
            assert sample['image_s2'].dtype == sample['label'].dtype == torch.float32
            assert sample['image_spot'].shape == (3, 320, 320)
            assert sample['mask'].shape == (32, 32)
            assert sample['mask'].dtype == torch.int64
            for name in ('s2', 's1a', 's1d'):
                assert sample[f'image_{name}'].shape[-2:] == (32, 32)
                assert (sample[f'dates_{name}'].diff() > 0).all()
                assert sample[f'valid_{name}'].all()
        batch = collate([dataset[0], dataset[1], dataset[2]], dataset.modalities)
        check(batch, dataset.modalities)

    def test_values_are_those_of_the_files(self, pastis: Path) -> None:
        sample = PASTISMultimodal(pastis)[3]
        for name in ('S2', 'S1A', 'S1D'):
            stored = np.load(pastis / f'DATA_{name}/{name}_10003.npy').astype(np.float32)
            assert np.array_equal(sample[f'image_{name.lower()}'], stored)
        with rasterio.open(pastis / SPOT.format(10003)) as file:
            assert np.array_equal(sample['image_spot'], file.read())
        assert sample['dates_spot'].tolist() == [0]
        assert sample['valid_spot'].tolist() == [True]
        target = np.load(pastis / 'ANNOTATIONS/TARGET_10003.npy')[0]
        assert np.array_equal(sample['mask'], target)
        assert sample['label'].tolist() == [float(k in target) for k in range(1, 19)]

    def test_label_knows_neither_background_nor_void(self, one: Path) -> None:
        target = np.zeros((3, 8, 8), np.uint16)
        target[0, :3] = 19
        target[0, 5, 5] = 7
        target[1] = 300
        save(one / 'ANNOTATIONS/TARGET_10000.npy', target)
        assert PASTISMultimodal(one)[0]['label'].nonzero().flatten().tolist() == [6]

    def test_length_add_and_text(self, pastis: Path) -> None:
        dataset = PASTISMultimodal(pastis, folds=(4, 2, 4))
        assert len(dataset) == 4
        assert {patch.fold for patch in dataset.patches} == {2, 4}
        assert isinstance(dataset + dataset, ConcatDataset)
        assert 'size: 4' in str(dataset)
        with pytest.raises(IndexError):
            dataset[4]

    def test_pickles_for_workers(self, pastis: Path) -> None:
        dataset = PASTISMultimodal(pastis, folds=(1,))
        again = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(again[1]['image_s1d'], dataset[1]['image_s1d'])

    def test_transforms_come_last(self, pastis: Path) -> None:
        dataset = PASTISMultimodal(pastis, transforms=lambda sample: {'mask': sample['mask'] + 1, 'n': len(sample)})
        assert dataset[0]['n'] == 15

    @pytest.mark.parametrize('directory', ['.', 'PASTIS-R', 'PASTIS-HD'])
    def test_root_or_its_directory(self, one: Path, tmp_path: Path, directory: str) -> None:
        root = tmp_path / 'root'
        shutil.copytree(one, root / directory)
        assert PASTISMultimodal(root).path == root / directory

    def test_bounds_are_exact_and_in_torchgeo_order(self, pastis: Path) -> None:
        dataset = PASTISMultimodal(pastis)
        sample = dataset[0]
        xmin, xmax, xres, ymin, ymax, yres, tmin, tmax, tres = sample['bounds'].tolist()
        assert sample['bounds'].dtype == torch.float64
        assert (xmin, xmax, xres) == (20399900.0, 20401270.0, 10.0)
        assert (ymin, ymax, yres) == (6798630.0, 6800000.0, 10.0)
        days = torch.cat([sample[f'dates_{name}'] for name in ('s2', 's1a', 's1d')])
        assert (tmin, tmax, tres) == (days.min() * 86400, (days.max() + 1) * 86400, 1)
        assert dataset.crs.to_epsg() == 2154
        assert PASTISMultimodal(pastis, modalities=('spot',))[0]['bounds'][6:8].isnan().all()

    def test_official_folds_share_nothing(self) -> None:
        assert FOLDS[1] == ((1, 2, 3), (4,), (5,))
        assert FOLDS[4] == ((4, 5, 1), (2,), (3,))
        assert all(sorted(train + val + test) == [1, 2, 3, 4, 5] for train, val, test in FOLDS.values())
        assert sorted(test for _, _, (test,) in FOLDS.values()) == [1, 2, 3, 4, 5]


class TestDates:
    def test_every_form_reads_alike(self, one: Path) -> None:
        count = len(np.load(one / 'DATA_S2/S2_10000.npy'))
        stamps = [20180924, 20181231, 20190101, 20190228, 20191030][:count]
        dates = {str(i): stamp for i, stamp in enumerate(stamps)}
        expected = [day(f'{s // 10000}-{s // 100 % 100:02}-{s % 100:02}') for s in stamps]
        for form in (dates, json.dumps(dates), str(dates), json.dumps(stamps)):
            edit(one, 10000, dates_S2=form)
            assert PASTISMultimodal(one)[0]['dates_s2'].tolist() == expected

    def test_images_follow_their_dates_into_the_order_of_time(self, one: Path) -> None:
        image = np.arange(3, dtype=np.int16)[:, None, None, None] * np.ones((3, 10, 8, 8), np.int16)
        save(one / 'DATA_S2/S2_10000.npy', image)
        edit(one, 10000, dates_S2={'0': 20190301, '1': 20180901, '2': 20190215})
        sample = PASTISMultimodal(one)[0]
        assert sample['dates_s2'].tolist() == [day('2018-09-01'), day('2019-02-15'), day('2019-03-01')]
        assert sample['image_s2'][:, 0, 0, 0].tolist() == [1, 2, 0]

    def test_frames_of_one_day_become_one(self, one: Path) -> None:
        s2 = np.full((3, 10, 8, 8), 100, np.int16)
        s2[2] = 300
        s2[2, :, 0, 0] = -10000
        s2[:, :, 7, 7] = -10000
        save(one / 'DATA_S2/S2_10000.npy', s2)
        s1 = np.zeros((3, 3, 8, 8), np.float16)
        s1[0, 0], s1[0, 1] = -10, -20
        s1[2, :2] = -20
        s1[:, 2] = s1[:, 0] - s1[:, 1]
        save(one / 'DATA_S1A/S1A_10000.npy', s1)
        for name in ('S2', 'S1A'):
            edit(one, 10000, **{f'dates_{name}': {'0': 20190301, '1': 20190201, '2': 20190301}})
        sample = PASTISMultimodal(one)[0]
        assert sample['dates_s2'].tolist() == sample['dates_s1a'].tolist() == [day('2019-02-01'), day('2019-03-01')]
        merged = sample['image_s2'][1, 4]
        assert (merged[1, 1], merged[0, 0]) == (200, 100)
        assert merged[7, 7].isnan()
        vv = 10 * np.log10((0.1 + 0.01) / 2)
        assert sample['image_s1a'][1, :, 3, 3].tolist() == pytest.approx([vv, -20, vv + 20], abs=1e-4)

    def test_dates_are_chosen_before_they_are_read(self, one: Path) -> None:
        count = 5000
        days = (np.datetime64('2000-01-01') + np.arange(count)).astype(str)
        edit(one, 10000, dates_S2={str(i): int(d.replace('-', '')) for i, d in enumerate(days)})
        open_memmap(one / 'DATA_S2/S2_10000.npy', 'w+', np.int16, (count, 10, 8, 8))[2500] = 7
        dataset = PASTISMultimodal(one, modalities=('s2',), date_range=(days[2500], days[2501]))
        dataset[0]
        tracemalloc.start()
        sample = dataset[0]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert sample['image_s2'][:, 0, 0, 0].tolist() == [7, 0]
        assert peak < 2**20  # all 5000 dates are 6 MB as they are stored

    def test_max_dates_spread_and_keep_all_frames_of_a_day(self, one: Path) -> None:
        save(
            one / 'DATA_S2/S2_10000.npy',
            np.arange(7, dtype=np.int16)[:, None, None, None] + np.zeros((7, 10, 8, 8), np.int16),
        )
        stamps = [20190101, 20190102, 20190103, 20190104, 20190104, 20190105, 20190106]
        edit(one, 10000, dates_S2=json.dumps(stamps))
        sample = PASTISMultimodal(one, max_dates=3)[0]
        assert sample['image_s2'][:, 0, 0, 0].tolist() == [1, 3.5, 6]
        assert len(PASTISMultimodal(one, max_dates=1)[0]['dates_s1a']) == 1
        assert len(PASTISMultimodal(one, max_dates=99)[0]['dates_s2']) == 6

    def test_series_without_a_date_in_range_is_absent(self, one: Path) -> None:
        count = len(np.load(one / 'DATA_S2/S2_10000.npy'))
        edit(one, 10000, dates_S2=str([20170101 + i for i in range(count)]))
        sample = PASTISMultimodal(one, date_range=('2017-01-02', '2017-01-02'))[0]
        assert len(sample['dates_s2']) == 1
        assert 'image_s1a' not in sample
        assert 'image_spot' in sample
        with pytest.raises(ValueError, match=r'date_range.*2016.*date'):
            PASTISMultimodal(one, date_range=('2016-01-01', '2016-12-31'))


class TestNotMeasured:
    def test_nodata_becomes_nan_and_an_empty_date_stays(self, one: Path) -> None:
        s2 = np.load(one / 'DATA_S2/S2_10000.npy')
        s2[0, 3, 2, 2] = -10000
        s2[1] = -10000
        s2[2, 0, 0, 0] = -1831
        save(one / 'DATA_S2/S2_10000.npy', s2)
        s1 = np.load(one / 'DATA_S1D/S1D_10000.npy')
        s1[0, :, 4, 4] = -np.inf
        s1[2] = np.nan
        save(one / 'DATA_S1D/S1D_10000.npy', s1)
        sample = PASTISMultimodal(one)[0]
        assert len(sample['dates_s2']) == len(s2)
        assert sample['valid_s2'].tolist()[:3] == [True, False, True]
        assert sample['valid_s1d'].tolist()[:3] == [True, True, False]
        assert sample['image_s2'][0].isnan().sum() == 1
        assert sample['image_s2'][2, 0, 0, 0] == -1831
        assert sample['image_s1d'][0].isnan().sum() == 3
        assert not sample['image_s1d'].isinf().any()

    def test_declared_nodata_of_spot(self, one: Path) -> None:
        image = np.full((3, 80, 80), 9, np.uint8)
        image[:, :4] = 0
        write_spot(one / SPOT.format(10000), image, nodata=0)
        sample = PASTISMultimodal(one)[0]
        assert sample['image_spot'][:, :4].isnan().all()
        assert (sample['image_spot'][:, 4:] == 9).all()

    def test_valid_looks_at_the_chosen_bands(self, one: Path) -> None:
        s1 = np.load(one / 'DATA_S1A/S1A_10000.npy')
        s1[0, 1] = np.nan
        save(one / 'DATA_S1A/S1A_10000.npy', s1)
        assert PASTISMultimodal(one)[0]['valid_s1a'].all()
        assert not PASTISMultimodal(one, bands={'s1a': ('VH',)})[0]['valid_s1a'][0]


class TestModalities:
    def test_names_choose_and_order(self, pastis: Path) -> None:
        dataset = PASTISMultimodal(pastis, modalities=('spot', 's2'))
        assert list(dataset.modalities) == ['spot', 's2']
        assert not any(key.endswith(('s1a', 's1d')) for key in dataset[0])

    @pytest.mark.parametrize('names', subsets(('s2', 's1a', 's1d', 'spot')))
    def test_every_subset(self, pastis: Path, names: tuple[str, ...]) -> None:
        some, every = PASTISMultimodal(pastis, modalities=names)[0], PASTISMultimodal(pastis)[0]
        assert {key for key in some if key.startswith('image')} == {f'image_{name}' for name in names}
        assert all(torch.equal(some[key], every[key]) for key in some if key != 'bounds')

    def test_bands_choose_and_order(self, pastis: Path) -> None:
        bands = {'s2': ('B08', 'B04'), 'spot': ('B',)}
        dataset = PASTISMultimodal(pastis, bands=bands)
        assert dataset.modalities['s2'].bands == ('B08', 'B04')
        every, some = PASTISMultimodal(pastis)[0], dataset[0]
        assert torch.equal(some['image_s2'], every['image_s2'][:, [6, 2]])
        assert torch.equal(some['image_spot'], every['image_spot'][2:])
        assert torch.equal(some['image_s1a'], every['image_s1a'])

    def test_what_no_patch_has_is_not_held(self, one: Path) -> None:
        shutil.rmtree(one / 'DATA_SPOT')
        edit(one, 10000, dates_S1D=None)
        (one / 'DATA_S1D/S1D_10000.npy').unlink()
        assert list(PASTISMultimodal(one).modalities) == ['s2', 's1a']

    def test_missing_files_may_be_allowed(self, tmp_path: Path) -> None:
        root = write_pastis(tmp_path, folds=(1, 1), size=8)
        (root / SPOT.format(10001)).unlink()
        (root / 'DATA_S2/S2_10000.npy').unlink()
        with pytest.raises(FileNotFoundError, match=r'S2_10000\.npy'):
            PASTISMultimodal(root)
        dataset = PASTISMultimodal(root, missing='allow')
        assert list(dataset.modalities) == ['s2', 's1a', 's1d', 'spot']
        assert 'image_s2' not in dataset[0]
        assert 'valid_spot' not in dataset[1]
        batch = collate([dataset[0], dataset[1]], dataset.modalities)
        assert batch['valid_spot'].tolist() == [[True], [False]]

    def test_patch_of_which_nothing_is_there_is_left_out(self, tmp_path: Path) -> None:
        root = write_pastis(tmp_path, folds=(1, 1, 1, 2), size=8)
        for patch in (10001, 10003):
            (root / SPOT.format(patch)).unlink()
        with pytest.warns(UserWarning, match=r"1.*3 samples.*\['spot'\].*'10001'") as said:
            dataset = PASTISMultimodal(root, folds=(1,), modalities=('spot',), missing='allow')
        assert len(said) == 1
        assert (dataset.ids, dataset.unseen) == (['10000', '10002'], ['10001'])
        for sample in (dataset[i] for i in range(len(dataset))):
            assert collate([sample], dataset.modalities)['valid_spot'].all()
        with pytest.raises(FileNotFoundError, match=r"image.*\['spot'\].*1 sample,.*'10003'"):
            PASTISMultimodal(root, folds=(2,), modalities=('spot',), missing='allow')
        assert PASTISMultimodal(root, modalities=('spot', 's2'), missing='allow').unseen == []

    @pytest.mark.parametrize('missing', ['error', 'allow'])
    def test_patch_without_a_date_that_is_asked_for_is_left_out(self, tmp_path: Path, missing: Any) -> None:
        root = write_pastis(tmp_path, folds=(1, 1), size=8)
        count = len(np.load(root / 'DATA_S2/S2_10001.npy'))
        edit(root, 10001, dates_S2={str(i): 20150101 + i for i in range(count)})
        with pytest.warns(UserWarning, match=r"1.*2 samples.*\['s2'\]"):
            dataset = PASTISMultimodal(
                root, modalities=('s2',), date_range=('2018-01-01', '2020-12-31'), missing=missing
            )
        assert (dataset.ids, dataset.unseen) == (['10000'], ['10001'])
        every = PASTISMultimodal(root, date_range=('2018-01-01', '2020-12-31'), missing=missing)
        assert (every.unseen, 'image_s2' in every[1]) == ([], False)

    def test_a_file_may_vanish(self, one: Path) -> None:
        strict, lax = PASTISMultimodal(one), PASTISMultimodal(one, missing='allow')
        (one / 'DATA_S1A/S1A_10000.npy').unlink()
        with pytest.raises(FileNotFoundError, match=r'S1A_10000\.npy.*float16'):
            strict[0]
        assert 'image_s1a' not in lax[0]


class TestPlot:
    def test_shows_everything(self, pastis: Path, tmp_path: Path) -> None:
        dataset = PASTISMultimodal(pastis)
        sample = dataset[0]
        sample['prediction'] = sample['mask'].clone()
        figure = dataset.plot(sample, suptitle='Patch')
        titles = [ax.get_title() for ax in figure.axes]
        dates = sample['dates_s1d'].numpy().astype('datetime64[D]').astype(str)
        assert {'mask', 'prediction', 'spot: true colour', *dates} <= set(titles)
        assert figure.get_suptitle() == 'Patch'
        figure.savefig(tmp_path / 'figure.png')
        assert not any(ax.get_title() for ax in dataset.plot(sample, show_titles=False).axes)

    def test_says_what_is_absent_and_leaves_out_padding(self, pastis: Path) -> None:
        dataset = PASTISMultimodal(pastis)
        sample = dataset[0]
        sample['valid_spot'] = torch.tensor([False])
        sample['valid_s2'][1:] = False
        del sample['image_s1a'], sample['dates_s1a'], sample['valid_s1a']
        figure = dataset.plot(sample)
        assert sum(text.get_text() == 'absent' for ax in figure.axes for text in ax.texts) == 2
        s2 = [ax for ax in figure.axes[: len(sample['dates_s1d'])] if ax.images]
        assert len(s2) == 1

    def test_needs_bands_that_make_a_picture(self, pastis: Path) -> None:
        dataset = PASTISMultimodal(pastis, modalities=('s2',), bands={'s2': ('B11', 'B12')})
        with pytest.raises(RGBBandsMissingError):
            dataset.plot(dataset[0])
        for bands in ({'s2': ('B04', 'B08', 'B03')}, {'s1a': ('VH',)}):
            dataset = PASTISMultimodal(pastis, modalities=tuple(bands), bands=bands)
            dataset.plot(dataset[0])

    def test_survives_a_picture_without_a_pixel(self, pastis: Path) -> None:
        dataset = PASTISMultimodal(pastis, modalities=('s2',))
        sample = dataset[0]
        sample['image_s2'][0, 1] = float('nan')
        dataset.plot(sample)


class TestInstances:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        write_pastis(tmp_path, folds=(1,), size=8)
        save(tmp_path / 'INSTANCE_ANNOTATIONS/INSTANCES_10000.npy', np.arange(64).reshape(8, 8) // 5)
        return tmp_path

    def test_parcels(self, root: Path) -> None:
        dataset = PASTISMultimodal(root, modalities=('s2',), instances=True)
        assert dataset[0]['instances'].dtype == torch.int64
        assert np.array_equal(dataset[0]['instances'], np.arange(64).reshape(8, 8) // 5)
        assert collate([dataset[0], dataset[0]], dataset.modalities)['instances'].shape == (2, 8, 8)
        assert 'instances' in [part.name for part in dataset.parts(0)]
        assert 'instances' not in PASTISMultimodal(root)[0]

    @pytest.mark.parametrize(
        ('array', 'value'),
        [(np.zeros((8, 7), int), r'\(8, 7\)'), (np.zeros((8, 8)), 'float64'), (-np.eye(8, dtype=int), '-1')],
    )
    def test_damaged(self, root: Path, array: Any, value: str) -> None:
        save(root / 'INSTANCE_ANNOTATIONS/INSTANCES_10000.npy', array)
        with pytest.raises(ValueError, match=rf'INSTANCES_10000.npy.*{value}.*integers \(8, 8\)'):
            PASTISMultimodal(root, instances=True)[0]

    def test_missing(self, root: Path) -> None:
        (root / 'INSTANCE_ANNOTATIONS/INSTANCES_10000.npy').unlink()
        with pytest.raises(FileNotFoundError, match=r'INSTANCES_10000.npy.*INSTANCE_ANNOTATIONS'):
            PASTISMultimodal(root, instances=True)


@pytest.mark.skipif(not SHARED.exists(), reason='no real data beside the checkout')
class TestRealData:
    def test_patches(self) -> None:
        dataset = PASTISMultimodal(SHARED / 'pastis-r-mini')
        assert list(dataset.modalities) == ['s2', 's1a', 's1d']
        assert len(dataset) == 5
        for sample in map(dataset.__getitem__, range(5)):
            check(sample, dataset.modalities, batched=False)
            assert sample['image_s2'].shape == (3, 10, 32, 32)
            ratio = sample['image_s1a'][:, 0] - sample['image_s1a'][:, 1]
            assert torch.allclose(ratio, sample['image_s1a'][:, 2], atol=0.02)
        assert dataset[0]['dates_s2'].tolist() == [day('2018-09-17'), day('2018-09-22'), day('2018-09-27')]
        dataset.plot(dataset[0])

    def test_published_index_with_all_its_dates(self, tmp_path: Path) -> None:
        index = SHARED / 'pastis-metadata/metadata.geojson'
        shutil.copy(index, tmp_path)
        for feature in json.loads(index.read_text())['features']:
            properties = feature['properties']
            count, number = len(properties['dates-S2']), properties['ID_PATCH']
            save(tmp_path / f'DATA_S2/S2_{number}.npy', np.zeros((count, 10, 4, 4), np.int16))
            save(tmp_path / f'ANNOTATIONS/TARGET_{number}.npy', np.zeros((3, 4, 4), np.uint8))
        dataset = PASTISMultimodal(tmp_path)
        assert len(dataset) == 9
        for sample, patch in zip(map(dataset.__getitem__, range(9)), dataset.patches, strict=True):
            assert len(sample['dates_s2']) == len(patch.properties['dates-S2']) > 37
            assert sample['dates_s2'][-1] - day('2018-09-01') > 365
            xmin, xmax, _, ymin, ymax = sample['bounds'][:5].tolist()
            assert 1280 < xmax - xmin < 1900
            assert 1280 < ymax - ymin < 1900
        sides = np.diff(dataset.corners[:, [1, 0, 2]], axis=1)  # squares of 1280 m that lie askew
        assert np.allclose(np.linalg.norm(sides, axis=-1), 1280, atol=2)
        assert 40 < np.abs(sides[:, 1, 0]).min() < 200
