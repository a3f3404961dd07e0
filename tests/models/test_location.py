# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The location of a tile as a modality: its encoders, and what it must not change."""

import pytest
import torch
from torchgeo.models import SatCLIP, SatCLIP_Weights

from torchgeo_omnisat import Modality
from torchgeo_omnisat.models import OmniSatSegmenter, attention, late_fusion, omnisat_tiny
from torchgeo_omnisat.models.encoders.location import SatCLIPLocation, ScaledLocation, build_location

from .conftest import MODALITIES, assert_same, random_batch

SMALL = {'legendre_polys': 6, 'capacity': 16, 'embed_dim': 8}
PLACES = torch.tensor([[2.35, 48.85], [-122.3, 47.6], [torch.nan, torch.nan]], dtype=torch.float64)
#: A place in Paris, and those 0.7 km to the east and 1.1 km to the north.
NEARBY = torch.tensor([[2.35, 48.85], [2.36, 48.85], [2.35, 48.86]], dtype=torch.float64)


@pytest.fixture
def satclip_file(tmp_path):
    """Random weights in the layout of the published checkpoints."""
    torch.manual_seed(3)
    state = {f'model.location.{key}': value for key, value in SatCLIP(**SMALL).state_dict().items()}
    path = tmp_path / 'satclip.ckpt'
    torch.save({'state_dict': state | {'model.visual.weight': torch.zeros(2)}, 'epoch': 1}, path)
    return path


def build(encoder='scaled', seed=0):
    torch.manual_seed(seed)
    return omnisat_tiny(MODALITIES, encoders={'location': encoder, 's2': 'ltae', 's1a': 'ltae'})


def plain_like(model):
    """A model without location that has all other weights of *model*."""
    plain = omnisat_tiny(MODALITIES, encoders={'s2': 'ltae', 's1a': 'ltae'})
    found = plain.load_state_dict(model.state_dict(), strict=False)
    assert not found.missing_keys
    assert all('location' in key for key in found.unexpected_keys)
    return plain


class TestModality:
    def test_it_is_one_way_to_ask_for_it(self):
        assert Modality(**Modality.location().as_dict()) == Modality.location()
        torch.manual_seed(0)
        listed = omnisat_tiny([*MODALITIES.values(), Modality.location()], encoders={'s2': 'ltae', 's1a': 'ltae'})
        assert listed.state_dict().keys() == build().state_dict().keys()
        assert list(listed.modalities) == list(MODALITIES)

    @pytest.mark.parametrize('facts', [{'name': 'location'}, {'name': 'place', 'kind': 'location'}])
    def test_an_image_cannot_be_a_location(self, facts):
        with pytest.raises(ValueError, match='location'):
            Modality(**({'bands': ('B1',), 'gsd': 10, 'temporal': False} | facts))

    def test_needs_images_and_attention(self):
        with pytest.raises(ValueError, match='images'):
            omnisat_tiny([Modality.location()])
        with pytest.raises(ValueError, match='late fusion'):
            late_fusion([*MODALITIES.values(), Modality.location()])


class TestFusion:
    @pytest.mark.parametrize('encoder', ['scaled', {'name': 'satclip', 'pretrained': False, **SMALL}])
    @pytest.mark.filterwarnings('ignore:encoder of')
    def test_withheld_location_changes_nothing(self, encoder):
        model, batch = build(encoder), random_batch()
        located = batch | {'coordinates': PLACES}
        never = model(batch)
        assert_same(plain_like(model)(batch).fused, never.fused)
        unknown = torch.full_like(PLACES, torch.nan)
        for withheld in (
            batch | {'coordinates': unknown},
            located | {'valid_location': torch.zeros(3, 1, dtype=torch.bool)},
        ):
            assert_same(model(withheld).fused, never.fused)
        out = model(located)
        assert_same(model.withhold_location(out).fused, never.fused)
        assert (out.fused - never.fused)[:2].abs().amax() > 1e-3
        assert_same(out.fused[2], never.fused[2])  # the place of the third tile is unknown

    @pytest.mark.parametrize('place', [[48.0, 112.0], [torch.inf, 0.0], [2.0, -90.1]])
    def test_no_place_on_earth_is_unknown(self, place):
        model, batch = build(), random_batch()
        places = PLACES.clone()
        places[0] = torch.tensor(place)
        out, never = model(batch | {'coordinates': places}), model(batch)
        assert_same(out.fused[0], never.fused[0])
        assert (out.fused - never.fused)[1].abs().max() > 1e-3

    def test_single_precision_and_longitudes_beyond_180(self):
        model, batch = build(), random_batch()
        whole = model(batch | {'coordinates': PLACES}).fused
        assert_same(model(batch | {'coordinates': PLACES + torch.tensor([360.0, 0.0])}).fused, whole, 1e-4)
        assert_same(model(batch | {'coordinates': PLACES.float()}).fused, whole, 1e-2)

    def test_gradients_are_finite_and_reach_the_encoder_of_known_places_only(self):
        model = build()
        model(random_batch() | {'coordinates': PLACES}).fused.square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        assert model.location.encoder.mlp.fc1.weight.grad.abs().max() > 0
        model.zero_grad()
        model(random_batch() | {'coordinates': torch.full_like(PLACES, torch.nan)}).fused.square().sum().backward()
        assert model.location.encoder.mlp.fc1.weight.grad.abs().max() == 0

    def test_batch_neighbours_do_not_matter(self):
        model, batch = build(), random_batch() | {'coordinates': PLACES}
        alone = {key: value[1:2] for key, value in batch.items()}
        assert_same(model(alone).fused[0], model(batch).fused[1])

    def test_it_stays_for_every_subset_and_is_no_image(self):
        model, batch = build(), random_batch() | {'coordinates': PLACES}
        out = model(batch)
        s2 = {key: value for key, value in batch.items() if key in (*MODALITIES['s2'].keys, 'coordinates')}
        assert_same(model.restrict(out, ['s2']).fused, model(s2).fused)
        kept = torch.tensor([[True, False, False]] * 3)
        assert_same(model.hide(out, kept).fused, model(s2).fused)
        assert out.available.shape == (3, 3)

    def test_attention_lists_it_last(self):
        weights = attention(build().eval(), random_batch() | {'coordinates': PLACES}).modalities
        assert weights.shape[-1] == 4
        assert (weights[:2, :, 3] > 0).all()
        assert (weights[2, :, 3] == 0).all()

    def test_a_segmenter_with_experts_has_none_for_it(self):
        model = OmniSatSegmenter(build(), 5, 10.0, experts=True)
        assert list(model.experts) == list(MODALITIES)
        assert model(random_batch() | {'coordinates': PLACES}).shape == (3, 5, 16, 16)

    def test_wrong_shape(self):
        with pytest.raises(ValueError, match=r'\(3, 3\)'):
            build()(random_batch() | {'coordinates': torch.zeros(3, 3, dtype=torch.float64)})
        with pytest.raises(ValueError, match=r'valid_location has shape \(3,\)'):
            build()(random_batch() | {'coordinates': PLACES, 'valid_location': torch.ones(3, dtype=torch.bool)})


