# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The page on real data: its download command and its code run with an archive of the same layout."""

import re
import shlex
import zipfile
from hashlib import md5
from pathlib import Path

import pytest
import torchgeo.datasets

from tests.conftest import write_pastis

PAGE = Path(__file__).parents[2] / 'docs/howto/real.md'
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason='the site is not here')


def blocks(language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```$', PAGE.read_text(), re.M | re.S)


def test_download_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_pastis(tmp_path / 'made/PASTIS-R', size=16)
    archive = tmp_path / 'PASTIS-R.zip'
    with zipfile.ZipFile(archive, 'w') as file:
        for path in sorted((tmp_path / 'made').rglob('*')):
            file.write(path, path.relative_to(tmp_path / 'made'))
    monkeypatch.setattr(torchgeo.datasets.PASTIS100, 'url', archive.as_uri())
    monkeypatch.setattr(torchgeo.datasets.PASTIS100, 'md5', md5(archive.read_bytes()).hexdigest())
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    program, option, code = shlex.split(blocks('sh')[0])
    assert (program, option) == ('python', '-c')
    exec(code, {})
    assert Path('data/PASTIS-R/metadata.geojson').is_file()
    (example,) = blocks('python')
    exec(example, {})
    assert "'image_s2': (" in capsys.readouterr().out
    assert Path('patch.png').stat().st_size > 1000


def test_all_commands_read_that_folder() -> None:
    """They run in test_commands.py, where the folder is there."""
    lines = [line for block in blocks('sh')[1:] for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        assert 'root data/PASTIS-R' in line
