# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Bad input to PASTISMultimodal: one error each, with the file or argument, the value and what was expected."""

import json
import shutil
import zipfile
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchgeo.datasets import DatasetNotFoundError

from tests.conftest import SHARED, SPOT, edit, save, write_pastis, write_spot
from torchgeo_omnisat.datasets import PASTISMultimodal

S2 = 'DATA_S2/S2_10000.npy'
S1A = 'DATA_S1A/S1A_10000.npy'
TARGET = 'ANNOTATIONS/TARGET_10000.npy'


def truncate(path: Path, share: float = 0.6) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def read(root: Path, **arguments: Any) -> None:
    PASTISMultimodal(root, **arguments)[0]


class TestArguments:
    @pytest.mark.parametrize(
        ('arguments', 'match'),
        [
            ({'folds': (1, 6)}, r'folds is \(1, 6\), expected some of 1, 2, 3, 4, 5'),
            ({'folds': ()}, r'folds is \(\), expected'),
            ({'folds': 1}, 'folds is 1, expected .* in a tuple'),
            ({'folds': (3,)}, r'folds is \(3,\), of which .*metadata.geojson has no patch; it has \[1\]'),
            ({'modalities': ('s2', 's3')}, "modalities names 's3', which is none of .*; expected some of"),
            ({'modalities': 's2'}, "modalities is 's2', expected a tuple of names"),
            ({'modalities': ()}, r'modalities is \(\), expected'),
            ({'bands': {'s1a': ('HH',)}}, r"unknown bands \['HH'\] of 's1a', expected some of \['VV', 'VH', 'VV-VH'\]"),
            ({'bands': {'s1a': ()}}, "bands of 's1a' must be distinct and at least one"),
            ({'bands': {'dem': ('z',)}}, r"bands names the modalities \['dem'\], expected some of"),
            ({'modalities': ('s2',), 'bands': {'spot': ('R',)}}, r"bands names the modalities \['spot'\]"),
            ({'max_dates': 0}, 'max_dates is 0, expected an integer, at least 1'),
            ({'date_range': ('2019-02-30', '2019-03-01')}, "date_range holds '2019-02-30', expected a date such as"),
            ({'date_range': ('2019-03-01', '2019-02-01')}, 'date_range is .* expected the first day not to come after'),
            ({'date_range': '2019'}, "date_range is '2019', expected two dates"),
            ({'missing': 'ignore'}, r"missing is 'ignore', expected one of \['error', 'allow', 'check'\]"),
        ],
    )
    def test_are_refused(self, one: Path, arguments: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            PASTISMultimodal(one, **arguments)

    def test_modality_that_the_root_lacks(self, one: Path) -> None:
        shutil.rmtree(one / 'DATA_SPOT')
        with pytest.raises(ValueError, match=r"modalities.*'spot'.*file.*\['s2'"):
            PASTISMultimodal(one, modalities=('spot',), missing='allow')


class TestFiles:
    @pytest.mark.parametrize('path', [S2, S1A, TARGET, SPOT.format(10000)])
    @pytest.mark.parametrize('share', [0.7, 0.001, 0])
    def test_truncated(self, one: Path, path: str, share: float) -> None:
        truncate(one / path, share)
        with pytest.raises(ValueError, match=rf'{path}') as error:
            read(one)
        assert str(one) in str(error.value)

    @pytest.mark.parametrize('path', [S2, S1A, SPOT.format(10000)])
    def test_missing(self, one: Path, path: str) -> None:
        write_pastis(one, folds=(1, 1), size=8)
        (one / path).unlink()
        with pytest.raises(FileNotFoundError, match=rf'{path}.*2 samples'):
            PASTISMultimodal(one)

    def test_missing_labels_are_never_allowed(self, one: Path) -> None:
        (one / TARGET).unlink()
        with pytest.raises(FileNotFoundError, match=rf'{TARGET}.*integers'):
            read(one, missing='allow')

    @pytest.mark.parametrize('shape', [(4, 9, 8, 8), (4, 10, 8, 9), (4, 10, 64), (10, 4, 8, 8)])
    def test_shape_of_a_series(self, one: Path, shape: tuple[int, ...]) -> None:
        edit(one, 10000, dates_S2=str([20190101, 20190102, 20190103, 20190104]))
        save(one / S2, np.zeros(shape, np.int16))
        with pytest.raises(ValueError, match=rf'{S2}.*shape \({shape[0]}.*int16 \(4, 10, 8, 8\): 4 dates'):
            read(one)

    def test_number_of_dates(self, one: Path) -> None:
        edit(one, 10000, dates_S1A={'0': 20190101, '1': 20190102})
        with pytest.raises(ValueError, match=rf'{S1A}.*shape.*float16 \(2, 3, 8, 8\): 2 dates.*metadata'):
            read(one)

    @pytest.mark.parametrize(('modality', 'path'), [('s2', S2), ('s1a', S1A)])
    def test_something_else_than_numbers(self, one: Path, modality: str, path: str) -> None:
        save(one / path, np.full((3, 10, 8, 8), 'x'))
        with pytest.raises(ValueError, match=rf'{path}.*<U1'):
            read(one, modalities=(modality,))
        (one / path).write_bytes(b'not an array at all')
        with pytest.raises(ValueError, match=rf'{path}'):
            read(one, modalities=(modality,))

    @pytest.mark.parametrize('value', [np.nan, np.inf])
    def test_not_finite_where_integers_are_stored(self, one: Path, value: float) -> None:
        s2 = np.load(one / S2).astype(np.float32)
        save(one / S2, s2)
        read(one)
        s2[1, 2, 3, 4] = value
        save(one / S2, s2)
        with pytest.raises(ValueError, match=rf'{S2}.*float32.*1.*int16'):
            read(one)

    @pytest.mark.parametrize(
        ('value', 'match'), [(20, 'classes from 0 to 20'), (-1, 'classes from -1 to 0'), (255, 'classes from 0 to 255')]
    )
    def test_classes(self, one: Path, value: int, match: str) -> None:
        target = np.zeros((3, 8, 8), np.int16)
        target[0, 0, 0] = value
        save(one / TARGET, target)
        with pytest.raises(ValueError, match=rf'{TARGET}.*{match}.*integers.*classes 0.*19'):
            read(one)

    def test_labels_that_are_no_integers(self, one: Path) -> None:
        target = np.zeros((3, 8, 8))
        save(one / TARGET, target)
        with pytest.raises(ValueError, match=rf'{TARGET}.*float64 \(3, 8, 8\).*0 NaN.*integers'):
            read(one)
        target[0, 0] = np.nan
        save(one / TARGET, target)
        with pytest.raises(ValueError, match='with 8 NaN'):
            read(one)
        save(one / TARGET, np.zeros((8, 8), np.uint8))
        with pytest.raises(ValueError, match=rf'{TARGET}.*uint8 \(8, 8\)'):
            read(one)

    @pytest.mark.parametrize('shape', [(3, 80, 79), (3, 8, 8), (4, 80, 80)])
    def test_spot_on_other_ground(self, one: Path, shape: tuple[int, int, int]) -> None:
        write_spot(one / SPOT.format(10000), np.zeros(shape, np.uint8))
        with pytest.raises(ValueError, match=r'SPOT6.*10000\.tif.*shape.*uint8 \(3, 80, 80\): 3 bands'):
            read(one)


class TestIndex:
    @pytest.mark.parametrize(
        'dates',
        ['', '{', '[1, 2', 'tomorrow', '{"a": 20190101}', "['20190101', None]", '[20190231]', '[2019]', '7', '{}{}'],
    )
    def test_dates_that_are_none(self, one: Path, dates: str) -> None:
        edit(one, 10000, dates_S2=dates)
        with pytest.raises(ValueError, match=r"dates.*'dates-S2'.*patch 10000.*"):
            read(one)

    def test_dates_of_a_modality_are_missing(self, one: Path) -> None:
        edit(one, 10000, dates_S1D=None)
        with pytest.raises(ValueError, match=r"'dates-S1D'.*patch 10000.*metadata.geojson"):
            read(one)
        read(one, modalities=('s2', 's1a', 'spot'))

    def test_truncated(self, one: Path) -> None:
        truncate(one / 'metadata.geojson')
        with pytest.raises(ValueError, match=r'metadata\.geojson'):
            PASTISMultimodal(one)

    def test_of_something_else(self, one: Path) -> None:
        edit(one, 10000, Fold=None)
        with pytest.raises(ValueError, match=r"feature 0.*metadata\.geojson.*PASTIS's index"):
            PASTISMultimodal(one)
        index = json.loads((one / 'metadata.geojson').read_text())
        (one / 'metadata.geojson').write_text(json.dumps(index | {'features': []}))
        with pytest.raises(ValueError, match=r'metadata\.geojson'):
            PASTISMultimodal(one)

    def test_without_ground(self, one: Path) -> None:
        index = json.loads((one / 'metadata.geojson').read_text())
        index['features'][0]['geometry'] = None
        (one / 'metadata.geojson').write_text(json.dumps(index))
        with pytest.raises(ValueError, match=r'feature 0.*geometry'):
            PASTISMultimodal(one)

    def test_without_images(self, one: Path) -> None:
        for directory in ('S2', 'S1A', 'S1D', 'SPOT'):
            shutil.rmtree(one / f'DATA_{directory}')
        with pytest.raises(FileNotFoundError, match=rf'images.*modality.*files.*{S2}'):
            PASTISMultimodal(one)


class TestRoot:
    def test_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetNotFoundError, match=r'Dataset.*`root=.*Expected metadata\.geojson'):
            PASTISMultimodal(tmp_path / 'nowhere')

    @pytest.mark.skipif(not SHARED.exists(), reason='no real data beside the checkout')
    @pytest.mark.parametrize('other', ['flair-mini', 'treesatai-ts', 'belgium-crops'])
    def test_another_dataset(self, other: str) -> None:
        with pytest.raises(DatasetNotFoundError, match=other):
            PASTISMultimodal(SHARED / other)


