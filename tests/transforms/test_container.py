# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import copy
import pickle
from collections.abc import Callable
from typing import Any

import kornia.augmentation as K
import pytest
import torch
from torch import nn

from torchgeo_omnisat.batch import check
from torchgeo_omnisat.transforms import (
    ModalityDropout,
    MultimodalAugmentation,
    Normalize,
    RandomBandDropout,
    RandomClouds,
    RandomDateShift,
    RandomDihedral,
    RandomGroundAffine,
    RandomGroundCrop,
    RandomJitter,
    RandomSpeckle,
    RandomTemporalDropout,
    TemporalSubsample,
)

from ..devices import DEVICES
from .tiles import SENSORS, random_tiles, same

OURS: dict[str, Callable[[], nn.Module]] = {
    'dihedral': lambda: RandomDihedral(SENSORS),
    'crop': lambda: RandomGroundCrop(SENSORS, 40.0, 10.0),
    'affine': lambda: RandomGroundAffine(SENSORS),
    'temporal dropout': lambda: RandomTemporalDropout(SENSORS),
    'subsample': lambda: TemporalSubsample(SENSORS, 2),
    'date shift': lambda: RandomDateShift(SENSORS),
    'modality dropout': lambda: ModalityDropout(SENSORS),
    'clouds': lambda: RandomClouds(SENSORS, 0.8),
    'speckle': lambda: RandomSpeckle(SENSORS),
    'band dropout': lambda: RandomBandDropout(SENSORS, 0.5),
    'jitter': lambda: RandomJitter(SENSORS),
    'all': lambda: MultimodalAugmentation(
        SENSORS, *(make() for name, make in OURS.items() if name not in ('all', 'default'))
    ),
    'default': lambda: MultimodalAugmentation(SENSORS),
}
KORNIA: dict[str, nn.Module] = {
    'noise': K.RandomGaussianNoise(0.0, 0.1, p=1.0),
    'blur': K.RandomGaussianBlur((3, 3), (0.5, 2.0), p=1.0),
    'box blur': K.RandomBoxBlur(p=1.0),
    'motion blur': K.RandomMotionBlur(3, 35.0, 0.5, p=1.0),
    'brightness': K.RandomBrightness((0.8, 1.2), p=1.0),
    'contrast': K.RandomContrast((0.8, 1.2), p=1.0),
    'gamma': K.RandomGamma((0.7, 1.3), p=1.0),
    'erasing': K.RandomErasing(p=1.0),
    'sharpness': K.RandomSharpness(p=1.0),
    'plasma': K.RandomPlasmaBrightness(p=1.0),
}


@pytest.mark.parametrize('name', list(OURS))
class TestEveryTransform:
    def test_same_parameters_same_result(self, name: str) -> None:
        torch.manual_seed(0)
        step, batch = OURS[name](), random_tiles()
        augment = step if isinstance(step, MultimodalAugmentation) else MultimodalAugmentation(SENSORS, step)
        before = copy.deepcopy(batch)
        one = augment(batch)
        params = pickle.loads(pickle.dumps(augment.params))
        assert not same(augment(batch), one) or name in ('dihedral', 'modality dropout')
        assert same(augment(batch, params=params), one)
        assert same(batch, before)
        check(one, SENSORS)

    @pytest.mark.parametrize('device', DEVICES)
    @pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
    def test_types_and_devices(self, name: str, dtype: torch.dtype, device: str) -> None:
        batch = {k: v.to(device, dtype if 'image' in k else v.dtype) for k, v in random_tiles().items()}
        after = OURS[name]()(batch)
        for key in batch:
            assert (after[key].dtype, after[key].device) == (batch[key].dtype, batch[key].device)

    @pytest.mark.parametrize(('count', 'dates'), [(1, 1), (2, 1), (1, 3)])
    def test_small_batches(self, name: str, count: int, dates: int) -> None:
        check(OURS[name]()(random_tiles(count, dates)), SENSORS)

    def test_a_sample_without_batch(self, name: str) -> None:
        check(OURS[name]()({k: v[0] for k, v in random_tiles().items()}), SENSORS, batched=False)

    def test_absent_modalities(self, name: str) -> None:
        batch = {key: value for key, value in random_tiles().items() if not key.endswith('_s1a')}
        batch['valid_s2'][1] = False
        batch['valid_spot'][0] = False
        after = OURS[name]()(batch)
        check(after, SENSORS)
        assert after.keys() == batch.keys()
        assert not after['valid_s2'][1].any()
        assert not after['valid_spot'][0].any()

    def test_a_bare_tensor_is_refused(self, name: str) -> None:
        with pytest.raises(TypeError, match=r'Tensor.*shape.*batch'):
            OURS[name]()(torch.zeros(2, 3, 4, 4))

    def test_same_on_batch(self, name: str) -> None:
        torch.manual_seed(0)
        batch = {key: value[:1].repeat_interleave(4, 0) for key, value in random_tiles().items()}
        step = OURS[name]()
        for module in step.modules():
            module.same_on_batch = True  # type: ignore[assignment]
        after = step(batch)
        assert all(same({key: value[i]}, {key: value[0]}) for key, value in after.items() for i in range(4))


