"""torch.compile: no graph breaks, any number of dates in one graph, the same results and gradients."""

import os
import shutil

import pytest
import torch

from torchgeo_omnisat.models import compiling

from ..processes import call_unchecked, succeed
from . import compiled

pytestmark = pytest.mark.skipif(torch.__version__.startswith('2.5.'), reason='torch 2.5 breaks the graph')


@pytest.mark.slow
@pytest.mark.parametrize('function', ['main', 'in_regions'])
def test_one_graph_for_any_number_of_dates(tmp_path, function):
    """In a separate process, because the shape checks of the tests cannot be traced."""
    succeed(tmp_path, call_unchecked, compiled.__name__, function, timeout=300)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get('CXX', 'g++')) is None, reason='no C++ compiler')
def test_machine_code(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path / 'cache'))
    succeed(tmp_path, call_unchecked, compiled.__name__, 'by_inductor', timeout=500)


@pytest.mark.parametrize(('device', 'variable'), [('cpu', 'CXX'), ('cuda', 'CC')])
def test_missing_compiler_is_an_error(device, variable, monkeypatch):
    monkeypatch.setenv(variable, 'no-such-compiler')
    monkeypatch.setattr(compiling, 'find_spec', lambda name: name)
    with pytest.raises(RuntimeError, match=f"no compiler 'no-such-compiler'.*set {variable}"):
        compiling.require_compiler(torch.device(device))
    monkeypatch.setattr(compiling, 'find_spec', lambda name: None)
    with pytest.raises(RuntimeError, match='triton'):
        compiling.require_compiler(torch.device('cuda'))
    compiling.require_compiler(torch.device('mps'))


@pytest.mark.parametrize(
    ('device', 'command', 'installed'),
    [('cpu', 'ccache g++', 'ccache'), ('cuda', None, 'clang'), ('cuda', None, 'gcc'), ('cuda', '', 'clang')],
)
def test_compilers_that_pytorch_finds_are_accepted(device, command, installed, monkeypatch):
    monkeypatch.delenv('CC', raising=False)
    monkeypatch.setattr(compiling, 'find_spec', lambda name: name)
    monkeypatch.setattr(compiling.shutil, 'which', lambda name: name if name == installed else None)
    if command is not None:
        monkeypatch.setenv('CXX' if device == 'cpu' else 'CC', command)
    compiling.require_compiler(torch.device(device))
