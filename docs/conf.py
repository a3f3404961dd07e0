# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The site. `make docs` builds it without a network; DOCS_INTERSPHINX=1 links foreign names to their own sites."""

import inspect
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from jupyter_cache import get_cache
from sphinx.ext.napoleon import GoogleDocstring

import torchgeo_omnisat

project = 'torchgeo_omnisat'
author = copyright = 'torchgeo_omnisat contributors'
version = release = torchgeo_omnisat.__version__
#: The one place of these addresses. `Repository` is a placeholder until the project has a public one.
URLS = tomllib.loads((Path(__file__).parents[1] / 'pyproject.toml').read_text())['project']['urls']

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.doctest',
    'sphinx.ext.intersphinx',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
]
exclude_patterns = ['_build', 'jupyter_execute']
myst_heading_anchors = 3

# The tutorials are run once; they run again when their code has changed, or after `make clean`.
nb_execution_mode = 'cache'
nb_execution_cache_path = os.environ.get('DOCS_NOTEBOOK_CACHE', str(Path(__file__).parent / '_build' / 'notebooks'))
get_cache(nb_execution_cache_path).list_cache_records()  # creates it, which the processes below must not do at once
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_mime_priority_overrides = [('doctest', 'text/plain', 0)]  # a builder that it does not know

autoclass_content = 'both'
autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_inherit_docstrings = False  # or every model would repeat what torch says of its constructor
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_typehints_format = 'short'
python_maximum_signature_line_length = 88  # a longer signature has a line per argument
napoleon_use_ivar = True
toc_object_entries_show_parents = 'hide'  # the list of what is on a page is narrow

# Every name in a docstring has an entry, but for what others document, of which nothing is known offline:
nitpicky = True
FOREIGN = (
    'abc|affine|collections|jaxtyping|kornia|lightning|matplotlib|numpy|os|pandas|pathlib|pyproj|re|'
    'segmentation_models_pytorch|shapely|torch|torchgeo|torchmetrics|torchvision'
)
nitpick_ignore_regex = [
    (r'py:.*', rf'({FOREIGN})(\..*)?'),
    (r'py:class', 'Tensor'),  # in the shapes of jaxtyping
    (r'py:exc', r'\w+'),  # errors of Python and TorchGeo under "Raises"
    (r'py:(attr|data|meth)', r'[\w.]+'),  # members that are inherited from there
    (r'py:class', r'torchgeo_omnisat(\.\w+){3,}'),  # bases of ours that are not public
]

#: Names of other manuals that occur here, by address; with a network, DOCS_INTERSPHINX reads their inventories instead.
ELSEWHERE = {
    'https://docs.python.org/3/library/functions.html#{}': 'bool dict float int list object tuple type',
    'https://docs.python.org/3/library/stdtypes.html#{}': 'bytes set slice str',
    'https://docs.python.org/3/library/constants.html#{}': 'None',
    'https://docs.python.org/3/library/exceptions.html#{}': 'Exception ImportError OSError RuntimeError ValueError',
    'https://docs.python.org/3/library/typing.html#{}': 'typing.Any typing.ClassVar typing.Literal typing.NamedTuple',
    'https://docs.python.org/3/library/pathlib.html#{}': 'pathlib.Path',
    'https://docs.python.org/3/library/os.html#{}': 'os.PathLike',
    'https://docs.python.org/3/library/collections.abc.html#{}': (
        'collections.abc.Callable collections.abc.Collection collections.abc.Iterable collections.abc.Iterator '
        'collections.abc.Mapping collections.abc.Sequence'
    ),
    'https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html#{}': 'numpy.ndarray',
    'https://numpy.org/doc/stable/reference/random/generator.html#{}': 'numpy.random.Generator',
    'https://docs.pytorch.org/docs/stable/tensors.html#{}': 'torch.Tensor',
    'https://docs.pytorch.org/docs/stable/generated/{0}.html#{0}': (
        'torch.Generator torch.nn.Module torch.nn.modules.module.Module torch.nn.GroupNorm torch.nn.CrossEntropyLoss'
    ),
    'https://docs.pytorch.org/docs/stable/tensor_attributes.html#{}': 'torch.device torch.dtype',
    'https://docs.pytorch.org/docs/stable/data.html#{}': 'torch.utils.data.DataLoader torch.utils.data.Dataset',
}
intersphinx_mapping = {
    'kornia': ('https://kornia.readthedocs.io/en/stable', None),
    'lightning': ('https://lightning.ai/docs/pytorch/stable', None),
    'python': ('https://docs.python.org/3', None),
    'torch': ('https://docs.pytorch.org/docs/stable', None),
    'torchgeo': ('https://torchgeo.readthedocs.io/en/stable', None),
}
if not os.environ.get('DOCS_INTERSPHINX'):
    intersphinx_mapping = {}