class TestKornia:
    @pytest.mark.parametrize('name', list(KORNIA))
    @pytest.mark.parametrize('same_on_dates', [True, False])
    def test_runs_on_every_modality(self, name: str, same_on_dates: bool) -> None:
        torch.manual_seed(0)
        batch = random_tiles()
        batch['image_s2'][0, 1, :, 2:4] = torch.nan
        augment = MultimodalAugmentation(SENSORS, KORNIA[name], same_on_dates=same_on_dates)
        after = augment(batch)
        for modality in SENSORS.values():
            old, new = batch[modality.image_key], after[modality.image_key]
            assert torch.equal(old.isnan(), new.isnan())
            assert not torch.allclose(old, new, equal_nan=True)
            low, high = old[old.isfinite()].aminmax()
            assert (new.nanmean() - old.nanmean()).abs() < 0.6 * (high - low)
        assert same(augment(batch, params=augment.params), after)

    @pytest.mark.parametrize('same_on_dates', [True, False])
    @pytest.mark.parametrize('count', [1, 4])
    def test_dates_share_a_draw_if_asked(self, same_on_dates: bool, count: int) -> None:
        torch.manual_seed(0)
        batch = random_tiles(count, 4)
        batch['image_s2'] = batch['image_s2'][:, :1].repeat(1, 4, 1, 1, 1)
        kornia = {'s2': [K.RandomBrightness((0.5, 1.5), p=1.0), K.RandomGaussianNoise(0.0, 0.1, p=1.0)]}
        after = MultimodalAugmentation(SENSORS, kornia, same_on_dates=same_on_dates)(batch)
        frames = after['image_s2']
        assert torch.equal(frames[:, 0], frames[:, 3]) == same_on_dates
        assert after['image_spot'] is batch['image_spot']
        if count > 1:
            assert not torch.allclose(frames[0] - batch['image_s2'][0], frames[1] - batch['image_s2'][1])

    def test_nothing_but_the_augmentation_changes_an_image(self) -> None:
        batch = random_tiles()
        after = MultimodalAugmentation(SENSORS, K.RandomBrightness(p=0.0))(batch)
        for key in ('image_s2', 'image_s1a', 'image_spot'):
            assert torch.allclose(after[key], batch[key], rtol=1e-5, atol=1e-3)

    def test_geometry_is_refused_and_ours_named(self) -> None:
        for step, name in (
            (K.RandomHorizontalFlip(), 'RandomDihedral'),
            (K.RandomRotation(10.0), 'RandomGroundAffine'),
            (K.RandomAffine(10.0), 'RandomGroundAffine'),
            (K.RandomResizedCrop((4, 4)), 'RandomGroundCrop'),
        ):
            for given in (step, {'s2': step}, {'spot': [K.RandomInvert(), step]}):
                with pytest.raises(TypeError, match=f'{type(step).__name__},.*transforms.{name}'):
                    MultimodalAugmentation(SENSORS, given)

    @pytest.mark.parametrize('step', [K.RandomMixUpV2(), torch.relu, 'flip', {'s2': nn.Identity()}])
    def test_anything_else_is_refused(self, step: Any) -> None:
        with pytest.raises(TypeError, match='step'):
            MultimodalAugmentation(SENSORS, step)

    def test_an_unknown_modality_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"\['z'\].*\['s2', 's1a', 'spot'\]"):
            MultimodalAugmentation(SENSORS, {'z': K.RandomInvert()})


class TestMultimodalAugmentation:
    def test_the_order_is_that_given(self) -> None:
        crop, normalize = RandomGroundCrop(SENSORS, 40.0, 10.0), Normalize(SENSORS)
        augment = MultimodalAugmentation(SENSORS, crop, normalize, RandomDihedral(SENSORS))
        batch = random_tiles()
        after = augment(batch)
        first, second, third = augment.params
        assert second is None
        expected = RandomDihedral(SENSORS)(normalize(crop(batch, first)), third)
        assert same(after, expected)

    def test_parameters_of_other_steps_are_refused(self) -> None:
        augment = MultimodalAugmentation(SENSORS)
        augment(random_tiles())
        with pytest.raises(ValueError, match=r'params.*3 entries.* [12] steps?'):
            MultimodalAugmentation(SENSORS, RandomDihedral(SENSORS))(random_tiles(), params=augment.params)

    def test_one_inside_another_is_refused(self) -> None:
        with pytest.raises(TypeError, match='MultimodalAugmentation'):
            MultimodalAugmentation(SENSORS, MultimodalAugmentation(SENSORS))
