# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The site. `make docs` builds it without a network."""

import inspect
import os
import re
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

#: Addresses of other manuals, and the names that occur here. Inventories (intersphinx) would need a network, and have
#: classes by their public names alone, while signatures have the modules in which classes are defined.
ELSEWHERE = {
    'https://docs.python.org/3/library/functions.html#{}': 'bool dict float int list object tuple type',
    'https://docs.python.org/3/library/stdtypes.html#{}': 'bytes set slice str',
    'https://docs.python.org/3/library/constants.html#{}': 'None',
    'https://docs.python.org/3/library/exceptions.html#{}': (
        'Exception FileExistsError FileNotFoundError ImportError IndexError KeyError OSError RuntimeError TypeError '
        'ValueError'
    ),
    'https://docs.python.org/3/library/typing.html#{}': 'typing.Any typing.ClassVar typing.Literal typing.NamedTuple',
    'https://docs.python.org/3/library/abc.html#{}': 'abc.ABC',
    'https://docs.python.org/3/library/pathlib.html#{}': 'pathlib.Path',
    'https://docs.python.org/3/library/os.html#{}': 'os.PathLike',
    'https://docs.python.org/3/library/re.html': 're',
    'https://docs.python.org/3/library/collections.abc.html#{}': (
        'collections.abc.Callable collections.abc.Collection collections.abc.Iterable collections.abc.Iterator '
        'collections.abc.Mapping collections.abc.Sequence'
    ),
    'https://docs.kidger.site/jaxtyping/api/array/': 'jaxtyping.Bool jaxtyping.Float jaxtyping.Int',
    'https://matplotlib.org/stable/api/figure_api.html#{}': 'matplotlib.figure.Figure',
    'https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html#{}': 'numpy.ndarray',
    'https://numpy.org/doc/stable/reference/random/generator.html#{}': 'numpy.random.Generator',
    'https://numpy.org/doc/stable/reference/typing.html#numpy.typing.ArrayLike': 'numpy._typing._array_like.ArrayLike',
    'https://numpy.org/doc/stable/reference/typing.html#numpy.typing.NDArray': 'numpy._typing._array_like.NDArray',
    'https://numpy.org/doc/stable/reference/arrays.scalars.html#{}': (
        'numpy.bool numpy.float32 numpy.float64 numpy.floating numpy.generic numpy.int8 numpy.int32 numpy.int64 '
        'numpy.object_ numpy.uint8 numpy.uint16'
    ),
    'https://pandas.pydata.org/docs/reference/api/{}.html': 'pandas.Timestamp',
    'https://pyproj4.github.io/pyproj/stable/api/crs/crs.html#{}': 'pyproj.crs.CRS',
    'https://docs.pytorch.org/docs/stable/tensors.html#torch.Tensor': 'Tensor torch.Tensor',
    'https://docs.pytorch.org/docs/stable/generated/{0}.html#{0}': (
        'torch.Generator torch.nn.CrossEntropyLoss torch.nn.GroupNorm torch.nn.Module torch.nn.ModuleDict '
        'torch.optim.lr_scheduler.LRScheduler torch.optim.lr_scheduler.ReduceLROnPlateau'
    ),
    'https://docs.pytorch.org/docs/stable/tensor_attributes.html#{}': 'torch.device torch.dtype',
    'https://docs.pytorch.org/docs/stable/data.html#{}': 'torch.utils.data.DataLoader torch.utils.data.Dataset',
    'https://docs.pytorch.org/docs/stable/hub.html#{}': 'torch.hub.get_dir',
    'https://docs.pytorch.org/docs/stable/optim.html#{}': 'torch.optim.Optimizer',
    'https://lightning.ai/docs/pytorch/stable/api/{}.html': (
        'lightning.pytorch.callbacks.BasePredictionWriter lightning.pytorch.callbacks.Callback '
        'lightning.pytorch.cli.LightningArgumentParser lightning.pytorch.core.LightningModule '
        'lightning.pytorch.trainer.trainer.Trainer'
    ),
    'https://lightning.ai/docs/torchmetrics/stable/references/metric.html': 'torchmetrics.Metric',
    'https://torchgeo.readthedocs.io/en/stable/api/datamodules.html': (
        'torchgeo.datamodules.BaseDataModule torchgeo.datamodules.NonGeoDataModule'
    ),
    'https://torchgeo.readthedocs.io/en/stable/api/datasets.html': (
        'DatasetNotFoundError RGBBandsMissingError torchgeo.datasets.BioMassters torchgeo.datasets.FLAIRHUB '
        'torchgeo.datasets.GeoDataset torchgeo.datasets.NonGeoDataset torchgeo.datasets.RasterDataset '
        'torchgeo.datasets.Sentinel1 torchgeo.datasets.Sentinel2'
    ),
}
ADDRESSES = {name: address.format(name) for address, names in ELSEWHERE.items() for name in names.split()}

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
    """Add a badge of Google Colab below the title of a tutorial, and how to run the notebook to its end.

    Colab opens notebooks of GitHub and Google Drive by their address alone, not those of other sites.
    """
    folder, _, name = docname.rpartition('/')
    if folder == 'tutorials' and name != 'index':
        title = re.search('^# .*\n', source[0], re.M)
        assert title is not None
        badge = '[![Upload to Google Colab](../_static/colab.svg)](https://colab.research.google.com)'
        install = f"!pip install 'git+{URLS['Repository']}'"
        source[0] = (
            f'{source[0][: title.end()]}\n{{nb-download}}`Download the notebook <{name}.ipynb>` {badge}\n'
            f'{source[0][title.end() :]}\nTo run this page in Google Colab, {{nb-download}}`download the notebook '
            f'<{name}.ipynb>`, upload it to [Colab](https://colab.research.google.com), and add a first cell with '
            f'`{install}`. (It was not tested there.)\n'
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
    """Link a name of another package to its manual; a class may be public in a package above its module."""
    target = node.get('reftarget', '')
    *modules, last = target.split('.')
    above = ('.'.join([*modules[:count], last]) for count in range(len(modules) - 1, 0, -1))
    name = next((name for name in (target, *above) if name in ADDRESSES), None)
    if node.get('refdomain') != 'py' or name is None:
        return None
    return nodes.reference('', '', text, internal=False, refuri=ADDRESSES[name], reftitle=name)


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
