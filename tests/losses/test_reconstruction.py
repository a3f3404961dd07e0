# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from torchgeo_omnisat import Modality
from torchgeo_omnisat.losses import MaskedReconstruction, draw_hidden
from torchgeo_omnisat.losses.reconstruction import PatchDecoder
from torchgeo_omnisat.utils.tensors.dates import annual_code

S2 = Modality('s2', ('B02', 'B03'), 10.0, True)
SPOT = Modality('spot', ('R',), 4.0, False)
DEM = Modality('dem', ('z',), 20.0, False)
GRID = (2, 3)  # of 20 m


def make(seed: int = 0) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Fused tokens, two tiles of 40 by 60 m with holes and invalid dates, and what is hidden."""
    generator = torch.Generator().manual_seed(seed)
    batch = {
        'image_s2': torch.randn(2, 3, 2, 4, 6, generator=generator),
        'dates_s2': torch.tensor([[17800, 17900, 18200], [17810, 0, 18000]]),
        'valid_s2': torch.tensor([[True, True, False], [True, False, True]]),
        'image_spot': torch.randn(2, 1, 10, 15, generator=generator),
        'dates_spot': torch.zeros(2, 1, dtype=torch.int64),
        'valid_spot': torch.tensor([[True], [False]]),
    }
    batch['image_s2'][0, 1, 0, :2, :3] = torch.nan
    batch['image_spot'][0, :, :5, :5] = torch.nan
    hidden = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 1, 0, 1, 0]], dtype=torch.bool)
    return torch.randn(2, 6, 8, generator=generator).requires_grad_(), batch, hidden


def patch_of(image: Tensor, index: int) -> Tensor:
    """What an image (C, H, W) shows of a patch of the grid."""
    (rows, columns), (_, height, width) = GRID, image.shape
    row, column = divmod(index, columns)
    h, w = height // rows, width // columns
    return image[:, row * h : (row + 1) * h, column * w : (column + 1) * w].flatten()


def naive(loss: MaskedReconstruction, fused: Tensor, batch: dict[str, Tensor], hidden: Tensor) -> Tensor:
    """Patch by patch, date by date, value by value."""
    means = []
    for name, modality in loss.modalities.items():
        errors = []
        for b, n in hidden.nonzero().tolist():
            image, dates, valid = (batch[key][b : b + 1] for key in modality.keys)
            images = image[0] if modality.temporal else image
            shown = {t: patch_of(images[t], n) for t in range(len(images)) if valid[0, t]}
            values = torch.cat([torch.zeros(0), *(v[v.isfinite()] for v in shown.values())])
            if not len(values):
                continue
            for t, target in shown.items():
                code = annual_code(dates, valid)[:, t]
                rebuilt = loss.decoders[name](fused[b, n][None], code)[0]
                scaled = (target - values.mean()) / (values.var(correction=0) + 1e-6).sqrt()
                errors += [(rebuilt[i] - scaled[i]) ** 2 for i in range(len(target)) if target[i].isfinite()]
        if errors:
            means.append(torch.stack(errors).mean())
    return torch.stack(means).mean()


@pytest.mark.parametrize('seed', range(3))
def test_loss_matches_naive_loop(seed: int) -> None:
    fused, batch, hidden = make(seed)
    torch.manual_seed(seed)
    loss = MaskedReconstruction([S2, SPOT], 8, 20.0, width=16)
    given, expected = loss(fused, batch, hidden, GRID), naive(loss, fused, batch, hidden)
    torch.testing.assert_close(given, expected)
    inputs = [fused, *loss.parameters()]
    for actual, wanted in zip(torch.autograd.grad(given, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-6)


def test_what_is_not_valid_is_invisible() -> None:
    fused, batch, hidden = make()
    loss = MaskedReconstruction([S2, SPOT], 8, 20.0)
    expected = loss(fused, batch, hidden, GRID)
    for other in (torch.nan, torch.inf, 1e30):
        changed = {key: value.clone() for key, value in batch.items()}
        changed['image_s2'][~batch['valid_s2']] = other
        changed['image_spot'][1] = other
        changed['dates_s2'][~batch['valid_s2']] = 12345
        torch.testing.assert_close(loss(fused, changed, hidden, GRID), expected)


def test_only_hidden_patches_are_learnt_from() -> None:
    fused, batch, hidden = make()
    loss = MaskedReconstruction([S2, SPOT], 8, 20.0)
    value = loss(fused, batch, hidden, GRID)
    (gradient,) = torch.autograd.grad(value, fused)
    assert (gradient.abs().sum(-1) > 0).equal(hidden)
    shown = (~hidden).view(2, 1, 1, *GRID).repeat_interleave(2, 3).repeat_interleave(2, 4)
    changed = batch | {'image_s2': torch.where(shown, 7.0, batch['image_s2'])}
    torch.testing.assert_close(loss(fused, changed, hidden, GRID), value)


def test_brightness_and_contrast_of_a_patch_do_not_matter() -> None:
    fused, batch, hidden = make()
    loss = MaskedReconstruction([S2, SPOT], 8, 20.0)
    changed = batch | {'image_s2': 5 * batch['image_s2'] + 3, 'image_spot': 0.5 * batch['image_spot'] - 9}
    torch.testing.assert_close(
        loss(fused, changed, hidden, GRID), loss(fused, batch, hidden, GRID), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('max_pixels', [None, 2])
@pytest.mark.parametrize(
    ('modality', 'patch_size', 'side', 'pixels'),
    [
        (Modality('spot', ('R',), 1.0, False), 40.0, 160, 40),
        (Modality('s2', ('B02',), 10.24, True), 10.24, 10, 1),
        (Modality('aerial', ('R',), 0.2, False), 10.24, 512, 51),
        (Modality('s2', ('B02',), 10.0, True), 15.0, 24, 1),
        (DEM, 10.0, 8, 1),
    ],
)
def test_ground_stays_aligned(
    modality: Modality, patch_size: float, side: int, pixels: int, max_pixels: int | None
) -> None:
    loss = MaskedReconstruction([modality], 4, patch_size, max_pixels=max_pixels)
    kept = min(pixels, max_pixels or pixels)
    assert loss.pixels == {modality.name: kept}
    rows = max(1, round(side * modality.gsd / patch_size))
    for bright in (0, rows + 1, rows * rows - 1):
        places = torch.arange(rows * rows).view(1, 1, rows, rows)
        image = torch.nn.functional.adaptive_max_pool2d((places == bright).float(), side)
        batch = {
            modality.image_key: image.unsqueeze(1) if modality.temporal else image,
            modality.dates_key: torch.tensor([[17800]]),
            modality.valid_key: torch.tensor([[True]]),
        }
        # Where the patch is the only one measured, it alone is rebuilt.
        batch[modality.image_key] = batch[modality.image_key].masked_fill(batch[modality.image_key] < 0.5, torch.nan)
        fused = torch.randn(1, rows * rows, 4, requires_grad=True)
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.fill_(0.1)
        loss(fused, batch, torch.ones(1, rows * rows, dtype=torch.bool), (rows, rows)).backward()
        assert fused.grad is not None
        learnt = fused.grad[0].abs().sum(-1).nonzero()[:, 0]
        assert bright in learnt
        if patch_size / modality.gsd in (1, 40):
            assert len(learnt) == 1
        # Where a pixel lies on two patches or more, neighbours see it too.
        assert (learnt // rows - bright // rows).abs().max() <= 1
        assert (learnt % rows - bright % rows).abs().max() <= 1


def test_finer_images_are_pooled() -> None:
    loss = MaskedReconstruction([SPOT], 8, 20.0, max_pixels=1)
    fused, batch, hidden = make()
    assert loss.rebuild(fused, batch, hidden, GRID).counts.tolist() == [3]  # one of the four saw nothing


def test_nothing_hidden_or_measured_gives_nothing_to_learn() -> None:
    fused, batch, hidden = make()
    loss = MaskedReconstruction([S2, SPOT, DEM], 8, 20.0)
    never = {k: torch.zeros_like(v) if k.startswith('valid') else v for k, v in batch.items()}
    for content, where in ((batch, hidden & False), (never, hidden), ({}, hidden)):
        loss.zero_grad()
        value = loss(fused, content, where, GRID)
        value.backward()
        assert value == 0
        assert all(p.grad is not None and not p.grad.any() for p in loss.parameters())


def test_absent_modality_keeps_its_decoder_in_the_graph() -> None:
    fused, batch, hidden = make()
    loss = MaskedReconstruction([S2, SPOT, DEM], 8, 20.0)
    found = loss.rebuild(fused, batch, hidden, GRID)
    found.loss.backward()
    assert found.losses.isnan().tolist() == [False, False, True]
    torch.testing.assert_close(found.losses[:2].mean(), found.loss.detach())
    assert all(p.grad is not None for p in loss.parameters())
    assert not any(p.grad.any() for p in loss.decoders['dem'].parameters())


def test_some_dates_a_step_reach_all() -> None:
    fused, batch, hidden = make()
    batch['valid_s2'][:] = True
    loss = MaskedReconstruction([S2], 8, 20.0, max_dates=1)
    whole = loss.eval().rebuild(fused, batch, hidden, GRID)
    assert whole.counts == 7 * 3 * 8 - 6  # hidden patches, dates, values; a hole in one hidden patch
    loss.train()
    torch.manual_seed(0)
    steps = [loss.rebuild(fused, batch, hidden, GRID) for _ in range(400)]
    assert {int(step.counts) for step in steps} <= {7 * 8, 7 * 8 - 4, 7 * 8 - 2, 7 * 8 - 6}
    mean = torch.stack([step.loss * step.counts[0] for step in steps]).sum() / sum(step.counts[0] for step in steps)
    torch.testing.assert_close(mean, whole.loss, rtol=0.03, atol=0)


def test_decoder_tells_dates_apart() -> None:
    dates = torch.tensor([[17800, 17800 + 91, 17800 + 365, 17800 + 1461]])
    codes = annual_code(dates, torch.ones_like(dates, dtype=torch.bool))[0]
    assert (torch.cdist(codes, codes) + torch.eye(4)).min() > 0.1
    decoder = PatchDecoder(4, 8, 2, 3, temporal=True)
    rebuilt = decoder(torch.ones(4, 4), codes)
    assert rebuilt.shape == (4, 18)
    assert not rebuilt[0].allclose(rebuilt[1])


def test_learns_to_rebuild() -> None:
    fused, batch, hidden = make()
    torch.manual_seed(0)
    loss = MaskedReconstruction([S2, SPOT], 8, 20.0)
    optimizer = torch.optim.Adam([fused, *loss.parameters()], lr=0.01)
    first = loss(fused, batch, hidden, GRID).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss(fused, batch, hidden, GRID).backward()
        optimizer.step()
    assert loss(fused, batch, hidden, GRID) < 0.05 * first


def test_draw_hidden() -> None:
    drawn = draw_hidden(50, (4, 8), 0.75, torch.Generator().manual_seed(0))
    assert drawn.shape == (50, 32)
    assert (drawn.sum(1) == 24).all()
    assert (drawn.float().mean(0) - 0.75).abs().max() < 0.3
    assert len(drawn.unique(dim=0)) == 50
    assert drawn.equal(draw_hidden(50, (4, 8), 0.75, torch.Generator().manual_seed(0)))
    assert not draw_hidden(2, (2, 2), 0.0).any()
    assert draw_hidden(2, (2, 2), 1.0).all()
    with pytest.raises(ValueError, match=r'ratio.*1\.5.*0.*1'):
        draw_hidden(2, (2, 2), 1.5)


def test_bad_input_is_refused() -> None:
    fused, batch, hidden = make()
    loss = MaskedReconstruction([S2], 8, 20.0)
    with pytest.raises(ValueError, match=r'grid is \(3, 3\).*\(2, 6\)'):
        loss(fused, batch, hidden, (3, 3))
    with pytest.raises(ValueError, match=r'patch_size is 0\.0'):
        MaskedReconstruction([S2], 8, 0.0)


@pytest.mark.parametrize('told', [{'embed_dim': 8.5}, {'width': 0}, {'max_pixels': 2.5}, {'max_dates': True}])
def test_sizes_are_integers(told: dict[str, Any]) -> None:
    build: Any = inspect.unwrap(MaskedReconstruction.__init__)  # the tests check types earlier
    loss = MaskedReconstruction.__new__(MaskedReconstruction)
    ((name, value),) = told.items()
    with pytest.raises(ValueError, match=f'{name} is {value}, expected an integer'):
        build(loss, **{'modalities': [S2], 'embed_dim': 8, 'patch_size': 20.0} | told)


def test_absolute_error_is_linear_in_outliers() -> None:
    batch = {
        'image_dem': torch.tensor([0.1, 4.0]).view(1, 1, 1, 2),
        'dates_dem': torch.zeros(1, 1, dtype=torch.int64),
        'valid_dem': torch.ones(1, 1, dtype=torch.bool),
    }
    arguments = torch.zeros(1, 2, 4), batch, torch.ones(1, 2, dtype=torch.bool), (1, 2)
    for error, expected in (('squared', 0.1**2 + 4**2), ('absolute', 0.1**2 / 0.5 + 4 - 0.125)):
        loss = MaskedReconstruction([DEM], 4, 20.0, standardised=False, error=error)
        for parameter in loss.parameters():
            torch.nn.init.zeros_(parameter)
        assert loss.errors(*arguments)[0].item() == pytest.approx(expected)
