# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""STACTimeSeries: files that items name, here and behind a server of this machine."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.geo_tree import X, Y, ramp, write
from torchgeo_omnisat.datasets import RasterTimeSeries
from torchgeo_omnisat.datasets.rasters.stac import STACTimeSeries

pytest.importorskip('pystac')
WINDOW = slice(X, X + 80), slice(Y - 80, Y)


#: GDAL holds Python's lock while it waits, so the server is a process of its own.
PROGRAM = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
root, log = map(Path, sys.argv[1:])
class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *_):
        pass
    def do_GET(self):
        path = root / self.path.lstrip('/')
        body = path.read_bytes() if path.is_file() else b''
        asked = self.headers['Range'] if body else None
        start, _, stop = (asked or 'bytes=0-').removeprefix('bytes=').partition('-')
        part = body[int(start) : int(stop) + 1 if stop else None]
        self.send_response(404 if not body else 206 if asked else 200)
        self.send_header('Accept-Ranges', 'bytes')
        if asked:
            self.send_header('Content-Range', f'bytes {start}-{int(start) + len(part) - 1}/{len(body)}')
        self.send_header('Content-Length', str(len(part)))
        self.end_headers()
        if self.command == 'GET':
            with log.open('a') as file:
                file.write(f'{len(part)}\\n')
            self.wfile.write(part)
    do_HEAD = do_GET
