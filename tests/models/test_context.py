# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tasks.helpers import MODALITIES, make_batch
from torchgeo_omnisat.models import omnisat_tiny
from torchgeo_omnisat.models.context import GeoContext

PLACES = torch.tensor([[2.0, 48.0], [12.0, 48.0], [math.nan, math.nan]], dtype=torch.float64)


def trained(context: GeoContext) -> GeoContext:
    """Update the first two regions, and open the projection."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 20, context.proj.in_features, generator=random)
    context.update(tokens, torch.ones(3, 20, dtype=torch.bool), PLACES, [3])
    torch.nn.init.normal_(context.proj.weight, std=0.1)
    return context


@pytest.mark.parametrize(
    ('place', 'region'),
    [
        ((-180.0, -90.0), 0),
        ((180.0, -90.0), 0),  # the antimeridian from the other side
        ((179.9, -90.0), 35),
        ((2.0, 48.0), 13 * 36 + 18),
        ((0.0, 90.0), 17 * 36 + 18),  # the pole belongs to the last row
        ((math.nan, 1.0), -1),
        ((0.0, 91.0), -1),
    ],
)
def test_regions(place: tuple[float, float], region: int) -> None:
    assert GeoContext(8).regions(torch.tensor([place], dtype=torch.float64)).tolist() == [region]


def test_reads_the_prototypes_of_its_region() -> None:
    context = trained(GeoContext(8, prototypes=4))
    fused = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    found = context(fused, PLACES)
    for row, region in enumerate(context.regions(PLACES[:2]).tolist()):
        prototypes = context.bank.prototypes[region]
        weights = torch.softmax(fused[row] @ prototypes.T / math.sqrt(8), -1)
        torch.testing.assert_close(found[row], fused[row] + weights @ prototypes @ context.proj.weight.T)
        assert (found[row] - fused[row]).abs().max() > 0.01
    elsewhere = torch.tensor([[100.0, 0.0]] * 3, dtype=torch.float64)
    for nowhere in (None, elsewhere):
        assert torch.equal(context(fused, nowhere), fused)
    assert torch.equal(found[2], fused[2])


def located(coordinates: Tensor | None) -> dict[str, Tensor]:
    batch = make_batch()
    return batch if coordinates is None else {**batch, 'coordinates': coordinates}


class TestModel:
    @pytest.fixture
    def model(self) -> Any:
        torch.manual_seed(0)
        model = omnisat_tiny(MODALITIES, context_degrees=10.0, context_prototypes=4).eval()
        trained(model.context)
        return model

    def test_other_weights_do_not_depend_on_it(self, model: Any) -> None:
        torch.manual_seed(0)
        plain = omnisat_tiny(MODALITIES).eval()
        after = torch.rand(1)
        torch.manual_seed(0)
        omnisat_tiny(MODALITIES, context_degrees=10.0)
        assert torch.equal(torch.rand(1), after)  # so that heads that are built later are the same, too
        state = model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
        assert torch.equal(plain(located(None)).fused, model(located(None)).fused)
        assert torch.equal(plain(located(PLACES)).fused, plain(located(None)).fused)

    def test_unknown_region_of_one_tile_changes_nothing_else(self, model: Any) -> None:
        without, with_ = model(located(None)).fused, model(located(PLACES)).fused
        assert torch.equal(without[2], with_[2])
        assert not torch.equal(without[:2], with_[:2])
        order = [2, 0, 1]
        batch = {key: value[order] for key, value in located(PLACES).items()}
        torch.testing.assert_close(model(batch).fused, with_[order])

    def test_withheld_location_is_an_unknown_region(self, model: Any) -> None:
        without, with_ = model(located(None)), model(located(PLACES))
        assert torch.equal(model.withhold_location(with_).fused, without.fused)
        flags = torch.tensor([[True], [False], [True]])
        some = model({**located(PLACES), 'valid_location': flags}).fused
        assert torch.equal(some[0], with_.fused[0])
        assert torch.equal(some[1], without.fused[1])

    def test_subsets_keep_the_region(self, model: Any) -> None:
        batch, out = located(PLACES), model(located(PLACES))
        alone = {key: value for key, value in batch.items() if not key.endswith(('s1a', 'spot'))}
        torch.testing.assert_close(model.restrict(out, ['s2']).fused, model(alone).fused)
        kept = torch.tensor([[True, False, False]] * 3)
        torch.testing.assert_close(model.hide(out, kept).fused, model(alone).fused)

    def test_is_not_updated_by_other_tasks(self, model: Any) -> None:
        before = model.context.bank.prototypes.clone()
        model.train()(located(PLACES))
        assert torch.equal(model.context.bank.prototypes, before)
