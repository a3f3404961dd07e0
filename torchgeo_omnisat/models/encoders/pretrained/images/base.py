# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoder of images by a pre-trained model whose input is adapted to a modality."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from .....modality import Modality
from ...image import SingleImageEncoder
from ..adapter import BandAdapter
from ..freezing import FreezableEncoder


class AdaptedEncoder(SingleImageEncoder, FreezableEncoder):
    """Pre-trained model of single images, whose bands and units are adapted to a modality.

    Images are converted to the unit of the weights. Bands are matched and reordered. Images are padded to a multiple of
    the coarsest stride, never cropped or resized.
    """

    def __init__(
        self,
        modality: Modality,
        adapter: BandAdapter,
        body: nn.Module,
        pads: bool = True,
        freeze: bool | str = False,
        layer_decay: float = 1.0,
        levels: Sequence[int] | None = None,
        chunk: int = 16,
    ) -> None:
        """Initialize the encoder.

        Args:
            modality: Modality to encode.
            adapter: Conversion of images to the input of the model.
            body: Model with timm's interface: ``feature_info``, ``forward_intermediates`` and, for ``layer_decay``,
                ``group_matcher`` or ``features``. One of its modules has the parameters ``extra`` and ``missing``,
                which read bands that the weights lack and flags of missing bands; None if there are none.
            pads: Whether images have to be padded.
            freeze: Whether to freeze no weights (False), all loaded weights (True), or all but the last stage or block
                (``'but_last'``).
            layer_decay: Factor of the learning rate from one layer to the layer before it.
            levels: Indices of the stages or blocks whose maps are returned; None for all stages, or for the middle and
                the last block of a ViT. Maps of a time series begin at stride 4, because ``PerDate`` adds a map at full
                resolution.
            chunk: Maximum number of images that are computed at once.
        """
        super().__init__()
        self.layer_decay, self.chunk, self.pads = layer_decay, chunk, pads
        self.converts_units = not adapter.standardised  # read by a task, which calls set_statistics
        self.adapter = adapter
        self.body = body
        info = feature_info(body)
        self.vit = len({entry['reduction'] for entry in info}) == 1 and len(info) > 1
        least = 4 if modality.temporal else 1
        default = [level for level, entry in enumerate(info) if entry['reduction'] >= least]
        default = [len(info) // 2 - 1, len(info) - 1] if self.vit else default
        self.levels = [range(len(info))[index] for index in (levels if levels is not None else default)]
        self.channels = tuple(info[level]['num_chs'] for level in self.levels)
        self.strides = tuple(info[level]['reduction'] for level in self.levels)
        self.last = [info[level]['module'] for level in self.levels][-1]
        if freeze:
            self.freeze_modules('body', but=(f'body.{self.last}',) if freeze == 'but_last' else ())
            for parameter in self._new_parameters() if len(adapter.rest) else ():
                parameter.requires_grad_(True)

    def _new_parameters(self) -> list[nn.Parameter]:
        found = [getattr(m, name, None) for m in self.body.modules() for name in ('extra', 'missing')]
        return [parameter for parameter in found if isinstance(parameter, nn.Parameter)]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        own = [key.removeprefix(f'{prefix}body.') for key in state_dict if key.startswith(f'{prefix}body.')]
        if own and hasattr(self.body, 'norm') and not any(key.startswith('norm.') for key in own):
            self.body.norm = nn.Identity()  # as in load_body, for a checkpoint of weights without it
        super()._load_from_state_dict(state_dict, prefix, *args)

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the statistics that images are normalised with before they reach the encoder; see ``BandAdapter``."""
        self.adapter.set_normalisation(mean, std)

    def learning_rates(self) -> dict[nn.Parameter, float]:
        """Return the factor of the learning rate of each trained parameter of the backbone."""
        if self.layer_decay == 1:
            return {}
        if hasattr(self.body, 'group_matcher'):
            groups: Any = param_groups_layer_decay(self.body, layer_decay=self.layer_decay)
            rates = {p: float(group['lr_scale']) for group in groups for p in group['params']}
        else:
            stages = len(self.body.features)  # type: ignore[arg-type]
            rates = {
                p: self.layer_decay ** (stages - 1 - int(n.split('.')[1])) for n, p in self.body.named_parameters()
            }
        new = {id(parameter) for parameter in self._new_parameters()}
        return {p: rate for p, rate in rates.items() if id(p) not in new}

    def encode(self, image: Float[Tensor, 's c h w']) -> list[Tensor]:
        """Return the maps of S images."""
        height, width = image.shape[-2:]
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.body.parameters())
        with torch.set_grad_enabled(trained or (torch.is_grad_enabled() and image.requires_grad)):
            x = self.adapter(image)
            if self.pads:
                step = max(self.strides)
                x = F.pad(x, (0, -width % step, 0, -height % step), mode='replicate') if len(x) else x
            x = x.contiguous(memory_format=torch.channels_last)
            parts = [self._maps(part) for part in x.split(self.chunk)]
        maps = [torch.cat(level) if len(level) > 1 else level[0] for level in zip(*parts, strict=True)]
        sizes = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in self.strides]
        return [x[..., :rows, :columns] for x, (rows, columns) in zip(maps, sizes, strict=True)]

    def _maps(self, x: Tensor) -> list[Tensor]:
        if not len(x):
            size = x.shape[-2:]
            places = zip(self.channels, self.strides, strict=True)
            return [x.new_zeros(0, c, math.ceil(size[0] / s), math.ceil(size[1] / s)) for c, s in places]
        body: Any = self.body
        maps: list[Tensor] = body.forward_intermediates(x, indices=self.levels, norm=self.vit, intermediates_only=True)
        return maps


def check_arguments(
    modality: Modality,
    units: str | None,
    freeze: bool | str = False,
    layer_decay: float = 1.0,
    levels: Sequence[int] | None = None,
    chunk: int = 16,
) -> None:
    """Validate arguments of an ``AdaptedEncoder`` before its weights are read.

    Raises:
        ValueError: If *units*, *freeze*, *layer_decay* or *chunk* are invalid.
    """
    if freeze not in (True, False, 'but_last') or units not in (None, 'native', 'standardised'):
        raise ValueError(
            f'freeze is {freeze!r} and units is {units!r} for {modality.name!r}, expected freeze to be true, false '
            "or 'but_last' and units to be 'native' or 'standardised'"
        )
    if not 0 < layer_decay <= 1 or chunk < 1:
        raise ValueError(
            f'layer_decay is {layer_decay} and chunk is {chunk} for {modality.name!r}, expected a factor above 0 '
            'and up to 1, and at least one image'
        )


def feature_info(body: Any) -> list[dict[str, Any]]:
    """Return channels, stride and module of each feature map of a backbone."""
    info = body.feature_info
    return list(info.info if hasattr(info, 'info') else info)
