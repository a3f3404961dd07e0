# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torchgeo_omnisat import Modality
from torchgeo_omnisat.transforms import MultimodalAugmentation, RandomDihedral, RandomGroundAffine, RandomGroundCrop

from .tiles import AERIAL, LABEL_GSD, LEFT, MODALITIES, S2, SENSORS, SIDE, SPOT, TOP, around, marked, random_tiles, same

#: 20 examples of 50 tiles are 1,000 draws.
DRAWS = settings(max_examples=20, deadline=None, derandomize=True, database=None)
SEEDS = st.integers(0, 2**31)
AFFINE = {'scale': (0.9, 1.1), 'translate': 3.0}


class EachItsOwn(nn.Module):
    """What is not to happen: one modality gets a draw of its own."""

    def __init__(self, transform: nn.Module, alone: Modality) -> None:
        super().__init__()
        self.transform, self.alone = transform, alone

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.transform(batch) | {self.alone.image_key: self.transform(batch)[self.alone.image_key]}


def centre(image: Tensor, gsd: float) -> Tensor:
    """Centre of mass ``(..., 2)`` of images, in metres to the right and down."""
    weight = image.double().nan_to_num(0)
    place = (torch.arange(image.shape[-1]) + 0.5).double() * gsd
    total = weight.sum((-2, -1))
    return torch.stack([(weight.sum(-2) * place).sum(-1), (weight.sum(-1) * place).sum(-1)], -1) / total[..., None]


def assert_marker_stays(transform: nn.Module, seed: int, count: int = 50, margin: float = 12.0) -> int:
    """Find the marker where ``transform`` says that it is, in everything; how many could be looked at."""
    torch.manual_seed(seed)
    marker = SIDE / 2 + torch.rand(count, 2) * 6 - 3
    changed = transform(marked(marker))
    affine = changed['transform'].view(-1, 3, 3)
    point = torch.cat([LEFT + marker[:, :1], TOP - marker[:, 1:], torch.ones(count, 1)], -1).double()
    expected = torch.linalg.solve(affine, point[..., None])[:, :2, 0]
    side = changed['image_spot'].shape[-1] * SPOT.gsd
    whole = ((expected > margin) & (expected < side - margin)).all(-1)
    found = {
        'aerial': centre(changed['image_aerial'][:, 0], AERIAL.gsd),
        'spot': centre(changed['image_spot'][:, 0], SPOT.gsd),
        'mask': centre(changed['mask'].clamp(0, 1), LABEL_GSD),
    }
    for date in range(2):
        for band in range(2):
            found[f's2 {date} {band}'] = centre(changed['image_s2'][:, date, band], S2.gsd)
    for name, place in found.items():
        distance = (place - expected)[whole].norm(dim=-1)
        assert (distance < S2.gsd / 2).all(), f'{name} is off by {distance.max()} m'
    return int(whole.sum())


