# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import fiona
import numpy as np
import pytest
import rasterio
import torch
from torch.utils.data import ConcatDataset
from torchgeo.datasets import FLAIRHUB, DatasetNotFoundError, RGBBandsMissingError

from tests.landscapes.flairhub import FLAIRHUBRecipe, write_flairhub, write_table
from torchgeo_omnisat.batch import check, collate
from torchgeo_omnisat.datasets import FLAIRHUBMultimodal
from torchgeo_omnisat.datasets.flairhub import CLOUDS, MODALITIES, PRODUCTS, table_of
from torchgeo_omnisat.modality import subsets

PATCH = 'D005-2018_AA-S1-0_0-1'
NAMES = list(MODALITIES)


@pytest.fixture(scope='module')
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve patches of training, four of validation, four of test, to be read alone."""
    root = tmp_path_factory.mktemp('hub') / 'root'
    write_flairhub(root, FLAIRHUBRecipe(areas=5, dates=6))
    return root


@pytest.fixture
def own(tree: Path, tmp_path: Path) -> Path:
    """A copy to be broken, of one domain of training."""
    held = shutil.ignore_patterns('D004*', 'D006*', 'D008*', 'D012*')
    return Path(shutil.copytree(tree, tmp_path / 'own', ignore=held))


def file(root: Path, product: str, patch: str = PATCH) -> Path:
    """A file of a patch."""
    domain, area, place = patch.split('_')
    domain = f'{domain[:-4]}195X' if product == 'AERIAL-RLT_PAN' else domain
    return root / f'{domain}_{product}' / area / f'{domain}_{product}_{area}_{place}.tif'


def stored(path: Path) -> np.ndarray[Any, Any]:
    with rasterio.open(path) as source:
        return np.asarray(source.read())


def store(path: Path, image: np.ndarray[Any, Any], **profile: Any) -> None:
    """Put an image in the place of another."""
    with rasterio.open(path) as source:
        kept = {**source.profile, 'count': len(image), 'height': image.shape[1], 'width': image.shape[2]}
    with rasterio.open(path, 'w', **{**kept, 'dtype': image.dtype, **profile}) as target:
        target.write(image)


def place_of(dataset: FLAIRHUBMultimodal, patch: str = PATCH) -> int:
    return dataset.ids.index(patch)


def read(root: Path, name: str, **kwargs: Any) -> dict[str, torch.Tensor]:
    """The sample of the patch that tests break, with one modality."""
    dataset = FLAIRHUBMultimodal(root, modalities=(name,), **kwargs)
    return dataset[place_of(dataset)]


def table(path: Path) -> list[dict[str, Any]]:
    with fiona.open(path) as rows:
        return [dict(row.properties) for row in rows]


class TestSample:
    def test_keeps_the_contract(self, tree: Path) -> None:
        dataset = FLAIRHUBMultimodal(tree)
        assert (len(dataset), list(dataset.modalities)) == (12, NAMES)
        assert isinstance(dataset, FLAIRHUB)
        assert dataset.ids == sorted(dataset.ids)
        sizes = {name: dataset.modalities[name].pixels(102.4) for name in NAMES}
        assert sizes == {'aerial': 512, 'spot': 64, 'dem': 512, 'aerial_rlt': 256, 's2': 10, 's1a': 10, 's1d': 10}
        samples = [dataset[0], dataset[5]]
        for sample in samples:
            check(sample, dataset.modalities, batched=False)
            assert all((sample[m.dates_key].diff() > 0).all() for m in dataset.modalities.values())
        batch = collate(samples, dataset.modalities)
        check(batch, dataset.modalities)
        # Series of one patch differ in length, so do those of one modality once clouds are merged away.
        assert [batch[f'dates_{name}'].shape[1] for name in ('s2', 's1a', 's1d')] == [6, 5, 4]

    def test_values_are_those_of_the_files(self, tree: Path) -> None:
        dataset = FLAIRHUBMultimodal(tree, cloud_cover=2)
        sample = dataset[place_of(dataset)]
        for name in ('aerial', 'spot', 'dem', 'aerial_rlt'):
            image = stored(file(tree, PRODUCTS[name].name)).astype(np.float32)
            assert np.array_equal(sample[f'image_{name}'], image)
        optical = stored(file(tree, 'SENTINEL2_TS')).astype(np.float32).reshape(6, 10, 5, 5)
        assert np.array_equal(sample['image_s2'], optical)
        power = stored(file(tree, 'SENTINEL1-ASC_TS')).reshape(5, 2, 5, 5)
        assert np.allclose(sample['image_s1a'], 10 * np.log10(power))
        mask = stored(file(tree, 'AERIAL_LABEL-COSIA'))[0]
        assert np.array_equal(sample['mask'], mask)
        assert sample['label'].nonzero().flatten().tolist() == sorted(set(mask.flatten().tolist()) - {18})
        (row,) = (r for r in table(table_of(tree, 'SENTINEL2')) if r['patch_id'].startswith('D005-2018_AA-S1-0'))
        stamps = list(json.loads(row['acquisition_dates']).values())
        days = [str(np.datetime64(int(day), 'D')).replace('-', '') for day in sample['dates_s2']]
        assert days == stamps
        assert sample['dates_aerial'].tolist() == [int(np.datetime64('2018-07-14').astype(int))]
        assert (
            sample['dates_spot'].tolist() == sample['dates_dem'].tolist() == sample['dates_aerial_rlt'].tolist() == [0]
        )
        with rasterio.open(file(tree, 'AERIAL_LABEL-COSIA')) as source:
            west, south, east, north = source.bounds
            assert source.crs == dataset.crs
        assert sample['bounds'][[0, 1, 3, 4]].tolist() == [west, east, south, north]
        first, last = (np.datetime64(f'{d[:4]}-{d[4:6]}-{d[6:]}').astype(int) for d in (stamps[0], stamps[-1]))
        assert sample['bounds'][6] <= first * 86400
        assert sample['bounds'][7] >= (last + 1) * 86400

    def test_torchgeo_reads_the_same(self, tree: Path) -> None:
        dataset = FLAIRHUBMultimodal(tree, cloud_cover=2, modalities=('aerial', 's2'))
        loaded = FLAIRHUB.__getitem__(dataset, 3)
        sample = dataset[3]
        assert torch.equal(sample['image_aerial'], loaded['image_aerial_rgbi'])
        assert torch.equal(sample['image_s2'], loaded['image_sentinel2'])

    @pytest.mark.parametrize('names', subsets(('aerial', 'dem', 's2', 's1d')), ids='+'.join)
    def test_every_subset(self, tree: Path, names: tuple[str, ...]) -> None:
        dataset = FLAIRHUBMultimodal(tree, modalities=names, max_dates=2)
        sample = dataset[0]
        check(sample, dataset.modalities, batched=False)
        assert {key for key in sample if key.startswith('image')} == {f'image_{name}' for name in names}

    def test_bands(self, tree: Path) -> None:
        whole = FLAIRHUBMultimodal(tree, modalities=('s2', 's1a'))[0]
        dataset = FLAIRHUBMultimodal(tree, modalities=('s2', 's1a'), bands={'s2': ('B08', 'B02'), 's1a': ('VH',)})
        sample = dataset[0]
        check(sample, dataset.modalities, batched=False)
        assert torch.equal(sample['image_s2'], whole['image_s2'][:, [6, 0]])
        assert torch.equal(sample['image_s1a'], whole['image_s1a'][:, [1]])

    @pytest.mark.parametrize(('dataset_type', 'count'), [('crop_type', 23), ('crop_type_2', 31), ('crop_type_3', 46)])
    def test_crops(self, tree: Path, dataset_type: str, count: int) -> None:
        dataset = FLAIRHUBMultimodal(tree, modalities=('spot',), dataset_type=dataset_type)
        sample = dataset[0]
        assert (len(dataset.classes), dataset.ignore_index) == (count, None)
        assert sample['label'].tolist() == [0.0] * (count - 1) + [1.0]
        assert sample['mask'].unique().tolist() == [count - 1]

    def test_undefined_land_is_no_label(self, own: Path) -> None:
        store(file(own, 'AERIAL_LABEL-COSIA'), np.full((1, 256, 256), 18, np.uint8))
        sample = read(own, 'aerial')
        assert sample['mask'].unique().tolist() == [18]
        assert sample['label'].tolist() == [0.0] * 18

    def test_splits_add_up(self, tree: Path) -> None:
        train, val, test = (FLAIRHUBMultimodal(tree, split) for split in FLAIRHUBMultimodal.splits)
        joined = train + test
        assert isinstance(joined, ConcatDataset)
        assert len(joined) == 16
        assert not {*train.ids} & {*val.ids} | {*val.ids} & {*test.ids}

    def test_other_split(self, own: Path) -> None:
        rows = table(own / 'GLOBAL_ALL_MTD/GLOBAL_ALL_MTD_SPLIT.gpkg')
        (own / 'GLOBAL_ALL_MTD/GLOBAL_ALL_MTD_SPLIT.gpkg').unlink()
        changed = [{**row, 'split_3': 'test' if row['patch_id'] == PATCH else 'train'} for row in rows]
        write_table(own / 'GLOBAL_ALL_MTD/GLOBAL_ALL_MTD_SPLIT.gpkg', changed)
        assert FLAIRHUBMultimodal(own, 'test', split_column='split_3').ids == [PATCH]

    def test_transforms_and_pickle(self, tree: Path) -> None:
        dataset = FLAIRHUBMultimodal(tree, modalities=('s2',), transforms=_mark)
        assert dataset[0]['seen']
        assert torch.equal(pickle.loads(pickle.dumps(dataset))[1]['image_s2'], dataset[1]['image_s2'])

    def test_plot(self, tree: Path) -> None:
        dataset = FLAIRHUBMultimodal(tree)
        sample = dataset[0]
        sample['prediction'] = sample['mask']
        figure = dataset.plot(sample, suptitle='FLAIR-HUB')
        titles = [ax.get_title() for ax in figure.axes]
        assert {'aerial: true colour', 'spot: true colour', 'dem: surface', 'mask', 'prediction'} <= set(titles)
        assert figure.get_suptitle() == 'FLAIR-HUB'
        narrow = FLAIRHUBMultimodal(tree, modalities=('s2',), bands={'s2': ('B05',)})
        with pytest.raises(RGBBandsMissingError):
            narrow.plot(narrow[0])


class TestSeries:
    def test_clouds_make_a_date_not_valid(self, own: Path) -> None:
        masks = np.zeros((6, 2, 5, 5), np.uint16)
        masks[1, 0, :3] = 70  # snow on 15 of 25 pixels
        masks[2, 1, :2] = 100  # clouds on 10
        masks[3, 1] = 59
        store(file(own, CLOUDS), masks.reshape(12, 5, 5))
        assert read(own, 's2')['valid_s2'].tolist() == [True, False, True, True, True, True]
        assert read(own, 's2', cloud_cover=0.4)['valid_s2'].tolist() == [True, False, False, True, True, True]
        strict = read(own, 's2', cloud_probability=59)
        assert strict['valid_s2'].tolist() == [True, False, True, False, True, True]
        assert read(own, 's2', cloud_cover=1.1)['valid_s2'].all()
        assert len(read(own, 's2', max_dates=5)['dates_s2']) == 5
        assert read(own, 's2', max_dates=5)['valid_s2'].all()

    def test_unknown_probabilities_hide_the_ground(self, own: Path) -> None:
        masks = np.zeros((6, 2, 5, 5), np.float32)
        masks[1, 0] = np.nan
        store(file(own, CLOUDS), masks.reshape(12, 5, 5))
        assert read(own, 's2')['valid_s2'].tolist() == [True, False, True, True, True, True]

    def test_days_are_merged_and_sorted(self, own: Path) -> None:
        _write_dates(own, 'SENTINEL1-ASC', ('20190103', '20190101', '20190103', '20190105', '20190107'))
        power = stored(file(own, 'SENTINEL1-ASC_TS')).reshape(5, 2, 5, 5)
        sample = read(own, 's1a')
        first = int(np.datetime64('2019-01-01').astype(int))
        assert sample['dates_s1a'].tolist() == [first, first + 2, first + 4, first + 6]
        expected = np.stack([power[1], (power[0] + power[2]) / 2, power[3], power[4]])
        assert np.allclose(sample['image_s1a'], 10 * np.log10(expected), atol=1e-5)
        store(file(own, 'SENTINEL1-ASC_TS'), (10 * np.log10(power)).reshape(10, 5, 5))
        decibels = read(own, 's1a', decibels=True)
        assert torch.allclose(decibels['image_s1a'], sample['image_s1a'], atol=1e-4)

    def test_clear_frame_of_a_day_stands_alone(self, own: Path) -> None:
        _write_dates(own, 'SENTINEL2', ('20190101', '20190101', '20190103', '20190104', '20190105', '20190106'))
        masks = np.zeros((6, 2, 5, 5), np.uint16)
        masks[0, 1] = 100
        store(file(own, CLOUDS), masks.reshape(12, 5, 5))
        sample = read(own, 's2')
        optical = stored(file(own, 'SENTINEL2_TS')).astype(np.float32).reshape(6, 10, 5, 5)
        assert np.array_equal(sample['image_s2'], optical[1:])

    def test_what_was_not_measured_is_nan(self, own: Path) -> None:
        optical, radar = (stored(file(own, name)) for name in ('SENTINEL2_TS', 'SENTINEL1-DESC_TS'))
        optical[10:20, 0, 0] = 0
        optical[20, 1, 1] = 0  # one band alone is dark
        radar[0, 2, 2], radar[3, 3, 3], radar[4:6] = 0, np.nan, 0
        store(file(own, 'SENTINEL2_TS'), optical)
        store(file(own, 'SENTINEL1-DESC_TS'), radar)
        sample = read(own, 's2', cloud_cover=2)
        assert sample['image_s2'].isnan().sum() == 10
        assert sample['image_s2'][1, :, 0, 0].isnan().all()
        sample = read(own, 's1d')
        assert sample['valid_s1d'].tolist() == [True, True, False, True]
        assert sample['image_s1d'].isnan().sum() == 2 + 50
        dem = stored(file(own, 'DEM_ELEV'))
        dem[0, 4, 5] = -9999
        store(file(own, 'DEM_ELEV'), dem, nodata=-9999)
        assert read(own, 'dem')['image_dem'].isnan().nonzero().tolist() == [[0, 4, 5]]

    def test_tables_by_zone(self, own: Path) -> None:
        before = read(own, 's2')
        (row,) = (r for r in table(table_of(own, 'SENTINEL2')) if r['patch_id'].startswith('D005-2018'))
        table_of(own, 'SENTINEL2').unlink()
        zone = {'zone_id': 'D005-2018_AA-S1-0', 'acquisition_dates': row['acquisition_dates']}
        write_table(table_of(own, 'SENTINEL2'), [zone])
        assert torch.equal(read(own, 's2')['dates_s2'], before['dates_s2'])

    def test_images_without_a_table_have_no_date(self, own: Path) -> None:
        table_of(own, 'AERIAL').unlink()
        assert read(own, 'aerial')['dates_aerial'].tolist() == [0]


class TestRoot:
    def test_parts_of_a_root(self, own: Path) -> None:
        for name in ('SPOT_RGBI', 'SENTINEL1-ASC_TS'):
            shutil.rmtree(own / f'D005-2018_{name}')
        dataset = FLAIRHUBMultimodal(own)
        assert list(dataset.modalities) == [name for name in NAMES if name not in ('spot', 's1a')]
        assert len(dataset) == 4

    def test_domains(self, tree: Path) -> None:
        dataset = FLAIRHUBMultimodal(tree, domains=('D006-2020', 'D008-2019'), modalities=('spot',))
        assert {patch[:9] for patch in dataset.ids} == {'D006-2020', 'D008-2019'}
        with pytest.raises(DatasetNotFoundError):
            FLAIRHUBMultimodal(tree, domains=('D091-2021',), modalities=('spot',))

    def test_exclude(self, tree: Path) -> None:
        val = FLAIRHUBMultimodal(tree, 'val').ids
        dataset = FLAIRHUBMultimodal(tree, modalities=('spot',), exclude=(PATCH, val[0]))
        assert (len(dataset), dataset.excluded) == (11, [PATCH])
        with pytest.raises(ValueError, match="exclude names 'D0'"):
            FLAIRHUBMultimodal(tree, exclude=('D0',))

    def test_archives_are_unpacked(self, tree: Path, tmp_path: Path) -> None:
        root = tmp_path / 'archives'
        root.mkdir()
        for name in ('D004-2021_AERIAL_LABEL-COSIA', 'D004-2021_SPOT_RGBI', 'GLOBAL_ALL_MTD'):
            shutil.make_archive(str(root / name), 'zip', tree, name)
        assert len(FLAIRHUBMultimodal(root, 'val')) == 4
        with pytest.raises(DatasetNotFoundError, match='patch'):
            FLAIRHUBMultimodal(root, 'train')

    def test_already_extracted(self, tree: Path) -> None:
        domains = sorted({name.partition('_')[0] for name in FLAIRHUBMultimodal(tree).ids})
        assert len(FLAIRHUBMultimodal(tree, domains=domains, download=True)) == 12

    def test_corrupted(self, tree: Path, tmp_path: Path) -> None:
        for name in ('D004-2021_AERIAL_LABEL-COSIA', 'D004-2021_SPOT_RGBI', 'GLOBAL_ALL_MTD'):
            (tmp_path / f'{name}.zip').write_bytes(b'no archive')
        with pytest.raises(RuntimeError, match=r'Dataset.*corrupted'):
            FLAIRHUBMultimodal(tmp_path, checksum=True)

    def test_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetNotFoundError, match='Dataset'):
            FLAIRHUBMultimodal(tmp_path)

    def test_missing_image(self, own: Path) -> None:
        file(own, 'SENTINEL1-DESC_TS').unlink()
        file(own, CLOUDS).unlink()
        with pytest.raises(FileNotFoundError, match=r'SENTINEL.*1'):
            FLAIRHUBMultimodal(own)
        dataset = FLAIRHUBMultimodal(own, missing='allow')
        sample = dataset[place_of(dataset)]
        assert ('image_s1d' in sample, 'image_s1a' in sample) == (False, True)
        assert sample['valid_s2'].all()
        batch = collate([sample, dataset[0]], dataset.modalities)
        assert batch['valid_s1d'].any(1).tolist() == [False, True]

    def test_missing_product(self, tree: Path, tmp_path: Path) -> None:
        root = Path(shutil.copytree(tree, tmp_path / 'root'))
        shutil.rmtree(root / 'D006-2020_SPOT_RGBI')
        with pytest.raises(DatasetNotFoundError):
            FLAIRHUBMultimodal(root)
        dataset = FLAIRHUBMultimodal(root, missing='allow', modalities=('spot', 'dem'))
        assert [('image_spot' in dataset[i], 'image_dem' in dataset[i]) for i in (0, 4)] == [
            (True, True),
            (False, True),
        ]
        with pytest.warns(UserWarning, match=r"samples.*image.*\['spot'\].*'D006-2020"):
            only = FLAIRHUBMultimodal(root, missing='allow', modalities=('spot',))
        assert only.ids == [name for name in dataset.ids if not name.startswith('D006')]
        assert only.unseen == [name for name in dataset.ids if name.startswith('D006')]

    def test_image_lost_later(self, own: Path) -> None:
        dataset = FLAIRHUBMultimodal(own, modalities=('spot',))
        file(own, 'SPOT_RGBI').unlink()
        with pytest.raises(FileNotFoundError, match=r'D005-2018_SPOT_RGBI_AA-S1-0_0-1.tif'):
            dataset[place_of(dataset)]


class TestFaults:
    @pytest.mark.parametrize(
        ('argument', 'message'),
        [
            ({'split': 'all'}, "split is 'all', expected one of"),
            ({'split_column': 'split_9'}, "split_column is 'split_9'"),
            ({'dataset_type': 'crops'}, "dataset_type is 'crops'"),
            ({'missing': 'ignore'}, "missing is 'ignore'"),
            ({'max_dates': 0}, 'max_dates is 0'),
            ({'modalities': ('s2', 's3')}, "modalities names 's3', which is none of"),
            ({'modalities': 's2'}, "modalities is 's2', expected a tuple"),
            ({'bands': {'s2': ('B01',)}}, "unknown bands .*'B01'"),
            ({'bands': {'dsm': ('DSM',)}}, "bands names the modalities .*'dsm'"),
            ({'domains': ('D004_2021',)}, "domains is .*D004_2021.*, expected some of FLAIR-HUB's"),
            ({'domains': 'D004-2021'}, "domains is 'D004-2021'"),
        ],
    )
    def test_invalid_arguments(self, tree: Path, argument: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            FLAIRHUBMultimodal(tree, **argument)

    @pytest.mark.parametrize(
        ('product', 'name'),
        [('AERIAL_LABEL-COSIA', 'aerial'), ('AERIAL_RGBI', 'aerial'), ('SENTINEL2_TS', 's2'), (CLOUDS, 's2')],
    )
    def test_truncated(self, own: Path, product: str, name: str) -> None:
        path = file(own, product)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with pytest.raises(ValueError, match=rf'{path.name}'):
                read(own, name)

    def test_wrong_shapes(self, own: Path) -> None:
        store(file(own, 'AERIAL_RGBI'), np.zeros((4, 128, 128), np.uint8))
        store(file(own, 'SPOT_RGBI'), np.zeros((3, 32, 32), np.uint16))
        store(file(own, 'SENTINEL2_TS'), np.ones((55, 5, 5), np.uint16))
        store(file(own, 'SENTINEL1-ASC_TS'), np.ones((8, 5, 5), np.float32))
        store(file(own, 'SENTINEL1-DESC_TS'), -np.ones((8, 5, 5), np.float32))
        for name, message in (
            ('aerial', r'AERIAL_RGBI.*holds \(4, 128, 128\), expected \(4, 256, 256\)'),
            ('spot', r'SPOT_RGBI.*holds \(3, 32, 32\), expected \(4, 32, 32\)'),
            ('s1a', r'SENTINEL1-ASC_TS.* holds 4 dates, expected 5 as in .*SENTINEL1-ASC_MTD_DATES'),
            ('s1d', 'SENTINEL1-DESC_TS.* holds numbers below 0, expected power; decibels=True'),
            ('s2', 'SENTINEL2_TS.* cannot be read'),
        ):
            with pytest.raises(ValueError, match=message):
                read(own, name)

    def test_wrong_clouds_and_classes(self, own: Path) -> None:
        store(file(own, CLOUDS), np.zeros((10, 5, 5), np.uint16))
        with pytest.raises(ValueError, match=r'MSK-SC.*probabilities \(5, 2, 5, 5\).*\(6, 2, 5, 5\)'):
            read(own, 's2')
        store(file(own, 'AERIAL_LABEL-COSIA'), np.full((1, 256, 256), 19, np.uint8))
        with pytest.raises(ValueError, match=r'COSIA.*classes 19.*19.*0.*18'):
            read(own, 'aerial')

    def test_wrong_tables(self, own: Path) -> None:
        _write_dates(own, 'SENTINEL2', ('20190101', '20191301'))
        with pytest.raises(ValueError, match=r"20191301.*|'acquisition_dates'.*'D005"):
            FLAIRHUBMultimodal(own, modalities=('s2',))
        path = table_of(own, 'SENTINEL2')
        path.unlink()
        write_table(path, [{'patch_id': 'D004-2021_AA-S1-3_0-0', 'acquisition_dates': '{}'}])
        with pytest.raises(ValueError, match=r"row.*'D005-2018_AA-S1-0'.*1"):
            FLAIRHUBMultimodal(own, modalities=('s2',))
        path.unlink()
        write_table(path, [{'patch_id': 'D004-2021_AA-S1-3_0-0', 'date': '20190101'}])
        with pytest.raises(ValueError, match=r"GeoPackage.*'acquisition_dates'"):
            FLAIRHUBMultimodal(own, modalities=('s2',))
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r'SENTINEL2_MTD_DATES.gpkg'):
            FLAIRHUBMultimodal(own, modalities=('s2',))


class TestWriter:
    def test_same_seed_same_bytes(self, tree: Path, tmp_path: Path) -> None:
        write_flairhub(tmp_path / 'again', FLAIRHUBRecipe(areas=1, dates=6))
        for path in (tmp_path / 'again').glob('D*/*/*.tif'):
            assert np.array_equal(stored(path), stored(tree / path.relative_to(tmp_path / 'again')))
        with pytest.raises(ValueError, match=r'areas=1.*areas=2'):
            write_flairhub(tmp_path / 'again', FLAIRHUBRecipe(areas=2, dates=6))

    @pytest.mark.parametrize('argument', [{'areas': 0}, {'tile': 300}, {'dates': 2}, {'dates': 99}, {'seed': -1}])
    def test_invalid_recipes(self, argument: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=rf'{next(iter(argument))}'):
            FLAIRHUBRecipe(**argument)

    def test_patches_lie_side_by_side(self, tree: Path) -> None:
        dataset = FLAIRHUBMultimodal(tree, modalities=('aerial', 's2'))
        west, east, south = (
            dataset[place_of(dataset, f'{PATCH[:-3]}{place}')]['bounds'] for place in ('0-0', '0-1', '1-0')
        )
        assert west[1] == east[0]
        assert west[3] == pytest.approx(float(south[4]))


def _mark(sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return sample | {'seen': torch.tensor(True)}


def _write_dates(root: Path, name: str, stamps: tuple[str, ...]) -> None:
    """Other dates of the area that tests break."""
    table_of(root, name).unlink()
    dates = json.dumps({str(frame): stamp for frame, stamp in enumerate(stamps, start=1)})
    write_table(table_of(root, name), [{'patch_id': 'D005-2018_AA-S1-0_0-0', 'acquisition_dates': dates}])
