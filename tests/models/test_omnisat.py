"""Shapes, encoders, builders and refusals."""

import pytest
import timm
import torch
from torch import nn

from torchgeo_omnisat import Modality, OmniSat
from torchgeo_omnisat.models import (
    ImageEncoder,
    LTAEEncoder,
    OmniSatSegmenter,
    UTAEEncoder,
    late_fusion,
    omnisat_base,
    omnisat_small,
    omnisat_tiny,
)
from torchgeo_omnisat.models.encoders.image import FrozenBatchNorm2d, FrozenBatchNormAct2d, with_frozen_norm

from .conftest import MODALITIES, S2, SPOT, random_batch


@pytest.mark.parametrize('builder', [omnisat_tiny, omnisat_small, omnisat_base])
def test_builders(builder, batch):
    model = builder(MODALITIES, patch_size=40.0)
    out = model(batch)
    assert isinstance(model, OmniSat)
    assert out.fused.shape == (3, 16, model.embed_dim)
    assert {name: token.shape for name, token in out.tokens.items()} == dict.fromkeys(
        MODALITIES, (3, 16, model.embed_dim)
    )
    assert out.available.shape == (3, 3)
    assert out.grid == (4, 4)
    assert set(out.maps) == set(MODALITIES)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def test_modalities_as_plain_dictionaries(batch):
    torch.manual_seed(0)
    from_dicts = omnisat_tiny([m.as_dict() for m in MODALITIES.values()])
    torch.manual_seed(0)
    assert torch.equal(from_dicts(batch).fused, omnisat_tiny(MODALITIES)(batch).fused)


def test_fuse_takes_availability_of_samples(batch):
    model = omnisat_tiny(MODALITIES)
    out = model(batch)
    torch.testing.assert_close(model.fuse(out.tokens, out.available), out.fused)