class TestGroundStaysAligned:
    @pytest.mark.slow
    @DRAWS
    @given(seed=SEEDS)
    def test_affine(self, seed: int) -> None:
        assert assert_marker_stays(RandomGroundAffine(MODALITIES, **AFFINE), seed) == 50

    @pytest.mark.slow
    @DRAWS
    @given(seed=SEEDS, order=st.permutations([0, 1, 2, 3]), length=st.integers(2, 4))
    def test_any_composition(self, seed: int, order: list[int], length: int) -> None:
        every = (
            RandomDihedral(MODALITIES),
            RandomGroundAffine(MODALITIES, **AFFINE),
            RandomGroundCrop(MODALITIES, 40.0, 10.0),
            RandomDihedral(MODALITIES, p=0.5),
        )
        augment = MultimodalAugmentation(MODALITIES, *(every[i] for i in order[:length]))
        assert assert_marker_stays(augment, seed) > 10

    @DRAWS
    @given(seed=SEEDS)
    def test_dihedral_and_crop_are_exact(self, seed: int) -> None:
        torch.manual_seed(seed)
        ground = torch.randint(0, 100, (50, 1, 5, 5)).float()
        images = {
            'aerial': ground.repeat_interleave(50, -1).repeat_interleave(50, -2),
            'spot': ground.repeat_interleave(10, -1).repeat_interleave(10, -2),
            's2': ground[:, None].expand(-1, 2, 2, -1, -1).contiguous(),
        }
        mask = ground[:, 0].repeat_interleave(5, -1).repeat_interleave(5, -2).long()
        steps = (RandomDihedral(MODALITIES), RandomGroundCrop(MODALITIES, 30.0, 10.0), RandomDihedral(MODALITIES))
        changed = MultimodalAugmentation(MODALITIES, *steps)(around(images, mask))
        cut = changed['image_s2'][:, 0, 0]
        assert cut.shape == (50, 3, 3)
        assert not torch.equal(cut, ground[:, 0, :3, :3])
        for image, side in (
            (changed['image_s2'][:, 1, 1], 1),
            (changed['image_aerial'][:, 0], 50),
            (changed['image_spot'][:, 0], 10),
            (changed['mask'], 5),
        ):
            assert torch.equal(image, cut.repeat_interleave(side, -1).repeat_interleave(side, -2).to(image.dtype))
        columns = torch.arange(3) * 10 + 5.0
        grid = torch.stack([columns.expand(3, 3), columns[:, None].expand(3, 3), torch.ones(3, 3)], -1).double()
        place = torch.einsum('bij,rcj->brci', changed['transform'].view(-1, 3, 3), grid)
        column, row = ((place[..., 0] - LEFT) / 10).floor().long(), ((TOP - place[..., 1]) / 10).floor().long()
        assert torch.equal(ground[:, 0][torch.arange(50)[:, None, None], row, column], cut)

    @pytest.mark.parametrize('name', list(MODALITIES))
    @pytest.mark.parametrize('transform', [RandomGroundAffine(MODALITIES, **AFFINE), RandomDihedral(MODALITIES)])
    def test_the_test_sees_a_draw_of_its_own(self, transform: nn.Module, name: str) -> None:
        with pytest.raises(AssertionError, match=rf'{name}.*off'):
            assert_marker_stays(EachItsOwn(transform, MODALITIES[name]), 0)


class TestRandomDihedral:
    def test_is_what_rot90_and_flip_do(self) -> None:
        batch = random_tiles(8)
        element = torch.arange(8)
        turned = RandomDihedral(SENSORS)(batch, {'element': element})
        for k in range(8):
            for key in ('image_s2', 'image_spot', 'mask'):
                expected = batch[key][k].rot90(k % 4, (-2, -1))
                assert torch.equal(turned[key][k], expected.flip(-1) if k >= 4 else expected)
        assert len({tuple(t.flatten().tolist()) for t in turned['transform']}) == 8

    def test_inverse_is_the_identity(self) -> None:
        batch, turn = random_tiles(8), RandomDihedral(SENSORS)
        params = {'element': torch.arange(8)}
        assert same(turn(turn(batch, params), turn.inverse(params)), batch)

    def test_elements_are_equally_likely(self) -> None:
        torch.manual_seed(0)
        batch = {'valid_s2': torch.ones(16000, 1, dtype=torch.bool), 'image_s2': torch.zeros(16000, 1, 1, 1, 1)}
        for p, expected in ((1.0, [2000] * 8), (0.5, [9000] + [1000] * 7)):
            counts = RandomDihedral([S2], p).draw(batch)['element'].bincount(minlength=8)
            for count, mean in zip(counts.tolist(), expected, strict=True):
                assert abs(count - mean) < 3.5 * (mean * (1 - mean / 16000)) ** 0.5

    def test_tiles_that_are_not_square_keep_their_shape(self) -> None:
        batch = {key: value[..., :6] if key in ('image_s2', 'mask') else value for key, value in random_tiles().items()}
        batch = {key: value for key, value in batch.items() if key.endswith('s2') or key == 'mask'} | {
            'window': torch.tensor([[3, 4, 8, 6]] * 3)
        }
        torch.manual_seed(0)
        elements = torch.cat([RandomDihedral([S2]).draw(batch)['element'] for _ in range(50)])
        assert elements.unique().tolist() == [0, 2, 4, 6]
        changed = RandomDihedral([S2])(batch)
        assert changed['mask'].shape == (3, 8, 6)
        assert changed['window'] is batch['window']


