# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoders of the location of a tile, and its token."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import Mlp
from torch import Tensor, nn
from torchgeo.models import SatCLIP_Weights, satclip

from ...modality import LOCATION
from ...utils.tensors.coordinates import EARTH_RADIUS, unit_vectors
from ...utils.tensors.devices import constant, wide
from .pretrained.freezing import FreezableEncoder
from .pretrained.series.weights import build_pretrained, load_strictly, read_weights
from .registry import Encoder, as_specification

#: Licence of the weights of SatCLIP (LICENSE of https://github.com/microsoft/satclip).
LICENCE = 'MIT'
#: Part of the names of the tensors of the location encoder in the published checkpoints.
_NET = 'nnet.'


class ScaledLocation(nn.Module):
    """Sinusoids of the location at several wavelengths on the ground, followed by an MLP.

    Multi-scale sinusoids are those of Mai et al., "Multi-Scale Representation Learning for Spatial Feature
    Distributions using Grid Cells" (arXiv 2003.00824). Longitude and latitude are first converted to Cartesian
    coordinates on a sphere. A wavelength is therefore a distance on the ground everywhere, and there is no seam at the
    antimeridian or the poles. Amplitudes decrease with the square root of the wavelength, so that the initial encoder
    is smooth over tens of kilometres. The unit vector of the location is a further input, for differences over more
    than the longest wavelength.

    Args:
        wavelengths: Longest and shortest wavelength in km.
        scales: Number of wavelengths, in geometric progression.
        dim: Width of the output.

    Raises:
        ValueError: If the wavelengths are not positive or not in order, or a size is below 1.
    """

    def __init__(self, wavelengths: Sequence[float] = (1000.0, 1.0), scales: int = 7, dim: int = 64) -> None:
        super().__init__()
        if len(wavelengths) != 2 or not 0 < wavelengths[1] <= wavelengths[0] < math.inf:
            raise ValueError(f'wavelengths is {wavelengths}, expected the longest and the shortest one in km')
        if scales < 1 or dim < 1:
            raise ValueError(f'scales is {scales} and dim is {dim}, expected at least 1')
        longest, shortest = map(float, wavelengths)
        steps = [level / max(1, scales - 1) for level in range(scales)]
        self.wavelengths = tuple(longest * (shortest / longest) ** step for step in steps)
        self.dim = dim
        self.mlp = Mlp(3 + 6 * scales, dim, dim)

    def forward(self, coordinates: Float[Tensor, 'b 2']) -> Float[Tensor, 'b d']:
        """Encode longitude and latitude in degrees."""
        weight = self.mlp.fc1.weight
        with torch.autocast(weight.device.type, enabled=False):
            features = self.features(coordinates).to(weight.dtype)  # before it moves to a device without float64
            embedded: Tensor = self.mlp(features.to(weight.device, non_blocking=True))
        return embedded

    def features(self, coordinates: Float[Tensor, 'b 2']) -> Float[Tensor, 'b f']:
        """Return the inputs of the MLP in double precision, because 1 km is a small angle."""
        vector = unit_vectors(coordinates)
        lengths = constant(self.wavelengths, vector.device, vector.dtype)
        phase = (2 * math.pi * EARTH_RADIUS * vector.unsqueeze(-1) / lengths).flatten(1)
        amplitude = (lengths / lengths[0]).sqrt().repeat(3)
        return torch.cat([vector, amplitude * phase.sin(), amplitude * phase.cos()], dim=1)