@pytest.mark.parametrize('backbone', ['resnet10t', 'convnext_atto', 'test_vit', 'test_efficientnet'])
def test_timm_backbones(backbone):
    image = torch.randn(2, 3, 52, 40)
    encoder = ImageEncoder(3, backbone).train()
    maps = encoder(image, torch.tensor([True, True]))
    assert [x.shape[1] for x in maps] == list(encoder.channels)
    torch.testing.assert_close(encoder(image[1:], torch.tensor([True]))[-1], maps[-1][1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('backbone', ['resnet10t', 'test_efficientnet'])
def test_frozen_norm_is_the_norm_in_evaluation_mode(backbone):
    """Both classes of BatchNorm: torchvision's, and timm's with an activation."""
    body = timm.create_model(backbone, num_classes=0)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
    image = torch.randn(2, 3, 32, 32)
    wanted = body.eval()(image)
    torch.testing.assert_close(with_frozen_norm(body).train()(image), wanted)
    frozen = [module for module in body.modules() if isinstance(module, FrozenBatchNorm2d | FrozenBatchNormAct2d)]
    assert frozen
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    assert not any(list(module.parameters()) for module in frozen)


def test_pretrained_batch_norm_is_frozen(monkeypatch):
    """With pre-trained weights the statistics stay, and training does not move them."""
    create = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda *args, **kwargs: create(*args, **kwargs | {'pretrained': False}))
    encoder = ImageEncoder(3, 'resnet10t', pretrained=True).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder(torch.randn(2, 3, 32, 32), torch.tensor([True, True]))[-1].sum().backward()
    assert any('running_mean' in key for key in before)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


class Pooled(nn.Module):
    """A user's own encoder for images: the mean colour of four by four pixels."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.channels, self.strides = (in_channels,), (4,)

    def forward(self, image, valid):
        return [nn.functional.avg_pool2d(image.nan_to_num(), 4)]


@pytest.mark.parametrize('own', [Pooled, Pooled(3)])
def test_own_encoder(own, batch):
    model = omnisat_tiny(MODALITIES, encoders={'spot': own, 's2': 'ltae', 's1a': UTAEEncoder(2, (16, 32))})
    assert isinstance(model.encoders['s2'], LTAEEncoder)
    assert OmniSatSegmenter(model, 5)(batch).shape == (3, 5, 16, 16)


@pytest.mark.parametrize(
    ('encoders', 'message'),
    [
        ({'aerial': 'resnet18'}, r"\['aerial'\].*expected some of \['s2', 's1a', 'spot'\]"),
        ({'s2': 'resnet1888'}, "resnet1888.* 's2'|'s2'.*resnet1888"),
        ({'spot': 'resnet1888'}, "no backbone 'resnet1888', expected a name from timm"),
    ],
)
def test_unknown_encoder(encoders, message):
    with pytest.raises(ValueError, match=message):
        omnisat_tiny(MODALITIES, encoders=encoders)


def test_heads_must_fit():
    with pytest.raises(ValueError, match='embed_dim is 100'):
        OmniSat(MODALITIES, embed_dim=100)


@pytest.mark.parametrize('pixels', [12, 16, 22])
def test_label_has_its_own_pixels(pixels):
    """Logits come at the label's gsd, whatever the pixels of the modalities."""
    backbone = omnisat_tiny(MODALITIES)
    batch = random_batch(size=1, pixels=pixels)
    for gsd in (2.5, 10.0, 20.0, 80.0):
        side = round(pixels * 10 / gsd)
        assert OmniSatSegmenter(backbone, 3, label_gsd=gsd)(batch).shape == (1, 3, side, side)


def test_oblong_tile(batch):
    batch = {key: value[..., :8, :] if key == 'image_s2' else value for key, value in random_batch(1).items()}
    batch |= {'image_s1a': batch['image_s1a'][..., :8, :], 'image_spot': batch['image_spot'][..., :32, :]}
    out = (model := OmniSatSegmenter(omnisat_tiny(MODALITIES), 4)).backbone(batch)
    assert out.grid == (2, 4)
    assert model.decode(out).shape == (1, 4, 8, 16)


def test_patches_that_are_not_whole_pixels():
    """FLAIR: a patch of 10.24 m is 51.2 aerial pixels; the tile is ten patches all the same."""
    flair = {
        'aerial': Modality('aerial', ('R', 'G', 'B'), 0.2, False),
        's2': Modality('s2', ('B02', 'B03'), 10.24, True),
    }
    batch = {
        'image_aerial': torch.randn(1, 3, 512, 512),
        'dates_aerial': torch.zeros(1, 1, dtype=torch.int64),
        'valid_aerial': torch.ones(1, 1, dtype=torch.bool),
        'image_s2': torch.randn(1, 3, 2, 10, 10),
        'dates_s2': torch.tensor([[17_800, 17_900, 18_000]]),
        'valid_s2': torch.ones(1, 3, dtype=torch.bool),
    }
    model = OmniSatSegmenter(omnisat_tiny(flair, patch_size=10.24), 13, label_gsd=0.2)
    out = model.backbone(batch)
    assert out.grid == (10, 10)
    assert model.decode(out).shape == (1, 13, 512, 512)


def test_tiny_series_survive_every_level():
    """TreeSatAI's Sentinel tiles are six pixels wide."""
    assert [
        x.shape[-1]
        for x in UTAEEncoder(2, (16, 16, 16, 16))(
            torch.randn(1, 2, 2, 6, 6), torch.tensor([[17_800, 17_900]]), torch.ones(1, 2, dtype=torch.bool)
        )
    ] == [6, 3, 1, 1]


def spoil(batch, **changes):
    return {key: value for key, value in (batch | changes).items() if value is not None}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'image_aerial': torch.zeros(3, 3, 8, 8)}, r"\['image_aerial'\]"),
        (
            {'image_s2': torch.zeros(3, 5, 10, 16, 16)},
            r'image_s2 has shape \(3, 5, 10, 16, 16\).*expected \(B, T, 4, H, W\)',
        ),
        ({'image_s2': torch.zeros(3, 4, 16, 16)}, r'expected \(B, T, 4, H, W\)'),
        ({'dates_s2': None}, r"lacks \['dates_s2'\]"),
        ({'image_spot': torch.zeros(3, 3, 32, 32)}, r'\(80.0, 80.0\)'),
        ({'image_s2': None, 'image_s1a': None, 'image_spot': None}, r"\['dates_s1a'.*\['image_s1a'"),
        ({'valid_s2': torch.ones(3, 2, dtype=torch.bool)}, r"\{'valid_s2': \(3, 2\)\}, expected \(3, 5\)"),
        ({'valid_spot': torch.ones(2, 1, dtype=torch.bool)}, r"\{'valid_spot': \(2, 1\)\}, expected \(3, 1\)"),
        ({'dates_s2': torch.zeros(3, 1, dtype=torch.int64)}, r"\{'dates_s2': \(3, 1\)\}, expected \(3, 5\)"),
        ({'image_spot': torch.zeros(2, 3, 80, 80)}, r'image_spot has shape \(2, 3, 80, 80\), expected 3 samples'),
    ],
)
def test_refuses_what_it_was_not_built_for(batch, changes, message):
    with pytest.raises(ValueError, match=message):
        omnisat_tiny(MODALITIES)(spoil(batch, **changes))


