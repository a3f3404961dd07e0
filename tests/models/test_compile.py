"""torch.compile: no graph breaks, any number of dates in one graph, the same results and gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_one_graph_for_any_number_of_dates():
    """In a process of its own: the shape checks of the tests cannot be traced."""
    root = Path(__file__).parents[2]
    told = os.environ | {'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}
    words = [sys.executable, '-m', 'tests.models.compiled']
    done = subprocess.run(words, capture_output=True, text=True, cwd=root, env=told, timeout=300)
    assert not done.returncode, done.stderr
    assert done.stdout.split() == ['compiled', 'as', 'before']