class SatCLIPLocation(FreezableEncoder):
    """Frozen location encoder of SatCLIP, as implemented in ``torchgeo.models.satclip``.

    Klemmer et al., "SatCLIP: Global, General-Purpose Location Embeddings with Satellite Imagery" (arXiv 2311.17179):
    spherical harmonics, followed by a SIREN. The SIREN stays in evaluation mode, because its dropout of 0.5 would make
    the location random in training. The harmonics are computed in double precision.

    Args:
        weights: Entry of ``torchgeo.models.SatCLIP_Weights`` or its name, a file, or a state dict; None for random
            weights, for example to load a checkpoint. A file may be a published checkpoint.
        legendre_polys: Number of Legendre polynomials, 40 or 10 in the published checkpoints.
        capacity: Width of the hidden layers.
        embed_dim: Width of the output.
        num_hidden_layers: Number of hidden layers.

    Raises:
        ValueError: If the weights do not fit the sizes.
    """

    def __init__(
        self,
        weights: SatCLIP_Weights | str | Path | Mapping[str, Tensor] | None = None,
        legendre_polys: int = 40,
        capacity: int = 512,
        embed_dim: int = 256,
        num_hidden_layers: int = 2,
    ) -> None:
        super().__init__()
        sizes = {'legendre_polys': legendre_polys, 'capacity': capacity, 'embed_dim': embed_dim}
        model: Any = satclip(None, num_hidden_layers=num_hidden_layers, **sizes)
        if weights is not None:
            state, origin = read_weights(weights, SatCLIP_Weights, LICENCE)
            own = {_NET + key.split(_NET, 1)[1]: value for key, value in state.items() if _NET in key}
            self.origin = load_strictly(model, own, origin, f'SatCLIP with {sizes}')
        #: Harmonics, in a tuple because they have no parameters and must keep their precision.
        self.harmonics = (model.posenc,)
        self.net: Any = model.nnet
        self.dim = embed_dim
        self.freeze_modules('net')

    def forward(self, coordinates: Float[Tensor, 'b 2']) -> Float[Tensor, 'b d']:
        """Encode longitude and latitude in degrees."""
        weight = self.net.last_layer.weight
        with torch.autocast(weight.device.type, enabled=False):
            harmonics = self.harmonics[0](coordinates.to(wide(coordinates.device)))
            embedded: Tensor = self.net(harmonics.to(weight.dtype).to(weight.device, non_blocking=True))
        return embedded


class LocationToken(nn.Module):
    """Encoder of the location with a projection to a token.

    Args:
        encoder: Encoder with the attribute ``dim``, which maps longitude and latitude ``(B, 2)`` to ``(B, dim)``.
        dim: Width of the token.
    """

    def __init__(self, encoder: nn.Module, dim: int) -> None:
        super().__init__()
        width: Any = encoder.dim
        self.encoder = encoder
        self.proj = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim), nn.LayerNorm(dim)
        )

    def forward(self, coordinates: Float[Tensor, 'b 2']) -> Float[Tensor, 'b d']:
        """Return the tokens of longitudes and latitudes in degrees, which must be finite."""
        token: Tensor = self.proj(self.encoder(coordinates))
        return token


def satclip_location(
    weights: SatCLIP_Weights | str | None = None, pretrained: bool | None = None, load: bool = True, **kwargs: Any
) -> SatCLIPLocation:
    """Build the encoder of SatCLIP; see ``build_pretrained``. Other arguments are those of ``SatCLIPLocation``."""
    return build_pretrained(
        lambda chosen: SatCLIPLocation(chosen, **kwargs),
        *(LOCATION, 'satclip', weights, pretrained, load, SatCLIP_Weights.SATCLIP_VIT16_L40, LICENCE),
    )


#: Encoders of the location by name.
LOCATION_ENCODERS: dict[str, Callable[..., nn.Module]] = {'scaled': ScaledLocation, 'satclip': satclip_location}


def build_location(encoder: Encoder | None) -> nn.Module:
    """Return the encoder of the location.

    Args:
        encoder: Name in :data:`LOCATION_ENCODERS`, a specification with it and its arguments, an entry of
            ``SatCLIP_Weights``, or a module with the attribute ``dim``; None for ``'scaled'``.

    Raises:
        ValueError: If the encoder is unknown or does not take the arguments.
    """
    spec = as_specification(LOCATION, 'scaled' if encoder is None else encoder)
    if isinstance(spec, nn.Module):
        if not isinstance(getattr(spec, 'dim', None), int):
            raise ValueError(f'encoder of {LOCATION!r} is a {type(spec).__name__} without dim, expected its width')
        return spec
    arguments: dict[str, Any] = dict(spec) if isinstance(spec, Mapping) else {'name': spec}
    name = arguments.pop('name', 'satclip' if 'weights' in arguments else None)
    if not isinstance(name, str) or name not in LOCATION_ENCODERS:
        raise ValueError(f'encoder of {LOCATION!r} is {encoder!r}, expected one of {list(LOCATION_ENCODERS)}')
    try:
        return LOCATION_ENCODERS[name](**arguments)
    except TypeError as error:
        raise ValueError(f'encoder of {LOCATION!r} is {encoder!r}, which {name} rejects: {error}') from error
