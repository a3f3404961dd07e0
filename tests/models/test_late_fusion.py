# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Late fusion beyond what tests/models/test_invariance.py holds of every model."""

import re

import pytest
import torch
from torch import Tensor, nn
from torchgeo.models import get_model

from torchgeo_omnisat import Modality
from torchgeo_omnisat.batch import drop
from torchgeo_omnisat.models import UTAE, LateFusion, OmniSatClassifier, OmniSatSegmenter, dual_stream, late_fusion
from torchgeo_omnisat.models.late_fusion import MeanFusion, taken
from torchgeo_omnisat.registry import register_models

from .conftest import MODALITIES, S1A, S2, SPOT, assert_same

SMALL = {'widths': (16, 32), 'image_widths': (16, 16, 32, 32), 'width': 16}
Batch = dict[str, Tensor]


def test_one_stream_a_series(batch: Batch) -> None:
    """Of the published width; a single image is left aside, whatever it holds."""
    model = dual_stream(MODALITIES)
    out = model(batch)
    assert list(model.encoders) == list(out.tokens) == ['s2', 's1a']
    assert out.available.shape == (3, 2)
    assert out.fused.shape == (3, 256, 32)
    assert_same(model(drop(batch, [SPOT])).fused, out.fused, 0)
    published = sum(p.numel() for p in UTAE(len(S2.bands)).parameters())
    head = sum(p.numel() for p in UTAE(len(S2.bands)).head[1].parameters())
    assert sum(p.numel() for p in model.encoders['s2'].parameters()) == published - head
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in late_fusion(MODALITIES, **SMALL).modules())


def test_a_stream_is_utae(batch: Batch) -> None:
    """With one series the model is U-TAE up to its last layer, number for number."""
    utae, model = UTAE(4, 2, (16, 32), (16, 32), 16, dim=64), LateFusion([S2], **SMALL)
    state = {key: value for key, value in utae.state_dict().items() if not key.startswith('head.1.')}
    model.encoders['s2'].load_state_dict({key.replace('head.0.', 'head.'): value for key, value in state.items()})
    inputs = [batch[key] for key in S2.keys]
    expected = utae.head[0](utae.features(*inputs)[-1])
    assert_same(model(batch).fused, expected.flatten(2).transpose(1, 2))


def test_mean_matches_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 4, 3, 5, generator=generator)
    seen = torch.rand(2, 4, 3, generator=generator) > 0.5
    seen[0, 0] = False
    fused = MeanFusion()(tokens, seen, (2, 2))
    for b in range(2):
        for n in range(4):
            there = [tokens[b, n, m] for m in range(3) if seen[b, n, m]]
            assert_same(fused[b, n], sum(there, torch.zeros(5)) / max(1, len(there)))


@pytest.mark.parametrize('gsd', [2.5, 10.0, 20.0])
def test_logits_at_the_gsd_of_the_label(batch: Batch, gsd: float) -> None:
    model = OmniSatSegmenter(late_fusion(MODALITIES, patch_size=gsd, **SMALL), num_classes=3, label_gsd=gsd)
    assert model(batch).shape == (3, 3, round(160 / gsd), round(160 / gsd))
    assert model.backbone.encoders['spot'].strides == ({2.5: 2, 10.0: 4, 20.0: 8}[gsd],)


@pytest.mark.parametrize('encoder', ['resnet10t', 'convnext_atto', 'test_vit'])
def test_any_image_encoder(batch: Batch, encoder: str) -> None:
    model = late_fusion(MODALITIES, encoders={'spot': encoder, 's1a': 'ltae'}, widths=(16, 32), width=16)
    assert OmniSatSegmenter(model, 4, 10.0)(batch).isfinite().all()


def test_classification(batch: Batch) -> None:
    model = OmniSatClassifier(late_fusion(MODALITIES, patch_size=40.0, **SMALL), 7)
    logits = model(batch)
    assert logits.shape == (3, 7)
    assert_same(model({key: value[1:2] for key, value in batch.items()})[0], logits[1])


@pytest.mark.parametrize(
    ('backbone', 'series', 'names', 'expected'),
    [
        ('utae', None, ('s1a', 's2', 'spot'), ['s2']),
        ('utae', 's1a', ('s1a', 's2', 'spot'), ['s1a']),
        ('utae', None, ('s1a', 'spot'), ['s1a']),
        ('dual_stream', None, ('spot', 's1a', 's2'), ['s1a', 's2']),
        ('late_fusion', None, ('spot', 's2'), ['spot', 's2']),
        ('omnisat_tiny', None, ('spot', 's2'), ['spot', 's2']),
    ],
)
def test_what_a_backbone_takes(backbone: str, series: str | None, names: tuple[str, ...], expected: list[str]) -> None:
    assert list(taken(backbone, [MODALITIES[name] for name in names], series)) == expected


def test_utae_takes_the_only_optical_series() -> None:
    optical, radar = (Modality(name, ('a',), 10, True, kind) for name, kind in (('a', 'optical'), ('s2', 'radar')))  # type: ignore[arg-type]
    assert list(taken('utae', [radar, optical])) == ['a']
    assert list(taken('utae', [radar])) == ['s2']
    other = Modality('s2', ('a',), 10, True, 'optical')
    with pytest.raises(ValueError, match=re.escape("series of utae is None, expected one of ['s2', 'a']")):
        taken('utae', [other, optical])


@pytest.mark.parametrize(
    ('backbone', 'series', 'modalities', 'message'),
    [
        ('utae', 'spot', MODALITIES, "series of utae is 'spot', expected one of ['s2', 's1a']"),
        ('utae', None, [S1A, Modality('s1d', ('VV',), 10, True)], "is None, expected one of ['s1a', 's1d']"),
        ('dual_stream', None, [SPOT], "modalities are ['spot']"),
    ],
)
def test_nothing_to_take(backbone: str, series: str | None, modalities: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        taken(backbone, modalities, series)


def test_batch_without_any_of_its_modalities_is_refused(batch: Batch) -> None:
    with pytest.raises(ValueError, match='s2'):
        LateFusion([S2], **SMALL)(drop(batch, [S2]))


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'patch_size': -10.0}, 'patch_size is -10.0 m, expected'),
        ({'patch_size': float('nan')}, 'patch_size is nan m, expected'),
        ({'width': 0}, 'width is 0, expected an integer from 1'),
        ({'widths': (16, 0)}, 'widths[1] is 0, expected an integer from 1'),
    ],
)
def test_size_that_is_none(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LateFusion([S2], **{**SMALL, **wrong})


def test_from_torchgeo() -> None:
    register_models()
    assert list(get_model('dual_stream', MODALITIES, widths=(16, 32)).encoders) == ['s2', 's1a']
    assert list(get_model('late_fusion', MODALITIES, **SMALL).encoders) == ['s2', 's1a', 'spot']
