"""What must not matter: padding, absent content, the order of dates, the rest of the batch."""

import pytest
import torch

from torchgeo_omnisat.models.encoders.bands import BandConv2d, BandLinear

from .conftest import MODALITIES, S1A, S2, SPOT, assert_same, random_batch


def pad(batch, modality, extra, fill):
    """Append dates that are not valid, with any content."""
    image, dates, valid = (batch[key] for key in modality.keys)
    shape = (len(image), extra, *image.shape[2:])
    return batch | {
        modality.image_key: torch.cat([image, torch.full(shape, fill)], 1),
        modality.dates_key: torch.cat([dates, torch.full(shape[:2], 19_000)], 1),
        modality.valid_key: torch.cat([valid, torch.zeros(shape[:2], dtype=torch.bool)], 1),
    }


def without(batch, modality, samples, fill=0.0):
    """Say that some samples lack a modality, and leave any content behind."""
    image, _, valid = (batch[key].clone() for key in modality.keys)
    image[samples], valid[samples] = fill, False
    return batch | {modality.image_key: image, modality.valid_key: valid}


@pytest.mark.parametrize('fill', [0.0, 1e4, float('nan')])
@pytest.mark.parametrize('modality', [S2, S1A])
def test_padding_is_invisible(model, batch, modality, fill):
    batch = without(batch, modality, [1])
    assert_same(model(pad(batch, modality, 3, fill)), model(batch))


@pytest.mark.parametrize('fill', [1e4, float('nan')])
@pytest.mark.parametrize('modality', [S2, S1A, SPOT])
def test_absent_modality_is_invisible(model, batch, modality, fill):
    absent = without(batch, modality, [0, 2])
    assert_same(model(without(batch, modality, [0, 2], fill)), model(absent), 0)
    assert (model(batch) - model(absent))[[0, 2]].abs().amax() > 1e-3, (
        'the modality changes nothing even when it is there'
    )


@pytest.mark.parametrize('modality', [S2, S1A, SPOT])
def test_absent_keys_equal_absent_everywhere(model, batch, modality):
    gone = {key: value for key, value in batch.items() if key not in modality.keys}
    assert_same(model(gone), model(without(batch, modality, [0, 1, 2], 7.0)))


@pytest.mark.parametrize('modality', [S2, S1A])
def test_order_of_dates_is_invisible(model, batch, modality):
    order = torch.randperm(batch[modality.dates_key].shape[1], generator=torch.Generator().manual_seed(1))
    assert_same(model(batch | {key: batch[key][:, order] for key in modality.keys}), model(batch), 2e-5)


@pytest.mark.parametrize('modality', [S2, S1A])
def test_dates_matter(model, batch, modality):
    moved = batch | {
        modality.dates_key: batch[modality.dates_key] + torch.arange(batch[modality.dates_key].shape[1]) * 30
    }
    assert (model(moved) - model(batch)).abs().amax() > 1e-4


def test_other_samples_are_invisible(model, batch):
    batch = pad(without(without(batch, S2, [1]), SPOT, [2]), S1A, 2, 3.0)
    together = model(batch)
    for index in range(3):
        alone = {key: value[index : index + 1] for key, value in batch.items()}
        assert_same(model(alone)[0], together[index])


def test_nan_image_equals_absent_image(model, batch):
    image = batch[SPOT.image_key].clone()
    image[1] = float('nan')
    assert_same(model(batch | {SPOT.image_key: image}), model(without(batch, SPOT, [1])))


@pytest.mark.parametrize('modality', [S2, S1A])
def test_nan_date_equals_invalid_date(model, batch, modality):
    image, valid = batch[modality.image_key].clone(), batch[modality.valid_key].clone()
    image[1, 2], valid[1, 2] = float('nan'), False
    assert_same(model(batch | {modality.image_key: image}), model(batch | {modality.valid_key: valid}))


