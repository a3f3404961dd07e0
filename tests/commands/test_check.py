# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Faults planted in trees that our writers wrote, each to be found with its file and reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from tests.conftest import SHARED, SPOT, edit
from tests.geo_tree import ramp, write
from tests.landscapes.flair import FLAIRRecipe, write_flair
from tests.landscapes.treesatai import TreeSatAIRecipe, write_treesatai
from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.commands.check import table, walk
from torchgeo_omnisat.datamodules import (
    FLAIRDataModule,
    MultimodalDataModule,
    PASTISMultimodalDataModule,
    SyntheticLandscapesDataModule,
    TreeSatAITimeSeriesDataModule,
)
from torchgeo_omnisat.datasets.common.integrity import KINDS, Problem, Report
from torchgeo_omnisat.datasets.flair import CENTROIDS
from torchgeo_omnisat.datasets.treesatai import LABELS

ARGUMENTS: dict[str, Any] = {'num_tiles': 15, 'size': 8, 'dates': (4, 5)}


@pytest.fixture(scope='module')
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen synthetic landscapes, to be read alone."""
    root = tmp_path_factory.mktemp('check') / 'landscapes'
    SyntheticLandscapesDataModule(str(root), **ARGUMENTS).make_dataset('train')
    return root


@pytest.fixture
def root(clean: Path, tmp_path: Path) -> Path:
    """A copy to be broken."""
    return Path(shutil.copytree(clean, tmp_path / 'landscapes'))


def find(datamodule: MultimodalDataModule) -> list[Problem]:
    return list(walk(datamodule).problems)


def array(root: Path, path: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> None:
    np.save(root / path, change(np.load(root / path)))


def put(value: float, place: Any) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    def change(old: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        old[place] = value
        return old

    return change


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def without_crs(path: Path) -> None:
    with rasterio.open(path) as file:
        image, profile = file.read(), file.profile
    profile.update(crs=None, transform=from_origin(0, 0, 1, 1))
    with rasterio.open(path, 'w', **profile) as file:
        file.write(image)


def dates(root: Path, number: int, name: str, change: Callable[[list[int]], list[int]]) -> None:
    index = json.loads((root / 'metadata.geojson').read_text())
    (feature,) = (f for f in index['features'] if f['properties']['ID_PATCH'] == number)
    stamps = change(list(feature['properties'][f'dates-{name}'].values()))
    edit(root, number, **{f'dates_{name}': {str(i): stamp for i, stamp in enumerate(stamps)}})


INDEX = 'metadata.geojson'
#: Sample, part, file, kind, what the reason says, and how to break it.
FAULTS: list[tuple[int, str, str, str, str, Callable[[Path], object]]] = [
    (10000, 's2', 'DATA_S2/S2_10000.npy', 'missing', 'does not exist', lambda r: (r / 'DATA_S2/S2_10000.npy').unlink()),
    (10001, 's1a', 'DATA_S1A/S1A_10001.npy', 'unreadable', 'truncated or damaged: .*mmap length',
     lambda r: truncate(r / 'DATA_S1A/S1A_10001.npy')),
    (10002, 'spot', SPOT.format(10002), 'unreadable', 'truncated or damaged: .*cannot be read',
     lambda r: truncate(r / SPOT.format(10002))),
    (10003, 's2', 'DATA_S2/S2_10003.npy', 'shape', r'has shape \(\d, 10, 8, 4\), expected \(any, 10, 8, 8\)',
     lambda r: array(r, 'DATA_S2/S2_10003.npy', lambda a: a[..., :4])),
    (10004, 's1d', 'DATA_S1D/S1D_10004.npy', 'dtype', 'holds float32, expected float16',
     lambda r: array(r, 'DATA_S1D/S1D_10004.npy', lambda a: a.astype(np.float32))),
    (10005, 's1a', 'DATA_S1A/S1A_10005.npy', 'nan', r'\d\d\.\d% of the pixels are NaN or nodata, expected at most 25',
     lambda r: array(r, 'DATA_S1A/S1A_10005.npy', put(np.nan, np.s_[:2]))),
    (10006, 's2', 'DATA_S2/S2_10006.npy', 'empty', r'no valid image among \d: 100.0% of the pixels are NaN',
     lambda r: array(r, 'DATA_S2/S2_10006.npy', put(-10000, np.s_[:]))),
    (10007, 's1a', 'DATA_S1A/S1A_10007.npy', 'dates', r'holds \d images, but metadata.geojson has \d dates',
     lambda r: dates(r, 10007, 'S1A', lambda days: days[:-1])),
    (10008, 's2', INDEX, 'dates', 'not in the order of time: 20', lambda r: dates(r, 10008, 'S2', lambda d: d[::-1])),
    (10009, 's2', INDEX, 'dates', 'has 20.* 2 times', lambda r: dates(r, 10009, 'S2', lambda d: d[:1] + d[:-1])),
    (10010, 'spot', SPOT.format(10010), 'crs', 'has no CRS', lambda r: without_crs(r / SPOT.format(10010))),
    (10011, 'mask', 'ANNOTATIONS/TARGET_10011.npy', 'label', 'holds labels from 0 to 77, expected classes 0 to 19',
     lambda r: array(r, 'ANNOTATIONS/TARGET_10011.npy', lambda a: np.where(a == a[0].max(), 77, a * (a < 50)))),
    (10012, 'mask', 'ANNOTATIONS/TARGET_10012.npy', 'shape', r'has shape \(3, 4, 8\), expected \(3, 8, 8\)',
     lambda r: array(r, 'ANNOTATIONS/TARGET_10012.npy', lambda a: a[:, :4])),
    (10013, 's1a', INDEX, 'dates', 'expected dates such as .* got',
     lambda r: dates(r, 10013, 'S1A', lambda d: [20190230, *d[1:]])),
    (10014, 'mask', 'ANNOTATIONS/TARGET_10014.npy', 'missing', 'does not exist',
     lambda r: (r / 'ANNOTATIONS/TARGET_10014.npy').unlink()),
]  # fmt: skip


class TestLandscapes:
    def test_nothing_in_a_clean_tree(self, clean: Path) -> None:
        report = walk(SyntheticLandscapesDataModule(str(clean), **ARGUMENTS), num_workers=2)
        assert report.problems == []
        assert report.samples == {'train': 9, 'val': 3, 'test': 3}
        lacking = {name: 15 - len(list(clean.rglob(f'*{name.upper()}*_1*.[nt]*'))) for name in ('s1d', 'spot')}
        assert report.absent == {name: count for name, count in lacking.items() if count}

    def test_every_planted_fault_is_found_and_nothing_else(self, root: Path) -> None:
        for *_, plant in FAULTS:
            plant(root)
        problems = find(SyntheticLandscapesDataModule(str(root), **ARGUMENTS))
        assert {(p.sample, p.part, p.file, p.kind) for p in problems} == {
            (str(sample), part, file, kind) for sample, part, file, kind, *_ in FAULTS
        }
        assert len(problems) == len(FAULTS) >= 12
        assert not any(problem.warning for problem in problems)
        assert {problem.kind for problem in problems} == set(KINDS) - {'values', 'settings', 'training'}
        reasons = {problem.sample: problem.reason for problem in problems}
        for sample, *_, reason, _ in FAULTS:
            with pytest.raises(AssertionError, match=reason):
                raise AssertionError(reasons[str(sample)])

    def test_an_index_that_cannot_be_read(self, root: Path) -> None:
        (root / INDEX).write_text('{')
        (problem,) = find(SyntheticLandscapesDataModule(str(root), **ARGUMENTS))
        assert (problem.sample, problem.file, problem.kind) == ('', INDEX, 'unreadable')

    @pytest.mark.parametrize('missing', ['error', 'allow'])
    def test_image_that_nothing_says_was_acquired(self, root: Path, missing: Any) -> None:
        for path in root.rglob('*SPOT6*_1*.tif'):
            if path.name != Path(SPOT.format(10001)).name:
                path.unlink()
        report = walk(PASTISMultimodalDataModule(str(root), modalities=('s2', 'spot'), missing=missing))
        assert report.absent == ({'spot': 14} if missing == 'allow' else {})
        assert report.count() == ({} if missing == 'allow' else {'missing': 14})


class TestOthers:
    @pytest.fixture
    def flair(self, tmp_path: Path) -> Path:
        """Five zones of one patch each."""
        write_flair(tmp_path / 'flair', FLAIRRecipe(zones=5, tile=256, size=8, dates=4))
        return tmp_path / 'flair'

    @pytest.fixture
    def treesatai(self, tmp_path: Path) -> Path:
        """Five plots."""
        write_treesatai(tmp_path / 'treesatai', TreeSatAIRecipe(num_tiles=5, dates=5))
        return tmp_path / 'treesatai'

    def test_flair(self, flair: Path) -> None:
        assert find(FLAIRDataModule(str(flair))) == []
        images, masks = sorted(flair.rglob('IMG_*.tif')), sorted(flair.rglob('MSK_*.tif'))
        probabilities, products = sorted(flair.rglob('*_masks.npy')), sorted(flair.rglob('*_products.txt'))
        truncate(images[0])
        masks[1].unlink()
        without_crs(masks[2])
        without_crs(images[3])
        probabilities[4].unlink()
        lines = products[2].read_text().splitlines()
        products[2].write_text('\n'.join(lines[1:]))
        centroids = json.loads((flair / CENTROIDS).read_text())
        name = centroids.popitem()[0]
        (flair / CENTROIDS).write_text(json.dumps(centroids))
        problems = find(FLAIRDataModule(str(flair)))
        found = {(problem.file, problem.kind, problem.warning) for problem in problems}
        data = products[2].name.replace('products.txt', 'data.npy')
        assert {
            (str(images[0].relative_to(flair)), 'unreadable', False),
            (str(masks[1].relative_to(flair)), 'missing', False),
            (str(masks[2].relative_to(flair)), 'crs', True),
            (str(images[3].relative_to(flair)), 'crs', False),
            (str(probabilities[4].relative_to(flair)), 'missing', False),
            (str(products[2].with_name(data).relative_to(flair)), 'dates', False),
        } <= found
        assert any(p.kind == 'missing' and p.file == CENTROIDS and name in p.reason for p in problems)

    def test_treesatai(self, treesatai: Path) -> None:
        assert find(TreeSatAITimeSeriesDataModule(str(treesatai))) == []
        aerial, series = sorted((treesatai / 'aerial').iterdir()), sorted((treesatai / 'sentinel-ts').iterdir())
        truncate(series[0])
        without_crs(aerial[1])
        aerial[2].unlink()
        with h5py.File(series[3], 'a') as file:
            image, names = file['sen-1-asc-data'][:], file['sen-2-products'][:-1]
            del file['sen-1-asc-data'], file['sen-2-products']
            file['sen-1-asc-data'] = image.astype(np.float64)
            file['sen-2-products'] = names
            file['sen-1-des-data'][...] = np.nan
        labels = json.loads((treesatai / LABELS).read_text())
        labels[aerial[4].name] = [['Betula', 7.0]]
        del labels[aerial[3].name]
        (treesatai / LABELS).write_text(json.dumps(labels))
        problems = find(TreeSatAITimeSeriesDataModule(str(treesatai)))
        hdf = f'sentinel-ts/{series[0].name}', f'sentinel-ts/{series[3].name}'
        assert {(problem.sample, problem.part, problem.file, problem.kind) for problem in problems} == {
            *((aerial[0].stem, name, hdf[0], 'unreadable') for name in ('s2', 's1a', 's1d')),
            (aerial[1].stem, 'aerial', f'aerial/{aerial[1].name}', 'crs'),
            (aerial[2].stem, 'aerial', f'aerial/{aerial[2].name}', 'missing'),
            (aerial[3].stem, 's1a', hdf[1], 'dtype'),
            (aerial[3].stem, 's2', hdf[1], 'dates'),
            (aerial[3].stem, 's1d', hdf[1], 'empty'),
            (aerial[3].stem, 'label', LABELS, 'missing'),
            (aerial[4].stem, 'label', LABELS, 'label'),
        }


class TestCommand:
    def test_table_and_file(self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ['check', '--data', 'SyntheticLandscapesDataModule', f'--data.root={root}', '--workers', '0']
        words += [
            '--data.num_tiles=15',
            '--data.size=8',
            '--data.dates=[4,5]',
            '--output',
            str(tmp_path / 'out/check.json'),
        ]
        assert main(words) == 0
        assert 'Problems: none. Warnings: none.' in capsys.readouterr().out
        truncate(root / 'DATA_S1A/S1A_10001.npy')
        without_crs(root / SPOT.format(10010))
        assert main(words) == 1
        out = capsys.readouterr().out
        assert 'PROBLEM  10001   DATA_S1A/S1A_10001.npy' in out
        assert 'Problems: 1 unreadable, 1 crs; in 2 tiles.' in out
        report = Report.read(tmp_path / 'out/check.json')
        assert report.samples_at_fault == {'10001': ('unreadable',), '10010': ('crs',)}
        assert (report.layout, report.root) == ('PASTIS', str(root))
        assert [path.name for path in (tmp_path / 'out').iterdir()] == ['check.json']
        assert main([*words, '--ignore', 'crs', 'unreadable']) == 0

    def test_nothing_there_is_one_error(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as error:
            main(['check', '--data=FLAIRDataModule', f'--data.root={tmp_path}'])
        assert error.value.code == 1
        assert 'check: DatasetNotFoundError: Dataset not found' in capsys.readouterr().err

    def test_rasters(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for stamp in ('20210301', '20210401'):
            write(tmp_path / f's2/a_{stamp}.tif', ramp(16, 16, 2), bands=('B04', 'B08'))
        write(tmp_path / 's1/a_20210405.tif', -ramp(16, 8) / 100)
        write(tmp_path / 'labels/crops.tif', np.arange(256, dtype=np.uint8).reshape(16, 16) % 2)
        rasters, split = '{s2: {path: s2}, s1: {path: s1}}', '{axis: x, fractions: [0.5, 0, 0.5]}'
        words = ['check', '--data=MultimodalGeoDataModule', f'--data.root={tmp_path}', f'--data.rasters={rasters}']
        words += ['--data.mask={path: labels}', '--data.labels=[a, b]', f'--data.split={split}', '--workers=0']
        words += ['--data.tile_size=80']
        assert main(words) == 0
        out = capsys.readouterr().out
        assert 's2        2      2     2021-03-01  2021-04-01  10       EPSG:32631  B04 B08' in out
        assert '2 tiles have no s1 (partial coverage is not an error).' in out
        assert "read 4 tiles (2 of 'train', 2 of 'test')" in out
        assert 'Problems: none' in out
        write(tmp_path / 's2/a_20210501.tif', ramp(16, 16, 1))
        assert main(words) == 1
        out = capsys.readouterr().out
        assert f"shape: {tmp_path}/s2/a_20210501.tif has 1 band, expected 2 bands ['B04', 'B08'] as in" in out
        assert out.count('a_20210501.tif') == 1, 'a file is reported once, not tile by tile'
        (tmp_path / 's2/a_20210501.tif').unlink()
        write(tmp_path / 'other/crops.tif', np.full((16, 16), 7, np.uint8))
        assert main([*words, '--data.mask={path: other}']) == 1
        out = capsys.readouterr().out
        assert out.count('label:') == 1, 'codes are told once, not tile by tile'
        assert 'other/crops.tif has the codes 7 (256 pixels), expected classes 0 to 1 (a, b)' in out
        for value, told in ((0, "no pixel of 'train' has the label ['b']"), (255, "'train' has no labelled pixel")):
            write(tmp_path / f'l{value}.tif', np.full((16, 16), value, np.uint8))
            main([*words, f'--data.mask={{path: l{value}.tif}}'])
            assert told in capsys.readouterr().out
        assert main([*words, '--data.rasters={s2: {path: s3}}']) == 1
        assert "path of 's2' is '" in capsys.readouterr().out

    def test_unknown_facts_are_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in 's1', 's2':
            write(tmp_path / name / 'a_20210615.tif', ramp(16, 16))
        words = ['check', '--data=MultimodalGeoDataModule', f'--data.root={tmp_path}', '--data.tile_size=80']
        rasters = {'s1': {'path': 's1'}, 's2': {'path': 's2', 'kind': 'optical', 'unit': 'dn'}}
        main([*words, f'--data.rasters={json.dumps(rasters)}', '--workers=0'])
        (line,) = [line for line in capsys.readouterr().out.splitlines() if 'simulated' in line]
        assert 's1 (kind and unit unknown)' in line
        assert 's2' not in line

    def test_the_same_about_many_samples_is_one_line(self) -> None:
        problems = [Problem(str(n), 's2', 'a.npy', 'missing', 'gone') for n in range(9)]
        problems += [Problem('x', 'mask', f'{n}.tif', 'crs', 'none', warning=True) for n in range(9)]
        lines = table(Report('FLAIR', '/', {'train': 9}, problems), rows=4).splitlines()
        assert '0 and 8 more' in lines[1]
        assert lines[5].startswith('... and 6 more lines')
        assert 'Problems: 9 missing; in 9 tiles. Warnings: 9.' in lines[-1]


@pytest.mark.skipif(not SHARED.exists(), reason='no real data beside the checkout')
class TestRealData:
    def test_pastis(self) -> None:
        assert find(PASTISMultimodalDataModule(str(SHARED / 'pastis-r-mini'))) == []

    def test_flair_masks_have_no_crs_as_published(self) -> None:
        report = walk(FLAIRDataModule(str(SHARED / 'flair-mini')))
        assert [(problem.part, problem.kind, problem.warning) for problem in report.problems] == [
            ('mask', 'crs', True)
        ] * 3
        assert report.faults == []

    def test_treesatai(self, tmp_path: Path) -> None:
        root = Path(shutil.copytree(SHARED / 'treesatai-ts', tmp_path / 'treesatai'))
        root.chmod(0o755)
        (name,) = (path.name for path in (root / 'aerial').iterdir())
        for split in ('train', 'test'):
            (root / f'{split}_filenames.lst').write_text(name)
        report = walk(TreeSatAITimeSeriesDataModule(str(root)))
        # The only plot is held out for validation, so there is none to train on.
        assert report.samples == {'val': 1, 'test': 1}
        (problem,) = report.problems
        assert (problem.sample, "split 'train'" in problem.reason) == ('', True)
