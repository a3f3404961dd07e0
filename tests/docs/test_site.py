# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The site has one address of the repository, every configuration, words to search for, and small figures."""

import ast
import pydoc
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
    'CUDA': 'howto/choose.md',
    'LPIS': 'howto/sources.md',
    'NetCDF': 'faq.md',
    'ONNX': 'faq.md',
    'QGIS': 'howto/sources.md',
    'shapefile': 'howto/sources.md',
    'xarray': 'faq.md',
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
    there = [path.relative_to(DOCS / 'configs').as_posix() for path in (DOCS / 'configs').rglob('*.yaml')]
    assert sorted(included) == sorted(there)


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


def test_answers_name_where_they_were_asked():
    text = (DOCS / 'faq.md').read_text()
    asked = re.findall(
        r'^\[(TorchGeo|TerraTorch) #(\d+)\]\(https://github.com/torchgeo/(\w+)/(?:issues|pull)/(\d+)\)', text, re.M
    )
    assert all(name.lower() == repository and number == other for name, number, repository, other in asked)
    assert len(set(asked)) == len(asked) == text.count('\n### ') >= 20


def test_weights_of_the_faq_are_one_per_class():
    labels = yaml.safe_load((DOCS / 'configs/rasters.yaml').read_text())['data']['init_args']['labels']
    for page in ('faq.md', 'howto/imbalance.md'):
        (weights,) = re.findall(r"class_weights '(\[.*?\])'", (DOCS / page).read_text())
        assert len(yaml.safe_load(weights)) == len(labels)


def test_front_page_shows_a_result():
    assert '](figures/demo.png)' in (DOCS / 'index.md').read_text()


def test_names_of_other_manuals_exist():
    tree = ast.parse((DOCS / 'conf.py').read_text())
    (pages,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'ELSEWHERE'
    )
    for page, names in ast.literal_eval(pages).items():
        assert page.startswith('https://')
        for name in names.split():
            full = [name, f'torch.{name}', f'torchgeo.datasets.{name}']  # errors and shapes have the name alone
            assert name == 'None' or any(pydoc.locate(one) is not None for one in full), name