def test_unmeasured_patch_takes_no_part(model, batch):
    """A corner that no pixel of SPOT covers has a token of zero, the rest has not."""
    image = batch[SPOT.image_key].clone()
    image[..., :16, :16] = float('nan')
    out = model.backbone(batch | {SPOT.image_key: image})
    blank = (out.tokens['spot'].abs().sum(-1) == 0).unflatten(1, out.grid)
    side = round(16 * SPOT.gsd / model.backbone.patch_size)
    assert blank[:, :side, :side].all()
    assert blank.sum() == 3 * side**2
    assert model.decode(out).isfinite().all()


def test_nothing_available_is_finite(model, batch):
    for modality in MODALITIES.values():
        batch = without(batch, modality, [0, 1, 2], float('nan'))
    logits = model(batch)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_one_date_one_sample(model):
    batch = random_batch(size=1, lengths=(1, 1))
    assert model(batch).shape == (1, 5, 16, 16)


def test_gradients_reach_what_is_there_alone(model, batch):
    batch = without(batch, S1A, [0, 1, 2])
    model(batch).square().mean().backward()
    reached = {
        n: sum(float(p.grad.abs().sum()) for p in e.parameters() if p.grad is not None)
        for n, e in model.backbone.encoders.items()
    }
    assert reached['s2'] > 0
    assert reached['spot'] > 0
    assert reached['s1a'] == 0


def test_no_input_is_discarded(model, batch):
    """Gradient reaches every valid date and every measured pixel, and nothing else."""
    batch = pad(batch, S2, 1, 2.0)
    batch[SPOT.image_key][0, :, 3, 5] = float('nan')
    for modality in MODALITIES.values():
        batch[modality.image_key].requires_grad_()
    model(batch).square().mean().backward()
    for modality in MODALITIES.values():
        image, valid = batch[modality.image_key], batch[modality.valid_key]
        valid = valid[..., None, None, None] if modality.temporal else valid[..., None, None]
        used = (image.grad != 0).any(-3, keepdim=True)
        expected = (valid & ~image.isnan()).any(-3, keepdim=True)
        assert torch.equal(used, expected), modality.name


def test_restricting_equals_encoding_less(model, batch):
    batch = without(batch, S2, [1])
    out = model.backbone(batch)
    for names in (('s2',), ('s1a', 'spot'), ('spot',), ('s2', 's1a', 'spot')):
        alone = {k: v for k, v in batch.items() if any(k in MODALITIES[n].keys for n in names)}
        assert_same(model.decode(model.backbone.restrict(out, names)), model(alone))


@pytest.mark.parametrize('modality', [S2, S1A, SPOT])
def test_what_an_absent_modality_learnt_is_invisible(model, batch, modality):
    """Not even a constant remains of it: its parameters can be anything."""
    batch = without(batch, modality, [0, 1, 2])
    before = model(batch)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if modality.name in name.split('.'):
                parameter.normal_()
    assert_same(model(batch), before, 0)


def stem(model, modality):
    """The layer of a modality's encoder that takes the bands."""
    return next(m for m in model.backbone.encoders[modality.name].modules() if isinstance(m, (BandConv2d, BandLinear)))


