# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import torch

from torchgeo_omnisat.losses import PatchClusters, PatchContrastiveLoss, mean_of_sources, pool_objects


def test_means_are_those_of_a_loop() -> None:
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 3, 12, 5, generator=random)
    observed = torch.rand(3, 12, 2, generator=random) < 0.7
    assignment = torch.rand(3, 12, 4, generator=random) ** 4
    objects = pool_objects(tokens, assignment, observed)
    for s in range(2):
        for b in range(3):
            for k in range(4):
                weights = assignment[b, :, k] * observed[b, :, s]
                assert objects.present[b, k, s] == (weights.sum() >= 1)
                mean = (weights.unsqueeze(1) * tokens[s, b]).sum(0) / weights.sum()
                torch.testing.assert_close(objects.means[s, b, k], mean)
    assert 0 < objects.present.sum() < objects.present.numel()


def test_absent_source_has_no_influence() -> None:
    random = torch.Generator().manual_seed(1)
    tokens, observed = torch.randn(3, 2, 16, 8, generator=random), torch.ones(2, 16, 3, dtype=torch.bool)
    observed[0, :, 1] = False
    results = []
    for value in (0.0, 1e3):
        tokens[1, 0] = value
        clusters = PatchClusters(4, 8)
        assignment = clusters(mean_of_sources(tokens, observed), observed.any(-1), [2], update=True)
        objects = pool_objects(tokens, assignment, observed)
        assert not objects.present[0, :, 1].any()
        results.append((clusters.bank.prototypes, PatchContrastiveLoss()(objects.means, objects.present)))
    torch.testing.assert_close(results[0], results[1])


def test_clusters_find_what_the_tiles_have_in_common() -> None:
    """Similar patches of two tiles have the same cluster, and a tile may lack a cluster."""
    random = torch.Generator().manual_seed(2)
    directions, kinds = torch.randn(4, 8, generator=random), torch.tensor([[0, 1] * 8, [2, 3] * 8])
    clusters, counted = PatchClusters(4, 8, momentum=0.5), torch.ones(2, 16, dtype=torch.bool)
    for _ in range(20):
        tokens = directions[kinds] + 0.1 * torch.randn(2, 16, 8, generator=random)
        assignment = clusters(tokens, counted, [2], update=True)
    found = assignment.argmax(-1)
    assert len(set(zip(kinds.flatten().tolist(), found.flatten().tolist(), strict=True))) == 4
    present = pool_objects(tokens.unsqueeze(0), assignment, counted.unsqueeze(-1)).present
    assert present.sum((1, 2)).tolist() == [2, 2]


def test_clusters_are_kept_without_update() -> None:
    clusters, counted = PatchClusters(4, 8), torch.ones(2, 16, dtype=torch.bool)
    before = clusters.bank.prototypes.clone()
    clusters(torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(3)), counted, [2])
    assert torch.equal(clusters.bank.prototypes, before)
