"""torch.compile: no graph breaks, any number of dates in one graph, the same results and gradients."""

import pytest
import torch

from ..processes import call_unchecked, succeed
from . import compiled


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__.startswith('2.5.'), reason='torch 2.5 breaks the graph')
def test_one_graph_for_any_number_of_dates(tmp_path):
    """In a separate process, because the shape checks of the tests cannot be traced."""
    succeed(tmp_path, call_unchecked, compiled.__name__, timeout=300)
