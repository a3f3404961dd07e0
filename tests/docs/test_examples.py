# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Every command line and every configuration of the site is accepted, word for word, without being run."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from torchgeo_omnisat import plugin
from torchgeo_omnisat.__main__ import COMMANDS, main
from torchgeo_omnisat.commands import check, data, stats

ROOT = Path(__file__).parents[2]
PAGES = [page for page in sorted((ROOT / 'docs').rglob('*.md')) if '_build' not in page.parts]
pytestmark = pytest.mark.skipif(not PAGES, reason='the site is not here')


def blocks(language):
    """The blocks of a language, by page."""
    fence = re.compile(rf'^```{language}\n(.*?)^```$', re.M | re.S)
    return [(page, block) for page in PAGES for block in fence.findall(page.read_text())]


LINES = sorted({line for _, block in blocks('sh') for line in block.splitlines() if line})
CONFIGS = {page.name: block for page, block in blocks('yaml') if 'model:' in block}


class Accepted(Exception):
    """The words were understood; now something would be done."""


@pytest.fixture
def accept(tmp_path, monkeypatch):
    """Run the words of a command line up to where something would be done."""

    def stop(*_):
        raise Accepted

    def parse(parser, argv=None):
        data.parse_data(parser, argv)
        raise Accepted

    def run(words):
        if words[0] in ('demo', 'baseline', 'export'):
            words = [*words, '--help']
        monkeypatch.setattr('sys.argv', ['torchgeo', *words])
        with pytest.raises((Accepted, SystemExit)) as caught:
            main(words) or stop()
        assert caught.type is Accepted or caught.value.code in (0, None), words

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugin.OmniSatCLI, 'before_instantiate_classes', stop)
    for command in (check, stats):
        monkeypatch.setattr(command, 'parse_data', parse)
    Path('FILE.yaml').write_text(CONFIGS['rasters.md'])
    return run


@pytest.mark.slow
@pytest.mark.parametrize('line', [line for line in LINES if line.startswith(('torchgeo ', 'python '))])
def test_command_is_accepted(line, accept):
    program, *words = shlex.split(line)
    if program == 'python':
        assert words[:2] == ['-m', 'torchgeo_omnisat']
        words = words[2:]
    accept(words)


@pytest.mark.parametrize('line', [line for line in LINES if not line.startswith(('torchgeo ', 'python '))])
def test_other_commands_are_there(line):
    program, target, *_ = line.split()
    assert (program, target) == ('pip', 'install') or (
        program == 'make' and f'\n{target}:' in (ROOT / 'Makefile').read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize('page', CONFIGS)
def test_configuration_is_accepted(page, accept):
    Path('other.yaml').write_text(CONFIGS[page])
    accept(['fit', '--config', 'other.yaml'])


@pytest.mark.slow
def test_a_word_too_many_is_not_accepted(accept):
    with pytest.raises(AssertionError):
        accept(['fit', '--model', 'omnisat', '--model.no_such_argument', '1'])


def test_configurations_are_yaml():
    assert {'rasters.md', 'configuration.md'} <= set(CONFIGS)
    assert all({'model', 'data'} <= set(yaml.safe_load(block)) for block in CONFIGS.values())


def test_every_command_of_ours_is_described():
    page = (ROOT / 'docs' / 'reference' / 'cli.md').read_text()
    assert all(f'`{command}`' in page for command in COMMANDS)