http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
print(http.server_port, flush=True)
http.serve_forever()
"""


@dataclass
class Server:
    """Where it is, and where it writes how many bytes each answer had."""

    url: str
    log: Path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Ranges of the files of *tmp_path*."""
    for name in 'http_proxy', 'HTTP_PROXY', 'GDAL_HTTP_PROXY', 'all_proxy', 'ALL_PROXY':
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setenv('GDAL_HTTP_TIMEOUT', '10')
    log = tmp_path / 'sent.log'
    words = [sys.executable, '-c', PROGRAM, str(tmp_path), str(log)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Server(f'http://127.0.0.1:{process.stdout.readline().strip()}', log)
        process.kill()


def collection(root: Path, base: str = '', **changes: Any) -> Path:
    """Two items, later one first, a file a band whose name says no date."""
    features = []
    for number, when in enumerate(('2021-06-01T10:00:00Z', '2020-12-31T23:30:00Z')):
        for band in 'blue', 'nir':
            write(
                root / f'{number}-{band}.tif',
                ramp(16, 16) + 1000 * number + (band == 'nir'),
                tiled=True,
                blockxsize=16,
                blockysize=16,
            )
        item = {
            'type': 'Feature',
            'stac_version': '1.0.0',
            'id': f'scene-{number}',
            'geometry': None,
            'properties': {'datetime': when},
            'links': [],
            'assets': {band: {'href': f'{base}{number}-{band}.tif'} for band in ('blue', 'nir')},
        }
        features.append(item | changes)
    path = root / 'items.json'
    path.write_text(json.dumps({'type': 'FeatureCollection', 'features': features}))
    return path


def test_items_are_a_series(tmp_path: Path) -> None:
    series = STACTimeSeries(collection(tmp_path), bands=('nir', 'B02'), assets={'B02': 'blue'}, name='s2')
    sample = series[WINDOW]
    assert sample['dates_s2'].numpy().astype('datetime64[D]').astype(str).tolist() == ['2020-12-31', '2021-06-01']
    expected = torch.from_numpy(ramp(8, 8)[0])
    torch.testing.assert_close(sample['image_s2'][0], torch.stack([expected + 1001, expected + 1000]))
    assert series.modalities['s2'].bands == ('nir', 'B02')


def test_a_day_is_that_of_greenwich(tmp_path: Path) -> None:
    path = collection(tmp_path, properties={'datetime': '2021-06-01T23:30:00-05:00'})
    dates = STACTimeSeries(path, bands=('blue',), name='s2')[WINDOW]['dates_s2']
    assert dates.numpy().astype('datetime64[D]').astype(str).tolist() == ['2021-06-02']


def test_a_date_without_time_zone_does_not_depend_on_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = collection(tmp_path, properties={'datetime': '2021-06-01T00:30:00'})
    monkeypatch.setenv('TZ', 'Europe/Berlin')
    time.tzset()
    try:
        dates = STACTimeSeries(path, bands=('blue',), name='s2')[WINDOW]['dates_s2']
    finally:
        monkeypatch.undo()
        time.tzset()
    assert dates.numpy().astype('datetime64[D]').astype(str).tolist() == ['2021-06-01']


@pytest.mark.parametrize(
    ('stated', 'scale', 'offset'),
    [({'scale': 0.5}, 0.5, 0), ({'offset': -20}, 1, -20), ({'raster:scale': 0.5, 'offset': 3}, 0.5, 3)],
)
def test_a_scale_or_an_offset_alone_is_applied(
    tmp_path: Path, stated: dict[str, Any], scale: float, offset: float
) -> None:
    path = collection(tmp_path)
    told = json.loads(path.read_text())
    told['features'] = told['features'][:1]
    told['features'][0]['assets']['blue'] |= {'raster:bands': [stated]}
    path.write_text(json.dumps(told))
    with pytest.warns(UserWarning, match='scale and offset'):
        series = STACTimeSeries(path, bands=('blue',), name='planet', unit='reflectance')
    expected = torch.from_numpy(ramp(8, 8)) * scale + offset
    torch.testing.assert_close(series[WINDOW]['image_planet'][0], expected)


OFFSET = {'raster:bands': [{'nodata': 0, 'scale': 0.0001, 'offset': -0.1}]}
S2: dict[str, Any] = {'constellation': 'sentinel-2'}


@pytest.mark.parametrize(
    ('properties', 'asset', 'added'),
    [
        ({'s2:processing_baseline': '03.01'}, {}, 0),
        ({'s2:processing_baseline': '04.00'}, {}, -1000),
        ({'s2:processing_baseline': '99.99'}, {}, 0),
        (S2 | {'processing:version': '05.11'}, {}, -1000),
        ({'platform': 'sentinel-2a', 'sentinel:processing_baseline': '05.00'}, {}, -1000),
        ({'s2:processing_baseline': '05.09', 'earthsearch:boa_offset_applied': True}, OFFSET, 0),
        ({'s2:processing_baseline': '05.09', 'earthsearch:boa_offset_applied': False}, OFFSET, -1000),
        (S2, OFFSET, -1000),
        (S2, {'bands': [{'raster:scale': 0.0001, 'raster:offset': -0.05}]}, -500),
        (S2, {'raster:scale': 0.0001, 'raster:offset': -0.1}, -1000),
        ({'s2:processing_baseline': '05.09'}, {'raster:bands': [{'scale': 0.0001, 'offset': 0}]}, 0),
        ({'s2:processing_baseline': '05.09'}, {'raster:bands': [{'scale': 0.0001}]}, -1000),
        ({'processing:version': '05.11'}, OFFSET, 0),  # of another satellite
        (S2, {}, 0),
    ],
)
def test_sentinel_2_of_all_processing_baselines_is_on_one_scale(
    tmp_path: Path, properties: dict[str, Any], asset: dict[str, Any], added: int
) -> None:
    path = collection(tmp_path)
    told = json.loads(path.read_text())
    item = told['features'][0]
    item['properties'] |= properties
    item['assets'] = {
        'nir': item['assets']['nir'] | {'eo:bands': [{'name': 'B08', 'common_name': 'nir'}]} | asset,
        'scl': item['assets']['blue'],
    }
    path.write_text(json.dumps(told | {'features': [item]}))
    raw = torch.from_numpy(ramp(8, 8)[0])
    sample = STACTimeSeries(path, bands=('nir', 'scl'))[WINDOW]
    torch.testing.assert_close(sample['image_s2'][0], torch.stack([raw + 1 + added, raw]))
    same = STACTimeSeries(path, bands=('nir',), harmonize=False)[WINDOW]
    torch.testing.assert_close(same['image_s2'][0, 0], raw + 1)


def test_items_that_share_a_file(tmp_path: Path) -> None:
    """An item may be there twice, but a file is not of two dates, one of which would be lost."""
    path = collection(tmp_path)
    told = json.loads(path.read_text())
    first = told['features'][0]
    path.write_text(json.dumps(told | {'features': [*told['features'], first]}))
    assert len(STACTimeSeries(path, bands=('nir',)).index) == 2
    again = first | {'id': 'again', 'properties': {'datetime': '2021-07-01T10:00:00Z'}}
    path.write_text(json.dumps(told | {'features': [first, again]}))
    with pytest.raises(ValueError, match=r'0-nir.tif for 2021-06-01 and 2021-07-01'):
        STACTimeSeries(path, bands=('nir',))


def test_errors(tmp_path: Path) -> None:
    path = collection(tmp_path)
    with pytest.raises(ValueError, match=r"item 'scene-0'.*assets \['red'\]"):
        STACTimeSeries(path, bands=('red',))
    with pytest.raises(ValueError, match=r'bands.*.s2.'):
        STACTimeSeries(path)
    (tmp_path / 'bad.json').write_text('{')
    with pytest.raises(ValueError, match=r'bad.json.*STAC ItemCollection'):
        STACTimeSeries(tmp_path / 'bad.json', bands=('nir',))
    (tmp_path / 'none.json').write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(ValueError, match=r'none.json.*items'):
        STACTimeSeries(tmp_path / 'none.json', bands=('nir',))
    (tmp_path / '1-nir.tif').unlink()
    with pytest.raises(ValueError, match=r'1-nir.tif'):
        STACTimeSeries(path, bands=('nir',))


def test_files_behind_a_server_are_read_in_ranges(tmp_path: Path, server: Server) -> None:
    series = STACTimeSeries(collection(tmp_path, f'{server.url}/'), bands=('blue', 'nir'), name='s2')
    local = STACTimeSeries(collection(tmp_path), bands=('blue', 'nir'), name='s2')
    torch.testing.assert_close(series[WINDOW], local[WINDOW])
    big = np.tile(ramp(64, 64), (1, 16, 16))
    write(tmp_path / 'big_20210101.tif', big, tiled=True, blockxsize=64, blockysize=64)
    server.log.unlink()
    remote = RasterTimeSeries([f'{server.url}/big_20210101.tif'], name='big')
    image = remote[WINDOW]['image_big'][0]
    torch.testing.assert_close(image, torch.from_numpy(big[:, :8, :8]))
    assert sum(map(int, server.log.read_text().split())) < (tmp_path / 'big_20210101.tif').stat().st_size / 4
    with pytest.raises(ValueError, match=r'nowhere_20210101.tif'):
        RasterTimeSeries([f'{server.url}/nowhere_20210101.tif'], all_bands=('B1',))
