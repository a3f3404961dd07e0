# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The report of a run is one file that works without a network."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import yaml
from rasterio.transform import from_origin

from torchgeo_omnisat.commands import report

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or '/usr/bin/chromium'
#: Headless, without requests of its own.
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync']
FLAGS += ['--disable-background-networking', '--disable-component-update', '--virtual-time-budget=3000']
#: A name of a class that would end an element and load a file.
EVIL = '</td><script>document.title="broken"</script><img src=x>&\x1b'
PIXEL = (
    b'\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00:~\x9bU'
    b'\x00\x00\x00\nIDATx\x9cc`\x00\x00\x00\x02\x00\x01H\xaf\xa4q\x00\x00\x00\x00IEND\xaeB`\x82'
)


def write_map(path: Path, values: np.ndarray, **tags: str) -> Path:
    height, width = values.shape
    profile = {'driver': 'GTiff', 'height': height, 'width': width, 'count': 1, 'dtype': values.dtype}
    nodata = 255 if values.dtype == np.uint8 else np.nan
    where = {'crs': 'EPSG:32631', 'transform': from_origin(600000, 5650000, 10, 10), 'nodata': nodata}
    with rasterio.open(path, 'w', **profile, **where) as file:
        file.write(values, 1)
        file.update_tags(1, **tags)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The output folders of a training and of a test of its checkpoint."""
    fit, test = tmp_path / 'logs/version_0', tmp_path / 'logs/version_1'
    for folder in (fit, test / 'examples'):
        folder.mkdir(parents=True)
    pd.DataFrame({'step': [0, 1, 2], 'val_loss': [3, 2, None], 'val_AverageJaccardIndex': [0.1, 0.2, None]}).to_csv(
        fit / 'metrics.csv', index=False
    )
    sensor = {'name': 's2', 'bands': ['B02', 'B03'], 'gsd': 10.0, 'temporal': True, 'kind': 'optical', 'unit': 'dn'}
    config = {'model': {'class_path': 'omnisat', 'init_args': {'modalities': [sensor]}}}
    config |= {'data': {'class_path': 'x.MyDataModule', 'init_args': {'root': 'somewhere', 'labels': ['blé', 'maïs']}}}
    (fit / 'config.yaml').write_text(yaml.safe_dump(config))
    (test / 'config.yaml').write_text(yaml.safe_dump(config | {'ckpt_path': str(fit / 'checkpoints/best.ckpt')}))
    scores = {'AverageJaccardIndex': 0.4567, 'OverallAccuracy': 0.789, 'ClasswiseF1Score_a': 0.1}
    pd.DataFrame({'metric': scores.keys(), 'score': scores.values()}).to_csv(test / 'scores.csv', index=False)
    classes = {'class': ['a', EVIL], 'pixels': [5, 0], 'predicted': [5, 1], 'iou': [0.5, None], 'f1': [0.6, None]}
    pd.DataFrame(classes).to_csv(test / 'classes.csv', index=False, na_rep='nan')
    subsets = {'subset': ['s2'], 'modalities': [1], 'mean_iou': [0.4567], 'samples': [7], 'data': ['synthetic']}
    pd.DataFrame(subsets).to_csv(test / 'subsets.csv', index=False)
    for name in ('confusion.png', 'subsets.png', 'examples/0.png'):
        (test / name).write_bytes(PIXEL)
    (test / 'examples/examples.json').write_text(json.dumps({'0.png': ['a', EVIL], '../../secret.png': []}))
    return tmp_path / 'logs'


def make(run: Path, *words: str) -> str:
    output = run.parent / 'report.html'
    assert report.main([str(run), '--output', str(output), *words]) == 0
    return output.read_text(encoding='utf-8')


def test_content(run: Path) -> None:
    classes = np.array([[0, 1], [1, 255]], np.uint8)
    values = np.linspace(0, 30, 6, dtype=np.float32).reshape(2, 3)
    maps = [write_map(run / 'map.tif', classes, CLASS_0='a', CLASS_1=EVIL), write_map(run / 'values.tif', values)]
    html = make(run, '--map', *map(str, maps))
    for expected in ('0.457', '0.789', 'MyDataModule', 'somewhere', 'B02, B03', 'time series', 'torchgeo', 'synthetic'):
        assert expected in html
    assert 'blé' in html
    for title in ('Scores', 'Classes', 'Confusion matrix', 'Subsets of the sensors', 'Training', 'Examples', 'Maps'):
        assert f'<h2>{title}</h2>' in html
    assert '33.3 %' in html  # of class 0
    assert html.count('class="map"') == 2
    assert '30' in html


def test_a_folder_above_the_run(run: Path) -> None:
    assert report.find_run(run) == report.find_run(run.parent) == run / 'version_1'


def test_nothing_is_loaded_and_names_are_escaped(run: Path) -> None:
    html = make(run, '--title', EVIL)
    assert EVIL not in html
    assert '\x1b' not in html
    assert '<img src=x>' not in html
    assert set(re.findall(r'(?:src|href)="([^"]{0,5})', html)) <= {
        'data:',
        *(m[:5] for m in re.findall('"(#[^"]*)', html)),
    }
    assert "default-src 'none'" in html


def test_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        report.main([])
    with pytest.raises(ValueError, match='expected the output folder'):
        report.main([str(tmp_path)])
    (tmp_path / 'config.yaml').write_text('model: 1')
    html = make(tmp_path)
    assert 'torchgeo test' in html
    (tmp_path / 'text.tif').write_text('text')
    with pytest.raises(ValueError, match=r'text\.tif'):
        report.main([str(tmp_path), '--map', str(tmp_path / 'text.tif')])


@pytest.mark.slow
@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason='Chromium is not installed')
def test_in_a_browser(run: Path) -> None:
    """The map zooms and tells the class under the pointer; nothing of the names was executed."""
    halves = np.repeat(np.repeat(np.array([[0, 1]], np.uint8), 100, 0), 100, 1)
    path = write_map(run / 'map.tif', halves, CLASS_0='corn', CLASS_1=EVIL)
    html = make(run, '--map', str(path), '--title', 'A run')
    act = """<script>addEventListener('load', () => setTimeout(() => {
      const map = document.querySelector('.map'), box = map.getBoundingClientRect();
      map.dataset.first = map.dataset.zoom;
      const at = {clientX: box.left + box.width / 2 - 30, clientY: box.top + box.height / 2, bubbles: true};
      map.dispatchEvent(new PointerEvent('pointermove', at));
      map.dispatchEvent(new WheelEvent('wheel', {...at, deltaY: -400, cancelable: true}));
    }, 500))</script></body>"""
    page = run / 'acted.html'
    page.write_text(html.replace('</body>', act), encoding='utf-8')
    profile = f'--user-data-dir={run / "chrome"}'
    call = [CHROMIUM, *FLAGS, profile, '--window-size=1000,3000', '--dump-dom', page.as_uri()]
    for _ in range(3):  # on a busy machine, Chromium may print the page before the timer
        dom = subprocess.run(call, capture_output=True, text=True, timeout=120, check=True).stdout
        if 'data-first' in dom:
            break
    assert '<title>A run</title>' in dom
    first, zoom = (float(re.search(f'data-{name}="([\\d.]+)"', dom)[1]) for name in ('first', 'zoom'))  # type: ignore[index]
    assert zoom == pytest.approx(first * np.e, rel=1e-6)
    assert re.search(r'class="place">corn, 600\d\d\d, 5649\d\d\d EPSG:32631<', dom)
