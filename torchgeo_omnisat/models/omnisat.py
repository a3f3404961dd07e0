# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""OmniSat: one encoder per modality, one ground grid, and fusion of the available modalities.

After Astruc et al., "OmniSat: Self-Supervised Modality Fusion for Earth Observation"
(arXiv 2404.08351); the encoders, the
fusion and the handling of missing data differ from the paper.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from ..modality import LOCATION, Modality, as_modalities, half_up
from ..utils.tensors.coordinates import COORDINATES, LOCATION_VALID
from ..utils.tensors.devices import wide
from ..utils.tensors.observed import all_observed, observed, observed_pixels
from ..utils.tensors.pooling import any_pool, average_pool
from ..utils.tensors.selection import read_valid
from .context import GeoContext
from .encoders import Encoder, build_encoders
from .encoders.location import LocationToken, build_location
from .encoders.series.monthly import MonthlyEncoder
from .fusion import Fusion

#: Maximum width of tokens and feature maps, and maximum number of blocks.
LARGEST_WIDTH, LARGEST_DEPTH = 16384, 256


class FeatureMaps(NamedTuple):
    """Feature maps of one modality.

    Attributes:
        maps: Features ``(B, C_l, H_l, W_l)``, fine to coarse.
        gsds: GSD of each map in metres.
        seen: Pixels observed on at least one date, ``(B, 1, H, W)`` bool.
    """

    maps: tuple[Tensor, ...]
    gsds: tuple[float, ...]
    seen: Tensor


class Location(NamedTuple):
    """Token of the location of each tile.

    Attributes:
        token: Tokens ``(B, D)``, zero where the location is unknown.
        known: Tiles with a known location, ``(B,)`` bool.
    """

    token: Tensor
    known: Tensor


class OmniSatOutput(NamedTuple):
    """Output of :class:`OmniSat`.

    Attributes:
        tokens: Token of each modality and ground patch, ``{name: (B, N, D)}``; zero where
            the modality did not observe the patch.
        fused: Fused token of each ground patch, ``(B, N, D)``.
        available: Modalities available in each sample, ``(B, M)`` bool.
        maps: Feature maps of each modality.
        grid: Rows and columns of the ground grid, N patches in total.
        extent: Height and width of the tile in metres.
        location: Location of each tile; None if the model or the batch has none.
        coordinates: Longitude and latitude of each tile, ``(B, 2)``, for the geo-context; None without it.
    """

    tokens: dict[str, Tensor]
    fused: Tensor
    available: Tensor
    maps: dict[str, FeatureMaps]
    grid: tuple[int, int]
    extent: tuple[float, float]
    location: Location | None = None
    coordinates: Tensor | None = None


class TokenHead(nn.Module):
    """Projection of the feature maps of one modality to one token per ground patch."""

    def __init__(self, channels: Sequence[int], dim: int) -> None:
        super().__init__()
        total = sum(channels)
        self.proj = nn.Sequential(
            nn.LayerNorm(total), nn.Linear(total, dim), nn.GELU(), nn.Linear(dim, dim), nn.LayerNorm(dim)
        )

    def forward(self, maps: Sequence[Tensor], grid: tuple[int, int]) -> Float[Tensor, 'b n d']:
        """Average every map over each patch, and project."""
        pooled = torch.cat([average_pool(x, grid) for x in maps], dim=1)
        return self.proj(rearrange(pooled, 'b c h w -> b (h w) c'))