def test_restricting_to_nothing_is_refused(batch):
    model = omnisat_tiny(MODALITIES)
    out = model(batch)
    with pytest.raises(ValueError, match=r"\['aerial'\].*\['s1a', 's2', 'spot'\]"):
        model.restrict(out, ['aerial'])


def test_subset_of_modalities():
    model = OmniSatSegmenter(omnisat_tiny({'spot': SPOT}), 3)
    batch = random_batch(2, modalities={'spot': SPOT} | {}, lengths=(1,))
    assert model(batch).shape == (2, 3, 16, 16)
    model = OmniSatSegmenter(omnisat_tiny({'s2': S2}), 3)
    assert model(random_batch(2, modalities={'s2': S2})).shape == (2, 3, 16, 16)


def test_a_series_without_convolutions_keeps_how_bright_a_pixel_is() -> None:
    torch.manual_seed(0)
    encoder = LTAEEncoder(16, (16,), num_heads=4).eval()
    last = torch.nn.Linear(16, 16)
    torch.nn.init.eye_(last.weight)
    torch.nn.init.zeros_(last.bias)
    encoder.pixel = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity(), last)
    image, dates, valid = torch.randn(1, 5, 16, 2, 2), torch.arange(5)[None] * 30, torch.ones(1, 5, dtype=torch.bool)
    (dark,), (bright,) = encoder(image, dates, valid), encoder(3 * image, dates, valid)
    assert (dark - bright).abs().max() > 0.1, 'a norm over the dates would make them alike'


class Volume(nn.Module):
    """A user's encoder of a series by a convolution over time and space."""

    channels, strides = (8,), (1,)

    def __init__(self, bands):
        super().__init__()
        self.conv = nn.Conv3d(bands, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 1)
        self.given = None

    def forward(self, image, dates, valid):
        self.given = image
        shown = valid[:, :, None, None, None] & image.isfinite()
        return [self.last(self.conv(image.where(shown, 0).movedim(1, 2)).mean(2))]


@pytest.mark.parametrize('builder', [omnisat_tiny, late_fusion])
def test_encoder_with_convolutions_over_time(builder, batch):
    model = builder([S2, SPOT], encoders={'s2': Volume})
    out = model({key: value for key, value in batch.items() if not key.endswith('s1a')})
    assert out.fused.isfinite().all()
    out.fused.square().mean().backward()
    (encoder,) = (part for part in model.modules() if isinstance(part, Volume))
    assert encoder.conv.weight.grad.abs().sum() > 0
    assert encoder.last.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('value', [float('inf'), float('-inf'), float('nan')])
