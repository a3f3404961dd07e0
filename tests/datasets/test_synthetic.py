# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import hashlib
import json
import shutil
from dataclasses import replace
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from pyproj import Geod

from torchgeo_omnisat.batch import check, collate
from torchgeo_omnisat.datasets import PASTISMultimodal, SyntheticLandscapes
from torchgeo_omnisat.datasets.synthetic import writing
from torchgeo_omnisat.datasets.synthetic.landscape import (
    CROPS,
    FREQUENCIES,
    VERSIONS,
    Difficulty,
    Landscape,
    draw_landscape,
)
from torchgeo_omnisat.datasets.synthetic.rendering import COARSE, render_s1, render_s2, render_spot
from torchgeo_omnisat.datasets.synthetic.writing import (
    FIRST_ID,
    MANIFEST,
    Recipe,
    _draw_land,
    draw_instances,
    draw_tile,
    is_synthetic,
    region_centre,
    tile_place,
    write_landscapes,
)

SMALL: dict[str, Any] = {'num_tiles': 12, 'seed': 0, 'size': 8, 'dates': (3, 6)}
RECIPE = Recipe(**SMALL)

#: Hash of a tile of each version. Tables of results depend on it, so a change of the generator is a new version: it
#: gets a hash of its own, which is in the message of the failing test.
FROZEN = {
    1: 'df39efc0515f9278cc7450d59919568856bf4cb139deaeddb5bae2985b5289af',
    2: '0392ee9982928710fdb487d9dc787b602e7f62fb706e305feac33511c95e1eec',
}


def digest(recipe: Recipe, index: int) -> str:
    """Hash of everything that the files of a tile hold."""
    tile = draw_tile(recipe, index)
    value = hashlib.sha256()
    for name, array in (tile.arrays | tile.dates).items():
        value.update(f'{name} {array.dtype} {array.shape}'.encode())
        value.update(array.astype(array.dtype.newbyteorder('<')).tobytes())
    return value.hexdigest()


def write_and_count(root: Path) -> int:
    write_landscapes(root, RECIPE)
    return len(list(root.rglob('*.npy')))


def sown(crop: int) -> Landscape:
    """A landscape on which one crop grows everywhere; all else is the same for every crop."""
    land = draw_landscape(np.random.default_rng(5), 16)
    return replace(land, covers=(CROPS[crop],) * len(land.covers))


