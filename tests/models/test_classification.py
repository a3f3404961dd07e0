# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
from torch import Tensor

from torchgeo_omnisat.batch import drop
from torchgeo_omnisat.models import OmniSatClassifier, omnisat_tiny
from torchgeo_omnisat.models.classification import LabelHead

from .conftest import MODALITIES, assert_same, random_batch


@pytest.fixture
def classifier() -> OmniSatClassifier:
    torch.manual_seed(0)
    return OmniSatClassifier(omnisat_tiny(MODALITIES), num_classes=7)


def test_one_logit_a_label(classifier: OmniSatClassifier, batch: dict[str, Tensor]) -> None:
    assert classifier(batch).shape == (3, 7)


def test_a_label_is_needed() -> None:
    with pytest.raises(ValueError, match='num_classes is 0, expected an integer from 1'):
        OmniSatClassifier(omnisat_tiny(MODALITIES), num_classes=0)


def test_absent_modality_is_invisible(classifier: OmniSatClassifier, batch: dict[str, Tensor]) -> None:
    without = drop(batch, [MODALITIES['s1a']])
    batch['valid_s1a'][:] = False
    batch['image_s1a'][:] = 1e4
    assert_same(classifier(batch), classifier(without))


def test_restricting_is_as_if_the_rest_had_not_been_there(
    classifier: OmniSatClassifier, batch: dict[str, Tensor]
) -> None:
    restricted = classifier.backbone.restrict(classifier.backbone(batch), ['s2'])
    alone = classifier(drop(batch, [MODALITIES['s1a'], MODALITIES['spot']]))
    assert_same(classifier.decode(restricted), alone)


def test_batch_does_not_matter(classifier: OmniSatClassifier, batch: dict[str, Tensor]) -> None:
    single = {key: value[1:2] for key, value in batch.items()}
    assert_same(classifier(batch)[1:2], classifier(single))


def test_nothing_at_all_is_finite(classifier: OmniSatClassifier) -> None:
    batch = random_batch(size=2)
    for modality in MODALITIES.values():
        batch[modality.valid_key][0] = False
    logits = classifier(batch)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in classifier.parameters())


def test_every_part_learns(classifier: OmniSatClassifier, batch: dict[str, Tensor]) -> None:
    classifier(batch).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in classifier.head.parameters())
    for name in MODALITIES:
        assert any(p.grad is not None and p.grad.any() for p in classifier.backbone.encoders[name].parameters())


class TestHead:
    def test_unseen_patch_is_invisible(self) -> None:
        torch.manual_seed(0)
        head, tokens = LabelHead(8, 3), torch.randn(2, 5, 8)
        seen = torch.tensor([[True, True, False, True, True]] * 2)
        other = tokens.clone()
        other[:, 2] = 100
        assert_same(head(tokens, seen), head(other, seen))
        assert_same(head(tokens, seen), head(tokens[:, [0, 1, 3, 4]], seen[:, [0, 1, 3, 4]]))

    def test_order_and_number_of_patches_do_not_matter(self) -> None:
        torch.manual_seed(0)
        head, tokens = LabelHead(8, 3), torch.randn(2, 5, 8)
        seen = torch.ones(2, 5, dtype=torch.bool)
        assert_same(head(tokens, seen), head(tokens.flip(1), seen))
        assert_same(head(tokens, seen), head(tokens.repeat(1, 3, 1), seen.repeat(1, 3)))
