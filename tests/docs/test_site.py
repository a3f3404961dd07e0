# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The site has one address of the repository, every configuration, words to search for, and small figures."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / 'docs'
PAGES = [page for page in sorted(DOCS.rglob('*.md')) if not {'_build', 'tutorials'} & set(page.parts)]
#: A word that readers search for, and a page that has to say something about it.
SEARCHED = {
    'composite': 'howto/sources.md',
    'conda': 'start.md',
    'CUDA': 'start.md',
    'LPIS': 'howto/sources.md',
    'NetCDF': 'howto/rasters.md',
    'QGIS': 'howto/sources.md',
    'shapefile': 'howto/sources.md',
    'xarray': 'howto/embeddings.md',
}
pytestmark = pytest.mark.skipif(not PAGES, reason='the site is not here')


@pytest.fixture(scope='module')
def project():
    return tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


@pytest.mark.parametrize('page', ['README.md', 'docs/start.md'])
def test_repository_has_one_address(page, project):
    text, address = (ROOT / page).read_text(), project['urls']['Repository']
    assert f"\npip install 'git+{address}'\n" in text
    assert f'\ngit clone {address}\n' in text
    assert set(re.findall(r'https://[\w.]*example[\w./]*', text)) == {address}


def test_every_configuration_is_on_a_page():
    text = (DOCS / 'howto/configs.md').read_text()
    included = re.findall(r'^```\{literalinclude\} \.\./configs/(\S+)$', text, re.M)
    assert sorted(included) == sorted(path.name for path in (DOCS / 'configs').glob('*.yaml'))


def test_citations_are_those_of_the_citation_file():
    page = re.sub(r'[{}]', '', (DOCS / 'cite.md').read_text())
    for reference in yaml.safe_load((ROOT / 'CITATION.cff').read_text())['references']:
        names = [f'{author["family-names"]}, {author["given-names"]}' for author in reference['authors']]
        entry = [f'title  = {reference["title"]},', f'year   = {reference["year"]},', f'url    = {reference["url"]},']
        for text in (*names, *entry):
            assert text in page, text


@pytest.mark.parametrize('word', SEARCHED)
def test_a_search_finds(word):
    assert re.search(rf'\b{word}s?\b', (DOCS / SEARCHED[word]).read_text(), re.IGNORECASE)


def test_terms_are_sorted_and_explained():
    (block,) = re.findall(r'^```\{glossary\}\n(.*?)^```$', (DOCS / 'glossary.md').read_text(), re.M | re.S)
    entries = [entry.partition('\n') for entry in block.strip().split('\n\n')]
    terms = [term for term, _, _ in entries]
    assert terms == sorted(set(terms), key=str.lower)
    assert all(text.startswith('  ') for _, _, text in entries)


def test_pages_have_small_figures_with_a_description():
    for page in PAGES:
        for text, place in re.findall(r'!\[([^\]]*)\]\(([^)]+)\)', page.read_text()):
            assert text, f'{page}: {place} has no description'
            assert (page.parent / place).stat().st_size < 200e3, f'{page}: {place}'


def test_front_page_shows_a_result():
    assert '](figures/demo.png)' in (DOCS / 'index.md').read_text()
