# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Small variants of large models, built from the published classes."""

from functools import partial
from typing import Any

import pytest
import timm
import torchvision
from torchgeo.models import panopticon
from torchgeo.models.copernicusfm import CopernicusFM
from torchgeo.models.dofa import DOFA
from torchgeo.models.panopticon import Panopticon
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from torchgeo_omnisat.models.encoders.pretrained import copernicusfm, croma, dofa
from torchgeo_omnisat.models.encoders.pretrained import panopticon as encoders

#: Width and depth of the transformers.
WIDTH, DEPTH = 48, 4


def swin(weights: Any = None) -> SwinTransformer:
    """Return a Swin transformer of torchvision, version 2."""
    sizes: Any = ([4, 4], 16, [1, 1, 1, 1], [1, 2, 4, 8], [8, 8])
    return SwinTransformer(*sizes, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)


def small_panopticon(monkeypatch: pytest.MonkeyPatch, img_size: int = 518) -> Panopticon:
    """Return a Panopticon."""
    create = timm.create_model
    with monkeypatch.context() as patch:
        sizes = {'embed_dim': WIDTH, 'depth': DEPTH, 'num_heads': 4}
        patch.setattr(panopticon.timm, 'create_model', lambda name: create(name, **sizes))
        return Panopticon(attn_dim=96, embed_dim=WIDTH, img_size=img_size)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have encoders build small variants."""
    small = {'embed_dim': WIDTH, 'depth': DEPTH, 'num_heads': 4}
    for name in ('swin_v2_t', 'swin_v2_b'):
        monkeypatch.setattr(torchvision.models, name, swin)
    monkeypatch.setitem(croma.SIZES, 'base', (WIDTH, DEPTH))
    monkeypatch.setitem(dofa.SIZES, 'base', partial(DOFA, **small))
    monkeypatch.setitem(copernicusfm.SIZES, 'base', partial(CopernicusFM, **small))
    monkeypatch.setitem(encoders.SIZES, 'base', partial(small_panopticon, monkeypatch))
