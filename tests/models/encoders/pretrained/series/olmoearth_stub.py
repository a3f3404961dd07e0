"""Module with the signature of olmoearth-pretrain-minimal 0.1.5, for tests without it.

As in the original in evaluation mode, tokens of a batch are removed up to the longest sequence, and attention has no
mask.
"""

import sys
from typing import NamedTuple

import torch
from einops import rearrange
from torch import nn

SETS = {'sentinel2_l2a': ((0, 1, 2, 3), (4, 5, 6, 7, 8, 9), (10, 11)), 'sentinel1': ((0, 1),)}
S2 = ('B02', 'B03', 'B04', 'B08', 'B05', 'B06', 'B07', 'B8A', 'B11', 'B12', 'B01', 'B09')


class MaskedOlmoEarthSample(NamedTuple):
    timestamps: torch.Tensor
    sentinel2_l2a: torch.Tensor | None = None
    sentinel2_l2a_mask: torch.Tensor | None = None
    sentinel1: torch.Tensor | None = None
    sentinel1_mask: torch.Tensor | None = None


class Encoder(nn.Module):
    embedding_size = 16

    def __init__(self):
        super().__init__()
        self.embed = nn.ModuleDict(
            {f'{name}_{i}': nn.Linear(len(c) * 16, 16) for name, sets in SETS.items() for i, c in enumerate(sets)}
        )
        self.month, self.slot, self.place = nn.Embedding(12, 16), nn.Embedding(12, 16), nn.Embedding(64, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)

    def forward(self, x, patch_size, input_res=10):
        assert patch_size == 4
        tokens, masks, shapes = [], [], {}
        for name, sets in SETS.items():
            image, mask = getattr(x, name), getattr(x, f'{name}_mask')
            if image is None:
                continue
            assert image.isfinite().all()
            parts = [
                self.embed[f'{name}_{i}'](
                    rearrange(image[..., list(c)], 'b (i p) (j q) t c -> b i j t (p q c)', p=4, q=4)
                )
                for i, c in enumerate(sets)
            ]
            part = torch.stack(parts, 4)
            months = self.month(x.timestamps[:, :, 1])[:, None, None, :, None]
            slots = self.slot(torch.arange(part.shape[3]))[:, None]
            rows, columns = (self.place(torch.arange(n)) for n in part.shape[1:3])
            places = (rows[:, None] + 2 * columns[None])[:, :, None, None]
            shapes[name] = part.shape
            tokens.append((part + months + slots + places).flatten(1, 4))
            masks.append(mask[:, ::4, ::4])
        x, flags = torch.cat(tokens, 1), torch.cat([mask.flatten(1) for mask in masks], 1) == 0
        longest = int(flags.sum(1).max())
        order = flags.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest, None].expand(-1, -1, 16)
        kept = x.gather(1, order) * flags.gather(1, order[..., 0]).unsqueeze(-1)
        out = torch.zeros_like(x).scatter(1, order, self.norm(kept + self.attention(kept, kept, kept)[0]))
        found, start = {}, 0
        for (name, shape), mask in zip(shapes.items(), masks, strict=True):
            count = shape[1:5].numel()
            found[name] = out[:, start : start + count].view(shape)
            found[f'{name}_mask'] = mask
            start += count
        return {'tokens_and_masks': type('TokensAndMasks', (), found)}


class OlmoEarthPretrain_v1(nn.Module):
    def __init__(self, model_size, model_version, drop_path):
        super().__init__()
        assert (model_version, drop_path) == ('v1', 0.0)
        self.model_size = model_size
        self.model = nn.Module()
        self.model.encoder, self.model.decoder = Encoder(), nn.Linear(2, 2)

    @property
    def encoder(self):
        return self.model.encoder


class Normalizer:
    def __init__(self):
        s2 = {name: {'mean': 1000.0 + 100 * i, 'std': 1500.0 + 10 * i} for i, name in enumerate(S2)}
        s1 = {'vv': {'mean': -11.6, 'std': 10.8}, 'vh': {'mean': -17.7, 'std': 10.2}}
        self.norm_config = {'sentinel2_l2a': s2, 'sentinel1': s1}


def install(monkeypatch):
    """Register this module under the names of the package."""
    for name in (
        '',
        '.olmoearth_pretrain_v1',
        '.olmoearth_pretrain_v1.utils',
        '.olmoearth_pretrain_v1.utils.datatypes',
    ):
        monkeypatch.setitem(sys.modules, f'olmoearth_pretrain_minimal{name}', sys.modules[__name__])