class TestScaled:
    def test_no_seam_at_the_antimeridian_and_the_poles(self):
        encoder = ScaledLocation()
        pairs = torch.tensor([[[180.0, 10.0], [-180.0, 10.0]], [[0.0, 90.0], [123.0, 90.0]], [[5, -90], [-77, -90]]])
        found = encoder.features(pairs.double().flatten(0, 1)).unflatten(0, (3, 2))
        assert_same(found[:, 0], found[:, 1])

    def test_resolves_a_kilometre_which_satclip_does_not(self):
        scaled = ScaledLocation().features(NEARBY)[:, 3:].unflatten(1, (2, 3, 7))
        finest = scaled[..., -1] / scaled[..., -1].norm(dim=(1, 2), keepdim=True)
        assert (finest[0] * finest[1]).sum() < 0.9
        harmonics = SatCLIPLocation().harmonics[0](NEARBY.double())
        assert torch.cosine_similarity(harmonics[0], harmonics[1], dim=0) > 0.9999

    def test_wavelengths_are_distances_on_the_ground(self):
        encoder = ScaledLocation((1000, 10), scales=3)
        assert encoder.wavelengths == pytest.approx((1000, 100, 10))
        degree = 180 / (torch.pi * 6371.0088)  # of latitude, per km
        along = torch.tensor([[0.0, 0.0], [0.0, 10 * degree], [0.0, 5 * degree]], dtype=torch.float64)
        height = encoder.features(along)[:, 3:].unflatten(1, (2, 3, 3))[:, :, 2, 2]  # shortest wavelength, z
        assert_same(height[0], height[1], 1e-4)
        assert (height[0] - height[2]).norm() > 0.1

    @pytest.mark.parametrize('wrong', [{'wavelengths': (1, 1000)}, {'wavelengths': (10, 0)}, {'scales': 0}])
    def test_bad_arguments(self, wrong):
        with pytest.raises(ValueError, match='expected'):
            build_location({'name': 'scaled', **wrong})


class TestSatCLIP:
    def test_train_and_eval_are_equal_and_it_is_frozen(self, satclip_file):
        model = build({'name': 'satclip', 'weights': str(satclip_file), **SMALL})
        encoder = model.location.encoder
        assert not any(p.requires_grad for p in encoder.parameters())
        places = torch.rand(50, 2, dtype=torch.float64) * 80
        model.train()
        first, again = encoder(places), encoder(places)
        model.eval()
        assert_same(first, encoder(places), 0)
        assert_same(first, again, 0)
        batch = random_batch() | {'coordinates': PLACES}
        assert_same(model.train()(batch).fused, model.eval()(batch).fused)

    def test_weights_of_a_published_checkpoint(self, satclip_file):
        torch.manual_seed(3)
        published = SatCLIP(**SMALL).eval()
        encoder = build_location({'name': 'satclip', 'weights': str(satclip_file), **SMALL})
        assert_same(encoder(PLACES[:2]), published(PLACES[:2].float()), 1e-3)
        assert encoder.origin.tensors == 6
        with pytest.raises(ValueError, match='legendre_polys'):
            build_location({'name': 'satclip', 'weights': str(satclip_file)})

    def test_weights_have_to_be_chosen(self):
        with pytest.raises(ValueError, match='SATCLIP_VIT16_L40'):
            build_location('satclip')
        name = str(SatCLIP_Weights.SATCLIP_VIT16_L40)
        encoder = build_location({'weights': name, 'load': False})  # as a checkpoint describes it
        assert encoder.origin.tensors == 0

    def test_half_precision_keeps_the_harmonics(self):
        encoder = SatCLIPLocation(**SMALL)
        whole = encoder(PLACES[:2])
        half = encoder.to(torch.bfloat16)(PLACES[:2])
        assert torch.cosine_similarity(whole, half.float()).min() > 0.98


@pytest.mark.parametrize('wrong', ['harmonic', {'name': 'scaled', 'width': 3}, torch.nn.Linear(2, 2)])
def test_unknown_encoders(wrong):
    with pytest.raises(ValueError, match='location'):
        build_location(wrong)
