"""torch.compile: one graph for every model, task and kind of input."""

import pytest
import torch

from ..processes import call_unchecked, succeed
from . import compiled


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__.startswith('2.5.'), reason='torch 2.5 breaks the graph')
def test_no_graph_breaks(tmp_path):
    """In a separate process, because the shape checks of the tests cannot be traced."""
    succeed(tmp_path, call_unchecked, compiled.__name__, 'every_model', timeout=400)
