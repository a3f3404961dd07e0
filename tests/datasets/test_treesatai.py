# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import json
import shutil
import warnings
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
import torch
from torch.utils.data import ConcatDataset
from torchgeo.datasets import DatasetNotFoundError, RGBBandsMissingError

from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.datasets import TreeSatAITimeSeries
from torchgeo_omnisat.datasets.treesatai import ARCHIVES, GENERA, LABELS
from torchgeo_omnisat.modality import subsets

from ..treesatai_tree import MODALITIES, NAMES, archive, h5, rewrite, write_treesatai_tree

REAL = Path(__file__).parents[2].parent / 'shared/data/treesatai-ts'


@pytest.fixture(scope='module')
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three plots, to be read alone."""
    return write_treesatai_tree(tmp_path_factory.mktemp('treesatai'))


@pytest.fixture
def own(tree: Path, tmp_path: Path) -> Path:
    """Three plots, to be broken."""
    return Path(shutil.copytree(tree, tmp_path / 'own'))


def load(root: Path, **kwargs: Any) -> TreeSatAITimeSeries:
    return TreeSatAITimeSeries(root, **({'split': None} | kwargs))


class TestSample:
    def test_shapes(self, tree: Path) -> None:
        dataset = load(tree)
        assert len(dataset) == 3
        assert list(dataset.modalities) == list(MODALITIES)
        for sample in (dataset[i] for i in range(3)):
            assert sample['image_aerial'].shape == (4, 300, 300)
            assert sample['label'].shape == (15,)
            for name in ('s2', 's1a', 's1d'):
                dates = sample[f'dates_{name}']
                assert dates.diff().gt(0).all()
                assert sample[f'image_{name}'].shape[0] == len(dates) == len(sample[f'valid_{name}'])
                assert sample[f'image_{name}'].shape[2:] == (6, 6)
        batch = collate([dataset[0], dataset[1]], dataset.modalities)
        assert batch['image_s2'].ndim == 5

    def test_add(self, tree: Path) -> None:
        both = load(tree) + load(tree)
        assert isinstance(both, ConcatDataset)
        assert len(both) == 6

    def test_label_is_more_than_seven_percent(self, tree: Path) -> None:
        label = load(tree)[0]['label']
        assert [genus for genus, there in zip(GENERA, label, strict=True) if there] == ['Betula', 'Picea']

    def test_values_are_those_of_the_file(self, tree: Path) -> None:
        sample = load(tree)[0]
        with h5py.File(h5(tree, 0)) as file:
            stored = {name: file[key][()] for name, key in (('s2', 'sen-2-data'), ('s1d', 'sen-1-des-data'))}
        assert np.array_equal(sample['image_s2'], stored['s2'])
        assert sample['dates_s2'].tolist() == [17899, 17932, 17990, 18109]
        twice, once = stored['s1d'][:2].mean(0), stored['s1d'][2]
        assert np.allclose(sample['image_s1d'], 10 * np.log10([twice, once]), atol=1e-5)
        assert sample['dates_s1d'].tolist() == [17899, 17905]
        assert sample['valid_s2'].all()

    def test_centre_of_the_aerial_image(self, tree: Path) -> None:
        with rasterio.open(tree / f'aerial/{NAMES[0]}.tif') as source:
            whole = source.read()
        sample = load(tree)[0]
        assert torch.equal(sample['image_aerial'], torch.from_numpy(whole[:, 2:-2, 2:-2]).float())
        xmin, xmax, _, ymin, ymax, *_ = sample['bounds'].tolist()
        assert (xmin, xmax) == pytest.approx((500000.4, 500060.4))
        assert (ymin, ymax) == pytest.approx((5799939.6, 5799999.6))
        assert load(tree).crs == rasterio.CRS.from_epsg(25832)

    def test_bands(self, tree: Path) -> None:
        some, every = load(tree, bands={'s2': ('B08', 'B02'), 'aerial': ('R', 'G', 'B')})[0], load(tree)[0]
        assert torch.equal(some['image_s2'], every['image_s2'][:, [6, 0]])
        assert torch.equal(some['image_aerial'], every['image_aerial'][[3, 1, 2]])

    @pytest.mark.parametrize('names', subsets(MODALITIES))
    def test_every_subset(self, tree: Path, names: tuple[str, ...]) -> None:
        sample = load(tree, modalities=names)[0]
        assert {key for key in sample if key.startswith('image')} == {f'image_{name}' for name in names}

    def test_transforms(self, tree: Path) -> None:
        assert load(tree, transforms=lambda sample: {'seen': sample['label']})[0].keys() == {'seen'}


class TestSeries:
    def test_power_is_merged_before_it_becomes_decibel(self, own: Path) -> None:
        power = np.full((3, 2, 6, 6), 0.5, dtype=np.float32)
        power[0], power[1] = 0.1, 0.3
        power[0, 0, 0, 0], power[1, 1, 2, 2] = np.nan, 0
        rewrite(h5(own, 0), 's1d', power, ['20190103', '20190103', '20190109'])
        sample = load(own)[0]
        assert sample['dates_s1d'].tolist() == [17899, 17905]
        image = sample['image_s1d']
        assert image[0, 0, 3, 3].item() == pytest.approx(10 * np.log10(0.2), abs=1e-5)
        assert image[0, 0, 0, 0].item() == pytest.approx(10 * np.log10(0.3), abs=1e-5)
        assert image[0, 1, 2, 2].item() == pytest.approx(10 * np.log10(0.1), abs=1e-5)
        assert sample['valid_s1d'].all()

    @pytest.mark.parametrize(('name', 'nothing'), [('s1a', 0), ('s1a', np.nan), ('s2', 0), ('s2', np.nan)])
    def test_frame_of_nothing_is_not_valid(self, own: Path, name: str, nothing: float) -> None:
        image = np.full((3, len(MODALITIES[name].bands), 6, 6), 0.5, dtype=np.float32)
        image[1] = nothing
        rewrite(h5(own, 0), name, image, ['20190103', '20190105', '20190109'])
        sample = load(own)[0]
        assert sample[f'valid_{name}'].tolist() == [True, False, True]
        assert sample[f'image_{name}'][1].isnan().all()
        assert sample[f'image_{name}'][[0, 2]].isfinite().all()

    def test_dates_out_of_order(self, own: Path) -> None:
        image = np.arange(1, 4, dtype=np.float32).reshape(3, 1, 1, 1).repeat(10, 1).repeat(6, 2).repeat(6, 3)
        rewrite(h5(own, 0), 's2', image, ['20190109', '20190103', '20190105'])
        sample = load(own)[0]
        assert sample['dates_s2'].tolist() == [17899, 17901, 17905]
        assert sample['image_s2'][:, 0, 0, 0].tolist() == [2, 3, 1]

    @pytest.mark.parametrize('channels', [2, 10])
    def test_masks_of_both_shapes(self, own: Path, channels: int) -> None:
        masks = np.zeros((4, channels, 6, 6), dtype=np.float32)
        masks[0, 0, :3] = 60  # snow on half of the pixels
        masks[1, 1, :3] = 59
        masks[2, 0, :2], masks[2, 1, 4:] = 100, 100  # two thirds, together
        image = np.ones((4, 10, 6, 6), dtype=np.float32)
        rewrite(h5(own, 0), 's2', image, ['20190103', '20190105', '20190107', '20190109'], masks)
        assert load(own)[0]['valid_s2'].tolist() == [False, True, False, True]
        assert load(own, cloud_probability=50)[0]['valid_s2'].tolist() == [False, False, False, True]
        assert load(own, cloud_cover=0.6)[0]['valid_s2'].tolist() == [True, True, False, True]
        assert load(own, cloud_cover=1.1)[0]['valid_s2'].all()
        assert load(own, max_dates=2)[0]['dates_s2'].tolist() == [17901, 17905]

    def test_clear_frame_of_a_day_is_taken_alone(self, own: Path) -> None:
        masks = np.zeros((2, 2, 6, 6), dtype=np.float32)
        masks[0, 1] = 100
        image = np.ones((2, 10, 6, 6), dtype=np.float32)
        image[0] = 9000
        rewrite(h5(own, 0), 's2', image, ['20190103', '20190103'], masks)
        sample = load(own)[0]
        assert sample['image_s2'].eq(1).all()
        assert sample['valid_s2'].tolist() == [True]

    def test_date_range(self, tree: Path) -> None:
        every = load(tree)[0]['dates_s2']
        sample = load(tree, date_range=('2019-03-01', '2019-12-31'))[0]
        assert sample['dates_s2'].tolist() == [day for day in every.tolist() if day >= 17956]
        assert 'image_s2' not in load(tree, date_range=('2015-03-01', '2015-12-31'))[0]

    def test_no_date_in_range_and_nothing_else(self, tree: Path) -> None:
        dataset = load(tree, modalities=('s1a', 's2'), date_range=('2015-03-01', '2015-12-31'))
        sample = dataset[0]
        assert {key for key in sample if key.startswith('image')} == {'image_s1a'}
        assert sample['valid_s1a'].tolist() == [False]
        assert sample['image_s1a'].isnan().all()
        assert collate([sample, dataset[1]], dataset.modalities)['image_s1a'].shape == (2, 1, 2, 6, 6)


class TestKnownFile:
    @pytest.mark.parametrize('options', [{'compression': 'gzip'}, {'chunks': (1, 10, 6, 6)}], ids=str)
    def test_chunks_give_the_same(self, tree: Path, own: Path, options: dict[str, Any]) -> None:
        with h5py.File(h5(own, 0), 'r+') as file:
            image = file['sen-2-data'][()]
            del file['sen-2-data']
            file.create_dataset('sen-2-data', data=image, **options)
        dataset, whole = load(own), load(tree)[0]
        for _ in range(2):
            sample = dataset[0]
            assert sample.keys() == whole.keys()
            for key, value in whole.items():
                assert torch.equal(sample[key].nan_to_num(-1), value.nan_to_num(-1))

    def test_a_sample_is_nobody_elses(self, tree: Path) -> None:
        dataset = load(tree)
        first, again = dataset[0], dataset[0]
        for value in first.values():
            value.zero_()
        for key, value in dataset[0].items():
            assert torch.equal(value.nan_to_num(-1), again[key].nan_to_num(-1))

    def test_change_on_disk_is_seen(self, own: Path) -> None:
        dataset = load(own, modalities=('s2',))
        dataset[0], dataset[0]
        image = np.arange(1, 4, dtype=np.float32).reshape(3, 1, 1, 1).repeat(10, 1).repeat(6, 2).repeat(6, 3)
        rewrite(h5(own, 0), 's2', image, ['20190103', '20190105', '20190109'])
        for _ in range(2):
            assert dataset[0]['image_s2'][:, 0, 0, 0].tolist() == [1, 2, 3]
        h5(own, 0).write_bytes(h5(own, 0).read_bytes()[:-2000])
        with pytest.raises(ValueError, match=rf'{h5(own, 0).name}'):
            dataset[0]


class TestSplits:
    def write(self, root: Path, **lists: list[str]) -> None:
        (root / 'split').mkdir()
        for split, names in lists.items():
            (root / f'split/{split}_filenames.lst').write_text('\n'.join(f'{name}.tif' for name in names) + '\n\n')

    def test_published_lists(self, own: Path) -> None:
        self.write(own, train=[NAMES[2]], val=[NAMES[0]], test=[NAMES[1]])
        assert [load(own, split=s).names for s in ('train', 'val', 'test')] == [[NAMES[2]], [NAMES[0]], [NAMES[1]]]

    def test_hold_out(self, own: Path) -> None:
        (own / 'train_filenames.lst').write_text('\n'.join(NAMES))
        train, val = (load(own, split=split).names for split in ('train', 'val'))
        assert len(val) == 1
        assert sorted(train + val) == sorted(NAMES)
        (own / 'train_filenames.lst').write_text('\n'.join(reversed(NAMES)))
        assert load(own, split='val').names == val

    def test_missing_file(self, own: Path) -> None:
        self.write(own, train=NAMES, val=[NAMES[0]])
        h5(own, 1).unlink()
        with pytest.raises(FileNotFoundError, match=rf'sentinel-ts/{NAMES[1]}_<year>\.h5.*2 samples'):
            load(own, split='train')
        dataset = load(own, split='train', missing='allow')
        sample = dataset[dataset.names.index(NAMES[1])]
        assert {key for key in sample if key.startswith('image')} == {'image_aerial'}
        assert torch.equal(sample['bounds'].isfinite(), torch.tensor([True] * 6 + [False] * 2 + [True]))
        (own / f'aerial/{NAMES[2]}.tif').unlink()
        assert dataset.missing == 'allow'
        sample = load(own, split='train', missing='allow')
        assert 'image_aerial' not in sample[sample.names.index(NAMES[2])]

    def test_plot_of_which_nothing_is_there_is_left_out(self, own: Path) -> None:
        self.write(own, train=NAMES, val=[NAMES[0]])
        for path in (h5(own, 1), own / f'aerial/{NAMES[2]}.tif'):
            path.unlink()
        with pytest.warns(UserWarning, match=rf"1.*2 samples.*image.*\['s2'\].*{NAMES[1]!r}"):
            dataset = load(own, split='train', modalities=('s2',), missing='allow')
        assert (dataset.names, dataset.unseen, len(dataset)) == ([NAMES[2]], [NAMES[1]], 1)
        assert load(own, split='train', missing='allow').unseen == []
        with pytest.raises(FileNotFoundError, match=r"image.*\['s2'\].*1 sample,"):
            load(own, split='train', modalities=('s2',), missing='allow', exclude=[NAMES[2]])

    def test_no_list(self, tree: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r'split/test_filenames\.lst.*split=None'):
            load(tree, split='test')

    def test_empty_list(self, own: Path) -> None:
        self.write(own, test=[])
        with pytest.raises(ValueError, match=r"split 'test'"):
            load(own, split='test')


class TestErrors:
    def test_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetNotFoundError, match='directories labels, aerial'):
            load(tmp_path)

    def test_download(self, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for folder in ('labels', 'aerial', 'sentinel-ts'):
            archive(tree, folder, tmp_path)
            path = tmp_path / f'{folder}.zip'
            changed = replace(ARCHIVES[folder], source=path.as_uri(), digest=sha256(path.read_bytes()).hexdigest())
            monkeypatch.setitem(ARCHIVES, folder, changed)
        root = tmp_path / 'new'
        sample = load(root, download=True, checksum=True)[0]
        for key, value in load(tree)[0].items():
            assert torch.equal(sample[key].nan_to_num(-1), value.nan_to_num(-1))

    def test_already_extracted(self, tree: Path) -> None:
        assert len(load(tree, download=True, checksum=True)) == 3

    def test_already_downloaded(self, tree: Path, tmp_path: Path) -> None:
        for folder in ('labels', 'aerial', 'sentinel-ts'):
            archive(tree, folder, tmp_path)
        assert len(load(tmp_path)) == 3
        assert (tmp_path / LABELS).is_file()

    def test_damaged_archive(self, tree: Path, tmp_path: Path) -> None:
        archive(tree, 'labels', tmp_path)
        (tmp_path / 'labels.zip').write_bytes((tmp_path / 'labels.zip').read_bytes()[:60])
        with pytest.raises(RuntimeError, match=r'corrupted.*labels\.zip'):
            load(tmp_path)

    def test_truncated_h5(self, own: Path) -> None:
        path = h5(own, 0)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=rf'{path.name}'):
            load(own)[0]

    def test_truncated_aerial(self, own: Path) -> None:
        path = own / f'aerial/{NAMES[0]}.tif'
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ValueError, match=rf'{path.name}'):
            load(own)[0]

    def test_lacking_dataset(self, own: Path) -> None:
        with h5py.File(h5(own, 0), 'a') as file:
            del file['sen-1-asc-products']
        with pytest.raises(ValueError, match='sen-1-asc-products'):
            load(own)[0]
        assert 'image_s2' in load(own, modalities=('s2',))[0]

    def test_product_without_a_date(self, own: Path) -> None:
        rewrite(h5(own, 0), 's2', np.ones((1, 10, 6, 6), np.float32), ['20191303'])
        with pytest.raises(ValueError, match=r'sen-2-products.*\[20191303\]'):
            load(own)[0]
        with h5py.File(h5(own, 0), 'a') as file:
            file['sen-2-products'][0] = 'S2A'
        with pytest.raises(ValueError, match=r"'S2A'.*date.*field 2"):
            load(own)[0]

    @pytest.mark.parametrize(
        ('shape', 'masks', 'message'),
        [
            ((2, 10, 5, 6), None, r'sen-2-data of .* is float32 \(2, 10, 5, 6\), expected \(2, 10, 6, 6\)'),
            ((3, 10, 6, 6), None, r'sen-2-data of .* expected \(2, 10, 6, 6\)'),
            ((2, 10, 6, 6), (2, 1, 6, 6), r'sen-2-masks of .* has shape \(2, 1, 6, 6\), expected \(2, 2, 6, 6\)'),
        ],
    )
    def test_wrong_shape(self, own: Path, shape: tuple[int, ...], masks: tuple[int, ...] | None, message: str) -> None:
        rewrite(
            h5(own, 0),
            's2',
            np.ones(shape, np.float32),
            ['20190103', '20190105'],
            None if masks is None else np.zeros(masks, np.float32),
        )
        with pytest.raises(ValueError, match=message):
            load(own)[0]

    def test_two_years(self, own: Path) -> None:
        shutil.copy(h5(own, 0), own / f'sentinel-ts/{NAMES[0]}_2020.h5')
        with pytest.raises(ValueError, match=r'file.*plot'):
            load(own)

    def test_labels(self, own: Path) -> None:
        path = own / LABELS
        entries = json.loads(path.read_text())
        path.write_text(json.dumps(entries | {f'{NAMES[0]}.tif': [['Ginkgo', 0.5]]}))
        with pytest.raises(ValueError, match='Ginkgo'):
            load(own)
        del entries[f'{NAMES[0]}.tif']
        path.write_text(json.dumps(entries))
        with pytest.raises(ValueError, match=rf'entry.*{NAMES[0]!r}'):
            load(own)
        path.write_text('[1')
        with pytest.raises(ValueError, match=rf'{path.name}'):
            load(own)

    @pytest.mark.parametrize(
        ('kwargs', 'message'),
        [
            ({'split': 'training'}, "split is 'training'"),
            ({'missing': 'maybe'}, "missing is 'maybe'"),
            ({'max_dates': 0}, 'max_dates is 0'),
            ({'date_range': ('2019-05-01', '2019-04-01')}, 'first day not to come after'),
            ({'date_range': '2019'}, 'date_range is'),
            ({'modalities': ('spot',)}, "modalities names 'spot', which is none of"),
            ({'modalities': 's2'}, "modalities is 's2'"),
            ({'bands': {'spot': ('R',)}}, r"modalities \['spot'\]"),
            ({'bands': {'s2': ('B99',)}}, 'B99'),
        ],
    )
    def test_arguments(self, tree: Path, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load(tree, **kwargs)


class TestPlot:
    def test_titles(self, tree: Path) -> None:
        dataset = load(tree)
        sample = dataset[0] | {'prediction': torch.eye(15)[13]}
        figure = dataset.plot(sample)
        assert figure.get_suptitle() == 'label: Betula, Picea\nprediction: Quercus'
        assert 'aerial: true colour' in {ax.get_title() for ax in figure.axes}
        assert dataset.plot(sample, suptitle='mine').get_suptitle() == 'mine'
        assert dataset.plot(sample, show_titles=False).get_suptitle() == ''

    def test_no_picture(self, tree: Path) -> None:
        dataset = load(tree, modalities=('s2',), bands={'s2': ('B11',)})
        with pytest.raises(RGBBandsMissingError):
            dataset.plot(dataset[0])


@pytest.mark.skipif(not REAL.is_dir(), reason='needs the real plot')
class TestReal:
    def test_against_the_file(self) -> None:
        dataset = load(REAL)
        (sample,) = (dataset[i] for i in range(len(dataset)))
        with h5py.File(next((REAL / 'sentinel-ts').iterdir())) as file:
            s2, s1d = file['sen-2-data'][:], file['sen-1-des-data'][:]
            names = [name.decode() for name in file['sen-1-des-products'][:]]
        days = np.array([f'{name[17:21]}-{name[21:23]}-{name[23:25]}' for name in names], 'datetime64[D]').astype(int)
        assert torch.equal(sample['image_s2'], torch.from_numpy(s2))
        assert sample['dates_s1d'].tolist() == sorted(set(days.tolist()))
        for place, day in enumerate(sample['dates_s1d'].tolist()):
            frames = s1d[days == day].astype(np.float64)
            frames[~(frames > 0)] = np.nan
            with warnings.catch_warnings(action='ignore'):
                expected = 10 * np.log10(np.nanmean(frames, 0))
            np.testing.assert_allclose(sample['image_s1d'][place], expected, rtol=1e-4)
        assert sample['valid_s2'].sum() == 65
        assert [genus for genus, there in zip(GENERA, sample['label'], strict=True) if there] == ['Betula', 'Picea']
