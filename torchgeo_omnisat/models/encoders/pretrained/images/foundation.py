# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Base class of the foundation models of TorchGeo that encode single images, with their weights and bands."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from .....modality import Modality
from .....utils.signatures import with_arguments_of
from ...registry import Origin
from ..adapter import BandAdapter, Native, canonical
from ..sources import find_entry, find_file, licence_of, read_entry, read_file
from .backbone import load_body
from .base import AdaptedEncoder, check_arguments

#: Polarisations of radar bands.
POLARISATIONS = ('VV', 'VH', 'HH', 'HV')
#: Maximum difference between the wavelength of a band and that of the same band in the pre-training, as a fraction.
TOLERANCE = 0.03


class Family(NamedTuple):
    """Foundation model with weights in TorchGeo.

    Attributes:
        name: Name of the encoder.
        entries: Entry of TorchGeo's weights by size; None if it has none.
        bands: Description of the bands by sensor of the catalogue.
        body: Function of the size and the sensor that returns the model, to count its parameters.
    """

    name: str
    entries: Mapping[str, WeightsEnum | None]
    bands: Mapping[str, str]
    body: Callable[[str, str], nn.Module]


class Weights(NamedTuple):
    """Weights of a foundation model.

    Attributes:
        size: Size of the model.
        label: Name of the weights in errors.
        address: File or URL; None for random weights.
        licence: Licence; None if unknown.
        read: Function that returns the state dict; it may download. None for random weights.
    """

    size: str
    label: str
    address: str | None = None
    licence: str | None = None
    read: Callable[[], Mapping[str, Tensor]] | None = None

    def origin(self, tensors: int) -> Origin | None:
        """Return the source of the weights; None for random weights."""
        return None if self.address is None else Origin(self.label, tensors, self.address, self.licence)


def find_weights(
    modality: Modality, family: Family, size: str | None, weights: Any, pretrained: bool | None, load: bool = True
) -> Weights:
    """Return the weights of a specification, without reading or downloading them.

    Args:
        modality: Modality in errors.
        family: Foundation model.
        size: Size of the model; None for that of the weights, or the first with weights.
        weights: Entry of TorchGeo or its name, a file, or a folder of the Hugging Face hub.
        pretrained: True for the weights of TorchGeo, False for random weights.
        load: Whether the weights will be read; False if a checkpoint has them.

    Raises:
        ValueError: If neither is given, or there are no such weights.
    """
    sizes = [name for name, entry in family.entries.items() if entry is not None]
    if size is not None and size not in family.entries:
        raise ValueError(f'size of {family.name} is {size!r} for {modality.name!r}, expected {list(family.entries)}')
    chosen = size or sizes[0]
    if weights is None:
        if pretrained is None:
            raise ValueError(
                f'encoder {family.name!r} of {modality.name!r} names no weights, expected pretrained: true to load '
                f'those of TorchGeo, weights: {_names(family)} or a file, or pretrained: false for random weights'
            )
        if not pretrained:
            return Weights(chosen, f'{family.name} ({chosen})')
        weights = family.entries[chosen]
        if weights is None:
            raise ValueError(f'TorchGeo has no weights of {family.name} of size {chosen!r}, expected a size in {sizes}')
    entry = _entry(family, chosen, weights)
    if entry is not None:
        found = next((name for name, own in family.entries.items() if own is entry), None)
        if found is None or size not in (None, found):
            raise ValueError(
                f'weights {entry} do not fit {family.name} of size {chosen!r}, expected one of {_names(family)}'
            )
        return Weights(found, str(entry), entry.url, licence_of(entry), lambda: read_entry(entry))
    path = find_file(modality.name, weights, _names(family), load)
    return Weights(chosen, str(path), str(path), None, lambda: read_file(path))


def _entry(family: Family, size: str, weights: Any) -> WeightsEnum | None:
    if isinstance(weights, WeightsEnum) or '.' in str(weights):
        return find_entry(None, weights)
    own = family.entries[size]
    return own if own is not None and own.name == str(weights) else None


def _names(family: Family) -> list[str]:
    return [str(entry) for entry in family.entries.values() if entry is not None]


class BandStatistics(NamedTuple):
    """Normalisation of a band in the pre-training.

    Attributes:
        nm: Central wavelength in nanometres; None for radar.
        unit: Unit, a key of ``CONVERSIONS``.
        mean: Mean in this unit.
        std: Standard deviation in this unit.
    """

    nm: float | None
    unit: str
    mean: float
    std: float


