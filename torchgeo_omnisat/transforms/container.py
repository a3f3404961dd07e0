# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Sequences of augmentations of this package and of Kornia."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from kornia.augmentation import GeometricAugmentationBase2D, IntensityAugmentationBase2D, VideoSequential
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample

from ..modality import Modality, as_modalities
from ..utils.plurals import counted
from ..utils.tensors.observed import finite
from .base import Modalities, Params, Transform, refuse_tensor
from .ground import RandomDihedral
from .intensity import RandomSpeckle
from .temporal import RandomTemporalDropout

#: Step of an augmentation: a transform of this package, one of Kornia's for all modalities, or Kornia's by modality.
AugmentationStep = nn.Module | Mapping[str, IntensityAugmentationBase2D | Sequence[IntensityAugmentationBase2D]]

#: Equivalents of Kornia's geometric augmentations, by a word in their names.
_OURS = {'Flip': 'RandomDihedral', 'Rotation90': 'RandomDihedral', 'Crop': 'RandomGroundCrop'}


class KorniaIntensity(Transform):
    """Intensity augmentations of Kornia, with separate random parameters for every modality.

    Kornia expects images in [0, 1]. The images of a sample and modality are rescaled from the
    minimum and maximum of their finite values on valid dates, and back afterwards. Pixels that
    are not finite are replaced by the mean for Kornia, and are NaN in the result. Kornia draws
    on its default device, the CPU.

    Args:
        modalities: Modalities to transform.
        augmentations: Kornia augmentations by modality.
        same_on_dates: Whether all dates of a sample share one draw.
    """

    def __init__(
        self,
        modalities: Modalities,
        augmentations: Mapping[str, Sequence[IntensityAugmentationBase2D]],
        same_on_dates: bool = True,
    ) -> None:
        super().__init__([m for m in as_modalities(modalities).values() if m.name in augmentations])
        chains = {name: VideoSequential(*chain, same_on_frame=same_on_dates) for name, chain in augmentations.items()}
        self.chains = nn.ModuleDict(chains)

    def draw(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Draw Kornia's parameters for each modality."""
        return {m.name: self._chain(m).forward_parameters(_series(m, batch).shape) for m in self.present(batch)}

    def replay(self, batch: Mapping[str, Tensor], params: dict[str, Any]) -> Sample:
        """Apply Kornia's augmentations to every image."""
        changed = dict(batch)
        for m in self.present(batch):
            series = _series(m, batch).float()
            known = finite(series)
            counted = known & batch[m.valid_key][..., None, None, None]
            low = series.masked_fill(~counted, torch.inf).flatten(1).amin(-1).nan_to_num(posinf=0)
            high = series.masked_fill(~counted, -torch.inf).flatten(1).amax(-1).nan_to_num(neginf=1)
            low, reach = (x.view(-1, 1, 1, 1, 1) for x in (low, (high - low).clamp(min=1e-6)))
            unit = (series - low) / reach
            count = counted.sum((1, 3, 4), keepdim=True).clamp(min=1)
            mean = unit.masked_fill(~counted, 0).sum((1, 3, 4), keepdim=True) / count
            unit = torch.where(known, unit, mean).clamp(0, 1)
            new = self._chain(m)(unit, params=params[m.name]) * reach + low
            image = batch[m.image_key]
            changed[m.image_key] = torch.where(known, new, torch.nan).view(image.shape).to(image.dtype)
        return changed

    def _chain(self, modality: Modality) -> VideoSequential:
        chain = self.chains[modality.name]
        assert isinstance(chain, VideoSequential)
        return chain


class MultimodalAugmentation(nn.Module):
    """Sequence of augmentations of multimodal batches, of this package and of Kornia.

    A step is one of:

    * a transform of this package;
    * an intensity augmentation of Kornia, applied to every modality with separate random parameters;
    * a mapping from modality names to one or several augmentations of Kornia;
    * another module, such as :class:`Normalize`, which is called with the batch. Its random
      parameters are not stored.

    Geometric augmentations of Kornia raise an error: they are drawn in pixels for each tensor, so
    modalities would no longer be aligned.

    The parameters of the last call are in :attr:`params`, one entry per step. Pass them to another call
    to repeat it.

    Args:
        modalities: Modalities of the batch.
        steps: Steps in order. Defaults to :class:`RandomDihedral`, :class:`RandomTemporalDropout`
            and :class:`RandomSpeckle`.
        same_on_dates: Whether all dates of a sample share one draw of Kornia.

    Raises:
        TypeError: If a step is none of these.
        ValueError: If a name is unknown.
    """

    def __init__(self, modalities: Modalities, *steps: AugmentationStep, same_on_dates: bool = True) -> None:
        super().__init__()
        self.modalities = as_modalities(modalities)
        if not steps:
            ours = (RandomDihedral, RandomTemporalDropout, RandomSpeckle)
            steps = tuple(transform(self.modalities) for transform in ours)
        self.steps = nn.ModuleList([self._step(step, same_on_dates) for step in steps])
        self.params: list[Params | None] = []

    def forward(self, batch: Mapping[str, Tensor], params: Sequence[Params | None] | None = None) -> Sample:
        """Apply the steps in order; each draws its parameters for the output of the previous one.

        Args:
            batch: Batch or sample; it is not changed.
            params: :attr:`params` of another call, to repeat it.

        Raises:
            TypeError: If *batch* is a tensor.
            ValueError: If *params* do not match the steps.
        """
        refuse_tensor(self, batch)
        if params is not None and len(params) != len(self.steps):
            raise ValueError(
                f'params has {counted(len(params), "entry")}, expected one for each of '
                f'{counted(len(self.steps), "step")}'
            )
        single = any(batch[m.valid_key].ndim == 1 for m in self.modalities.values() if m.valid_key in batch)
        batch = {key: value[None] for key, value in batch.items()} if single else dict(batch)
        drawn: list[Params | None] = []
        for index, step in enumerate(self.steps):
            if isinstance(step, Transform):
                given = None if params is None else params[index]
                drawn.append(step.draw(batch) if given is None else given)
                batch = step.replay(batch, drawn[-1])  # type: ignore[arg-type]
            else:
                drawn.append(None)
                batch = step(batch)
        self.params = drawn
        return {key: value[0] for key, value in batch.items()} if single else dict(batch)

    def _step(self, step: AugmentationStep, same_on_dates: bool) -> nn.Module:
        if isinstance(step, Mapping):
            if unknown := [name for name in step if name not in self.modalities]:
                raise ValueError(f'got a step for modalities {unknown}, expected some of {list(self.modalities)}')
            chains = {name: [chain] if isinstance(chain, nn.Module) else list(chain) for name, chain in step.items()}
            for augmentation in (one for chain in chains.values() for one in chain):
                _check_intensity(augmentation)
            return KorniaIntensity(self.modalities, chains, same_on_dates)
        if isinstance(step, IntensityAugmentationBase2D):
            return KorniaIntensity(self.modalities, {name: [step] for name in self.modalities}, same_on_dates)
        if type(step).__module__.startswith('kornia.') or not isinstance(step, nn.Module):
            _check_intensity(step)
        if isinstance(step, MultimodalAugmentation):
            raise TypeError('got a MultimodalAugmentation as a step, expected the steps in it')
        return step


def _check_intensity(augmentation: object) -> None:
    if isinstance(augmentation, IntensityAugmentationBase2D):
        return
    name = type(augmentation).__name__
    if not isinstance(augmentation, GeometricAugmentationBase2D):
        raise TypeError(f'got {name} as a step, expected one of our transforms or an intensity augmentation of Kornia')
    ours = next((ours for word, ours in _OURS.items() if word in name), 'RandomGroundAffine')
    raise TypeError(
        f'got {name}, a geometric augmentation of Kornia, which would misalign modalities of different GSD: '
        f'expected torchgeo_omnisat.transforms.{ours}'
    )


def _series(modality: Modality, batch: Mapping[str, Tensor]) -> Tensor:
    image = batch[modality.image_key]
    return image if modality.temporal else image[:, None]
