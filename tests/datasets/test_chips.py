# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Chips keep their pixels and their CRS, and files of a chip that do not fit each other are refused by name."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
import torch
from numpy.typing import NDArray

from tests.chips_tree import LABELS, MASK, PLACES, RASTERS, write_chips
from tests.geo_tree import write
from torchgeo_omnisat import collate
from torchgeo_omnisat.datasets import ImageChips
from torchgeo_omnisat.datasets.chips.files import centres
from torchgeo_omnisat.datasets.chips.splits import split_chips

SERIES = {'path': 's1', 'temporal': True, 'kind': 'radar', 'unit': 'db'}


def make(root: Path, split: str = 'all', rasters: Any = RASTERS, **arguments: Any) -> ImageChips:
    return ImageChips(root, rasters, split=split, **{'mask': MASK, 'labels': LABELS} | arguments)


def stored(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as file:
        pixels: NDArray[Any] = file.read()
    return pixels


def picture(path: Path, image: NDArray[Any]) -> None:
    """Write a PNG, which lies nowhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if image.ndim == 3 else image[None]
    size = {'count': len(image), 'height': image.shape[1], 'width': image.shape[2], 'dtype': image.dtype}
    with rasterio.open(path, 'w', driver='PNG', **size) as file:
        file.write(image)


class TestPixels:
    def test_chips_of_three_zones_are_the_pixels_of_their_files(self, tmp_path: Path) -> None:
        write_chips(tmp_path)
        everything = {'fractions': [1, 0, 0]}
        chips = make(tmp_path, 'train', splits=everything)
        assert chips.ids == ['chip0', 'chip1', 'chip2']
        for index, name in enumerate(chips.ids):
            sample, (crs, (x, y)) = chips[index], PLACES[index]
            assert np.array_equal(sample['image_s2'].numpy(), stored(tmp_path / f's2/{name}.tif').astype(np.float32))
            assert np.array_equal(sample['mask'].numpy(), stored(tmp_path / f'masks/{name}.tif')[0])
            place = chips.chip_crs[index]
            assert place is not None
            assert place.to_epsg() == int(crs.partition(':')[2])
            assert sample['bounds'][:6].tolist() == [x, x + 160, 10, y - 160, y, 10]
            assert sample['transform'][:6].tolist() == [10, 0, x, 0, -10, y]

    def test_chips_of_other_zones_make_a_batch_with_a_missing_sensor(self, tmp_path: Path) -> None:
        write_chips(tmp_path, series=('20210101', '20210301'))
        (tmp_path / 's1/chip1_20210101.tif').unlink()
        (tmp_path / 's1/chip1_20210301.tif').unlink()
        chips = make(tmp_path, rasters=RASTERS | {'s1': SERIES})
        assert 'image_s1' not in chips[1]
        batch = collate([chips[index] for index in range(3)], chips.modalities)
        assert batch['valid_s1'].any(-1).tolist() == [True, False, True]
        assert batch['valid_s2'].all()

    def test_files_of_one_id_are_a_series_in_the_order_of_time(self, tmp_path: Path) -> None:
        write_chips(tmp_path, 1, series=('20210301', '20200101', '20210615'))
        chips = make(tmp_path, rasters={'s1': SERIES | {'max_dates': 2}}, mask=None)
        whole = make(tmp_path, rasters={'s1': SERIES}, mask=None)[0]
        days = np.array(['2020-01-01', '2021-03-01', '2021-06-15'], 'datetime64[D]').astype(int)
        assert whole['dates_s1'].tolist() == days.tolist()
        for number, day in enumerate(('20200101', '20210301', '20210615')):
            assert np.array_equal(whole['image_s1'][number].numpy(), stored(tmp_path / f's1/chip0_{day}.tif'))
        assert chips[0]['image_s1'].shape == (2, 2, 8, 8)
        assert chips.modalities['s1'].gsd == 20

    def test_nodata_is_nan_and_no_label(self, tmp_path: Path) -> None:
        image, mask = np.full((1, 8, 8), 7, np.uint16), np.ones((8, 8), np.uint8)
        image[0, 0, 0], mask[1, 1] = 0, 9
        write(tmp_path / 's2/a.tif', image, nodata=0)
        write(tmp_path / 'masks/a.tif', mask, nodata=9)
        chips = make(tmp_path, 'train', splits={'fractions': [1, 0, 0]})
        sample = chips[0]
        assert sample['image_s2'].isnan().sum() == 1
        assert (sample['mask'] == 255).nonzero().tolist() == [[1, 1]]

    def test_pictures_without_georeference_need_a_gsd(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        image, mask = rng.integers(1, 255, (3, 8, 8)).astype(np.uint8), rng.integers(0, 2, (16, 16)).astype(np.uint8)
        picture(tmp_path / 's2/a.png', image)
        picture(tmp_path / 'masks/a.png', mask)
        with pytest.raises(ValueError, match=r'a\.png.*gsd'):
            make(tmp_path, rasters={'s2': {'path': 's2'}})
        with pytest.warns(UserWarning, match='georeference'):
            chips = make(tmp_path, 'train', splits={'fractions': [1, 0, 0]})
        sample = chips[0]
        assert np.array_equal(sample['image_s2'].numpy(), image)
        assert np.array_equal(sample['mask'].numpy(), mask)
        assert chips.label_gsd == 5  # as many pixels on the same ground
        assert chips.chip_crs == [None]
        assert chips.positions is None
        assert sample['bounds'][:6].isnan().all()

    def test_a_mask_that_lies_nowhere_takes_the_place_of_its_image(self, tmp_path: Path) -> None:
        write_chips(tmp_path, 1)
        mask = stored(tmp_path / 'masks/chip0.tif')
        (tmp_path / 'masks/chip0.tif').unlink()
        picture(tmp_path / 'masks/chip0.png', mask)
        sample = make(tmp_path, 'train', splits={'fractions': [1, 0, 0]})[0]
        assert np.array_equal(sample['mask'].numpy(), mask[0])
        assert sample['bounds'][0] == PLACES[0][1][0]

    def test_degrees_keep_their_pixels(self, tmp_path: Path) -> None:
        image = np.arange(64, dtype=np.uint16).reshape(1, 8, 8)
        write(tmp_path / 's2/a.tif', image, (6.0, 50.0), 9e-5, crs='EPSG:4326')
        sample = make(tmp_path, mask=None)[0]
        assert np.array_equal(sample['image_s2'].numpy(), image)
        assert sample['transform'][:3].tolist() == [9e-5, 0, 6.0]


class TestNames:
    def test_id_is_what_the_expression_says(self, tmp_path: Path) -> None:
        write_chips(tmp_path, 1)
        (tmp_path / 's2/chip0.tif').rename(tmp_path / 's2/chip0_merged.tif')
        (tmp_path / 'masks/chip0.tif').rename(tmp_path / 's2/chip0.mask.tif')
        rasters = {'s2': RASTERS['s2'] | {'filename_glob': '*_merged.tif', 'filename_regex': '(?P<id>.*)_merged'}}
        mask = {'path': 's2', 'filename_glob': '*.mask.tif', 'filename_regex': r'(?P<id>.*)\.mask'}
        chips = make(tmp_path, 'train', rasters, mask=mask, splits={'fractions': [1, 0, 0]})
        assert chips.ids == ['chip0']
        assert 'mask' in chips[0]
        with pytest.raises(ValueError, match=r"'chip0\.mask'.*'chip0_merged'.*filename_regex"):
            make(
                tmp_path,
                rasters={'s2': {'path': 's2', 'filename_glob': '*_merged.tif'}},
                mask=mask | {'filename_regex': r'(?P<id>.*)\.tif'},
            )

    def test_two_files_of_one_chip_and_date_are_refused(self, tmp_path: Path) -> None:
        write_chips(tmp_path, 2)
        with pytest.raises(ValueError, match=r"chip0\.tif.*chip1\.tif.*chip 'chip'"):
            make(tmp_path, rasters={'s2': {'path': 's2', 'filename_regex': '(?P<id>[a-z]+)'}})

    @pytest.mark.parametrize('above', [False, True])
    def test_folders_are_splits(self, tmp_path: Path, above: bool) -> None:
        write_chips(tmp_path, 3)
        for number, part in enumerate(('training', 'validation', 'testing')):
            for kind in ('s2', 'masks'):
                folder = tmp_path / part / kind if above else tmp_path / kind / part
                folder.mkdir(parents=True)
                (tmp_path / kind / f'chip{number}.tif').rename(folder / f'chip{number}.tif')
        if above:
            (tmp_path / 's2').rmdir()
            (tmp_path / 'masks').rmdir()
        splits = {'folders': ['training', 'validation', 'testing']}
        assert make(tmp_path, 'val', splits=splits).ids == ['validation/chip1']
        with pytest.raises(ValueError, match=r"\['nowhere'\].*'training'"):
            make(tmp_path, 'val', splits={'folders': ['training', 'validation', 'nowhere']})


class TestFaults:
    def test_sensors_on_other_ground_are_refused_with_both_files(self, tmp_path: Path) -> None:
        write_chips(tmp_path, 2)
        crs, (x, y) = PLACES[1]
        write(tmp_path / 'masks/chip1.tif', np.zeros((16, 16), np.uint8), (x + 6, y), crs=crs)
        with pytest.raises(ValueError, match=r'masks/chip1\.tif.*s2/chip1\.tif.*up.*6 m'):
            make(tmp_path)
        write(tmp_path / 'masks/chip1.tif', np.zeros((16, 16), np.uint8), (x + 4, y), crs=crs)
        assert len(make(tmp_path)) == 2

    def test_sensors_in_two_zones_are_refused(self, tmp_path: Path) -> None:
        write_chips(tmp_path, 1)
        write(tmp_path / 'masks/chip0.tif', np.zeros((16, 16), np.uint8), PLACES[0][1], crs='EPSG:32633')
        with pytest.raises(ValueError, match=r'chip0\.tif.*EPSG:32633.*chip0\.tif.*EPSG:32632'):
            make(tmp_path)

    def test_another_gsd_is_refused(self, tmp_path: Path) -> None:
        write_chips(tmp_path, 1)
        with pytest.raises(ValueError, match=r's2/chip0\.tif.*pixels.*10 m.*20 m'):
            make(tmp_path, rasters={'s2': {'path': 's2', 'gsd': 20}})

    def test_other_bands_are_refused(self, tmp_path: Path) -> None:
        write_chips(tmp_path, 2)
        crs, corner = PLACES[1]
        write(tmp_path / 's2/chip1.tif', np.zeros((3, 16, 16), np.uint16), corner, crs=crs)
        with pytest.raises(ValueError, match=r'chip1\.tif.*3 bands.*4'):
            make(tmp_path)

    def test_a_missing_mask_is_named_but_not_to_predict(self, tmp_path: Path) -> None:
        write_chips(tmp_path, 3)
        (tmp_path / 'masks/chip1.tif').unlink()
        with pytest.raises(FileNotFoundError, match=r'masks/chip1\.tif.*3 chips.*1'):
            make(tmp_path, 'train', splits={'fractions': [1, 0, 0]})
        assert len(make(tmp_path)) == 3

    def test_a_missing_sensor_may_be_an_error(self, tmp_path: Path) -> None:
        write_chips(tmp_path, 2, series=('20210101',))
        (tmp_path / 's1/chip0_20210101.tif').unlink()
        with pytest.raises(FileNotFoundError, match='s1/chip0'):
            make(tmp_path, rasters=RASTERS | {'s1': SERIES}, missing='error')

    def test_other_sizes_are_refused_with_the_largest_that_fits_all(self, tmp_path: Path) -> None:
        write_chips(tmp_path, 4)
        crs, corner = PLACES[0]
        image = np.arange(4 * 12 * 14, dtype=np.uint16).reshape(4, 12, 14)
        write(tmp_path / 's2/chip0.tif', image, corner, crs=crs)
        write(tmp_path / 'masks/chip0.tif', np.zeros((12, 14), np.uint8), corner, crs=crs)
        with pytest.raises(ValueError, match=r'chip0\.tif.*12 x 14.*16 x 16.*3.*120'):
            make(tmp_path)
        with pytest.raises(ValueError, match='at most 120'):
            make(tmp_path, tile_size=130)
        sample = make(tmp_path, 'train', tile_size=80, splits={'fractions': [1, 0, 0]})[0]
        assert np.array_equal(sample['image_s2'].numpy(), image[:, 2:10, 3:11])
        assert sample['mask'].shape == (8, 8)
        assert sample['bounds'][:6].tolist() == [
            corner[0] + 30,
            corner[0] + 110,
            10,
            corner[1] - 100,
            corner[1] - 20,
            10,
        ]

    def test_unknown_codes_are_refused(self, tmp_path: Path) -> None:
        write_chips(tmp_path, 1)
        crs, corner = PLACES[0]
        write(tmp_path / 'masks/chip0.tif', np.full((16, 16), 7, np.uint8), corner, crs=crs)
        chips = make(tmp_path, 'train', splits={'fractions': [1, 0, 0]})
        with pytest.raises(ValueError, match=r'codes 7 \(256 pixels\)'):
            chips[0]
        coded = make(
            tmp_path, 'train', splits={'fractions': [1, 0, 0]}, mask=MASK | {'classes': {7: 'water', 0: 'land'}}
        )
        assert (coded[0]['mask'] == 1).all()

    def test_finer_masks_take_the_majority(self, tmp_path: Path) -> None:
        write_chips(tmp_path, 1)
        mask = stored(tmp_path / 'masks/chip0.tif')[0]
        blocks = mask.reshape(8, 2, 8, 2).sum((1, 3))
        sample = make(tmp_path, 'train', splits={'fractions': [1, 0, 0]}, label_gsd=20)[0]
        assert torch.equal(sample['mask'][torch.from_numpy(blocks > 2)], torch.ones(int((blocks > 2).sum())).long())
        with pytest.raises(ValueError, match=r'label_gsd.*15'):
            make(tmp_path, label_gsd=15)

    @pytest.mark.parametrize('mask', [MASK, None])
    def test_labels_that_do_not_fill_a_chip_are_refused(self, tmp_path: Path, mask: Any) -> None:
        write_chips(tmp_path, 1)
        settings = {'label_gsd': 30, 'mask': mask}
        with pytest.raises(ValueError, match=r'16 x 16 pixels \(160 x 160 m\).*30 m'):
            make(tmp_path, **settings)
        cut = make(tmp_path, **settings, tile_size=120)
        assert cut[0]['image_s2'].shape == (4, 12, 12)


def squares(*corners: tuple[float, float]) -> NDArray[np.object_]:
    return np.array([shapely.box(x, y, x + 0.01, y + 0.01) for x, y in corners])


class TestSplits:
    def test_neighbours_are_in_one_split(self, tmp_path: Path) -> None:
        fractions = {'fractions': [0.5, 0.25, 0.25], 'block': 4000.0}
        rng = np.random.default_rng(0)
        shapes = squares(*(6 + rng.uniform(0, 0.4, (60, 2))).tolist())
        names: dict[str, list[str]] = {f'{index}': [] for index in range(60)}
        parts = split_chips(names, shapes, fractions, tmp_path)
        where = {name: part for part, ids in parts.items() for name in ids}
        assert len(where) == 60
        assert [len(parts[name]) for name in ('train', 'val', 'test')] == pytest.approx([30, 15, 15], abs=6)
        blocks = [tuple(block) for block in np.floor(centres(shapes) / 4000).astype(int).tolist()]
        for (one, block), (other, its) in combinations(enumerate(blocks), 2):
            if block == its or shapes[one].intersection(shapes[other]).area > 1e-6:
                assert where[f'{one}'] == where[f'{other}']
        overlapping = squares(*[(6 + 0.006 * index, 50) for index in range(60)])
        with pytest.raises(ValueError, match='has 1 group of'):
            split_chips(names, overlapping, fractions | {'block': 100.0}, tmp_path)

    def test_seed_deals_anew_and_again_the_same(self, tmp_path: Path) -> None:
        names: dict[str, list[str]] = {f'{index}': [] for index in range(12)}
        corners = squares(*[(6 + 0.2 * index, 50) for index in range(12)])
        deal = [split_chips(names, corners, {'fractions': [0.5, 0.5, 0], 'seed': s}, tmp_path) for s in (0, 0, 1)]
        assert deal[0] == deal[1] != deal[2]
        assert deal[0]['test'] == []
        with pytest.raises(ValueError, match='seed is -1, expected an integer, at least 0'):
            split_chips(names, corners, {'fractions': [0.5, 0.5, 0], 'seed': -1}, tmp_path)

    @pytest.mark.parametrize(('count', 'expected'), [(3, [1, 1, 1]), (6, [4, 1, 1]), (10, [6, 2, 2])])
    def test_fractions_are_met_and_no_split_is_empty(self, tmp_path: Path, count: int, expected: list[int]) -> None:
        names: dict[str, list[str]] = {f'{index}': [] for index in range(count)}
        far = squares(*[(6 + 0.2 * index, 50) for index in range(count)])
        parts = split_chips(names, far, {'fractions': [0.6, 0.2, 0.2]}, tmp_path)
        assert [len(parts[name]) for name in ('train', 'val', 'test')] == expected

    def test_ids_group_chips(self, tmp_path: Path) -> None:
        names: dict[str, list[str]] = {f'region{index // 4}_{index}': [] for index in range(12)}
        nowhere = np.array([shapely.Polygon()] * 12)
        parts = split_chips(names, nowhere, {'fractions': [0.4, 0.3, 0.3], 'group_by': r'region\d+'}, tmp_path)
        assert all(len({name.split('_')[0] for name in ids}) == 1 for ids in parts.values())

    @pytest.mark.parametrize('kind', ['csv', 'json', 'txt'])
    def test_lists_name_chips_or_files(self, tmp_path: Path, kind: str) -> None:
        names = {'a': ['a_merged.tif'], 'b': ['b_merged.tif'], 'c': ['c_merged.tif']}
        (tmp_path / 's.csv').write_text('name,split\na,train\nb_merged.tif,val\n')
        (tmp_path / 's.json').write_text('{"train": ["a"], "val": ["b_merged"]}')
        (tmp_path / 't.txt').write_text('a\n')
        (tmp_path / 'v.txt').write_text('b_merged\n\n')
        split: dict[str, Any] = {'files': ['t.txt', 'v.txt', None]} if kind == 'txt' else {'file': f's.{kind}'}
        parts = split_chips(names, squares((0, 0), (1, 0), (2, 0)), split, tmp_path)
        assert parts == {'train': ['a'], 'val': ['b'], 'test': []}

    def test_rows_with_more_fields_than_the_header(self, tmp_path: Path) -> None:
        (tmp_path / 's.csv').write_text('name,split\n1,a,train\n2,b,val\n')
        names: dict[str, list[str]] = {'a': [], 'b': []}
        with pytest.raises(ValueError, match=r's\.csv .*more fields than the 2 columns'):
            split_chips(names, squares((0, 0), (1, 0)), {'file': 's.csv'}, tmp_path)

    def test_leaks_are_told(self, tmp_path: Path) -> None:
        names: dict[str, list[str]] = {'a': [], 'b': []}
        (tmp_path / 's.json').write_text('{"train": ["a"], "val": ["b"]}')
        with pytest.warns(UserWarning, match=r"overlap.*'a'.*'train'.*'b'.*'val'"):
            split_chips(names, squares((0, 0), (0.005, 0)), {'file': 's.json'}, tmp_path)
        (tmp_path / 's.json').write_text('{"train": ["a"], "val": ["a"]}')
        with pytest.raises(ValueError, match=r"'a'.*\['train', 'val'\]"):
            split_chips(names, squares((0, 0), (1, 0)), {'file': 's.json'}, tmp_path)
        (tmp_path / 's.json').write_text('{"train": ["x"]}')
        with pytest.raises(ValueError, match=r"'x'.*s\.json.*chip"):
            split_chips(names, squares((0, 0), (1, 0)), {'file': 's.json'}, tmp_path)


def test_types_of_files(tmp_path: Path) -> None:
    crs, corner = PLACES[1]
    write(write_chips(tmp_path) / 's2/chip1.tif', np.full((4, 16, 16), 0.3, np.float32), corner, crs=crs)
    with pytest.warns(UserWarning, match=r's2: pixels.*uint16.*chip0.tif.*float32.*chip1.tif'):
        ImageChips(tmp_path, RASTERS, MASK, LABELS, split='all')
