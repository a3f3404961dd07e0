# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Small variants of large models, built from the published classes."""

from functools import partial
from typing import Any

import pytest
import timm
import torchvision
from torchgeo.models import DEO, panopticon
from torchgeo.models.copernicusfm import CopernicusFM
from torchgeo.models.dofa import DOFA
from torchgeo.models.panopticon import Panopticon
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from torchgeo_omnisat.models.encoders.pretrained.images import copernicusfm, croma, deo, dofa
from torchgeo_omnisat.models.encoders.pretrained.images import panopticon as encoders

#: Width and depth of the transformers.
WIDTH, DEPTH = 48, 4
_SWIN: Any = ([1, 1, 1, 1], [1, 2, 4, 8], [8, 8])


def swin(weights: Any = None) -> SwinTransformer:
    """Return a Swin transformer of torchvision, version 2."""
    return SwinTransformer([4, 4], 16, *_SWIN, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)


def small_panopticon(monkeypatch: pytest.MonkeyPatch, img_size: int = 518) -> Panopticon:
    """Return a Panopticon."""
    create = timm.create_model
    with monkeypatch.context() as patch:
        sizes = {'embed_dim': WIDTH, 'depth': DEPTH, 'num_heads': 4}
        patch.setattr(panopticon.timm, 'create_model', lambda name: create(name, **sizes))
        return Panopticon(attn_dim=96, embed_dim=WIDTH, img_size=img_size)


def small_deo() -> DEO:
    """Return a DEO, whose layers are those of :func:`swin`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(torchvision.models.__dict__, 'swin_b', lambda: SwinTransformer([4, 4], 16, *_SWIN))
        return DEO()


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have encoders build small variants."""
    small = {'embed_dim': WIDTH, 'depth': DEPTH, 'num_heads': 4}
    for name in ('swin_v2_t', 'swin_v2_b'):
        monkeypatch.setattr(torchvision.models, name, swin)
    monkeypatch.setitem(croma.SIZES, 'base', (WIDTH, DEPTH))
    monkeypatch.setitem(dofa.SIZES, 'base', partial(DOFA, **small))
    monkeypatch.setitem(copernicusfm.SIZES, 'base', partial(CopernicusFM, **small))
    monkeypatch.setitem(deo.SIZES, 'base', small_deo)
    monkeypatch.setitem(encoders.SIZES, 'base', partial(small_panopticon, monkeypatch))
