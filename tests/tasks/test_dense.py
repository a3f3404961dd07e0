# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Pre-training of dense embeddings: terms, views, cost, and the table of subsets."""

from pathlib import Path
from typing import Any

import pytest
import torch

from torchgeo_omnisat.losses import MaskedReconstruction
from torchgeo_omnisat.models import omnisat_tiny
from torchgeo_omnisat.models.embedding import DenseEmbedding
from torchgeo_omnisat.tasks import OmniSatPretraining
from torchgeo_omnisat.tasks.views import draw_views

from .helpers import MODALITIES, make_loader, make_sample, make_trainer, read_csv
from .test_pretraining import CONTRAST, MIXED, gradients, make_batch, make_task

DENSE = {'embedding_dim': 8, 'embedding_pixels': 32, 'tile_weight': 0, 'patch_weight': 0, 'reconstruction_weight': 0}


class TestHead:
    def test_unit_vectors_at_their_gsd(self) -> None:
        backbone = omnisat_tiny(MODALITIES).eval()
        out = backbone(make_batch(*MIXED[:2]))
        for gsd, side in ((10.0, 16), (20.0, 8)):
            embeddings = DenseEmbedding(backbone, 8, gsd)(out)
            assert embeddings.shape == (2, 8, side, side)
            torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2, side, side))

    @pytest.mark.parametrize(('dim', 'gsd'), [(1, 10.0), (2000, 10.0), (8, 0.0), (8, 41.0)])
    def test_limits(self, dim: int, gsd: float) -> None:
        with pytest.raises(ValueError, match=r'1|2000|0\.0|41'):
            DenseEmbedding(omnisat_tiny(MODALITIES), dim, gsd)

    def test_absent_modality_has_no_influence(self) -> None:
        backbone = omnisat_tiny(MODALITIES).eval()
        dense, batch = DenseEmbedding(backbone, 8), make_batch(('s2',), ('s2', 'spot'))
        changed = {**batch, 'image_spot': batch['image_spot'].clone()}
        changed['image_spot'][0] = 99.0
        torch.testing.assert_close(dense(backbone(changed))[0], dense(backbone(batch))[0])


