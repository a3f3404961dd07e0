# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Two processes (gloo, CPU) learn what one would from their joint batch, whatever each lacks.

Some minutes after they began they are ended, so that waiting for each other is a failure.
"""

from typing import Any

import pytest
import torch

from ..losses import ranks
from ..processes import succeed


@pytest.fixture(scope='module')
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes made of every case."""
    folder = tmp_path_factory.mktemp('processes')
    outputs = [folder / f'{rank}.pt' for rank in range(2)]
    succeed(folder, ranks.start, folder / 'store', outputs, timeout=240)
    return [torch.load(output, weights_only=True) for output in outputs]


@pytest.mark.parametrize('kind', ranks.KINDS)
@pytest.mark.parametrize('case', ranks.CASES)
def test_two_processes_are_as_one(found: list[dict[str, Any]], case: str, kind: str) -> None:
    expected = ranks.outcome(kind, ranks.joint(case))
    assert expected['loss'].isfinite()
    for one in found:
        torch.testing.assert_close(one[f'{case}/{kind}'], expected, rtol=1e-5, atol=1e-6)
    learnt = any(gradient.any() for gradient in expected['gradients'].values())
    assert learnt or kind in ('tiles apart', 'places apart') or case == 'nowhere'


@pytest.mark.parametrize('case', ranks.CASES)
def test_collectives_are_few_and_the_same_on_every_rank(found: list[dict[str, Any]], case: str) -> None:
    """In the forward pass alone: DDP and FSDP send in the backward pass, when parameters are ready."""
    expected = {'tiles': 1, 'patches': 2, 'places': 2}
    for one in found:
        for kind, count in expected.items():
            asking, knowing = one[f'{case}/{kind}/collectives']
            assert knowing == ['all_gather'] * count + ['backward']
            assert asking == ['all_gather', *knowing]
        assert one[f'{case}/reconstruction/collectives'] == [['all_reduce', 'backward']] * 2


@pytest.mark.parametrize('kind', ['tiles', 'patches'])
def test_process_of_constants_takes_part(found: list[dict[str, Any]], kind: str) -> None:
    first, second = (one[f'constants/{kind}'] for one in found)
    torch.testing.assert_close(first / 2, ranks.constants(kind, constant=False))
    assert not second.any()


def test_every_process_refuses_what_one_of_them_has(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one['NaN in rank 1'].startswith('embeddings of modalities [0, 1] are NaN or infinite in tiles [2, 3]')
        assert '1 tile' in one['one tile']
        assert one['other widths'].startswith('(modalities, width) is [(2, 2), (2, 3)]')