class TestArchive:
    @pytest.fixture
    def archive(self, one: Path, tmp_path: Path) -> Path:
        (tmp_path / 'archive').mkdir()
        place = tmp_path / 'archive' / 'PASTIS-R.zip'
        with zipfile.ZipFile(place, 'w') as file:
            for path in sorted(one.rglob('*')):
                file.write(path, Path('PASTIS-R') / path.relative_to(one))
        return place

    def test_already_extracted(self, one: Path) -> None:
        assert len(PASTISMultimodal(one, download=True, checksum=True)) == 1

    def test_already_downloaded(self, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PASTISMultimodal, 'md5', md5(archive.read_bytes()).hexdigest())
        assert len(PASTISMultimodal(archive.parent, checksum=True)) == 1
        archive.unlink()
        dataset = PASTISMultimodal(archive.parent)
        assert dataset.path == archive.parent / 'PASTIS-R'
        assert sorted(p.name for p in archive.parent.iterdir()) == ['PASTIS-R']

    @pytest.mark.parametrize('checksum', [False, True])
    def test_download(self, archive: Path, tmp_path: Path, checksum: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PASTISMultimodal, 'url', archive.as_uri())
        monkeypatch.setattr(PASTISMultimodal, 'md5', md5(archive.read_bytes()).hexdigest())
        root = tmp_path / 'new' / 'root'
        with pytest.raises(DatasetNotFoundError):
            PASTISMultimodal(root)
        assert 'image_s1a' in PASTISMultimodal(root, download=True, checksum=checksum)[0]
        assert sorted(p.name for p in root.iterdir()) == ['PASTIS-R', 'PASTIS-R.zip']

    def test_download_is_not_what_it_should_be(
        self, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(PASTISMultimodal, 'url', archive.as_uri())
        with pytest.raises(RuntimeError, match='corrupted'):
            PASTISMultimodal(tmp_path / 'new', download=True, checksum=True)

    def test_corrupted(self, archive: Path) -> None:
        with pytest.raises(RuntimeError, match=r'Dataset.*corrupted\..*PASTIS-R\.zip.*md5 4887'):
            PASTISMultimodal(archive.parent, checksum=True)

    @pytest.mark.parametrize('share', [0, 0.5, 0.99])
    def test_truncated(self, archive: Path, share: float) -> None:
        truncate(archive, share)
        with pytest.raises(RuntimeError, match=r'Dataset.*corrupted\..*PASTIS-R\.zip'):
            PASTISMultimodal(archive.parent)
        assert [p.name for p in archive.parent.iterdir()] == ['PASTIS-R.zip']

    def test_of_something_else(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / 'PASTIS-R.zip', 'w') as file:
            file.writestr('README', 'no data')
        with pytest.raises(RuntimeError, match="directory 'PASTIS-R'"):
            PASTISMultimodal(tmp_path)

    def test_writes_nowhere_else(self, archive: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(archive, 'a') as file:
            for name in ('../evil', 'PASTIS-R/../../evil', '/tmp/../evil', 'beside/evil'):
                file.writestr(name, 'evil')
        before = set(tmp_path.rglob('*'))
        PASTISMultimodal(archive.parent)
        new = {p for p in set(tmp_path.rglob('*')) - before if archive.parent / 'PASTIS-R' not in (p, *p.parents)}
        assert not new

    def test_place_is_taken(self, archive: Path) -> None:
        (archive.parent / 'PASTIS-R').mkdir()
        (archive.parent / 'PASTIS-R' / 'notes').write_text('mine')
        with pytest.raises(RuntimeError, match=r'PASTIS-R.*PASTIS-R\.zip'):
            PASTISMultimodal(archive.parent)
        assert (archive.parent / 'PASTIS-R' / 'notes').read_text() == 'mine'
