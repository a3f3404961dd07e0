# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""No page links to what is not there; nothing is asked of the network."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: A page, and the folder that its links are relative to: tutorials are pages of the site.
PAGES = {page: page.parent for page in (*ROOT.glob('*.md'), *(ROOT / 'benchmarks').glob('*.md'))}
PAGES |= {page: page.parent for page in (ROOT / 'benchmarks' / 'reports').glob('*.md')}
PAGES |= {page: page.parent for page in (ROOT / 'docs').rglob('*.md') if not {'_build', 'tutorials'} & set(page.parts)}
PAGES |= dict.fromkeys((ROOT / 'notebooks').glob('*.md'), ROOT / 'docs' / 'tutorials')
pytestmark = pytest.mark.skipif(not (ROOT / 'docs').is_dir(), reason='the site is not here')


def anchors(page):
    """What a heading is called in a link."""
    headings = re.findall(r'^#+ (.*)$', re.sub(r'^```.*?^```$', '', page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r'^```.*?^```$', '', page.read_text(), flags=re.M | re.S)
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if '://' in link:
            continue
        place, _, anchor = link.partition('#')
        target = Path(os.path.normpath(PAGES[page] / place)) if place else page
        if target.parent == ROOT / 'docs' / 'tutorials':  # copied there when the site is built
            target = ROOT / 'notebooks' / target.name
        assert target.exists(), f'{page} links to {link}'
        assert not anchor or anchor in anchors(target), f'{page} links to {link}'


def test_tutorials_hold_no_output_and_are_all_listed():
    index = (ROOT / 'notebooks' / 'index.md').read_text()
    tutorials = [page for page in (ROOT / 'notebooks').glob('*.md') if page.name != 'index.md']
    assert len(tutorials) == 9
    assert not list((ROOT / 'notebooks').glob('*.ipynb'))  # Markdown has no outputs
    for page in tutorials:
        assert page.read_text().startswith('---\nfile_format: mystnb\n')
        assert f'\n{page.stem}\n' in index
        assert '*synthetic*' in page.read_text().partition('```')[0] + page.read_text().partition('```')[2]
