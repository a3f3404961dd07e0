# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Documentation, docstrings, comments, errors and warnings use the words of the field."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    page for folder in ('.', 'benchmarks', 'benchmarks/reports', 'notebooks') for page in (ROOT / folder).glob('*.md')
]
PAGES += [page for page in (ROOT / 'docs').rglob('*.md') if not {'_build', 'tutorials'} & set(page.parts)]
SOURCES = sorted((ROOT / 'torchgeo_omnisat').rglob('*.py'))
#: Expressions to avoid (regular expressions, case is ignored) and what to write instead. To extend the list, add a
#: line and run this test: it lists every occurrence, so that you can rewrite them in the same change. Match whole
#: phrases, because a single word usually has a good use elsewhere.
AVOID = {
    r'\bmade[ -]up\b': 'synthetic, simulated',
    r'\blikewise\b': 'repeat the fact, or "also"',
    r'\bwhoever\b': 'the caller, the user, or the class that does it',
    r'\b(dates|pixels|labels|bands) of (its|their) own\b': 'its acquisition dates, its native resolution',
    r'\bmet(re|er)s a pixel\b': 'GSD, ground sampling distance',
    r'\bmean and deviation\b': 'mean and standard deviation',
    r'\bwhat (was|is) (measured|seen|asked|told|known)\b': 'valid or observed pixels, the configuration',
    r'\bwhat came out\b': 'results, output',
    r'\bsees? one pixel at a time\b': 'pixel-wise',
    r'\b(is|are|was|were) not told\b': 'is not set',
    r'\bnobody (told|says|said)\b': 'is not set',
}


def prose(path):
    """Yield line number and text of a page, or of the docstrings and comments of a source file."""
    if path.suffix == '.md':
        yield from enumerate(path.read_text().splitlines(), 1)
        return
    previous = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        starts_line = previous in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and starts_line):
            yield from enumerate(token.string.splitlines(), token.start[0])
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            previous = token.type


def messages(path):
    """Yield line number and text of the strings of errors and warnings of a source file."""
    for node in ast.walk(ast.parse(path.read_text())):
        warns = isinstance(node, ast.Call) and 'warn' in ast.unparse(node.func).rpartition('.')[-1]
        if warns or isinstance(node, ast.Raise):
            parts = (part for part in ast.walk(node) if isinstance(part, ast.Constant))
            yield from ((part.lineno, part.value) for part in parts if isinstance(part.value, str))


@pytest.fixture(scope='module')
def lines():
    """Everything that is read, with its place."""
    texts = [(path, *line) for path in (*PAGES, *SOURCES) for line in prose(path)]
    texts += [(path, *line) for path in SOURCES for line in messages(path)]
    return [(f'{path.relative_to(ROOT)}:{number}', text.strip()) for path, number, text in texts]


@pytest.mark.parametrize('expression', AVOID)
def test_expression_is_avoided(expression, lines):
    pattern = re.compile(expression, re.IGNORECASE)
    found = [f'{place}: {text}' for place, text in lines if pattern.search(text)]
    assert not found, '\n'.join([f'{expression}: write instead {AVOID[expression]}', *found])


def test_docstrings_and_comments_are_read(tmp_path):
    source = tmp_path / 'source.py'
    source.write_text('"""One."""\nx = "no"  # two\n\n\ndef f():\n    """Three.\n\n    Four.\n    """\n    return x\n')
    text = ' '.join(line for _, line in prose(source))
    assert all(word in text for word in ('One', 'two', 'Three', 'Four'))
    assert 'no' not in text


def test_messages_are_read(tmp_path):
    source = tmp_path / 'source.py'
    source.write_text("x = 'no'\nwarnings.warn(f'One {x} two', stacklevel=2)\nraise ValueError('three ' 'four')\n")
    assert {text.strip() for _, text in messages(source)} == {'One', 'two', 'three four'}
