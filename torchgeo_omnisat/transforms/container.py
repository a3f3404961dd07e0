# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Sequences of augmentations of this package and of Kornia."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from kornia.augmentation import GeometricAugmentationBase2D, IntensityAugmentationBase2D, VideoSequential
from kornia.augmentation.container.params import ParamItem
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample

from ..modality import Modality, as_modalities
from ..utils.observed import finite
from .base import Params, Transform
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
    on its own device, which is the CPU by default.

    Args:
        modalities: Modalities to transform.
        augmentations: Kornia augmentations by modality.
        same_on_dates: Whether all dates of a sample share one draw.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality],
        augmentations: Mapping[str, Sequence[IntensityAugmentationBase2D]],
        same_on_dates: bool = True,
    ) -> None:
        """Create a container of Kornia for every modality."""
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

    The parameters of the last call are in :attr:`params`. Pass them to another call to repeat it.

    Args:
        modalities: Modalities of the batch.
        steps: Steps in order. Defaults to :class:`RandomDihedral`, :class:`RandomTemporalDropout`
            and :class:`RandomSpeckle`.
        data_keys: None if inputs are batches; else the keys of the input tensors, in order, and a
            list of as many tensors is returned.
        same_on_batch: Whether all samples share one draw; None for the setting of each step.
        random_apply: Number of steps to apply in random order, or its range ``(least,)`` or
            ``(least, greatest)``; True for all steps in random order, False for all in the given order.
        same_on_dates: Whether all dates of a sample share one draw of Kornia.

    Raises:
        TypeError: If a step is none of these.
        ValueError: If a name is unknown, or *random_apply* exceeds the number of steps.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality],
        *steps: AugmentationStep,
        data_keys: Sequence[str] | None = None,
        same_on_batch: bool | None = None,
        random_apply: bool | int | tuple[int] | tuple[int, int] = False,
        same_on_dates: bool = True,
    ) -> None:
        """Initialize the steps; augmentations of Kornia are wrapped."""
        super().__init__()
        self.modalities = as_modalities(modalities)
        if not steps:
            ours = (RandomDihedral, RandomTemporalDropout, RandomSpeckle)
            steps = tuple(transform(self.modalities) for transform in ours)
        self.steps = nn.ModuleList([self._step(step, same_on_dates) for step in steps])
        self.data_keys = None if data_keys is None else tuple(data_keys)
        self.random_apply = _count(random_apply, len(self.steps))
        self.params: list[ParamItem] = []
        if same_on_batch is not None:
            for module in self.modules():
                if hasattr(module, 'same_on_batch'):
                    module.same_on_batch = same_on_batch  # type: ignore[assignment]

    def forward(
        self,
        *batch: Any,
        params: Sequence[ParamItem] | None = None,
        data_keys: Sequence[str] | None = None,
    ) -> Any:
        """Augment a batch.

        Args:
            *batch: Batch, or the tensors of *data_keys*.
            params: :attr:`params` of another call, to repeat it.
            data_keys: Overrides those of the constructor.

        Returns:
            New batch, or a list of the tensors of *data_keys*.

        Raises:
            TypeError: If the input is a tensor and there are no *data_keys*.
            ValueError: If *params* do not match the steps, or the number of tensors that of the keys.
        """
        keys = self.data_keys if data_keys is None else tuple(data_keys)
        if len(batch) != (1 if keys is None else len(keys)):
            raise ValueError(f'got {len(batch)} arguments, expected one batch or a tensor for each of data_keys {keys}')
        if keys is None:
            return self._run(batch[0], params)
        changed = self._run(dict(zip(keys, batch, strict=True)), params)
        return [changed[key] for key in keys]

    def _run(self, batch: Mapping[str, Tensor], params: Sequence[ParamItem] | None) -> Sample:
        """Apply the steps in order; each draws its parameters for the output of the previous one."""
        if isinstance(batch, Tensor):
            raise TypeError(
                f'{type(self).__name__} got a Tensor of shape {tuple(batch.shape)}, expected a batch, a dictionary '
                'of tensors, or data_keys that say what each tensor is'
            )
        single = any(batch[m.valid_key].ndim == 1 for m in self.modalities.values() if m.valid_key in batch)
        batch = {key: value[None] for key, value in batch.items()} if single else dict(batch)
        kept = []
        for name, given in self._order() if params is None else [(item.name, item.data) for item in params]:
            if not name.isdecimal() or int(name) >= len(self.steps):
                raise ValueError(f'params are of a step {name!r}, expected those of {len(self.steps)} steps')
            step = self.steps[int(name)]
            if isinstance(step, Transform):
                given = step.draw(batch) if given is None else given
                batch = step.replay(batch, given)  # type: ignore[arg-type]
            else:
                batch = step(batch)
            kept.append(ParamItem(name, given))
        self.params = kept
        return {key: value[0] for key, value in batch.items()} if single else dict(batch)

    def _order(self) -> list[tuple[str, Params | None]]:
        """Return the indices of the steps to apply."""
        if self.random_apply is None:
            return [(str(i), None) for i in range(len(self.steps))]
        least, greatest = self.random_apply
        count = int(torch.randint(least, greatest + 1, ()))
        return [(str(i), None) for i in torch.randperm(len(self.steps))[:count].tolist()]

    def _step(self, step: AugmentationStep, same_on_dates: bool) -> nn.Module:
        """Return a step as a module that takes a batch."""
        if isinstance(step, Mapping):
            if unknown := [name for name in step if name not in self.modalities]:
                raise ValueError(f'a step names the modalities {unknown}, expected some of {list(self.modalities)}')
            chains = {name: [chain] if isinstance(chain, nn.Module) else list(chain) for name, chain in step.items()}
            for augmentation in (one for chain in chains.values() for one in chain):
                _check_intensity(augmentation)
            return KorniaIntensity(self.modalities, chains, same_on_dates)
        if isinstance(step, IntensityAugmentationBase2D):
            return KorniaIntensity(self.modalities, {name: [step] for name in self.modalities}, same_on_dates)
        if type(step).__module__.startswith('kornia.') or not isinstance(step, nn.Module):
            _check_intensity(step)
        if isinstance(step, MultimodalAugmentation):
            raise TypeError('a step is a MultimodalAugmentation, expected its steps themselves')
        return step


