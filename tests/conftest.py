# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Small datasets in the layouts of the real ones, random and from a seed."""

import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import rasterio
import torch
from jaxtyping import install_import_hook
from rasterio.transform import from_origin

from . import brief

gc.disable()  # until all tests are collected, see below
matplotlib.use('Agg')
# Check the shapes that models and losses state; an int will do for a float.
install_import_hook(
    ['torchgeo_omnisat.models', 'torchgeo_omnisat.losses'],
    'beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))',
)
# As many threads as cores helps models, but not tiny ones: waiting for each other takes longer.
torch.set_num_threads(1)

#: Real data that a checkout may have beside it.
SHARED = Path(__file__).parents[1].parent / 'shared' / 'data'
#: Where a new sensor's images go, and their bands and type.
SERIES = {'S2': (10, np.int16), 'S1A': (3, np.float16), 'S1D': (3, np.float16)}
SPOT = 'DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/SPOT6_RVB_1M00_2019_{}.tif'

Writer = Callable[..., Path]
#: Undone at the end.
_BRIEF = pytest.MonkeyPatch()


def write_pastis(root: Path, folds: Sequence[int] = (1, 2, 3, 4, 5) * 2, size: int = 32, seed: int = 0) -> Path:
    """Write PASTIS-HD's layout: a patch for each of *folds*, ids from 10000, 3 to 5 dates a series.

    The dates of a patch come as a mapping, as JSON in a string, or as Python in a string.
    """
    rng = np.random.default_rng(seed)
    features = []
    for number, fold in enumerate(folds, 10000):
        properties: dict[str, Any] = {'ID_PATCH': number, 'Fold': fold, 'TILE': 't30uxv', 'N_Parcel': 3}
        for name, (bands, dtype) in SERIES.items():
            count = int(rng.integers(3, 6))
            days = np.datetime64('2018-09-20') + np.sort(rng.choice(380, count, replace=False))
            dates = {str(i): int(str(day).replace('-', '')) for i, day in enumerate(days)}
            properties[f'dates-{name}'] = (dates, json.dumps(dates), str(dates))[number % 3]
            shape = (count, bands, size, size)
            image = rng.integers(-50, 9000, shape) if name == 'S2' else rng.normal(-12, 3, shape)
            if name != 'S2':
                image[:, 2] = image[:, 0] - image[:, 1]
            save(root / f'DATA_{name}/{name}_{number}.npy', image.astype(dtype))
        target = rng.integers(0, 20, (3, size, size)).astype(np.uint8)
        save(root / f'ANNOTATIONS/TARGET_{number}.npy', target)
        rows, columns = np.mgrid[:size, :size] // 4
        save(root / f'INSTANCE_ANNOTATIONS/INSTANCES_{number}.npy', rows * size + columns)
        write_spot(root / SPOT.format(number), rng.integers(0, 256, (3, 10 * size, 10 * size)).astype(np.uint8))
        x, y = 400000.0 + 2000 * number, 6.8e6
        ring = [[x, y], [x + 1270, y - 100], [x + 1170, y - 1370], [x - 100, y - 1270], [x, y]]
        geometry = {'type': 'MultiPolygon', 'coordinates': [[ring]]}
        features.append({'type': 'Feature', 'id': str(number), 'properties': properties, 'geometry': geometry})
    crs = {'type': 'name', 'properties': {'name': 'urn:ogc:def:crs:EPSG::2154'}}
    index = {'type': 'FeatureCollection', 'name': 'metadata', 'crs': crs, 'features': features}
    (root / 'metadata.geojson').write_text(json.dumps(index))
    for name in ('S2', 'S1A', 'S1D'):
        bands = SERIES[name][0]
        norm = {f'Fold_{k}': {'mean': [10.0 * k] * bands, 'std': [1.0 + k] * bands} for k in range(1, 6)}
        (root / f'NORM_{name}_patch.json').write_text(json.dumps(norm))
    return root


def write_spot(path: Path, image: np.ndarray[Any, Any], **profile: Any) -> None:
    """Write a georeferenced raster of metre pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = image.shape
    size = {'count': count, 'height': height, 'width': width, 'dtype': image.dtype}
    where = {'crs': 'EPSG:2154', 'transform': from_origin(400000, 6.8e6, 1, 1)}
    with rasterio.open(path, 'w', driver='GTiff', **size, **where, **profile) as file:
        file.write(image)


def save(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write an array where there may be no directory yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def edit(root: Path, patch: int, **properties: Any) -> None:
    """Change properties of a patch in the index; None removes one, ``_`` in a name is ``-``."""
    path = root / 'metadata.geojson'
    index = json.loads(path.read_text())
    (feature,) = (f for f in index['features'] if f['properties']['ID_PATCH'] == patch)
    for name, value in properties.items():
        feature['properties'].pop(name.replace('_', '-'), None)
        if value is not None:
            feature['properties'][name.replace('_', '-')] = value
    path.write_text(json.dumps(index))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the folders and files of slow tests: processes that share files end together if the last are short."""
    slow = Counter(item.path for item in items if item.get_closest_marker('slow'))
    folders = Counter(path.parent for path in slow.elements())
    keys = {path: (-folders[path.parent], path.parent, path not in slow) for path in {item.path for item in items}}
    items.sort(key=lambda item: keys[item.path])


def pytest_collection_finish() -> None:
    """Exempt the imported libraries from garbage collection, which would scan their million objects again and again.

    Lightning is made brief, and processes that tests need are forked from now on.
    """
    gc.freeze()
    gc.enable()
    brief.begin(_BRIEF)
    if processes := sys.modules.get('tests.processes'):
        processes.start_server()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need a GPU; a look for one before the fork would forbid its use in forked processes."""
    if item.get_closest_marker('gpu') and not torch.cuda.is_available():
        pytest.skip('needs a GPU')


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """Name the target that runs the tests of a file if this one runs none of them."""
    other = {'not slow': 'make test-slow', 'slow': 'make test'}.get(config.option.markexpr)
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and other:
        terminalreporter.line(f'-m {config.option.markexpr!r} selects no test: run {other} instead, or add -m ""')


def pytest_unconfigure() -> None:
    """Let the interpreter collect them when it ends."""
    gc.unfreeze()
    _BRIEF.undo()


@pytest.fixture(scope='session')
def pastis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patches, two a fold, to be read alone; whoever changes files writes its own."""
    return write_pastis(tmp_path_factory.mktemp('pastis'))


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """One patch, 10000, of fold 1, to be broken."""
    return write_pastis(tmp_path / 'one', folds=(1,), size=8)


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    """No figure outlives its test."""
    yield
    plt.close('all')


@pytest.fixture
def validation_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the figures of validations and tests, which other tests do without."""
    brief.draw_figures(monkeypatch)


@pytest.fixture(scope='session')
def belgium() -> Path:
    """Real monthly series of fields near Hasselt; what asks for them skips where they are not."""
    root = Path(os.environ.get('BELGIUM_CROPS', SHARED / 'belgium-crops'))
    if not root.is_dir():
        pytest.skip(f'{root} is not there')
    return root