def seen(crop: int, sensor: str) -> np.ndarray:
    """What a sensor sees of it, without clouds."""
    rng, days = np.random.default_rng(6), np.arange(5, 405, 10)
    if sensor == 'spot':
        return render_spot(rng, sown(crop))
    if sensor == 's1':
        return render_s1(rng, sown(crop), days, look=0.2)
    return render_s2(rng, sown(crop), days, clouds=False)


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset that no test changes."""
    root = tmp_path_factory.mktemp('synthetic') / 'new' / 'root'
    SyntheticLandscapes(root, **SMALL)
    return root


class TestDrawTile:
    @pytest.mark.parametrize('version', VERSIONS)
    def test_version_is_frozen(self, version: int) -> None:
        assert digest(Recipe(1, 0, 32, (8, 14), version), 0) == FROZEN[version]

    def test_second_version_differs_where_it_says(self) -> None:
        first, second = (draw_tile(replace(RECIPE, size=32, version=version), 0) for version in (1, 2))
        blocks = [tile.arrays['S2'].reshape(-1, 10, 16, 2, 16, 2) for tile in (first, second)]
        flat = [[np.ptp(each[:, band], axis=(2, 4)).max() == 0 for band in range(10)] for each in blocks]
        assert flat == [[False] * 10, [band in COARSE for band in range(10)]]

    def test_seed_and_place_alone_determine_it(self) -> None:
        assert digest(RECIPE, 3) == digest(replace(RECIPE, num_tiles=100), 3)
        assert len({digest(RECIPE, 3), digest(RECIPE, 4), digest(replace(RECIPE, seed=1), 3)}) == 3

    def test_first_tile_of_each_fold_is_complete_and_others_lack_sensors(self) -> None:
        tiles = [draw_tile(RECIPE, index) for index in range(45)]
        assert all({'S1D', 'SPOT'} <= tile.arrays.keys() for tile in tiles[:5])
        for name in ('S1D', 'SPOT'):
            assert 0.03 < np.mean([name not in tile.arrays for tile in tiles]) < 0.35
        assert all(('S1D' in tile.arrays) == ('S1D' in tile.dates) for tile in tiles)

    @pytest.mark.parametrize('dates', [(1, 1), (8, 14), (60, 60)])
    def test_dates_are_ragged_distinct_and_of_one_season(self, dates: tuple[int, int]) -> None:
        tiles = [draw_tile(replace(RECIPE, dates=dates), index) for index in range(6)]
        for days in (days for tile in tiles for days in tile.dates.values()):
            assert dates[0] <= len(days) <= dates[1]
            assert (np.diff(days) >= 5).all()
            assert 0 <= days.min() <= days.max() <= 425
        assert len({tuple(days) for tile in tiles for days in tile.dates.values()}) == 18

    @pytest.mark.parametrize(
        ('argument', 'expected'),
        [
            ({'num_tiles': 0}, 'num_tiles must be at least 1, got 0'),
            ({'seed': -1}, 'seed must be 0 or more, got -1'),
            ({'size': 30}, 'size must be a multiple of 4 pixels of 10 m and at least 8, got 30'),
            ({'size': 4}, 'at least 8, got 4'),
            ({'dates': (9, 8)}, r'dates must be two numbers from 1 to 60, the least first, got \(9, 8\)'),
            ({'dates': (0, 8)}, 'dates must be'),
            ({'dates': (8,)}, 'dates must be'),
            ({'version': 3}, r'version must be one of \[1, 2\], got 3'),
        ],
    )
    def test_bad_arguments(self, tmp_path: Path, argument: dict[str, Any], expected: str) -> None:
        with pytest.raises(ValueError, match=expected):
            SyntheticLandscapes(tmp_path / 'root', **(SMALL | argument))
        assert not list(tmp_path.iterdir())


class TestRegions:
    REGIONS = replace(RECIPE, num_tiles=40, size=32, dates=(8, 14), regions=10)

    def test_places_are_far_apart_and_other_ones_in_each_fold(self) -> None:
        places = np.array([tile_place(self.REGIONS, index) for index in range(40)])
        centres = np.array([region_centre(region) for region in range(10)])
        assert (np.abs(places - centres[np.arange(40) % 10]) < (0.6, 0.5)).all()
        assert len(np.unique(places, axis=0)) == 40
        apart = [Geod(ellps='WGS84').inv(*a, *b)[2] for a, b in combinations(centres, 2)]
        assert min(apart) > 150_000
        held_out, train = (np.sort(centres[np.isin(np.arange(10) % 5, folds), 1]) for folds in ((4,), (0, 1, 2)))
        assert train[0] < held_out[0] < held_out[-1] < train[-1]  # the calendar has to be interpolated
        other = replace(self.REGIONS, seed=1)
        assert tile_place(other, 3) != tile_place(self.REGIONS, 3)
        np.testing.assert_allclose(tile_place(other, 3), tile_place(self.REGIONS, 3), atol=1)

    def test_season_is_later_in_the_north_and_nothing_else_differs(self) -> None:
        south, north = 6, 1
        for version in (1, 2):
            recipe = replace(self.REGIONS, version=version)
            for index in (south, north):
                land, plain = (_draw_land(each, index)[1] for each in (recipe, replace(recipe, regions=0)))
                later = land.delay - plain.delay + (14 if version == 2 and index % 5 == 4 else 0)
                np.testing.assert_allclose(later, 4 * (tile_place(recipe, index)[1] - 46), atol=1e-9)
                assert np.array_equal(land.parcels, plain.parcels)
        assert _draw_land(self.REGIONS, north)[1].delay.mean() > _draw_land(self.REGIONS, south)[1].delay.mean() + 50

    def test_written_places_are_those_of_the_batch(self, tmp_path: Path) -> None:
        small: dict[str, Any] = SMALL | {'num_tiles': 10, 'regions': 5}
        dataset = SyntheticLandscapes(tmp_path / 'root', **small, modalities=('s2',))
        batch = collate([dataset[index] for index in range(10)], dataset.modalities, dataset.crs)
        expected = [tile_place(Recipe(**small), patch.id - FIRST_ID) for patch in dataset.patches]
        np.testing.assert_allclose(batch['coordinates'].numpy(), expected, atol=1e-5)
        with pytest.raises(ValueError, match='regions=5'):
            SyntheticLandscapes(tmp_path / 'root', **small | {'regions': 0})

    def test_manifest_without_regions_is_that_of_earlier_versions(self, root: Path) -> None:
        assert json.loads((root / MANIFEST).read_text()).keys() == {*SMALL, 'version'}
        with pytest.raises(ValueError, match='regions=None'):
            SyntheticLandscapes(root, **SMALL, regions=5)

    @pytest.mark.parametrize('wrong', [{'regions': 7}, {'regions': -5}, {'regions': 5, 'num_tiles': 10**6}])
    def test_bad_arguments(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match='regions'):
            replace(RECIPE, **wrong)


class TestLandscape:
    @pytest.mark.parametrize(
        ('one', 'other', 'sensor'),
        [(2, 4, 's2'), (2, 10, 's1'), (9, 3, 's1'), (9, 13, 'spot'), (1, 16, 'spot'), (1, 14, 's2')],
    )
    def test_one_sensor_alone_tells_look_alikes_apart(self, one: int, other: int, sensor: str) -> None:
        for each in ('s2', 's1', 'spot'):
            assert np.array_equal(seen(one, each), seen(other, each)) == (each != sensor)

    def test_parcel_is_informative_where_a_pixel_is_not(self) -> None:
        wheat, triticale = (seen(crop, 's1')[:, 1].reshape(40, -1) for crop in (2, 10))
        apart = np.abs((triticale - wheat).mean(1)).max()
        assert apart > 1.0
        assert apart < wheat.std(1).min()
        assert apart > 4 * wheat.std(1).max() / np.sqrt(100)

    def test_orbits_see_rows_differently(self) -> None:
        land, days = draw_landscape(np.random.default_rng(5), 16), np.arange(10, 400, 40)
        seen = [render_s1(np.random.default_rng(6), land, days, look) for look in (0.2, -0.2)]
        assert np.abs(seen[0] - seen[1])[:, 0].max() > 0.3

    def test_clouds_are_blobs_and_whole_dates(self) -> None:
        land, days = sown(2), np.arange(0, 400, 2)
        clear, cloudy = (render_s2(np.random.default_rng(6), land, days, clouds=c)[:, 0] for c in (False, True))
        covered = (cloudy - clear > 1000).mean((1, 2))
        assert 0.05 < np.mean(covered > 0.95) < 0.25
        assert 0.15 < np.mean((covered > 0.05) & (covered < 0.95)) < 0.5
        assert np.mean(covered == 0) > 0.3
        partly = (cloudy - clear > 1000)[(covered > 0.2) & (covered < 0.8)]
        alike = np.mean(partly[:, 1:] == partly[:, :-1])
        assert alike > 0.85  # single pixels at random would be about 0.6

    def test_every_fold_has_every_class(self) -> None:
        for fold in range(5):
            lands = [draw_landscape(np.random.default_rng([0, fold + 5 * k]), 32) for k in range(4)]
            found = np.concatenate([land.label[land.ids()].ravel() for land in lands])
            assert set(found) == {0, 19, *CROPS}
            assert np.bincount(found)[list(CROPS)].min() > 30

    def test_parcels_are_a_few_pixels_wide(self) -> None:
        lands = [draw_landscape(np.random.default_rng([0, k]), 64) for k in range(3)]
        areas = np.concatenate([np.bincount(land.ids().ravel())[2:] for land in lands])
        assert 4**2 < np.median(areas[areas > 0]) < 12**2

    def test_displaced_landscape_is_the_same_ground(self) -> None:
        land = draw_landscape(np.random.default_rng(0), 16)
        seen = land.shifted(np.random.default_rng(2), 5)
        down, right = np.random.default_rng(2).integers(-5, 6, 2)
        assert (down, right) != (0, 0)
        middle = slice(10, -10)
        moved = land.parcels[10 + down : len(land.parcels) - 10 + down, 10 + right : len(land.parcels) - 10 + right]
        assert np.array_equal(seen.parcels[middle, middle], moved)
        assert seen.parcels.shape == land.parcels.shape

    def test_frequencies_and_delay_of_the_season(self) -> None:
        lands = [draw_landscape(np.random.default_rng([0, k]), 64, FREQUENCIES, delay=14) for k in range(6)]
        count = np.bincount(np.concatenate([land.label for land in lands]), minlength=20)
        common, rare = ([crop for crop, weight in FREQUENCIES.items() if weight == each] for each in (8, 1))
        assert 3 * count[rare].max() < count[common].min()
        assert np.concatenate([land.delay for land in lands]).mean() == pytest.approx(14, abs=1)

    def test_haze_and_blur(self) -> None:
        land, days = draw_landscape(np.random.default_rng(5), 16), np.arange(0, 400, 10)
        plain, hazy, blurred = (
            render_s2(np.random.default_rng(6), land, days, difficulty=Difficulty(**facts))
            for facts in ({}, {'haze': 0.5}, {'blur': 1.0})
        )
        share = ((hazy - plain)[:, 0] > 100).mean((1, 2))
        assert 0.25 < (share > 0.5).mean() < 0.75
        edges = [np.abs(np.diff(image[:, 6], axis=-1)).mean() for image in (plain, blurred)]
        assert edges[1] < 0.9 * edges[0]

    def test_fragments_fill_every_pixel(self) -> None:
        pixel, _, share = draw_landscape(np.random.default_rng(0), 16).fragments()
        assert np.allclose(np.bincount(pixel, share), 1)


class TestSyntheticLandscapes:
    def test_pastis_reads_the_same(self, root: Path) -> None:
        ours, pastis = SyntheticLandscapes(root, **SMALL), PASTISMultimodal(root, missing='allow')
        assert ours.synthetic
        assert is_synthetic(pastis.path)
        assert list(ours.modalities) == list(pastis.modalities) == ['s2', 's1a', 's1d', 'spot']
        assert pastis.crs.to_epsg() == 2154
        for index in range(len(ours)):
            sample, again = ours[index], pastis[index]
            check(sample, ours.modalities, batched=False)
            assert sample.keys() == again.keys()
            assert all(torch.equal(sample[key], again[key]) for key in sample)
        lacking = [{'image_spot', 'image_s1d'} - ours[index].keys() for index in range(len(ours))]
        assert {'image_spot'} in lacking
        assert {'image_s1d'} in lacking
        check(collate([ours[index] for index in range(len(ours))], ours.modalities), ours.modalities)

    def test_files_are_as_published(self, root: Path) -> None:
        features = json.loads((root / 'metadata.geojson').read_text())['features']
        names = {'ID_PATCH', 'Fold', 'TILE', 'N_Parcel', 'Parcel_Cover', 'dates-S2', 'dates-S1A', 'dates-S1D'}
        assert all(feature['properties'].keys() == names for feature in features)
        assert [feature['properties']['Fold'] for feature in features] == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]
        count = len(features[0]['properties']['dates-S1A'])
        arrays = {path.name: np.load(path) for path in root.rglob('*_10000.npy')}
        kinds = {name: (array.dtype.name, array.shape[-3:]) for name, array in arrays.items()}
        assert kinds['S2_10000.npy'] == ('int16', (10, 8, 8))
        assert kinds['S1A_10000.npy'] == ('float16', (3, 8, 8))
        assert kinds['TARGET_10000.npy'] == ('uint8', (3, 8, 8))
        assert kinds['ParcelIDs_10000.npy'] == ('int32', (8, 8))
        assert len(arrays['S1A_10000.npy']) == count
        vv, vh, ratio = np.moveaxis(arrays['S1A_10000.npy'].astype(float), 1, 0)
        assert np.allclose(vv - vh, ratio, atol=0.05)
        image = root / 'DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/SPOT6_RVB_1M00_2019_10000.tif'
        with rasterio.open(image) as file:
            assert (file.count, file.shape, file.dtypes[0], file.crs.to_epsg()) == (3, (80, 80), 'uint8', 2154)
            corners = [file.transform @ corner for corner in ((0, 0), (80, 0), (80, 80), (0, 80))]
        assert np.allclose(features[0]['geometry']['coordinates'][0][0][:4], corners, atol=1e-6)

    def test_instances_are_the_parcels_and_touching_ones_differ(self, root: Path) -> None:
        sample = SyntheticLandscapes(root, instances=True, **SMALL)[0]
        instances, mask = sample['instances'], sample['mask']
        stored = np.load(root / 'INSTANCE_ANNOTATIONS/INSTANCES_10000.npy')
        assert stored.dtype == np.int64
        assert np.array_equal(instances, stored)
        assert torch.equal(instances > 0, mask > 0)
        parcels = torch.from_numpy(np.load(root / 'ANNOTATIONS/ParcelIDs_10000.npy')).long()
        assert torch.equal(instances[mask != 19], parcels[mask != 19])
        big = torch.from_numpy(draw_tile(replace(RECIPE, size=32), 2).instances)
        classes = torch.from_numpy(draw_tile(replace(RECIPE, size=32), 2).arrays['TARGET'][0].astype(int))
        pairs = (big[1:] != big[:-1]) & (classes[1:] == classes[:-1]) & (classes[1:] > 0)
        assert pairs.any()  # two fields of one crop

    def test_instances_at_a_finer_gsd(self, root: Path) -> None:
        """Their ids are those of the parcels, and a pixel has the parcel at its centre."""
        coarse = SyntheticLandscapes(root, instances=True, **SMALL)[0]['instances']
        fine = SyntheticLandscapes(root, instances=True, instance_gsd=2.5, **SMALL)[0]['instances']
        assert (fine.shape, fine.dtype) == ((32, 32), torch.int64)
        same = fine == coarse.repeat_interleave(4, 0).repeat_interleave(4, 1)
        assert 0.7 < same[fine > 0].float().mean() < 1
        assert torch.equal(fine, torch.from_numpy(draw_instances(RECIPE, 0, 0.5))[2::5, 2::5])
        with pytest.raises(ValueError, match=r'instance_gsd is 4 m'):
            SyntheticLandscapes(root, instances=True, instance_gsd=4, **SMALL)

    def test_a_root_from_before_there_were_instances_is_refused(self, tmp_path: Path) -> None:
        write_landscapes(tmp_path / 'old', replace(RECIPE, num_tiles=1))
        shutil.rmtree(tmp_path / 'old/INSTANCE_ANNOTATIONS')
        settings = SMALL | {'num_tiles': 1}
        assert 'instances' not in SyntheticLandscapes(tmp_path / 'old', **settings)[0]
        with pytest.raises(FileNotFoundError, match=r'old.*INSTANCES_10000\.npy'):
            SyntheticLandscapes(tmp_path / 'old', instances=True, **settings)

    def test_norm_files_are_the_statistics_of_the_folds(self, root: Path) -> None:
        norm = json.loads((root / 'NORM_S2_patch.json').read_text())['Fold_3']
        images = [np.load(root / f'DATA_S2/S2_{number}.npy').astype(float) for number in (10002, 10007)]
        pixels = np.concatenate([np.moveaxis(image, 1, 0).reshape(10, -1) for image in images], axis=1)
        assert np.allclose(norm['mean'], pixels.mean(1))
        assert np.allclose(norm['std'], pixels.std(1))

    def test_norm_files_are_whole_where_a_fold_has_no_image(self, tmp_path: Path) -> None:
        write_landscapes(tmp_path / 'root', replace(RECIPE, num_tiles=1))
        norm = json.loads((tmp_path / 'root/NORM_S1D_patch.json').read_text())
        assert np.isfinite([norm[f'Fold_{fold}']['std'] for fold in range(1, 6)]).all()

    def test_root_is_written_once(self, root: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
        SyntheticLandscapes(root, **SMALL)
        assert before == {path: path.stat().st_mtime_ns for path in root.rglob('*')}

    @pytest.mark.parametrize('other', [{'seed': 1}, {'num_tiles': 11}, {'size': 12}, {'dates': (3, 7)}])
    def test_other_landscapes_are_refused(self, root: Path, other: dict[str, Any]) -> None:
        name, value = next(iter(other.items()))
        with pytest.raises(ValueError, match=rf'root.*synthetic landscapes.*{name}=.*{name}='):
            SyntheticLandscapes(root, **(SMALL | other))
        assert json.loads((root / MANIFEST).read_text())[name] != value

    def test_other_version_is_refused(self, root: Path) -> None:
        with pytest.raises(ValueError, match=r'version=1.*version=2.*root'):
            write_landscapes(root, replace(RECIPE, version=2))

    def test_other_files_are_refused_and_an_empty_directory_is_not(self, tmp_path: Path) -> None:
        write_landscapes(tmp_path, replace(RECIPE, num_tiles=1))
        (tmp_path / MANIFEST).unlink()
        with pytest.raises(ValueError, match=r'files.*synthetic landscapes'):
            write_landscapes(tmp_path, RECIPE)

    def test_interruption_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(recipe: Recipe, index: int) -> writing.Tile:
            if index == 2:
                raise KeyboardInterrupt
            return draw_tile(recipe, index)

        monkeypatch.setattr(writing, 'draw_tile', interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_landscapes(tmp_path / 'root', RECIPE)
        assert not list(tmp_path.iterdir())

    def test_several_processes_write_one_dataset(self, tmp_path: Path) -> None:
        with get_context('fork').Pool(3) as pool:
            counts = pool.map(write_and_count, [tmp_path / 'root'] * 3, chunksize=1)
        assert len(set(counts)) == 1
        assert [path.name for path in tmp_path.iterdir()] == ['root']

    def test_loser_of_a_race_takes_what_is_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def overtaken(temporary: Path, recipe: Recipe) -> None:
            write(temporary, recipe)
            monkeypatch.setattr(writing, '_write', write)
            write_landscapes(tmp_path / 'root', recipe)

        write = writing._write
        monkeypatch.setattr(writing, '_write', overtaken)
        write_landscapes(tmp_path / 'root', RECIPE)
        assert [path.name for path in tmp_path.iterdir()] == ['root']
        assert len(SyntheticLandscapes(tmp_path / 'root', **SMALL)) == 12