class OmniSat(nn.Module):
    """OmniSat backbone, which fuses any number of modalities; any may be missing in any sample.

    The output of a sample does not depend on padding, values of absent modalities, the order
    of the dates, or the other samples of the batch.

    With :meth:`.Modality.location`, the location of the tile is one more modality in the fusion: one token for all
    patches, from ``coordinates`` of the batch. It has no influence where they are absent or NaN, or
    ``valid_location`` is False. :attr:`modalities` has only those with images, so M does not count it.

    Args:
        modalities: Modalities by name or as a list; each may be a plain dictionary.
        embed_dim: Width D of the tokens.
        patch_size: Side of a ground patch, in metres.
        encoders: Non-default encoders by modality name: ``'utae'``,
            ``'utae_published'`` (for :func:`.load_encoder`), ``'ltae'`` or ``'monthly'`` for a time series, a timm
            backbone for an image, a module, or a class that takes the number of bands. Encoders have
            ``channels`` and ``strides`` (of its maps, fine to coarse) and map
            ``(image, dates, valid)``, or ``(image, valid)`` for a single image, to a list of
            maps. NaN is nodata. An encoder of time series with ``takes_coordinates`` set is also called with
            ``coordinates`` of the batch, if there are any. ``{'location': 'scaled'}`` or ``'satclip'`` chooses the
            encoder of the location, and adds :meth:`.Modality.location` to *modalities*.
        depth: Number of blocks of spatial attention.
        num_heads: Number of heads of the fusion.
        widths: Channels of the levels of ``'utae'`` and ``'ltae'``.
        image_widths: Channels of the stages of the default image encoder, a ResNet-18.
        checkpointing: Number of finest levels of the default encoders whose features are recomputed in
            the backward pass, which saves memory and takes more time. True for the two finest levels of time
            series only.
        context_degrees: Side in degrees of the regions of :class:`.GeoContext`, such as 10; None for a model without
            prototypes of regions.
        context_prototypes: Number of prototypes of a region.

    Raises:
        ValueError: If *encoders* has a modality that is not in *modalities*, or an encoder is unknown, or
            *embed_dim* is not a multiple of four times *num_heads*, or a size is not positive and finite
            or implausibly large.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality | Mapping[str, Any]],
        embed_dim: int = 256,
        patch_size: float = 40.0,
        encoders: Mapping[str, Encoder] | None = None,
        depth: int = 4,
        num_heads: int = 8,
        widths: Sequence[int] = (32, 64, 64, 128),
        image_widths: Sequence[int] = (64, 128, 256, 512),
        checkpointing: bool | int = False,
        context_degrees: float | None = None,
        context_prototypes: int = 32,
    ) -> None:
        super().__init__()
        self.modalities, encoders, location = split_location(modalities, encoders)
        check_size('embed_dim', embed_dim)
        check_size('num_heads', num_heads)
        check_size('depth', depth, 0, LARGEST_DEPTH)
        check_ground(self.modalities, patch_size, widths, image_widths)
        self.embed_dim, self.patch_size = embed_dim, float(patch_size)
        built = build_encoders(self.modalities, encoders, widths, image_widths, checkpointing)
        self.encoders = nn.ModuleDict(built)
        channels: dict[str, Any] = {name: encoder.channels for name, encoder in self.encoders.items()}
        self.heads = nn.ModuleDict({name: TokenHead(c, embed_dim) for name, c in channels.items()})
        self.location = None if location is None else LocationToken(build_location(location), embed_dim)
        names = [*self.modalities, *([] if location is None else [LOCATION])]
        self.fusion: nn.Module = Fusion(names, embed_dim, depth, num_heads)
        self.context: GeoContext | None = None
        if context_degrees is not None:
            self.context = GeoContext(embed_dim, context_degrees, context_prototypes)
        channels_last(self)

    def forward(self, batch: Mapping[str, Tensor]) -> OmniSatOutput:
        """Encode and fuse a batch.

        Args:
            batch: See :mod:`torchgeo_omnisat.batch`.

        Raises:
            ValueError: If the batch has an unknown modality, none of the model's, other bands than
                expected, modalities that cover different ground, or different numbers of samples or dates.
        """
        return self.join(self.encode(batch), self.locate(batch), self.coordinates(batch))

    def join(
        self,
        maps: Mapping[str, FeatureMaps],
        location: Location | None = None,
        coordinates: Float[Tensor, 'b 2'] | None = None,
    ) -> OmniSatOutput:
        """Fuse the feature maps, the location of the tiles, and the context of their region; see :meth:`forward`."""
        grid, extent = self.ground(maps)
        tokens = self.tokens(maps)
        seen = self.observed_patches(maps, grid)
        fused = self.add_context(self.fuse(tokens, seen, grid, location), coordinates)
        return OmniSatOutput(tokens, fused, seen.any(1), dict(maps), grid, extent, location, coordinates)

    def locate(self, batch: Mapping[str, Tensor]) -> Location | None:
        """Return the tokens of the location; None if the model or the batch has none.

        Raises:
            ValueError: If ``coordinates`` are not ``(B, 2)``.
        """
        if self.location is None or COORDINATES not in batch:
            return None
        coordinates = _known_coordinates(batch)
        known = coordinates.isfinite().all(1)
        token = self.location(coordinates.where(known.unsqueeze(1), 0.0))
        known = known.to(token.device, non_blocking=True)  # coordinates stay on the CPU if a device has no float64
        return Location(token * known.unsqueeze(1), known)

    def coordinates(self, batch: Mapping[str, Tensor]) -> Float[Tensor, 'b 2'] | None:
        """Return longitude and latitude for the geo-context, NaN if unknown; None if model or batch has none."""
        return None if self.context is None or COORDINATES not in batch else _known_coordinates(batch)

    def encode(self, batch: Mapping[str, Tensor]) -> dict[str, FeatureMaps]:
        """Return the feature maps of every modality in the batch; see :meth:`forward`."""
        self._validate(batch)
        present = {name: modality for name, modality in self.modalities.items() if modality.image_key in batch}
        of_images = {name: batch[m.valid_key][:, 0] for name, m in present.items() if not m.temporal}
        read_valid([(batch[m.valid_key], of_images.get(name, batch[m.valid_key])) for name, m in present.items()])
        found = {}
        for name, modality in present.items():
            image, dates, valid = (batch[key] for key in modality.keys)
            pixels = observed_pixels(image)
            if not all_observed(image):
                image = image.masked_fill(~observed(image), torch.nan)
            encoder: Any = self.encoders[name]
            if modality.temporal:
                located = []
                if COORDINATES in batch and getattr(encoder, 'takes_coordinates', False):
                    located = [batch[COORDINATES].to(wide(image.device)).to(image.device, non_blocking=True)]
                maps = encoder(image, dates, valid, *located)
                seen = (pixels & valid[..., None, None, None]).any(1)
            else:
                maps = encoder(image, of_images[name])
                seen = pixels & valid[..., None, None]
            gsds = tuple(modality.gsd * stride for stride in encoder.strides)
            found[name] = FeatureMaps(tuple(maps), gsds, seen)
        return found

    def extend_calendars(self, batch: Mapping[str, Tensor]) -> None:
        """Extend the calendars of encoders such as ``monthly`` in training, before parts of a batch are encoded."""
        for name, modality in self.modalities.items():
            for part in self.encoders[name].modules() if modality.image_key in batch else ():
                if isinstance(part, MonthlyEncoder):
                    part.extend_calendar(*(batch[key] for key in modality.keys))

    def tokens(self, maps: Mapping[str, FeatureMaps]) -> dict[str, Tensor]:
        """Return one token ``(B, N, D)`` per modality and ground patch; zero where it is not observed."""
        grid, _ = self.ground(maps)
        return {
            name: self.heads[name](found.maps, grid) * _patches_seen(found.seen, grid).unsqueeze(-1)
            for name, found in maps.items()
        }

    def fuse(
        self,
        tokens: Mapping[str, Float[Tensor, 'b n d']],
        available: Bool[Tensor, 'b m'] | Bool[Tensor, 'b n m'],
        grid: tuple[int, int] | None = None,
        location: Location | None = None,
    ) -> Float[Tensor, 'b n d']:
        """Fuse the tokens of the available modalities to one per ground patch.

        Args:
            tokens: Tokens by modality; modalities may be omitted.
            available: Modalities to fuse, in the order of :attr:`modalities`, for each
                sample or for each patch.
            grid: Rows and columns of the ground grid; required unless it is square.
            location: Output of :meth:`locate`; None to withhold the location.

        Raises:
            ValueError: If *grid* does not have N patches.
        """
        some = next(iter(tokens.values()))
        side = math.isqrt(some.shape[1])
        rows, columns = grid or (side, side)
        if rows * columns != some.shape[1]:
            raise ValueError(f'grid is {grid and tuple(grid)}, expected (rows, columns) of {some.shape[1]} tokens')
        stacked = torch.stack([tokens.get(name, torch.zeros_like(some)) for name in self.modalities], dim=2)
        seen = available if available.ndim == 3 else available.unsqueeze(1).expand(-1, some.shape[1], -1)
        columns_seen = zip(self.modalities, seen.unbind(-1), strict=True)
        seen = torch.stack([x if name in tokens else torch.zeros_like(x) for name, x in columns_seen], dim=-1)
        if self.location is not None:
            if location is None:
                location = Location(torch.zeros_like(some[:, 0]), torch.zeros_like(seen[:, 0, 0]))
            token, known = location.token[:, None, None], location.known[:, None, None]
            stacked = torch.cat([stacked, token.to(some.dtype).expand_as(stacked[:, :, :1])], 2)
            seen = torch.cat([seen, known.expand_as(seen[..., :1])], 2)
        return self.fusion(stacked, seen, (rows, columns))

    def add_context(
        self, fused: Float[Tensor, 'b n d'], coordinates: Float[Tensor, 'b 2'] | None
    ) -> Float[Tensor, 'b n d']:
        """Return fused tokens with the context of their region; unchanged without :class:`.GeoContext`."""
        return fused if self.context is None else self.context(fused, coordinates)

    def restrict(self, out: OmniSatOutput, names: Iterable[str]) -> OmniSatOutput:
        """Return the output for a subset of the modalities, without encoding them again.

        Args:
            out: Output for all modalities.
            names: Modalities to keep.

        Raises:
            ValueError: If *out* has none of them.
        """
        kept = set(names)
        if not kept & set(out.maps):
            raise ValueError(f'names is {sorted(kept)}, expected some of the modalities {sorted(out.maps)}')
        maps = {name: found for name, found in out.maps.items() if name in kept}
        tokens = {name: token for name, token in out.tokens.items() if name in kept}
        seen = self.observed_patches(maps, out.grid)
        fused = self.add_context(self.fuse(tokens, seen, out.grid, out.location), out.coordinates)
        return out._replace(tokens=tokens, fused=fused, available=seen.any(1), maps=maps)

    def withhold_location(self, out: OmniSatOutput) -> OmniSatOutput:
        """Return the output without the location and its context, without encoding the images again."""
        seen = self.observed_patches(out.maps, out.grid)
        return out._replace(fused=self.fuse(out.tokens, seen, out.grid), location=None, coordinates=None)

    def hide(self, out: OmniSatOutput, kept: Bool[Tensor, 'b m']) -> OmniSatOutput:
        """Return the output for the modalities *kept* of each sample, without encoding them again.

        :meth:`restrict` is the same for all samples of a batch. Value and gradient are those of a second pass over
        the batch with ``valid`` False for modalities that are not kept.
        """
        flags = dict(zip(self.modalities, kept.unbind(1), strict=True))
        maps = {
            name: found._replace(seen=found.seen & flags[name][:, None, None, None]) for name, found in out.maps.items()
        }
        tokens = {name: token * flags[name][:, None, None] for name, token in out.tokens.items()}
        seen = self.observed_patches(maps, out.grid)
        fused = self.add_context(self.fuse(tokens, seen, out.grid, out.location), out.coordinates)
        return out._replace(tokens=tokens, fused=fused, available=seen.any(1), maps=maps)

    def ground(self, maps: Mapping[str, FeatureMaps | Tensor]) -> tuple[tuple[int, int], tuple[float, float]]:
        """Return the common grid (rows, columns) and extent (height, width in metres) of maps or images."""
        sizes = {n: f.shape[-2:] if isinstance(f, Tensor) else f.seen.shape[-2:] for n, f in maps.items()}
        extents = {n: tuple(side * self.modalities[n].gsd for side in size) for n, size in sizes.items()}
        gsds = {n: self.modalities[n].gsd for n in maps}
        finest, tolerance = min(gsds.values()), max(gsds.values())
        extent = next(extents[n] for n, gsd in gsds.items() if gsd == finest)
        if any(abs(a - b) >= tolerance for other in extents.values() for a, b in zip(other, extent, strict=True)):
            raise ValueError(f'(height, width) of images in metres is {extents}, expected the same extent')
        rows, columns = (max(1, half_up(side / self.patch_size)) for side in extent)
        return (rows, columns), (extent[0], extent[1])

    def observed_patches(self, maps: Mapping[str, FeatureMaps], grid: tuple[int, int]) -> Bool[Tensor, 'b n m']:
        """Return which modalities observed a pixel of each patch, in the order of :attr:`modalities`."""
        found = {name: _patches_seen(f.seen, grid) for name, f in maps.items()}
        nothing = torch.zeros_like(next(iter(found.values())))
        return torch.stack([found.get(name, nothing) for name in self.modalities], dim=-1)

    def _validate(self, batch: Mapping[str, Tensor]) -> None:
        known = {m.image_key: m for m in self.modalities.values()}
        images = [key for key in batch if key.startswith('image')]
        if unknown := [key for key in images if key not in known]:
            raise ValueError(f'batch has {unknown}, expected only images of the model, {sorted(known)}')
        if not images:
            raise ValueError(f'keys of the batch are {sorted(batch)}, expected at least one of {sorted(known)}')
        if not batch[images[0]].shape[0]:
            raise ValueError(f'{images[0]} has shape {tuple(batch[images[0]].shape)}, expected at least one sample')
        for key in images:
            modality = known[key]
            missing = [k for k in modality.keys if k not in batch]
            bands, ndim = len(modality.bands), 4 + modality.temporal
            if missing or batch[key].ndim != ndim or batch[key].shape[-3] != bands:
                expected = f'({"B, T" if modality.temporal else "B"}, {bands}, H, W) with its dates and valid'
                raise ValueError(f'{key} has shape {tuple(batch[key].shape)} and lacks {missing}, expected {expected}')
            lead = (batch[images[0]].shape[0], batch[key].shape[1] if modality.temporal else 1)
            if wrong := {k: tuple(batch[k].shape) for k in modality.keys[1:] if tuple(batch[k].shape) != lead}:
                raise ValueError(f'(B, T) is {wrong}, expected {lead} for {key} in a batch with {images[0]}')
            if batch[key].shape[0] != lead[0] or not lead[1]:
                raise ValueError(f'{key} has shape {tuple(batch[key].shape)}, expected {lead[0]} samples and a date')


def split_location(
    modalities: Mapping[str, Modality] | Iterable[Modality | Mapping[str, Any]], encoders: Mapping[str, Encoder] | None
) -> tuple[dict[str, Modality], dict[str, Encoder], Encoder | None]:
    """Return the modalities with images, their encoders, and the encoder of the location, None without one.

    Raises:
        ValueError: If no modality has images.
    """
    known, chosen = as_modalities(modalities), dict(encoders or {})
    location = chosen.pop(LOCATION, None)
    if location is None and LOCATION in known:
        location = 'scaled'
    images = {name: modality for name, modality in known.items() if name != LOCATION}
    if not images:
        raise ValueError(f'modalities are {list(known)}, expected at least one with images')
    return images, chosen, location


def _known_coordinates(batch: Mapping[str, Tensor]) -> Float[Tensor, 'b 2']:
    """Return the coordinates of a batch, NaN where the location is withheld or not a place on Earth."""
    coordinates = batch[COORDINATES]
    if coordinates.ndim != 2 or coordinates.shape[1] != 2:
        raise ValueError(f'coordinates has shape {tuple(coordinates.shape)}, expected (B, 2): longitude, latitude')
    coordinates = coordinates.to(wide(coordinates.device))
    known = coordinates.isfinite().all(1, keepdim=True) & (coordinates[:, 1:].abs() <= 90)
    if LOCATION_VALID in batch:
        valid = batch[LOCATION_VALID]
        if tuple(valid.shape) != (len(coordinates), 1):
            raise ValueError(f'{LOCATION_VALID} has shape {tuple(valid.shape)}, expected ({len(coordinates)}, 1)')
        known = known & valid.to(known.device)
    return coordinates.where(known, torch.nan)


def check_ground(
    modalities: Mapping[str, Modality], patch_size: float, widths: Sequence[int], image_widths: Sequence[int]
) -> None:
    """Raise ValueError if a patch is smaller than a pixel, or widths of the encoders are implausible."""
    finest = min(modality.gsd for modality in modalities.values())
    if not finest / 100 <= patch_size < math.inf:
        raise ValueError(f'patch_size is {patch_size} m, expected a finite length of at least a pixel, {finest} m')
    for name, levels in (('widths', widths), ('image_widths', image_widths)):
        if not levels:
            raise ValueError(f'{name} is {levels!r}, expected at least one level')
        for place, width in enumerate(levels):
            check_size(f'{name}[{place}]', width)


def check_size(name: str, value: Any, least: int = 1, most: int = LARGEST_WIDTH) -> None:
    """Raise ValueError if a size of a model is not an integer in a plausible range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f'{name} is {value!r}, expected an integer from {least} to {most}')