def _check_intensity(augmentation: object) -> None:
    """Raise TypeError if it is not an intensity augmentation of Kornia, and name the equivalent transform."""
    if isinstance(augmentation, IntensityAugmentationBase2D):
        return
    name = type(augmentation).__name__
    if not isinstance(augmentation, GeometricAugmentationBase2D):
        raise TypeError(f"{name} is no step, expected a transform of this package or one of Kornia's intensity ones")
    ours = next((ours for word, ours in _OURS.items() if word in name), 'RandomGroundAffine')
    raise TypeError(
        f"{name} is of Kornia's geometry, which is drawn in pixels, for each tensor alone, and moves modalities of "
        f'different resolution apart; expected {ours} of torchgeo_omnisat.transforms, drawn once a tile in ground terms'
    )


def _count(random_apply: bool | int | tuple[int] | tuple[int, int], steps: int) -> tuple[int, int] | None:
    """Return minimum and maximum of the number of steps to apply; None for all in order."""
    if random_apply is False:
        return None
    if random_apply is True:
        return steps, steps
    bounds = (random_apply, random_apply) if isinstance(random_apply, int) else tuple(random_apply)
    least, greatest = (*bounds, steps)[:2]
    if not 0 <= least <= greatest <= steps:
        raise ValueError(f'random_apply is {random_apply}, expected numbers in order, up to the {steps} steps')
    return least, greatest


def _series(modality: Modality, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the images as a time series ``(B, T, C, H, W)``, T = 1 for a single image."""
    image = batch[modality.image_key]
    return image if modality.temporal else image[:, None]
