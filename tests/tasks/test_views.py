# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from typing import Any

import pytest
import torch
from torch import Tensor

from torchgeo_omnisat.losses import MaskedReconstruction
from torchgeo_omnisat.models import omnisat_tiny
from torchgeo_omnisat.tasks.views import Draws, Pretrainer, Views, draw_views

from .helpers import MODALITIES
from .test_pretraining import MIXED, gradients, make_batch, make_task

GRID = (4, 4)
CPU = torch.device('cpu')
NONE = (0.0, 0.0, 0.0)


@pytest.fixture(scope='module')
def model() -> Pretrainer:
    torch.manual_seed(0)
    backbone = omnisat_tiny(MODALITIES, patch_size=40.0)
    return Pretrainer(backbone, 8, reconstruction=MaskedReconstruction(MODALITIES, 64, 40.0)).eval()


@pytest.fixture(scope='module')
def batch() -> dict[str, Tensor]:
    return make_batch(*MIXED)


def hiding(*patches: int) -> Draws:
    """Draws that hide these patches of every tile."""
    hidden = torch.zeros(len(MIXED), 16, dtype=torch.bool)
    hidden[:, list(patches)] = True
    return Draws(hidden, torch.rand(len(MIXED), 2, 3, generator=torch.Generator().manual_seed(0)))


def scramble(batch: dict[str, Tensor], row: int, column: int) -> dict[str, Tensor]:
    """The batch with other pixels on a patch of 40 m."""
    changed = dict(batch)
    for modality in MODALITIES.values():
        side = modality.pixels(40)
        image = changed[modality.image_key].clone()
        part = image[..., row * side : (row + 1) * side, column * side : (column + 1) * side]
        part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(9)))
        changed[modality.image_key] = image
    return changed


