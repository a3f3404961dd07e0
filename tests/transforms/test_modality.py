# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import math

import pytest
import torch
from torch import Tensor

from torchgeo_omnisat import Modality
from torchgeo_omnisat.batch import available
from torchgeo_omnisat.transforms import ModalityDropout

MODALITIES = {
    'a': Modality('a', ('x',), 10, True),
    'b': Modality('b', ('x',), 10, True),
    'c': Modality('c', ('x',), 10, False),
}
COUNT = 20000


def make_batch(there: tuple[bool, ...] = (True, True, True), count: int = COUNT) -> dict[str, Tensor]:
    batch = {'mask': torch.zeros(count, 1, 1, dtype=torch.int64)}
    for modality, flag in zip(MODALITIES.values(), there, strict=True):
        dates = 3 if modality.temporal else 1
        batch[modality.image_key] = torch.randn(count, 1)
        batch[modality.dates_key] = torch.zeros(count, dates, dtype=torch.int64)
        batch[modality.valid_key] = torch.full((count, dates), flag)
        if dates > 1:
            batch[modality.valid_key][:, 1] = False  # padding, which must not become valid
    return batch


def rates(batch: dict[str, Tensor]) -> list[float]:
    return (~available(batch, MODALITIES)).float().mean(0).tolist()


def assert_rate(rate: float, expected: float) -> None:
    assert abs(rate - expected) <= 3 * math.sqrt(expected * (1 - expected) / COUNT), (rate, expected)


@pytest.mark.parametrize('p', [0.0, 0.2, 0.6, 1.0])
def test_rate_of_each_modality(p: float) -> None:
    torch.manual_seed(1)
    batch = ModalityDropout(MODALITIES, p)(make_batch())
    for rate in rates(batch):
        assert_rate(rate, p - p**3 / 3)
    assert available(batch, MODALITIES).any(-1).all()


def test_modalities_are_dropped_independently() -> None:
    torch.manual_seed(2)
    kept = available(ModalityDropout(MODALITIES, {'a': 0.5, 'b': 0.3})(make_batch()), MODALITIES)
    assert_rate((~kept[:, 0] & ~kept[:, 1]).float().mean().item(), 0.15)
    assert kept[:, 2].all()


def test_rates_by_name() -> None:
    torch.manual_seed(3)
    batch = ModalityDropout(MODALITIES, {'a': 0.5, 'c': 0.1})(make_batch())
    for rate, expected in zip(rates(batch), (0.5, 0.0, 0.1), strict=True):
        assert_rate(rate, expected)


def test_what_is_to_be_kept_is_kept() -> None:
    batch = ModalityDropout(MODALITIES, 1.0, keep=('b',))(make_batch(count=50))
    assert available(batch, MODALITIES).tolist() == [[False, True, False]] * 50


@pytest.mark.parametrize('p', [0.5, 1.0])
def test_the_last_available_modality_stays(p: float) -> None:
    batch = ModalityDropout(MODALITIES, p)(make_batch((False, True, False), count=200))
    assert available(batch, MODALITIES).tolist() == [[False, True, False]] * 200


def test_samples_differ_in_what_they_have() -> None:
    torch.manual_seed(4)
    batch = make_batch(count=3 * 500)
    batch['valid_a'][:500] = batch['valid_b'][500:1000] = False
    batch['valid_b'][1000:] = batch['valid_c'][1000:] = False
    kept = available(ModalityDropout(MODALITIES, 0.9)(batch), MODALITIES)
    assert kept.any(-1).all()
    assert not (kept & ~available(batch, MODALITIES)).any()
    assert kept[:1000].any(0).all()


def test_what_has_nothing_stays_without() -> None:
    batch = ModalityDropout(MODALITIES, 0.5)(make_batch((False, False, False), count=20))
    assert not available(batch, MODALITIES).any()


def test_only_valid_changes() -> None:
    batch = make_batch(count=100)
    before = {key: value.clone() for key, value in batch.items()}
    after = ModalityDropout(MODALITIES, 0.7)(batch)
    assert list(after) == list(batch)
    for key, value in batch.items():
        assert torch.equal(value, before[key])
        if not key.startswith('valid'):
            assert after[key] is value
    assert not (after['valid_a'] & ~batch['valid_a']).any()
    assert (after['valid_a'].any(-1) == after['valid_a'][:, 0]).all()


def test_a_modality_may_be_absent_from_the_batch() -> None:
    batch = {key: value for key, value in make_batch(count=100).items() if not key.endswith('_b')}
    after = ModalityDropout(MODALITIES, 1.0)(batch)
    assert available(after, MODALITIES).sum(-1).eq(1).all()
    assert 'valid_b' not in after


def test_a_single_sample() -> None:
    sample = {key: value[0] for key, value in make_batch(count=1).items()}
    after = ModalityDropout(MODALITIES, 1.0)(sample)
    assert sum(after[m.valid_key].any().item() for m in MODALITIES.values()) == 1
    assert {key: value.shape for key, value in after.items()} == {key: value.shape for key, value in sample.items()}


def test_a_bare_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match='MultimodalAugmentation'):
        ModalityDropout(MODALITIES)(torch.zeros(2, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'p': 1.5}, "p of 'a' is 1.5, expected a probability between 0 and 1"),
        ({'p': float('nan')}, 'between 0 and 1'),
        ({'p': {'a': -0.1}}, r"p of 'a' is -0.1"),
        ({'p': {'z': 0.1}}, r"p has \['z'\], expected some of \['a', 'b', 'c'\]"),
        ({'keep': ('z',)}, r"keep names \['z'\]"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModalityDropout(MODALITIES, **arguments)  # type: ignore[arg-type]