def band_wavelengths(modality: Modality, label: str) -> dict[int, float | str]:
    """Return the polarisation of each radar band, and the wavelength in nanometres of each other band, by index.

    Args:
        modality: Modality.
        label: Name of the weights in errors.

    Raises:
        ValueError: If no band has either.
    """
    known: dict[int, float | str] = {}
    for index, band in enumerate(modality.bands):
        name = canonical(band)
        if name in POLARISATIONS:
            known[index] = name
        elif modality.wavelengths is not None and modality.kind != 'radar':
            known[index] = modality.wavelengths[index]
    if not known:
        raise ValueError(
            f'bands {list(modality.bands)} of {modality.name!r} have no wavelengths, by which {label} reads bands: '
            f'expected wavelengths of the modality in nanometres, or bands named {list(POLARISATIONS)}'
        )
    return known


def spectral_native(
    modality: Modality, label: str, known: Iterable[int], statistics: Mapping[str, BandStatistics]
) -> Native:
    """Return the input of weights that read any band by its wavelength.

    The unit of a band is None unless its name and its wavelength are those of a band in the pre-training.

    Args:
        modality: Modality.
        label: Name of the weights in errors.
        known: Indices of the bands with a wavelength or polarisation.
        statistics: Normalisation of the bands in the pre-training by name.
    """
    bands, found = [], []
    for index in known:
        bands.append(modality.bands[index])
        own = statistics.get(canonical(modality.bands[index]))
        nm = modality.wavelengths[index] if modality.wavelengths else None
        if own is not None and own.nm is not None and (nm is None or abs(nm - own.nm) > TOLERANCE * own.nm):
            own = None
        found.append(own)
    return Native(
        label,
        tuple(bands),
        tuple(own and own.unit for own in found),
        tuple(own.mean if own else 0.0 for own in found),
        tuple(own.std if own else 1.0 for own in found),
    )


class FoundationEncoder(AdaptedEncoder, ABC):
    """Base class of the encoders of images by a foundation model of TorchGeo.

    A subclass states its ``family`` and implements ``build``.
    """

    #: Foundation model and its weights.
    family: ClassVar[Family]
    #: Whether images are passed as normalised by the statistics of the data if *units* is None.
    standardised: ClassVar[bool] = False
    #: Padding of the convolution of the patches in pixels.
    padding: ClassVar[int] = 0

    @with_arguments_of(AdaptedEncoder, without=('adapter', 'body', 'pads'), is_last=True)
    def __init__(
        self,
        modality: Modality,
        weights: Any = None,
        pretrained: bool | None = None,
        size: str | None = None,
        units: str | None = None,
        *,
        load: bool = True,
        **kwargs: Any,
    ) -> None:
        """Initialize the encoder.

        Args:
            modality: Modality to encode.
            weights: Entry of TorchGeo's weights of the model or its name, a file, or a folder of the Hugging Face hub.
            pretrained: True for TorchGeo's weights of *size*, False for random weights.
            size: Size of the model; None for that of the weights.
            units: ``'native'`` for the units and statistics of the pre-training, ``'standardised'`` for images as
                normalised by the statistics of the data; None for ``'native'`` if the model has units.
            load: Whether to load the weights; False if a checkpoint has them.
            **kwargs: Arguments of ``AdaptedEncoder``.

        Raises:
            ValueError: If the weights are unknown or do not fit, or a band, wavelength or unit cannot be matched.
            FileNotFoundError: If a file of weights does not exist.
        """
        check_arguments(modality, units, **kwargs)
        found = find_weights(modality, self.family, size, weights, pretrained, load)
        native, body = self.build(modality, found)
        adapter = BandAdapter(modality, native, units == 'standardised' or (units is None and self.standardised))
        state = found.read() if load and found.read else None
        tensors = 0 if state is None else load_body(body, self.rename(state, body), native.label)
        self.add_bands(body, adapter)
        super().__init__(modality, adapter, body, **kwargs)
        self.origin = found.origin(tensors)

    @abstractmethod
    def build(self, modality: Modality, weights: Weights) -> tuple[Native, nn.Module]:
        """Return the input of the weights, and the model with random weights.

        It is called before the module is initialised.

        Args:
            modality: Modality to encode.
            weights: Size and name of the weights.

        Raises:
            ValueError: If a band or wavelength cannot be matched.
        """

    def rename(self, state: Mapping[str, Tensor], body: Any) -> Mapping[str, Tensor]:
        """Return published tensors under the names of the model."""
        return state

    def add_bands(self, body: Any, adapter: BandAdapter) -> None:
        """Add the parameters of bands that the weights lack, after the weights are loaded."""
        body.add_terms(adapter, self.padding)
