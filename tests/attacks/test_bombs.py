# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Files that claim to hold more than a tile: refused by what they state, before memory is allocated."""

import os
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio

from torchgeo_omnisat.datasets.io.files import extract_directory, open_array, read_array, read_array_frames, read_raster


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


@pytest.mark.parametrize('side', [20_000, 100_000])
@pytest.mark.parametrize('shape', [None, (3, 16, 16)])
def test_raster(tmp_path: Path, side: int, shape: tuple[int, ...] | None) -> None:
    size = {'count': 3, 'width': side, 'height': side, 'dtype': 'uint8', 'sparse_ok': True}
    with rasterio.open(tmp_path / 'a.tif', 'w', 'GTiff', tiled=True, compress='deflate', BIGTIFF='YES', **size):
        pass
    with pytest.raises(ValueError, match=rf'a\.tif has shape \(3, {side}, {side}\), expected an image'):
        read_raster(tmp_path / 'a.tif', 'an image', shape)


def header(shape: str, descr: str = '<u1', version: int = 1) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b'\x93NUMPY' + bytes([version, 0]) + len(text).to_bytes(2, 'little') + text


READERS: list[Callable[[Path], object]] = [
    lambda path: open_array(path, 'an array', (2, 3)),
    lambda path: read_array(path, 'an array'),
    lambda path: read_array_frames(path, 'an array', (2, 3), np.arange(2), 'uint8', None),
]


@pytest.mark.parametrize('read', READERS)
@pytest.mark.parametrize(
    'content',
    [
        header('(17179869184,)'),
        header('(-1, 3)'),
        header('(2, -3)'),
        header('(99999999999999999999999, 2)'),
        header('(1e3, 2)'),
        header('("a", 2)'),
        header('2'),
        header('(2, 3)', '|O'),
        header('(2, 3)', '<f999'),
        header('(2, 3)', '[("a", "<f4")]'),
        header('(' * 500),
        header('(2, 3)', version=9),
        header('[x for x in ()]'),
        b'\x93NUMPY',
        b'\x93NUMPY\x01\x00\xff\xff',
        b'PK\x03\x04',
        b'',
    ],
    ids=lambda content: repr(content[-24:]) if isinstance(content, bytes) else '',
)
def test_array(tmp_path: Path, content: bytes, read: Callable[[Path], object]) -> None:
    (tmp_path / 'a.npy').write_bytes(content)
    with pytest.raises(ValueError, match=r'a\.npy'):
        read(tmp_path / 'a.npy')


def test_array_of_a_sparse_file(tmp_path: Path) -> None:
    with (tmp_path / 'a.npy').open('wb') as file:
        file.write(header('(3, 32000, 32000)'))
        file.truncate(4_000_000_000)
    with pytest.raises(ValueError, match=r'a\.npy has shape \(3, 32000, 32000\)'):
        read_array(tmp_path / 'a.npy', 'a mask')


@pytest.mark.parametrize('read', READERS)
def test_pipe_is_not_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / 'a.npy')
    with pytest.raises(ValueError, match=r'a\.npy'):
        read(tmp_path / 'a.npy')
    os.mkfifo(tmp_path / 'a.tif')
    with pytest.raises(ValueError, match=r'a\.tif'):
        read_raster(tmp_path / 'a.tif', 'an image')


class TestArchive:
    def refuse(self, path: Path, match: str) -> None:
        with pytest.raises(RuntimeError, match=rf'corrupted\. {path} cannot be unpacked: .*{match}'):
            extract_directory(path, 'data')
        assert [p.name for p in path.parent.iterdir()] == [path.name]

    def test_bomb(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / 'a.zip', 'w', zipfile.ZIP_DEFLATED) as file, file.open('data/a', 'w') as entry:
            for _ in range(140):
                entry.write(bytes(10**6))
        self.refuse(tmp_path / 'a.zip', 'expected at most 200 times')

    def test_more_than_the_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
            file.writestr('data/a', bytes(1000))
        monkeypatch.setattr('shutil.disk_usage', lambda _: type('Usage', (), {'free': 10}))
        self.refuse(tmp_path / 'a.zip', 'that are free')

    @pytest.mark.parametrize(('place', 'value'), [(6, 1), (8, 99)], ids=['encrypted', 'method'])
    def test_of_another_kind(self, tmp_path: Path, place: int, value: int) -> None:
        with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
            file.writestr('data/a', 'text')
        content = bytearray((tmp_path / 'a.zip').read_bytes())
        content[place] = value
        content[content.index(b'PK\x01\x02') + place + 2] = value
        (tmp_path / 'a.zip').write_bytes(content)
        self.refuse(tmp_path / 'a.zip', '')

    def test_long_name(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
            file.writestr('data/' + 'a' * 300, 'text')
        self.refuse(tmp_path / 'a.zip', 'too long')

    @pytest.mark.parametrize('name', ['../out', 'a/../../out', '/out'])
    def test_name_outside(self, tmp_path: Path, name: str) -> None:
        root = tmp_path / 'root'
        root.mkdir()
        with zipfile.ZipFile(root / 'a.zip', 'w') as file:
            file.writestr(name, 'text')
            file.writestr('data/a', 'text')
        extract_directory(root / 'a.zip', 'data')
        assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*')) == [
            'root', 'root/a.zip', 'root/data', 'root/data/a',
        ]  # fmt: skip
