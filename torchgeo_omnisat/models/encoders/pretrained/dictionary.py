# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoder by a model that takes a dictionary of modalities, such as AnySat and UniverSat."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ....modality import Modality
from ....utils.tensors.observed import observed
from ..registry import Origin, import_class, refuse_import, register_encoder
from .adapter import canonical
from .series.composites import RawImages
from .series.tessera import day_of_year
from .series.weights import load_strictly
from .sources import read_file


class DictionaryEncoder(RawImages):
    """Encoder by a model that takes a dictionary of modalities and returns dense features.

    The model is called as ``model({'s2': image, 's2_dates': dates}, patch_size=4, output='dense')``, with the keys and
    arguments below. Images have the shape ``(B, T, C, H, W)``, or ``(B, C, H, W)`` for a single image, and dates
    ``(B, T)``. Such models have no common mask, so only valid dates are passed, and samples with the same number of
    them are computed together. Missing pixels are 0 after normalisation.

    Images are passed as normalised by the statistics of the data, which these models expect, or with *shift* and
    *scale* in raw units.

    Args:
        modality: Modality to encode.
        model: Module, or a class or function that returns it, or ``{'class_path': ..., 'init_args': ...}``.
        channels: Channels of the features.
        stride: Side of a feature in pixels.
        key: Key of the image; None for the name of the modality.
        dates_key: Key of the dates; None for that of the image with ``_dates``.
        dates: ``'day_of_year'`` (1 to 366) or ``'days'`` since 1970-01-01.
        bands: Bands in the order of the channels of the model; None for those of the modality.
        shift: Value that is subtracted from each of *bands* in raw units; None for the statistics of the data.
        scale: Value that each of *bands* is divided by afterwards.
        output: Key of the features, if the model returns a dictionary.
        channels_last: Whether features are ``(B, H, W, D)`` or ``(B, N, D)``, instead of ``(B, D, H, W)``.
        call: Other arguments of the call.
        weights: File of tensors with the weights of the model.
        freeze: Whether the weights are excluded from training; the model stays in evaluation mode then.
        chunk: Maximum number of samples that are computed at once.
        load: Whether to load the weights; False if a checkpoint provides them.

    Raises:
        ValueError: If the model cannot be built, a band is missing, or an argument or the weights do not fit.
    """

    def __init__(
        self,
        modality: Modality,
        model: nn.Module | Callable[..., nn.Module] | Mapping[str, Any],
        channels: int,
        stride: int,
        key: str | None = None,
        dates_key: str | None = None,
        dates: str = 'day_of_year',
        bands: Sequence[str] | None = None,
        shift: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        output: str | None = None,
        channels_last: bool = True,
        call: Mapping[str, Any] | None = None,
        weights: str | Path | None = None,
        freeze: bool = True,
        chunk: int = 4,
        load: bool = True,
    ) -> None:
        super().__init__(modality.bands)
        if dates not in ('day_of_year', 'days') or min(channels, stride, chunk) < 1:
            raise ValueError(
                f'dates is {dates!r}, channels {channels}, stride {stride} and chunk {chunk} of {modality.name!r}, '
                "expected 'day_of_year' or 'days', and numbers of at least 1"
            )
        self.temporal, self.name = modality.temporal, modality.name
        self.key = key or modality.name
        self.dates_key, self.date_format = dates_key or f'{self.key}_dates', dates
        self.output, self.channels_last, self.call = output, channels_last, dict(call or {})
        self.chunk = chunk
        self.order = _order(modality, modality.bands if bands is None else bands)
        #: Whether a task sets the statistics of the data.
        self.converts_units = shift is not None or scale is not None
        for name, values, default in (('shift', shift, 0.0), ('scale', scale, 1.0)):
            numbers = torch.tensor([default] * len(self.order) if values is None else list(values)).float()
            zero = name == 'scale' and bool((numbers == 0).any())
            if numbers.shape != (len(self.order),) or not numbers.isfinite().all() or zero:
                raise ValueError(f'{name} of {modality.name!r} is {values}, expected one number for each band')
            self.register_buffer(name, numbers.view(-1, 1, 1), persistent=False)
        self.model = _build(modality.name, model)
        if weights is not None:
            self.origin = Origin(Path(weights).name, 0, 'the checkpoint')
            if load:
                state = read_file(Path(weights).expanduser())
                origin = Origin(Path(weights).name, len(state), str(weights))
                self.origin = load_strictly(self.model, state, origin, f'the model of {modality.name!r}')
        if freeze:
            self.freeze_modules('model')
        self.channels, self.strides = (channels,), (stride,)

    def forward(self, image: Float[Tensor, 'b ...'], *rest: Tensor) -> list[Tensor]:
        """Encode time series, or single images.

        Args:
            image: Normalised bands ``(B, T, C, H, W)`` or ``(B, C, H, W)``; NaN is nodata.
            *rest: Dates ``(B, T)``, days since 1970-01-01, and valid dates ``(B, T)``; valid images ``(B,)`` for single
                images.

        Returns:
            One map of shape ``(B, D, H / stride, W / stride)``, rounded up, zero for samples without an observation.
        """
        valid = rest[-1] if self.temporal else rest[-1].unsqueeze(1)
        frames = image if self.temporal else image.unsqueeze(1)
        valid = valid & observed(frames).flatten(2).any(2)
        days = rest[0] if self.temporal else torch.zeros_like(valid, dtype=torch.int64)
        count, stride = valid.sum(1), self.strides[0]
        sizes = [-(-side // stride) for side in image.shape[-2:]]
        index, parts = [], []
        trained = torch.is_grad_enabled() and (image.requires_grad or any(p.requires_grad for p in self.parameters()))
        with torch.set_grad_enabled(trained):
            for number in count[count > 0].unique():
                for rows in (count == number).nonzero().squeeze(1).split(self.chunk):
                    never = torch.iinfo(days.dtype).max
                    kept = days[rows].masked_fill(~valid[rows], never).argsort(dim=1, stable=True)[:, :number]
                    chosen = frames[rows].gather(1, kept[..., None, None, None].expand(-1, -1, *frames.shape[2:]))
                    index.append(rows)
                    parts.append(self._features(chosen, days[rows].gather(1, kept), sizes).to(image.dtype))
        out = image.new_zeros(len(image), self.channels[0], *sizes)
        return [out.index_copy(0, torch.cat(index), torch.cat(parts)) if parts else out]

    def _features(self, frames: Float[Tensor, 'b t c h w'], days: Tensor, sizes: Sequence[int]) -> Tensor:
        x = frames[:, :, self.order]
        missing = ~observed(x)
        if self.converts_units:
            x = (self.raw(frames, self.order) - self.get_buffer('shift')) / self.get_buffer('scale')
        x = x.masked_fill(missing, 0)
        stride = self.strides[0]
        x = F.pad(x, (0, -x.shape[-1] % stride, 0, -x.shape[-2] % stride))
        inputs = {self.key: x if self.temporal else x[:, 0]}
        if self.temporal:
            inputs[self.dates_key] = day_of_year(days).to(x.device) if self.date_format == 'day_of_year' else days
        found = self.model(inputs, **self.call)
        features = found[self.output] if self.output is not None else found
        if not isinstance(features, Tensor):
            keys = sorted(features) if isinstance(features, Mapping) else type(features).__name__
            raise ValueError(f'model of {self.name!r} returned {keys}, expected a tensor, or its key in output')
        if features.ndim == 3:
            features = features.transpose(1, 2) if self.channels_last else features
            features = features.unflatten(2, sizes) if features.shape[2] == sizes[0] * sizes[1] else features
        elif self.channels_last:
            features = rearrange(features, 'b h w d -> b d h w')
        expected = (len(x), self.channels[0], *sizes)
        if tuple(features.shape) != expected:
            raise ValueError(
                f'model of {self.name!r} returned features {tuple(features.shape)} of images {tuple(x.shape)}, '
                f'expected {expected} after moving channels: channels, stride or channels_last does not fit'
            )
        return features


@register_encoder('dictionary')
def dictionary_encoder(modality: Modality, **kwargs: Any) -> DictionaryEncoder:
    """Build the encoder of a modality by a model that takes a dictionary.

    Args:
        modality: Modality.
        **kwargs: Arguments of ``DictionaryEncoder``.

    Raises:
        ValueError: If an argument is missing or does not fit.
    """
    if missing := sorted({'model', 'channels', 'stride'} - set(kwargs)):
        raise ValueError(f'encoder of {modality.name!r} is dictionary without {missing}')
    return DictionaryEncoder(modality, **kwargs)


def _build(name: str, model: nn.Module | Callable[..., nn.Module] | Mapping[str, Any]) -> nn.Module:
    """Return the model; a class path of a checkpoint is imported only if it is registered."""
    if isinstance(model, Mapping):
        if set(model) - {'class_path', 'init_args'} or not isinstance(model.get('class_path'), str):
            raise ValueError(f'model of the encoder of {name!r} is {model}, expected a class_path and init_args')
        refuse_import(name, model['class_path'])
        model = import_class(name, model['class_path'])(**(model.get('init_args') or {}))
    built: Any = model() if callable(model) and not isinstance(model, nn.Module) else model
    if not isinstance(built, nn.Module):
        raise ValueError(f'model of the encoder of {name!r} is a {type(built).__name__}, expected a torch.nn.Module')
    return built


def _order(modality: Modality, bands: Sequence[str]) -> list[int]:
    """Return the indices of *bands* in the modality."""
    own = [canonical(band) for band in modality.bands]
    names = [canonical(band) for band in bands]
    if missing := [band for band, name in zip(bands, names, strict=True) if own.count(name) != 1]:
        raise ValueError(
            f'bands of {modality.name!r} are {list(modality.bands)}, expected {missing} once for the dictionary model'
        )
    return [own.index(name) for name in names]