class TestRandomGroundCrop:
    def test_bounds_and_window(self) -> None:
        batch = random_tiles()
        batch['window'] = torch.tensor([[100, 200, 8, 8]] * 3)
        corner = torch.tensor([[0, 0], [1, 0], [1, 1]])
        cut = RandomGroundCrop(SENSORS, 40.0, 40.0)(batch, {'corner': corner})
        assert torch.equal(cut['image_spot'][1], batch['image_spot'][1, :, 8:, :8])
        assert cut['window'].tolist() == [[100, 200, 4, 4], [104, 200, 4, 4], [104, 204, 4, 4]]
        expected = [(LEFT + 40 * x, LEFT + 40 * x + 40, TOP - 40 * y - 40, TOP - 40 * y) for y, x in corner.tolist()]
        assert [tuple(row) for row in cut['bounds'][:, [0, 1, 3, 4]].tolist()] == expected
        assert cut['bounds'][:, [2, 5, 6, 7, 8]].equal(batch['bounds'][:, [2, 5, 6, 7, 8]])

    def test_every_place_is_drawn(self) -> None:
        torch.manual_seed(0)
        crop = RandomGroundCrop(SENSORS, 40.0, 10.0)
        corners = torch.cat([crop.draw(random_tiles(50))['corner'] for _ in range(10)])
        assert corners.unique(dim=0).tolist() == [[i, j] for i in range(5) for j in range(5)]

    def test_a_date_of_which_nothing_is_left_is_not_valid(self) -> None:
        batch = random_tiles()
        batch['image_s2'][:, 1, :, :4] = torch.nan
        cut = RandomGroundCrop(SENSORS, 40.0, 40.0)(batch, {'corner': torch.tensor([[0, 0], [1, 0], [0, 1]])})
        assert cut['valid_s2'].tolist() == [[True, False, True, True], [True] * 4, [True, False, True, True]]

    @pytest.mark.parametrize(
        ('size', 'patch_size', 'message'),
        [
            (50.0, 40.0, r'size is 50 m, expected a whole number of 40 m patches'),
            (40.0, 15.0, r"15.0 m is not a whole number of 10.0 m pixels of 's2'"),
            (0.0, 40.0, r'size is 0 m'),
            (120.0, 40.0, r'size is 120 m, expected no more than the tile, 80 x 80 m'),
        ],
    )
    def test_sizes_that_are_refused(self, size: float, patch_size: float, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            RandomGroundCrop(SENSORS, size, patch_size)(random_tiles())

    def test_a_mask_of_other_pixels_is_refused(self) -> None:
        batch = random_tiles() | {'mask': torch.zeros(3, 3, 3, dtype=torch.int64)}
        with pytest.raises(ValueError, match=r'pixels.*mask'):
            RandomGroundCrop(SENSORS, 40.0, 40.0)(batch)


class TestRandomGroundAffine:
    def test_outside_is_nan_and_ignored(self) -> None:
        batch = random_tiles()
        shift = {
            'applied': torch.tensor([True, True, False]),
            'degrees': torch.zeros(3),
            'scale': torch.ones(3),
            'shift': torch.tensor([[20.0, 0.0], [0.0, -10.0], [20.0, 20.0]]),
        }
        moved = RandomGroundAffine(SENSORS, ignore_index=19)(batch, shift)
        assert moved['image_s2'][0, ..., :2].isnan().all()
        assert torch.allclose(moved['image_s2'][0, ..., 2:], batch['image_s2'][0, ..., :-2], rtol=1e-4)
        assert torch.allclose(moved['image_spot'][1, :, :-2], batch['image_spot'][1, :, 2:], rtol=1e-4, atol=1e-2)
        assert moved['mask'][0, :, :2].eq(19).all()
        assert torch.equal(moved['mask'][0, :, 2:], batch['mask'][0, :, :-2])
        assert moved['mask'][1, -1].eq(19).all()
        for key in ('image_s2', 'image_s1a', 'image_spot', 'mask', 'transform'):
            assert torch.equal(moved[key][2], batch[key][2])
        assert moved['bounds'][0, :2].tolist() == [LEFT - 20, LEFT + 60]

    def test_nan_does_not_spread(self) -> None:
        torch.manual_seed(0)
        batch = random_tiles()
        batch['image_spot'][:] = 7
        batch['image_spot'][:, :, 4:9, 3:7] = torch.nan
        moved = RandomGroundAffine(SENSORS, translate=0.0, scale=(1.0, 1.0))(batch)['image_spot']
        assert torch.allclose(moved[moved.isfinite()], torch.tensor(7.0))
        inside = RandomGroundAffine(SENSORS, translate=0.0, scale=(2.0, 2.0))(batch)['image_spot']
        share = inside.isnan().float().mean()
        assert 4 * 20 / 256 * 0.7 < share < 4 * 20 / 256 * 1.3
        batch['image_spot'][:] = torch.nan
        assert not RandomGroundAffine(SENSORS)(batch)['valid_spot'].any()

    def test_turns_counter_clockwise_as_rot90(self) -> None:
        batch = random_tiles()
        params = {
            'applied': torch.ones(3, dtype=torch.bool),
            'degrees': torch.full((3,), 90.0),
            'scale': torch.ones(3),
            'shift': torch.zeros(3, 2),
        }
        turned = RandomGroundAffine(SENSORS)(batch, params)
        exact = RandomDihedral(SENSORS)(batch, {'element': torch.ones(3, dtype=torch.int64)})
        for key in ('image_s2', 'image_spot', 'transform'):
            assert torch.allclose(turned[key], exact[key], rtol=1e-3, atol=1e-3)

    def test_instances_stay_with_the_mask(self) -> None:
        """Ids move with the pixels of the mask. Padding has instance 0 and the ignored label."""
        batch = random_tiles(4)
        batch['instances'] = batch['mask'] + 7
        transforms = (
            RandomDihedral(SENSORS),
            RandomGroundCrop(SENSORS, 40.0, 20.0),
            RandomGroundAffine(SENSORS, ignore_index=-7),
        )
        for transform in transforms:
            changed = transform(batch)
            assert changed['instances'].shape == changed['mask'].shape
            assert torch.equal(changed['instances'], changed['mask'] + 7)
        assert (changed['instances'] == 0).any()

    def test_magnifies(self) -> None:
        params = {
            'applied': torch.ones(50, dtype=torch.bool),
            'degrees': torch.zeros(50),
            'scale': torch.full((50,), 2.0),
            'shift': torch.zeros(50, 2),
        }
        before = marked(torch.full((50, 2), 25.0), radius=6.0)
        after = RandomGroundAffine(MODALITIES)(before, params)
        assert (after['image_aerial'].sum() / before['image_aerial'].sum()).item() == pytest.approx(4, rel=0.01)
        assert after['transform'][0, :2].tolist() == [0.5, 0]
        assert after['bounds'][0, :3].tolist() == [LEFT + 12.5, LEFT + 37.5, 1]

    def test_refuses_a_window(self) -> None:
        with pytest.raises(ValueError, match='key window'):
            RandomGroundAffine(SENSORS)(random_tiles() | {'window': torch.zeros(3, 4, dtype=torch.int64)})

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            ({'degrees': -1.0}, r'degrees is \(0.0, -1.0\)'),
            ({'scale': (1.2, 0.8)}, r'scale is \(1.2, 0.8\), expected two numbers in order'),
            ({'scale': (0.0, 1.0)}, r'scale is \(0.0, 1.0\)'),
            ({'translate': float('nan')}, 'translate is'),
            ({'p': 2.0}, 'p is 2.0, expected a probability'),
        ],
    )
    def test_bad_arguments_are_refused(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            RandomGroundAffine(SENSORS, **arguments)


class TestGeoreference:
    @pytest.mark.parametrize('key', ['bounds', 'transform'])
    def test_one_of_the_two_is_enough(self, key: str) -> None:
        torch.manual_seed(0)
        steps = (RandomDihedral(SENSORS), RandomGroundAffine(SENSORS, **AFFINE), RandomGroundCrop(SENSORS, 40.0, 20.0))
        augment = MultimodalAugmentation(SENSORS, *steps)
        batch = random_tiles()
        both = augment(batch)
        one = augment(
            {k: v for k, v in batch.items() if k == key or k not in ('bounds', 'transform')}, params=augment.params
        )
        assert torch.allclose(one['transform'], both['transform'])
        assert torch.allclose(one['bounds'][:, :6], both['bounds'][:, :6])

    def test_types_and_sizes_are_kept(self) -> None:
        batch = random_tiles()
        batch |= {'bounds': batch['bounds'].float(), 'transform': batch['transform'][:, :6].float()}
        cut = RandomGroundCrop(SENSORS, 40.0, 40.0)(batch)
        assert cut['transform'].shape == (3, 6)
        assert cut['transform'].dtype == cut['bounds'].dtype == torch.float32

    @pytest.mark.parametrize(
        ('key', 'message'), [('bounds', r'bounds has shape \(3, 4\)'), ('transform', 'transform has')]
    )
    def test_other_shapes_are_refused(self, key: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            RandomDihedral(SENSORS)(random_tiles() | {key: torch.zeros(3, 4)})

    def test_images_of_different_ground_are_refused(self) -> None:
        batch = random_tiles() | {'image_s2': torch.zeros(3, 4, 2, 16, 16)}
        with pytest.raises(ValueError, match=r'image_s2.*160 x 160 m.*image_spot 80 x 80 m'):
            RandomDihedral(SENSORS)(batch)