def test_encoders_of_users_are_given_nan(batch, value):
    """Whatever says that nothing was measured."""
    model = omnisat_tiny([S2], encoders={'s2': Volume})
    batch[S2.image_key][0, 1, 2, 3, 4] = value
    model({key: value for key, value in batch.items() if key in S2.keys})
    assert model.encoders['s2'].given.isnan().nonzero().tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(('metres', 'patches'), [(20, 1), (60, 2), (100, 3), (140, 4), (180, 5), (170, 4), (30, 1)])
def test_half_a_patch_counts_as_one(metres, patches):
    """A grid of 40 m patches grows by one with every 40 m, which Python's rounding to even numbers would not do."""
    out = omnisat_tiny([S2], patch_size=40.0)(random_batch(pixels=metres // 10, modalities={'s2': S2}))
    assert out.grid == (patches, patches)


@pytest.mark.parametrize('metres', [50, 150])
def test_half_a_label_counts_as_one(metres):
    model = OmniSatSegmenter(omnisat_tiny([S2], patch_size=40.0), 3, label_gsd=20.0)
    logits = model(random_batch(pixels=metres // 10, modalities={'s2': S2}))
    assert logits.shape[-1] == {50: 3, 150: 8}[metres]


@pytest.mark.parametrize('gsd', [0.0, -10.0, float('nan'), float('inf')])
def test_gsd_of_the_labels_is_a_length(gsd):
    with pytest.raises(ValueError, match=f'label_gsd is {gsd}, expected'):
        OmniSatSegmenter(omnisat_tiny([S2]), 3, label_gsd=gsd)


def test_segmentation_needs_a_class():
    with pytest.raises(ValueError, match='num_classes is 0, expected an integer from 1'):
        OmniSatSegmenter(omnisat_tiny([S2]), 0)


@pytest.mark.parametrize('name', ['widths', 'image_widths'])
def test_encoders_need_a_level(name):
    with pytest.raises(ValueError, match=rf'{name} is \(\), expected at least one level'):
        omnisat_tiny([S2], **{name: ()})


def test_fuse_asks_for_the_grid_of_an_oblong_tile():
    model = omnisat_tiny([S2])
    tokens, available = {'s2': torch.randn(1, 8, model.embed_dim)}, torch.ones(1, 1, dtype=torch.bool)
    assert model.fuse(tokens, available, (2, 4)).shape == (1, 8, model.embed_dim)
    with pytest.raises(ValueError, match='8 tokens'):
        model.fuse(tokens, available)
    with pytest.raises(ValueError, match=r'\(3, 3\).*8 tokens'):
        model.fuse(tokens, available, (3, 3))


def segmenter(dropout):
    torch.manual_seed(0)
    return OmniSatSegmenter(omnisat_tiny(MODALITIES), 5, experts=True, dropout=dropout)


def test_dropout_of_a_decoder_changes_training_alone(batch):
    plain, model = segmenter(0.0), segmenter(0.5)
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(plain.eval()(batch), model.eval()(batch))
    assert torch.equal(plain.train()(batch), plain(batch))
    assert not torch.equal(model.train()(batch), model(batch))


def test_dropout_drops_channels_of_decoder_and_experts(batch):
    model, dropped = segmenter(0.5).train(), {}

    def keep(module, inputs, output):
        dropped[names[module]] = inputs[0], output

    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Dropout2d)}
    for module in names:
        module.register_forward_hook(keep)
    model(batch)
    assert dropped.keys() == {'decoder.dropout', *(f'experts.{name}.dropout' for name in MODALITIES)}
    for before, after in dropped.values():
        is_dropped = after.flatten(2).eq(0).all(-1)
        assert 0.3 < is_dropped.float().mean() < 0.7
        torch.testing.assert_close(after[~is_dropped], 2 * before[~is_dropped])


@pytest.mark.parametrize('dropout', [-0.1, 1.0, float('nan')])
def test_dropout_is_a_probability(dropout):
    with pytest.raises(ValueError, match=f'dropout is {dropout}, expected a probability below 1'):
        segmenter(dropout)
