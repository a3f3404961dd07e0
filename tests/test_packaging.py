# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What is released: code, its licence and its types, and nothing else."""

import email
import tomllib
import zipfile
from pathlib import Path

import pytest

import torchgeo_omnisat

ROOT = Path(__file__).parents[1]
hatchling = pytest.importorskip('hatchling.builders.wheel')
pytestmark = pytest.mark.skipif(not (ROOT / 'pyproject.toml').is_file(), reason='not in a checkout')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    builder = hatchling.WheelBuilder(str(ROOT))
    (path,) = builder.build(directory=str(tmp_path_factory.mktemp('dist')), versions=['standard'])
    with zipfile.ZipFile(path) as file:
        yield file


@pytest.fixture(scope='module')
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith('.dist-info/METADATA'))
    return email.message_from_bytes(wheel.read(name))


def test_it_holds_code_alone(wheel):
    names = [name for name in wheel.namelist() if '.dist-info/' not in name]
    assert {name.partition('/')[0] for name in names} == {'torchgeo_omnisat'}
    others = sorted(name.removeprefix('torchgeo_omnisat/') for name in names if not name.endswith('.py'))
    assert others == ['evaluation/page.css', 'evaluation/page.js', 'py.typed']  # style and script of reports
    assert Path(wheel.filename).stat().st_size < 900e3  # docstrings and comments are a third of it


def test_it_holds_every_module(wheel):
    package = ROOT / 'torchgeo_omnisat'
    modules = {str(path.relative_to(ROOT)) for path in package.rglob('*.py')}
    assert modules <= set(wheel.namelist())


def test_licence_and_version(wheel, metadata):
    assert [name for name in wheel.namelist() if name.endswith('licenses/LICENSE')]
    assert metadata['License-Expression'] == 'MIT'
    assert metadata['Version'] == torchgeo_omnisat.__version__


def test_entry_point_and_readme(wheel, metadata):
    (name,) = (name for name in wheel.namelist() if name.endswith('entry_points.txt'))
    assert 'torchgeo_omnisat._autoload:install' in wheel.read(name).decode()
    assert metadata['Description-Content-Type'] == 'text/markdown'
    assert metadata.get_payload().startswith('# torchgeo_omnisat')


def test_requirements_are_few_and_have_a_minimum():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    names = [requirement.partition('>=')[0] for requirement in project['dependencies']]
    assert len(names) == len(set(names))
    assert all('>=' in requirement for requirement in project['dependencies'])


def test_citation_has_the_version():
    citation = (ROOT / 'CITATION.cff').read_text()
    assert f'version: {torchgeo_omnisat.__version__}\n' in citation
