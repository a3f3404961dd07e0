# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""MultimodalAugmentation: ours and Kornia's, in one order, drawn once and kept."""

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

#: A step of an augmentation: ours, Kornia's for every modality, or Kornia's by name.
AugmentationStep = nn.Module | Mapping[str, IntensityAugmentationBase2D | Sequence[IntensityAugmentationBase2D]]

#: Words in the names of Kornia's geometric augmentations, and which of ours does that.
_OURS = {'Flip': 'RandomDihedral', 'Rotation90': 'RandomDihedral', 'Crop': 'RandomGroundCrop'}


class KorniaIntensity(Transform):
    """Kornia's intensity augmentations on the images of every modality, each with a draw of its own.

    Kornia takes images from 0 to 1, so each sample's images of a modality are brought
    there, from their least to their greatest finite value on valid dates, and back. What
    is not finite is left out of that, is given the mean for as long as Kornia has the
    image, and is NaN again afterwards. Kornia draws on its own device, the CPU unless
    moved.

    Args:
        modalities: The modalities whose images are changed.
        augmentations: What is done to each, by name.
        same_on_dates: Whether all dates of a sample share one draw, or each has its own.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Iterable[Modality],
        augmentations: Mapping[str, Sequence[IntensityAugmentationBase2D]],
        same_on_dates: bool = True,
    ) -> None:
        """Hand every modality's augmentations to Kornia's container for series."""
        super().__init__([m for m in as_modalities(modalities).values() if m.name in augmentations])
        chains = {name: VideoSequential(*chain, same_on_frame=same_on_dates) for name, chain in augmentations.items()}
        self.chains = nn.ModuleDict(chains)

    def draw(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Kornia's parameters by name of the modality."""
        return {m.name: self._chain(m).forward_parameters(_series(m, batch).shape) for m in self.present(batch)}

    def replay(self, batch: Mapping[str, Tensor], params: dict[str, Any]) -> Sample:
        """Change every image."""
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
        """Return the transforms of a modality."""
        chain = self.chains[modality.name]
        assert isinstance(chain, VideoSequential)
        return chain


class MultimodalAugmentation(nn.Module):
    """Augmentations of whole batches, ours and Kornia's, in the order in which they are given.

    A step is a transform of this package, an intensity augmentation of Kornia's, which every
    modality gets with a draw of its own, or a mapping from names of modalities to one or
    several of Kornia's. Geometry of Kornia's is refused: it is drawn in pixels, for each
    tensor alone, so modalities would drift apart. Any other module, such as
    :class:`Normalize`, is called with the batch; what it draws is not kept.

    What was drawn last is in :attr:`params`. Given to another call it does the same again.

    Args:
        modalities: The modalities of the batch.
        steps: What to do. None at all stands for :class:`RandomDihedral`,
            :class:`RandomTemporalDropout` and :class:`RandomSpeckle`.
        data_keys: None if calls are with a batch. Else the keys of the tensors that calls are
            with, in order, and a list of as many comes back.
        same_on_batch: Whether all samples share one draw; None leaves that to each step.
        random_apply: How many of the steps are done, in random order: a number, ``(least,)``,
            or ``(least, greatest)``; True for all of them, in random order; False for all
            in the order given.
        same_on_dates: Whether Kornia's draws are shared by all dates of a sample.

    Raises:
        TypeError: If a step is none of these.
        ValueError: If a name is unknown, or *random_apply* asks for more steps than there are.
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
        """Wrap what is Kornia's."""
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
        """Change a batch.

        Args:
            *batch: A batch, or the tensors of *data_keys*.
            params: What was drawn in another call, to have the same again.
            data_keys: Instead of those of the constructor.

        Returns:
            A new batch, or a list of the tensors of *data_keys*.

        Raises:
            TypeError: If it is a bare tensor without *data_keys*.
            ValueError: If *params* are not of these steps, or tensors are not as many as keys.
        """
        keys = self.data_keys if data_keys is None else tuple(data_keys)
        if len(batch) != (1 if keys is None else len(keys)):
            raise ValueError(f'got {len(batch)} arguments, expected one batch or a tensor for each of data_keys {keys}')
        if keys is None:
            return self._run(batch[0], params)
        changed = self._run(dict(zip(keys, batch, strict=True)), params)
        return [changed[key] for key in keys]

    def _run(self, batch: Mapping[str, Tensor], params: Sequence[ParamItem] | None) -> Sample:
        """All steps in turn, each of which draws when it sees what the one before it made."""
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
        """Numbers of the steps to be done."""
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
    """Refuse what is not an intensity augmentation of Kornia's, and name what there is instead."""
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
    """Least and greatest number of steps to be done; None for all in their order."""
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