html_theme = 'pydata_sphinx_theme'
html_title = 'torchgeo_omnisat'
html_show_sourcelink = False
html_static_path = ['_static']
html_css_files = ['site.css']
html_theme_options = {
    'header_links_before_dropdown': 5,
    'icon_links': [{'name': 'Repository', 'url': URLS['Repository'], 'icon': 'fa-brands fa-git-alt'}],
    'secondary_sidebar_items': ['page-toc'],
}
# Pages of the top level have no others beside them, so their text takes that room.
html_sidebars = {path.stem: [] for path in Path(__file__).parent.glob('*.md')}
copybutton_exclude = '.linenos, .gp, .go'  # of examples, the code without prompts and output
COPIED = ('sh', 'shell', 'yaml', 'python', 'ipython3', 'pycon', 'bibtex')  # output has no button
copybutton_selector = f':is({", ".join(f".highlight-{language}" for language in COPIED)}) pre'

doctest_test_doctest_blocks = ''  # {doctest} blocks of the pages alone

# No docstring names a type, so a colon that opens a docstring or "Returns" belongs to a sentence.
GoogleDocstring._consume_inline_attribute = lambda self: ('', self._dedent(self._consume_to_end()))
GoogleDocstring._consume_returns_section = lambda self, preprocess_types=False: [
    ('', '', self._dedent(self._consume_to_next_section()))
]


def copy_tutorials() -> None:
    """Sphinx reads pages below its own folder alone: copy what has changed in ``notebooks/``, drop what is gone."""
    here = Path(__file__).parent
    target = here / 'tutorials'
    target.mkdir(exist_ok=True)
    sources = {path.name: path for path in (here.parent / 'notebooks').glob('*.md')}
    for path in target.glob('*.md'):
        if path.name not in sources:
            path.unlink()
    for name, path in sources.items():
        if not (target / name).exists() or (target / name).read_bytes() != path.read_bytes():
            shutil.copy2(path, target / name)


copy_tutorials()


def add_download(app: Any, docname: str, source: list[str]) -> None:
    """Add a link to the notebook to the end of a tutorial."""
    folder, _, name = docname.rpartition('/')
    if folder == 'tutorials' and name != 'index':
        install = f"!pip install 'git+{URLS['Repository']}'"
        source[0] += (
            f'\nDownload this page as a notebook: {{nb-download}}`{name}.ipynb`. To run it in '
            f'[Google Colab](https://colab.research.google.com), upload it and add a first cell with `{install}`. '
            '(It was not tested there.)\n'
        )


def find_short_name(app: Any, env: Any, node: Any, text: Any) -> Any:
    """Resolve a name without its module, such as ``OmniSat``, wherever it is documented."""
    if node.get('refdomain') != 'py' or node['reftype'] not in ('class', 'func') or '.' in node['reftarget']:
        return None
    node['refspecific'] = True
    return env.domains['py'].resolve_xref(
        env, node['refdoc'], app.builder, node['reftype'], node['reftarget'], node, text
    )


def find_elsewhere(app: Any, env: Any, node: Any, text: Any) -> Any:
    """Link a name of Python, NumPy or PyTorch to its manual, without an inventory of that."""
    target = node.get('reftarget', '')
    page = next((page for page, names in ELSEWHERE.items() if target in names.split()), None)
    if node.get('refdomain') != 'py' or page is None:
        return None
    name = target.replace('.modules.module', '')
    return nodes.reference('', '', text, internal=False, refuri=page.format(name), reftitle=name)


def leave_out_what_says_nothing(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Drop the first words of a package, which its page says in its own, and of constructors but for arguments."""
    if what == 'module' and hasattr(found, '__path__'):
        lines.clear()
    if what == 'class' and lines and lines[0] != inspect.getdoc(found).splitlines()[0]:  # it is of the constructor
        if '__init__' not in vars(found):  # another's
            lines.clear()
        elif lines[0].startswith('Keep the arguments'):
            del lines[0]


def leave_out_fields(app: Any, what: str, name: str, found: Any, skip: bool, options: Any) -> bool | None:
    """Drop "Alias for field number 0": the docstring of a NamedTuple says what its fields are."""
    return True if str(inspect.getdoc(found)).startswith('Alias for field number') else None


def setup(app: Any) -> None:
    """Connect."""
    app.connect('missing-reference', find_short_name)
    app.connect('missing-reference', find_elsewhere)
    app.connect('source-read', add_download)
    app.connect('autodoc-process-docstring', leave_out_what_says_nothing)
    app.connect('autodoc-skip-member', leave_out_fields)