class TestTerms:
    def test_each_term_and_weight(self) -> None:
        batch = make_batch(*MIXED)
        whole = make_task(**DENSE).compute(batch, 'train', 0)[0]
        names = ('embedding_weight', 'embedding_contrast_weight', 'consistency_weight')
        parts = [
            make_task(**DENSE, **dict(zip(names, weights, strict=True))).compute(batch, 'train', 0)[0]
            for weights in ((1, 0, 0), (0, 0.1, 0), (0, 0, 0.1), (2, 0, 0.5))
        ]
        torch.testing.assert_close(whole, parts[0] + parts[1] + parts[2])
        torch.testing.assert_close(parts[3], 2 * parts[0] + 5 * parts[2])

    def test_terms_by_default(self) -> None:
        base = {'tile': 1.0, 'patch': 1.0, 'reconstruction': 1.0}
        assert make_task().terms == base
        pixels = {'pixel_reconstruction': 1.0, 'pixel_contrast': 0.1, 'consistency': 0.1}
        assert make_task(embedding_dim=8).terms == base | pixels

    def test_every_part_learns(self) -> None:
        task = make_task(**DENSE)
        found = gradients(task, task.compute(make_batch(*MIXED), 'train', 0)[0])
        for part in ('dense.decoder', 'pixel_reconstruction.decoders.spot', 'backbone.encoders.s1a', 'backbone.fusion'):
            assert any(part in name and gradient.any() for name, gradient in found.items()), part

    def test_only_chosen_pixels_count(self) -> None:
        views = make_task(**DENSE).compute(make_batch(('s2', 's1a')), 'train', 0)[1]
        assert views.pixels.shape == (2, 1, 32, 8)
        assert views.pixel_counts.tolist() == [32 * 3 * 2, 32 * 2 * 2, 0]  # pixels, bands, dates

    def test_samples_of_one_pixel(self) -> None:
        modalities = {name: MODALITIES[name] for name in ('s2', 's1a')}
        pixelwise = {'encoders': dict.fromkeys(modalities, 'ltae'), 'widths': [16], 'depth': 0}
        settings: dict[str, Any] = {'modalities': modalities, 'patch_size': 10.0, 'backbone_args': pixelwise}
        batch = make_batch(('s2', 's1a'), ('s2', 's1a'), ('s2',))
        batch = {key: x[..., :1, :1] if key.startswith('image') else x for key, x in batch.items()}
        task = make_task(**DENSE | settings | {'tile_weight': 1, 'patch_weight': 1, 'reconstruction_weight': 1})
        loss, views = task.compute(batch, 'train', 0)
        assert views.pixels.shape == (2, 3, 1, 8)
        found = gradients(task, loss)
        assert all(gradient.isfinite().all() for gradient in found.values())
        assert any('pixel_reconstruction' in name and gradient.any() for name, gradient in found.items())

    def test_statistics_show_collapse_and_position(self, monkeypatch: pytest.MonkeyPatch) -> None:
        task, logged = make_task(**DENSE), {}
        monkeypatch.setattr(task, 'log', lambda name, value, **_: logged.update({name: float(value)}))
        place = torch.nn.functional.normalize(torch.randn(8, 16, 16, generator=torch.Generator().manual_seed(0)), dim=0)
        monkeypatch.setattr(task.model.dense, 'forward', lambda out, _size: place.expand(len(out.fused), 8, 16, 16))
        task.compute(make_batch(('s2', 's1a'), ('s2',), ('s1a',)), 'train', 0)
        assert logged['train_pixel_position/all'] == pytest.approx(1, abs=1e-4)
        assert 0.8 < logged['train_pixel_spread/all'] < 1.1
        assert 6 < logged['train_pixel_rank/all'] < 8

    def test_consistency_is_zero_without_another_view(self) -> None:
        task = make_task(**DENSE, embedding_weight=0, embedding_contrast_weight=0)
        assert task.compute(make_batch(('s2',), ('spot',)), 'train', 0)[0].item() == pytest.approx(0, abs=1e-6)

    def test_micro_batches_change_nothing(self) -> None:
        batch = make_batch(*MIXED)
        losses = [make_task(**DENSE, micro_batch_size=size).compute(batch, 'train', 0)[0] for size in (None, 4)]
        torch.testing.assert_close(*losses)

    def test_other_draws_are_those_without_embeddings(self) -> None:
        before, after = (
            draw_views((0, 1), [2], 3, (4, 4), 0.3, torch.device('cpu'), *extra) for extra in ((), ((16, 16), 5))
        )
        assert torch.equal(before.hidden, after.hidden)
        assert torch.equal(before.numbers, after.numbers)
        assert torch.equal(after.pixels[0], after.pixels[1])
        assert len(set(after.pixels[0].tolist())) == 5

    def test_brightness_is_a_target(self) -> None:
        batch = make_batch(('spot',))
        bright = {**batch, 'image_spot': batch['image_spot'] + 2}
        fused, hidden = torch.zeros(1, 256, 8), torch.ones(1, 256, dtype=torch.bool)
        for standardised in (True, False):
            torch.manual_seed(0)
            loss = MaskedReconstruction({'spot': MODALITIES['spot']}, 8, 10.0, standardised=standardised)
            first, second = (loss(fused, images, hidden, (16, 16)).item() for images in (batch, bright))
            assert (first == pytest.approx(second, rel=1e-3)) == standardised

    @pytest.mark.parametrize('wrong', [{'embedding_weight': -1}, {'consistency_weight': -1}, {'embedding_error': 'l3'}])
    def test_arguments_out_of_range(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            make_task(**{**DENSE, **wrong})


class TestSubsets:
    @pytest.mark.parametrize('dim', [8, None])
    def test_table_of_cosines(self, tmp_path: Path, dim: int | None) -> None:
        arguments: dict[str, Any] = {**CONTRAST, 'patch_weight': 0, 'embedding_dim': dim, 'subsets': ['s2', 's1a']}
        task = make_task(**arguments)
        task.allow_random = True
        samples = [make_sample(0), make_sample(1, ('s2', 'spot')), make_sample(2)]
        (logged,) = make_trainer(tmp_path).test(task, make_loader(samples), verbose=False)
        rows = {row['subset']: row for row in read_csv(next(tmp_path.rglob('embeddings.csv')))}
        assert set(rows) == {'s1a', 's2'}
        assert (rows['s2']['embeddings'], rows['s1a']['embeddings']) == (('768', '512') if dim else ('48', '32'))
        for name, row in rows.items():
            assert logged[f'test_EmbeddingCosine/{name}'] == pytest.approx(float(row['cosine']), abs=1e-5)
            assert -1 < float(row['cosine']) < 1

    def test_checkpoint_keeps_the_head_and_not_the_subsets(self) -> None:
        task = make_task(**DENSE, subsets=['s2'])
        assert task.hparams['embedding_dim'] == 8
        assert 'subsets' not in task.hparams
        assert make_task().model.dense is None
        assert not any(
            'dense' in name for name in OmniSatPretraining(modalities=MODALITIES, patch_size=40).state_dict()
        )

    def test_checkpoint_without_newer_arguments_keeps_its_terms(self, tmp_path: Path) -> None:
        task = make_task(embedding_dim=8, embedding_pixels=32)
        saved = {key: value for key, value in task.hparams.items() if key != 'embedding_error'}
        content = {'state_dict': task.state_dict(), 'hyper_parameters': saved, 'pytorch-lightning_version': '2.6.0'}
        torch.save(content, tmp_path / 'former.ckpt')
        loaded = OmniSatPretraining.load_from_checkpoint(tmp_path / 'former.ckpt', weights_only=False)
        assert loaded.terms == task.terms
        assert loaded.terms.keys() == {
            'tile', 'patch', 'reconstruction', 'pixel_reconstruction', 'pixel_contrast', 'consistency'
        }  # fmt: skip
        assert loaded.model.pixel_reconstruction.error == 'squared'
