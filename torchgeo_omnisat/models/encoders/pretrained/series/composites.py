# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Images in raw units, and their monthly composites."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .....utils.tensors.observed import observed
from ..freezing import FreezableEncoder

#: Units of optical bands and of backscatter that can be converted.
OPTICAL, RADAR = ('dn', 'reflectance'), ('db', 'power')


class RawImages(FreezableEncoder):
    """Base class of encoders that undo the normalisation of images.

    Args:
        bands: Bands of the modality.
        mean: Mean of each band with which images were normalised; None for images in raw units.
        std: Standard deviation, in the same form.

    Raises:
        ValueError: If the statistics do not fit the bands.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, bands: Sequence[str], mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.bands = tuple(bands)
        self.register_buffer('mean', torch.zeros(len(self.bands)))
        self.register_buffer('std', torch.ones(len(self.bands)))
        if mean is not None or std is not None:
            self.set_statistics(mean, std)

    def set_statistics(self, mean: Sequence[float] | Tensor | None, std: Sequence[float] | Tensor | None) -> None:
        """Set the mean and standard deviation with which images were normalised.

        Args:
            mean: One value per band, in the unit of the raw images.
            std: One value per band.

        Raises:
            ValueError: If they are not one finite number for each band.
        """
        for name, values in (('mean', mean), ('std', std)):
            numbers = torch.as_tensor(() if values is None else values, dtype=torch.float32)
            if numbers.shape != (len(self.bands),) or not numbers.isfinite().all():
                raise ValueError(f'{name} is {values}, expected {len(self.bands)} finite numbers, one for each band')
            getattr(self, name).copy_(numbers)

    def raw(self, image: Float[Tensor, '... c h w'], bands: Sequence[int]) -> Float[Tensor, '... d h w']:
        """Return some bands in raw units; NaN is nodata.

        Args:
            image: Normalised bands; NaN is nodata.
            bands: Indices of the bands.
        """
        index = list(bands)
        chosen = image[..., index, :, :].float()
        found = chosen * self.std[index].view(-1, 1, 1) + self.mean[index].view(-1, 1, 1)
        return found.masked_fill(~observed(chosen), torch.nan)


def month_of(dates: Int[Tensor, 'b t']) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the calendar month of each date, as months since January 1970."""
    months: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    months = dates.cpu().numpy().astype('datetime64[D]').astype('datetime64[M]').astype(np.int64)
    return months


def monthly_composites(
    encoder: RawImages,
    image: Float[Tensor, 'b t c h w'],
    dates: Int[Tensor, 'b t'],
    valid: Bool[Tensor, 'b t'],
    bands: Sequence[int],
    units: Sequence[str],
    longest: int,
    model: str,
    most: int | None = None,
) -> tuple[Float[Tensor, 'b m d h w'], Int[Tensor, ' b']]:
    """Return one composite per calendar month, from the month of the first observed date of each sample.

    Several dates of a month are combined per pixel: the median of optical bands, the mean of backscatter in linear
    power.

    Args:
        encoder: Encoder that undoes the normalisation.
        image: Normalised bands; NaN is nodata.
        dates: Days since 1970-01-01.
        valid: Valid dates; the others are ignored.
        bands: Indices of the bands to read.
        units: Unit of each of them.
        longest: Maximum number of months.
        model: Name of the model in errors.
        most: Number of months after which a series is cut; None to read all.

    Returns:
        Composites in reflectance or decibels, NaN where not observed, and the first month of each sample as months
        since January 1970, 0 for a sample without an observation.

    Raises:
        ValueError: If a series spans more months.
    """
    flags = (valid & observed(image).flatten(2).any(2)).cpu().numpy()
    months = month_of(dates)
    never = np.iinfo(np.int64).max
    first = np.where(flags, months, never).min(1, initial=never)
    first = np.where(flags.any(1), first, 0)
    places = months - first[:, None]
    if most is not None:
        flags = flags & (places < most)
    length = int(places.max(where=flags, initial=0)) + 1
    if length > longest:
        raise ValueError(
            f'a time series spans {length} months, expected at most {longest}, which {model} can encode: read fewer '
            'dates'
        )
    x = torch.full((len(image), length, len(bands), *image.shape[-2:]), torch.nan, device=image.device)
    for sample, (of_dates, usable) in enumerate(zip(places, flags, strict=True)):
        for place in np.unique(of_dates[usable]):
            frames = encoder.raw(image[sample, (usable & (of_dates == place)).nonzero()[0]], bands)
            x[sample, place] = torch.stack([_combine(*pair) for pair in zip(frames.unbind(1), units, strict=True)])
    return x, torch.as_tensor(first, device=image.device)


def _combine(values: Float[Tensor, 'k h w'], unit: str) -> Float[Tensor, 'h w']:
    if unit in OPTICAL:
        return median(values) / (1e4 if unit == 'dn' else 1)
    if unit == 'db' and len(values) == 1:
        return values[0]
    power = 10 ** (values / 10) if unit == 'db' else values.masked_fill(values <= 0, torch.nan)
    return 10 * power.nanmean(0).log10()


def median(values: Float[Tensor, 'k h w']) -> Float[Tensor, 'h w']:
    """Return the median over the first axis of the values that are not NaN; NaN if there are none."""
    if len(values) == 1:
        return values[0]
    count = (~values.isnan()).sum(0, keepdim=True)
    ordered = values.sort(dim=0).values  # NaN comes last
    low, high = ((count - 1) // 2).clamp(min=0), (count // 2).clamp(max=len(values) - 1)
    return ((ordered.gather(0, low) + ordered.gather(0, high)) / 2)[0]
