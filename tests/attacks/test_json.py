# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""JSON with a key twice, nested too deeply or of another encoding: every reader refuses it with the file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from torchgeo_omnisat.datamodules.common.statistics import read_statistics
from torchgeo_omnisat.datasets.chips.splits import _read_table
from torchgeo_omnisat.datasets.common.integrity import Report
from torchgeo_omnisat.datasets.common.series import parse_dates
from torchgeo_omnisat.datasets.io.files import read_json
from torchgeo_omnisat.datasets.shards import check_index, read_description
from torchgeo_omnisat.utils.reading import load_json

TEXTS = [
    '{"a": 1, "a": 2}',
    '{"train": {"mean": [0], "std": [1], "std": [2]}}',
    '[' * 100_000,
    '{"a":' * 100_000,
    b'\xff',
    '{"a": 1}'.encode('utf-16'),
    '',
    '{"a": 1} {}',
]
READERS: dict[str, Callable[[Path], object]] = {
    'load_json': load_json,
    'read_json': lambda path: read_json(path, 'an object'),
    'statistics': lambda path: read_statistics(path, 'train', 1),
    'splits': lambda path: _read_table(path, 'split'),
    'report': Report.read,
    'shards': lambda path: read_description(str(path.parent)),
    'index': lambda path: check_index(str(path.parent)),
}
NAMES = {'shards': 'shards.json', 'index': 'index.json'}


@pytest.mark.parametrize('text', TEXTS, ids=lambda text: repr(text)[:40])
@pytest.mark.parametrize('reader', READERS)
def test_file(reader: str, text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / NAMES.get(reader, 'a.json')
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=path.name.replace('.', r'\.')):
        READERS[reader](path)


@pytest.mark.parametrize('text', ['{"0": 20190101, "0": 20190201}', '[' * 100_000], ids=lambda text: text[:20])
def test_dates(text: str) -> None:
    with pytest.raises(ValueError, match=r'meta\.geojson'):
        parse_dates(text, 'meta.geojson')
