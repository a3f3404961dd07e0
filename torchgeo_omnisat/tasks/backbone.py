# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Backbone: from the name on a command line to a model of the modalities that it takes."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from .. import models
from ..modality import Modality
from ..models.encoders.weights import load_encoder
from ..models.late_fusion import taken
from .weights import Inherited, load_backbone

#: Backbones by name: every size of OmniSat, and the baselines.
BACKBONES = (*(name for name in models.__all__ if name.startswith('omnisat_')), *models.LATE_FUSION)


def modalities_of(backbone: str, known: Mapping[str, Modality], arguments: Mapping[str, Any]) -> dict[str, Modality]:
    """Return the available modalities that a backbone uses; see :func:`.taken`."""
    return taken(backbone, known, arguments.get('series'))


def make_backbone(
    backbone: str,
    known: Mapping[str, Modality],
    patch_size: float,
    label_gsd: float | None,
    arguments: Mapping[str, Any],
) -> models.OmniSat:
    """Build a backbone and say which modalities it leaves aside.

    Args:
        backbone: One of :data:`BACKBONES`.
        known: The modalities that may come.
        patch_size: Side of a ground patch in metres, the token of an OmniSat.
        label_gsd: GSD of the labels in metres, the token of a baseline; None for *patch_size*.
        arguments: Further arguments of the builder; ``series`` names the one that ``'utae'``
            takes.

    Raises:
        ValueError: If there is no such backbone, or nothing for it to take.
    """
    if backbone not in BACKBONES:
        raise ValueError(f'backbone is {backbone!r}, expected one of {list(BACKBONES)}')
    refuse_sizes(arguments)
    modalities = modalities_of(backbone, known, arguments)
    if left := [name for name in known if name not in modalities]:
        rank_zero_info(f'{backbone} takes {", ".join(modalities)}; not used: {", ".join(left)}')
    try:
        if backbone not in models.LATE_FUSION:
            return getattr(models, backbone)(modalities, **{'patch_size': patch_size, **arguments})
        given = {name: value for name, value in arguments.items() if (backbone, name) != ('utae', 'series')}
        return models.late_fusion(modalities, **{'patch_size': label_gsd or patch_size, **given})
    except (TypeError, AssertionError, AttributeError, LookupError) as error:
        if not arguments:
            raise
        raise ValueError(
            f'backbone_args is {dict(arguments)!r}, which {backbone} does not take ({error or type(error).__name__}), '
            'expected arguments of its builder in torchgeo_omnisat.models'
        ) from error


def refuse_sizes(arguments: Any, name: str = 'backbone_args') -> None:
    """Refuse numbers that are the size of no model, before memory is allocated.

    Args:
        arguments: Arguments of a builder, in plain types.
        name: What to call them in an error.

    Raises:
        ValueError: If a number is not finite, negative or too large.
    """
    if isinstance(arguments, Mapping) and 'class_path' not in arguments:
        for key, value in arguments.items():
            refuse_sizes(value, f'{name}.{key}')
    elif isinstance(arguments, list | tuple):
        for value in arguments:
            refuse_sizes(value, name)
    elif isinstance(arguments, int | float) and not 0 <= arguments <= models.omnisat.LARGEST_WIDTH:
        raise ValueError(f'{name} is {arguments}, expected a number from 0 to {models.omnisat.LARGEST_WIDTH}')


def load_weights(backbone: models.OmniSat, weights: str, modalities: Mapping[str, Modality]) -> Inherited:
    """Initialise a backbone, and log what was loaded, new and ignored.

    Args:
        backbone: The backbone; changed in place.
        weights: A file or folder for :func:`.load_backbone`, or the name of published weights such
            as ``'UTAE_Weights.PASTIS_FOLD1'``, which go to the encoder of the series that has
            their bands.
        modalities: The modalities of *backbone*.

    Returns:
        The statistics that the loaded modalities were trained with; none if they are not known.

    Raises:
        ValueError: If nothing of it fits.
    """
    if weights not in map(str, models.UTAE_Weights.__members__.values()):
        report = load_backbone(backbone, weights, modalities)
        return Inherited(report.statistics, report.sources)
    bands = models.UTAE_Weights.verify(weights).meta['bands']
    name = next((m.name for m in modalities.values() if m.temporal and list(m.bands) == bands), None)
    if name is None:
        raise ValueError(f'{weights} is for a series of the bands {bands}, expected one among {list(modalities)}')
    loaded = load_encoder(backbone.encoders[name], weights)
    said = '; '.join(f'{kind}: {", ".join(names) or "nothing"}' for kind, names in loaded.items())
    rank_zero_info(f'{weights} for the encoder of {name}: {said}')
    return Inherited()