class TestHidden:
    def test_nothing_of_a_hidden_patch_is_fused(
        self, model: Pretrainer, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fused = record_fusion(model, monkeypatch, tokens=True)
        asked = record_fusion(model, monkeypatch)
        for told in (batch, scramble(batch, 1, 1), scramble(batch, 3, 3)):
            model.views(told, hiding(5, 6), NONE)
        assert torch.equal(fused[0], fused[1])
        assert not torch.equal(fused[0], fused[2])
        assert not asked[0][:, [5, 6]].any()
        assert asked[0][0, [i for i in range(16) if i not in (5, 6)]].all()

    @pytest.mark.parametrize('pixels', [True, False])
    def test_what_is_compared_does_not_tell_what_is_hidden(
        self, model: Pretrainer, batch: dict[str, Tensor], pixels: bool
    ) -> None:
        first, second = (model.views(batch, draws, NONE, pixels) for draws in (hiding(5, 6), hiding(0)))
        for name in ('tiles', 'patches', 'observed'):
            assert torch.equal(getattr(first, name), getattr(second, name))
        assert first.observed[0].all()

    def test_nothing_is_encoded_twice_where_nothing_is_compared(
        self, model: Pretrainer, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[int] = []
        encode = model.backbone.encode
        monkeypatch.setattr(model.backbone, 'encode', lambda told: calls.append(1) or encode(told))
        for compare, pixels, expected in ((True, True, 2), (False, True, 1), (True, False, 1)):
            calls.clear()
            model.views(batch, hiding(5, 6), NONE, pixels, compare=compare)
            assert len(calls) == expected

    def test_everything_can_be_rebuilt(self, model: Pretrainer, batch: dict[str, Tensor]) -> None:
        some, everything = (model.views(batch, hiding(5, 6), NONE, everything=told).counts for told in (False, True))
        assert torch.equal(everything, 8 * some)

    def test_tokens_that_are_hidden_alone_are_compared_but_not_fused(
        self, model: Pretrainer, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = record_fusion(model, monkeypatch)
        views = model.views(batch, hiding(5, 6), NONE, pixels=False)
        assert torch.equal(views.patches, model.views(batch, hiding(0), NONE, pixels=False).patches)
        assert views.observed[0].all()
        assert not asked[0][:, [5, 6]].any()
        assert asked[0][0, 0].all()

    def test_what_is_hidden_is_what_is_rebuilt(self, model: Pretrainer, batch: dict[str, Tensor]) -> None:
        views = model.views(batch, hiding(5, 6), NONE)
        held = torch.stack([batch[m.valid_key].sum() for m in MODALITIES.values()])
        values = torch.tensor([3 * 4 * 4, 2 * 4 * 4, 8 * 8])
        assert torch.equal(views.counts, 2 * held * values)
        other, elsewhere = (model.views(scramble(batch, *place), hiding(5, 6), NONE) for place in ((1, 1), (3, 3)))
        assert (other.errors != views.errors).all()
        assert not torch.equal(elsewhere.errors, views.errors)

    def test_pixel_on_two_patches_goes_with_either(self, model: Pretrainer) -> None:
        image = torch.ones(1, 1, 5, 5)
        hidden = torch.tensor([[True, False, False, False]])
        told = {'image_spot': image, 'valid_spot': torch.ones(1, 1, dtype=torch.bool)}
        gone = model.hide(told, hidden, (2, 2))['image_spot'].isnan()[0, 0]
        assert gone[:3, :3].all()
        assert gone.sum() == 9
        assert image.eq(1).all()


def record_fusion(model: Pretrainer, monkeypatch: pytest.MonkeyPatch, tokens: bool = False) -> list[Tensor]:
    """What the fusion is told to be available, call by call, or what it makes of that."""
    asked: list[Tensor] = []
    fuse = model.backbone.fuse

    def spy(told: Any, available: Tensor, *args: Any) -> Tensor:
        fused = fuse(told, available, *args)
        asked.append(fused if tokens else available)
        return fused

    monkeypatch.setattr(model.backbone, 'fuse', spy)
    return asked


def test_a_tile_is_the_mean_of_the_patches_that_were_seen(model: Pretrainer) -> None:
    tokens = torch.randn(3, 1, 16, 64, generator=torch.Generator().manual_seed(0))
    observed = torch.arange(16).view(1, 16, 1) < torch.tensor([4, 16, 0])
    tokens = tokens * observed.movedim(-1, 0).unsqueeze(-1)
    heads = list(model.tile_heads.values())
    tiles = model._tiles(tokens, observed)
    assert torch.allclose(tiles[0], heads[0](tokens[0, :, :4].mean(1)), atol=1e-6)
    assert torch.allclose(tiles[1], heads[1](tokens[1].mean(1)), atol=1e-6)
    assert tiles[2].isfinite().all()


class TestDropout:
    def test_one_modality_stays(
        self, model: Pretrainer, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = record_fusion(model, monkeypatch)
        views = model.views(batch, hiding(5), (1.0, 1.0, 1.0))
        assert torch.equal(asked[0].any(1).sum(1), torch.ones(len(MIXED), dtype=torch.int64))
        assert torch.equal(views.observed.any(1).sum(1), torch.tensor([len(names) for names in MIXED]))
        assert (views.counts > 0).all()

    def test_by_name(self, model: Pretrainer, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
        asked = record_fusion(model, monkeypatch)
        model.views(batch, hiding(5), (0.0, 0.0, 1.0))
        assert asked[0].any(1).tolist()[:2] == [[True, True, False], [True, False, False]]


class TestDraws:
    def test_follow_from_the_key(self) -> None:
        first, again, other = (
            draw_views(key, [4], 3, GRID, 0.5, CPU, (9, 9), 7) for key in ((0, 0, 7), (0, 0, 7), (0, 0, 8))
        )
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first.hidden, other.hidden)
        assert not torch.equal(first.numbers, other.numbers)
        assert first.hidden.sum(1).tolist() == [8] * 4
        assert len({tuple(row) for row in first.hidden.tolist()}) > 1

    def test_leave_other_draws_alone(self) -> None:
        before = torch.get_rng_state()
        draw_views((1,), [4], 3, GRID, 0.5, CPU, (9, 9), 7)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(('grid', 'ratio', 'count'), [((1, 1), 0.9, 0), ((1, 2), 0.9, 1), ((4, 4), 0.0, 0)])
    def test_leave_a_patch_to_see(self, grid: tuple[int, int], ratio: float, count: int) -> None:
        assert draw_views((0,), [2], 3, grid, ratio, CPU).hidden.sum(1).tolist() == [count] * 2

    def test_do_not_depend_on_how_processes_share_the_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        joint = draw_views((3,), [5], 3, GRID, 0.5, CPU, (9, 9), 7)
        for rank, own in enumerate((slice(0, 2), slice(2, 5))):
            monkeypatch.setattr('torchgeo_omnisat.utils.distributed.rank', lambda rank=rank: rank)
            mine = draw_views((3,), [2, 3], 3, GRID, 0.5, CPU, (9, 9), 7)
            assert all(torch.equal(a, b[own]) for a, b in zip(mine, joint, strict=True))


class TestMicroBatches:
    @pytest.mark.parametrize('hide', ['pixels', 'tokens'])
    def test_eight_equal_the_whole(self, hide: str) -> None:
        batch = make_batch(*MIXED, *MIXED, *MIXED[:3])  # the last micro-batch is a tile short
        results = []
        for size in (None, 2):
            task = make_task(micro_batch_size=size, hide=hide, modality_dropout=0.5)
            loss, _ = task.compute(batch, 'train', 0)
            results.append((loss.detach(), gradients(task, loss)))
        (whole, expected), (parts, found) = results
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=0)
        assert sum(bool(gradient.any()) for gradient in expected.values()) > 0.8 * len(expected)
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name

    @pytest.mark.parametrize('hide', ['pixels', 'tokens'])
    def test_share_a_calendar(self, hide: str) -> None:
        """Later parts have months that the first lacks; the first is computed again in the backward pass."""
        batch = make_batch(*MIXED[:4])
        for name in ('s2', 's1a'):
            batch[f'dates_{name}'] += torch.tensor([[90], [0], [-90], [150]])
        results = []
        for size in (None, 1):
            encoders = {'s2': 'monthly', 's1a': 'monthly'}
            task = make_task(micro_batch_size=size, hide=hide, backbone_args={'encoders': encoders}).train()
            loss, _ = task.compute(batch, 'train', 0)
            calendar = [int(task.model.backbone.encoders['s2'].get_buffer(name)) for name in ('start', 'length')]
            results.append((loss.detach(), gradients(task, loss), calendar))
        (whole, expected, months), (parts, found, same) = results
        assert same == months
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=0)
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name

    def test_encode_as_many_at_once_as_they_are_told(
        self, model: Pretrainer, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[int] = []
        encode = model.backbone.encode

        def spy(part: dict[str, Tensor]) -> Any:
            sizes.append(len(part['valid_s2']))
            return encode(part)

        monkeypatch.setattr(model.backbone, 'encode', spy)
        views: Views = model.views(batch, hiding(5), NONE, micro_batch_size=4)
        assert sizes == [4, 4, 2, 2]  # whole and hidden
        views.patches.sum().backward()
        assert sizes == [4, 4, 2, 2, 2, 2, 4, 4]