def tell(model):
    """Give the terms of missing bands values, as training does."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith('.missing'):
                parameter.normal_()


@pytest.mark.parametrize('where', [..., (..., slice(2, 6), slice(2, 6))])
@pytest.mark.parametrize('modality', [S2, S1A, SPOT])
def test_missing_band_is_invisible(model, batch, modality, where):
    """In the sample that lacks a band, the weights of the band can be anything."""
    tell(model)
    batch[modality.image_key][1, ..., 0, :, :][where] = float('nan')
    before, features = model(batch), model.backbone.encode(batch)[modality.name].maps
    with torch.no_grad():
        stem(model, modality).weight[:, 0] += 1
    after = model(batch)
    assert (after - before)[0].abs().amax() > 1e-3
    if where is ...:
        assert_same(after[1], before[1])
        assert_same(model.backbone.encode(batch)[modality.name].maps[-1][1], features[-1][1])


@pytest.mark.parametrize('modality', [S2, S1A, SPOT])
def test_missing_band_is_not_its_mean(model, batch, modality):
    """Images are normalised, so 0 is a value as good as any; which bands were measured is told apart from it."""
    image = batch[modality.image_key]
    image[1, ..., 0, :, :] = float('nan')
    measured = batch | {modality.image_key: image.nan_to_num(0.0)}
    assert torch.equal(model(batch), model(measured)), 'an untrained model has nothing to say of it'
    model(batch).square().mean().backward()
    assert stem(model, modality).missing.grad[:, 0].abs().amax() > 0
    assert stem(model, modality).missing.grad[:, 1:].abs().amax() == 0
    tell(model)
    difference = (model(batch) - model(measured)).abs().amax((1, 2, 3))
    assert difference[1] > 1e-4
    assert difference[[0, 2]].amax() == 0


@pytest.mark.parametrize('modality', [S2, S1A])
def test_missing_band_concerns_its_date_alone(model, batch, modality):
    tell(model)
    encoder, packed = model.backbone.encoders[modality.name], []
    first = next(part for name, part in encoder.named_modules() if name.split('.')[-1] in ('in_conv', 'pixel'))
    with first[0].register_forward_hook(lambda part, inputs, output: packed.append(output.unflatten(0, (3, -1)))):
        model(batch)
        batch[modality.image_key][1, 2, 0] = float('nan')
        model(batch)
    changed = (packed[0] != packed[1]).flatten(2).any(-1)
    assert changed.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize('modality', [S2, S1A, SPOT])
def test_pixel_without_any_band_adds_nothing(model, batch, modality):
    """Only where other bands were measured is there something to say of those that are missing."""
    batch[modality.image_key][..., 2:6, 2:6] = float('nan')
    before = model(batch)
    tell(model)
    assert_same(model(batch), before, 0)


@pytest.mark.parametrize('value', [float('inf'), float('-inf')])
@pytest.mark.parametrize('modality', [S2, S1A, SPOT])
def test_infinity_was_not_measured(model, batch, modality, value):
    """Of one band, of a pixel, and of a whole image."""
    tell(model)
    image = batch[modality.image_key]
    image[0, ..., 0, 3, 5] = image[1, ..., 4:7, 4:7] = image[2] = value
    infinite = model(batch)
    batch[modality.image_key] = torch.where(image.isinf(), torch.nan, image)
    assert infinite.isfinite().all()
    assert torch.equal(infinite, model(batch))


def test_bands_missing_where_all_is_computed(model, batch, monkeypatch):
    """A compiled graph does not ask whether a band is missing; it says the same."""
    tell(model)
    batch[S2.image_key][1, :, 0] = float('nan')
    expected = model(batch)
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    assert_same(model(batch), expected)


def test_weights_from_before_there_were_missing_bands(model, batch):
    state = {name: value for name, value in model.state_dict().items() if not name.endswith('.missing')}
    assert len(state) <= len(model.state_dict()) - len(MODALITIES)
    expected = model(batch)
    tell(model)
    model.load_state_dict(state)
    assert_same(model(batch), expected, 0)
    batch[S2.image_key][1, :, 0] = float('nan')
    measured = batch | {S2.image_key: batch[S2.image_key].nan_to_num(0.0)}
    assert_same(model(batch), model(measured), 0)


@pytest.mark.parametrize('modality', [S2, S1A])
def test_what_is_not_valid_is_masked_where_all_is_computed(model, batch, modality, monkeypatch):
    """A compiled graph computes padding too; it still changes nothing."""
    padded = pad(without(batch, modality, [1]), modality, 2, 5.0)
    expected = model(padded)
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    assert_same(model(padded), expected)