def channels_last(module: nn.Module) -> None:
    """Convert the parameters of 2-D convolutions to the channels-last memory format."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _patches_seen(seen: Bool[Tensor, 'b 1 h w'], grid: tuple[int, int]) -> Bool[Tensor, 'b n']:
    return any_pool(seen, grid).flatten(1)


def omnisat_tiny(modalities: Any, weights: WeightsEnum | None = None, **kwargs: Any) -> OmniSat:
    """Build the smallest OmniSat, for tests, demonstrations and a first look at data.

    Args:
        modalities: See :class:`OmniSat`.
        weights: Pre-trained weights.
        **kwargs: Any other argument of :class:`OmniSat`.
    """
    sizes = {'embed_dim': 64, 'depth': 1, 'num_heads': 4, 'widths': (16, 32, 64), 'image_widths': (16, 32, 64, 128)}
    return _build_model(modalities, weights, sizes | kwargs)


def omnisat_small(modalities: Any, weights: WeightsEnum | None = None, **kwargs: Any) -> OmniSat:
    """Build an OmniSat for laptops, with a narrow stem at full resolution that keeps details at 10 m.

    Args:
        modalities: See :class:`OmniSat`.
        weights: Pre-trained weights.
        **kwargs: Any other argument of :class:`OmniSat`.
    """
    sizes = {
        'embed_dim': 128,
        'depth': 2,
        'num_heads': 8,
        'widths': (16, 32, 64, 128),
        'image_widths': (32, 64, 128, 256),
        'checkpointing': True,
    }
    return _build_model(modalities, weights, sizes | kwargs)


def omnisat_base(modalities: Any, weights: WeightsEnum | None = None, **kwargs: Any) -> OmniSat:
    """Build the full-size OmniSat.

    Args:
        modalities: See :class:`OmniSat`.
        weights: Pre-trained weights.
        **kwargs: Any other argument of :class:`OmniSat`.
    """
    return _build_model(modalities, weights, kwargs)


def _build_model(modalities: Any, weights: WeightsEnum | None, kwargs: dict[str, Any]) -> OmniSat:
    model = OmniSat(modalities, **kwargs)
    if weights is not None:
        model.load_state_dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    return model
