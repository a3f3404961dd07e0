# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Bad input to FLAIR: one error each, with the file or argument, the value and what was expected."""

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchgeo.datasets import DatasetNotFoundError

from tests.conftest import SHARED, save
from tests.flair_tree import aerial, labels, series, write_image, write_products, write_tree
from torchgeo_omnisat.datasets import FLAIR
from torchgeo_omnisat.datasets import flair as flair_layout
from torchgeo_omnisat.datasets.flair import ARCHIVES, CENTROIDS

ZONE = 'D001_2019/Z1_AA'


@pytest.fixture(scope='module')
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that no test changes."""
    return write_tree(tmp_path_factory.mktemp('flair'))


@pytest.fixture
def own(tree: Path, tmp_path: Path) -> Path:
    """A copy to be broken."""
    return Path(shutil.copytree(tree, tmp_path / 'own'))


def truncate(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


class TestArguments:
    @pytest.mark.parametrize(
        ('arguments', 'match'),
        [
            ({'split': 'all'}, r"split is 'all', expected one of \['train', 'val', 'test'\]"),
            ({'num_classes': 12}, r'num_classes is 12, expected one of \[13, 19\]'),
            ({'missing': 'ignore'}, r"missing is 'ignore', expected one of \['error', 'allow', 'check'\]"),
            ({'modalities': 's2'}, "modalities is 's2', expected a tuple of names"),
            ({'modalities': ()}, r'modalities is \(\), expected'),
            ({'modalities': ('spot',)}, r"modalities names 'spot', which is none of \['aerial', 's2'\]"),
            ({'bands': {'s1a': ('VV',)}}, r"bands names the modalities \['s1a'\], expected some of \['aerial', 's2'\]"),
            ({'bands': {'aerial': ('SWIR',)}}, r"unknown bands \['SWIR'\] of 'aerial', expected some of \['R'"),
            ({'max_dates': 0}, 'max_dates is 0, expected an integer, at least 1'),
        ],
    )
    def test_are_refused(self, tree: Path, arguments: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            FLAIR(tree, **arguments)


def break_mask(mask: np.ndarray[Any, Any]) -> Callable[[Path], None]:
    return lambda root: write_image(labels(root, '000001'), mask)


def break_series(end: str, array: np.ndarray[Any, Any]) -> Callable[[Path], None]:
    return lambda root: save(series(root, ZONE, end), array)


def put_centre(value: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / CENTROIDS
        path.write_text(json.dumps(json.loads(path.read_text()) | {'IMG_000001.tif': value}))

    return change


class TestFiles:
    @pytest.mark.parametrize('share', [0, 0.5])
    @pytest.mark.parametrize('name', ['aerial', 'labels', 'data.npy', 'masks.npy'])
    def test_truncated(self, own: Path, name: str, share: float) -> None:
        places = {'aerial': aerial, 'labels': labels}
        path = places[name](own, '000001') if name in places else series(own, ZONE, name)
        truncate(path, share)
        with pytest.raises(ValueError, match=rf'{path}'):
            FLAIR(own)[0]

    @pytest.mark.parametrize(
        ('change', 'match'),
        [
            (break_mask(np.zeros((1, 256, 256), np.uint8)), r'MSK_000001\.tif holds classes from 0 to 0, expected'),
            (break_mask(np.full((1, 256, 256), 20, np.uint8)), r'MSK_000001\.tif holds classes from 20 to 20'),
            (break_mask(np.ones((2, 256, 256), np.uint8)), r'MSK_000001\.tif holds uint8 \(2, 256, 256\), expected'),
            (break_mask(np.ones((1, 256, 256), np.float32)), r'MSK_000001\.tif holds float32 \(1, 256, 256\)'),
            (
                break_mask(np.ones((1, 128, 256), np.uint8)),
                r'IMG_000001\.tif has shape \(5, 256, 256\), expected',
            ),
            (
                break_series('data.npy', np.ones((4, 9, 12, 14))),
                r'data\.npy has shape \(4, 9, 12, 14\), expected numbers \(4, 10, H, W\): 4 dates in SEN2.*products',
            ),
            (break_series('data.npy', np.ones((3, 10, 12, 14))), r'data\.npy has shape \(3, 10, .*4 dates'),
            (break_series('data.npy', np.ones((4, 10, 12))), r'data\.npy has shape \(4, 10, 12\), expected'),
            (
                break_series('masks.npy', np.ones((4, 2, 12, 13))),
                r'masks\.npy has shape \(4, 2, 12, 13\), expected numbers \(4, 2, 12, 14\)',
            ),
            (
                put_centre([40, 4]),
                r'sp_to_patch\.json puts IMG_000001\.tif at \(40, 4\), .*\(12, 14\) pixels',
            ),
            (put_centre([-9, 4]), r'puts IMG_000001\.tif at \(-9, 4\), expected a position'),
            (put_centre(['3', 4]), r"json holds \['3', 4\] for IMG_000001\.tif, expected \{"),
            (put_centre(None), r'json holds None for IMG_000001\.tif, expected'),
        ],
    )
    def test_something_else(self, own: Path, change: Callable[[Path], None], match: str) -> None:
        change(own)
        with pytest.raises(ValueError, match=match):
            FLAIR(own)[0]

    @pytest.mark.parametrize('line', ['S2A_MSIL2A_20191340T105031_N0212', '20190101', 'S2A_MSIL2A_2019-01-01T10'])
    def test_product_names(self, own: Path, line: str) -> None:
        path = series(own, ZONE, 'products.txt')
        path.write_text(path.read_text().split()[0] + '\n' + line + '\n')
        with pytest.raises(ValueError, match=rf'line 2.*{path}'):
            FLAIR(own)[0]

    def test_number_of_products(self, own: Path) -> None:
        write_products(series(own, ZONE, 'products.txt'), ('20190101', '20190102'))
        with pytest.raises(ValueError, match=r'data\.npy.*shape \(4, 10, 12, 14\).*2 dates'):
            FLAIR(own)[0]

    @pytest.mark.parametrize('name', ['flair_aerial_metadata.json', CENTROIDS])
    @pytest.mark.parametrize('text', ['{"IMG', '[]'])
    def test_side_files(self, own: Path, name: str, text: str) -> None:
        (own / name).write_text(text)
        with pytest.raises(ValueError, match=rf'{name} (cannot.*read|holds list).*expected \{{"IMG_000000'):
            FLAIR(own)

    def test_aerial_date(self, own: Path) -> None:
        (own / 'flair_aerial_metadata.json').write_text('{"IMG_000001": {"date": "26/08/2019"}}')
        with pytest.raises(ValueError, match=r"IMG_000001.*metadata\.json.*'26/08/2019'.*date"):
            FLAIR(own)

    def test_missing_labels_are_never_allowed(self, own: Path) -> None:
        labels(own, '000002').unlink()
        with pytest.raises(FileNotFoundError, match=r'MSK_000002\.tif.*labels.*aerial'):
            FLAIR(own, missing='allow')

    def test_no_centroids(self, own: Path) -> None:
        (own / CENTROIDS).unlink()
        with pytest.raises(FileNotFoundError, match=rf'{CENTROIDS}'):
            FLAIR(own)
        FLAIR(own, modalities=('aerial',))[0]

    @pytest.mark.parametrize('missing', ['error', 'allow'])
    @pytest.mark.parametrize('end', ['data.npy', 'masks.npy', 'products.txt'])
    def test_half_a_super_area(self, own: Path, end: str, missing: Any) -> None:
        path = series(own, ZONE, end)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=rf'{path}.*SEN2'):
            FLAIR(own, missing=missing)
        FLAIR(own, modalities=('aerial',))[0]

    def test_no_super_area(self, own: Path) -> None:
        shutil.rmtree(own / 'flair_sen_train' / ZONE)
        with pytest.raises(FileNotFoundError, match=r'flair_sen_train.*\b2\b'):
            FLAIR(own, modalities=('aerial', 's2'), missing='allow')
        assert list(FLAIR(own).modalities) == ['aerial']

    def test_file_may_vanish(self, own: Path) -> None:
        strict, lax = FLAIR(own), FLAIR(own, missing='allow')
        aerial(own, '000001').unlink()
        with pytest.raises(FileNotFoundError, match=r'IMG_000001\.tif.*uint8'):
            strict[0]
        assert 'image_aerial' not in lax[0]

    def test_size_that_sentinel_2_cannot_cover(self, tmp_path: Path) -> None:
        root = write_tree(tmp_path, size=100)
        with pytest.raises(ValueError, match=r"MSK_000001\.tif.*\(100, 100\) pixels: 20\.0 m.*'s2'"):
            FLAIR(root)[0]


class TestRoot:
    def test_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetNotFoundError, match=r"root=.*nowhere.*\['flair_labels_train', 'flair_aer"):
            FLAIR(tmp_path / 'nowhere')

    def test_other_split(self, own: Path) -> None:
        for directory in own.glob('flair_2_*'):
            shutil.rmtree(directory)
        FLAIR(own, 'val')
        with pytest.raises(DatasetNotFoundError, match=r"\['flair_2_labels_test', 'flair_2_aerial_test', 'fl"):
            FLAIR(own, 'test')
        for what in ('labels', 'aerial', 'sen'):
            shutil.rmtree(own / f'flair_{what}_train/D004_2021')
        with pytest.raises(DatasetNotFoundError, match=r"split 'val'.*flair_labels_train.*\['D001_"):
            FLAIR(own, 'val')

    @pytest.mark.parametrize('name', ['aerial', 's2'])
    def test_modality_that_the_root_lacks(self, own: Path, name: str) -> None:
        directory = {'aerial': 'flair_aerial_train', 's2': 'flair_sen_train'}[name]
        shutil.rmtree(own / directory)
        with pytest.raises(DatasetNotFoundError, match=rf"\['{directory}'\].*archives"):
            FLAIR(own, modalities=(name,))
        (other,) = FLAIR(own).modalities
        assert other != name

    @pytest.mark.skipif(not SHARED.exists(), reason='no real data beside the checkout')
    @pytest.mark.parametrize('other', ['pastis-r-mini', 'treesatai-ts', 'belgium-crops'])
    def test_another_dataset(self, other: str) -> None:
        with pytest.raises(DatasetNotFoundError, match=other):
            FLAIR(SHARED / other)


class TestArchives:
    @pytest.fixture
    def archives(self, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Archives in a directory of their own, and the addresses and checksums that lead there."""
        place = tmp_path / 'archives'
        place.mkdir()
        for holds, archive in ARCHIVES.items():
            with zipfile.ZipFile(place / archive.filename, 'w') as file:
                for path in sorted(p for top in tree.glob(holds) for p in (top, *top.rglob('*')) if p.is_file()):
                    file.write(path, path.relative_to(tree))
            path = place / archive.filename
            changed = replace(archive, source=path.as_uri(), digest=md5(path.read_bytes()).hexdigest())
            monkeypatch.setitem(flair_layout.ARCHIVES, holds, changed)
        return place

    @pytest.mark.parametrize('checksum', [False, True])
    def test_download(self, archives: Path, tree: Path, tmp_path: Path, checksum: bool) -> None:
        root = tmp_path / 'new' / 'root'
        with pytest.raises(DatasetNotFoundError):
            FLAIR(root)
        sample = FLAIR(root, download=True, checksum=checksum)[0]
        assert torch_equal(sample, FLAIR(tree)[0])
        assert not list(root.glob('flair_2_*_test*'))
        FLAIR(root, 'test', download=True, checksum=checksum)[0]

    def test_download_of_one_modality(self, archives: Path, tmp_path: Path) -> None:
        FLAIR(tmp_path / 'root', modalities=('aerial',), download=True)
        assert sorted(p.name for p in (tmp_path / 'root').iterdir() if p.suffix != '.zip') == [
            'flair_aerial_metadata.json', 'flair_aerial_train', 'flair_labels_train',
        ]  # fmt: skip

    def test_already_downloaded(self, archives: Path, tree: Path) -> None:
        assert torch_equal(FLAIR(archives, 'val', checksum=True)[0], FLAIR(tree, 'val')[0])
        for path in archives.glob('*.zip'):
            path.unlink()
        assert torch_equal(FLAIR(archives, 'val')[0], FLAIR(tree, 'val')[0])

    def test_already_extracted(self, tree: Path) -> None:
        assert len(FLAIR(tree, download=True, checksum=True)) == len(FLAIR(tree))

    def test_corrupted(self, archives: Path) -> None:
        path = archives / 'flair_labels_train.zip'
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(RuntimeError, match=rf'Dataset.*corrupted\. {path}.*md5'):
            FLAIR(archives, checksum=True)
        with pytest.raises(RuntimeError, match=rf'Dataset.*corrupted\. {path}'):
            FLAIR(archives)
        assert not (archives / 'flair_labels_train').exists()


def torch_equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two samples hold the same, NaN too."""
    return one.keys() == other.keys() and all(
        np.array_equal(one[key], other[key], equal_nan=one[key].is_floating_point()) for key in one
    )
