# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from torch import Tensor
from torchgeo.datasets import RGBBandsMissingError

from torchgeo_omnisat.datasets.common.plotting import MISSING, Composite, Palette, plot_sample
from torchgeo_omnisat.modality import Modality, as_modalities

S2 = Modality('s2', ('B02', 'B03', 'B04'), 10.0, True)
DEM = Modality('dem', ('height',), 10.0, False)
MODALITIES = as_modalities([S2, DEM])
WAYS = {'s2': (Composite('true colour', ('B04', 'B03', 'B02'), alike=True),), 'dem': (Composite('m', ('height',)),)}
PALETTE = Palette(('none', 'wheat', 'void'), ('black', 'orange', 'white'))


@pytest.fixture
def sample() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        'image_s2': 500 + 1000 * torch.rand(8, 3, 16, 16, generator=generator),
        'dates_s2': 17_800 + 30 * torch.arange(8),
        'valid_s2': torch.ones(8, dtype=torch.bool),
        'image_dem': torch.rand(1, 16, 16, generator=generator),
        'dates_dem': torch.zeros(1, dtype=torch.int64),
        'valid_dem': torch.ones(1, dtype=torch.bool),
        'mask': torch.zeros(16, 16, dtype=torch.int64),
    }


def pictures(sample: dict[str, Tensor]) -> dict[str, np.ndarray]:
    axes = plot_sample(sample, MODALITIES, WAYS, PALETTE).axes
    return {ax.get_title(): ax.images[0].get_array() for ax in axes if ax.images}


class TestDraw:
    def test_clouds_do_not_darken_the_other_dates(self, sample: dict[str, Tensor]) -> None:
        clear = pictures(sample)
        sample['image_s2'][[2, 4]] = 9000
        cloudy = pictures(sample)
        first = '2018-09-26'
        assert list(clear)[:5] == list(cloudy)[:5]
        assert first in clear
        np.testing.assert_allclose(cloudy[first], clear[first], atol=0.05)
        assert (cloudy['2018-11-25'] == 1).all()

    def test_bands_become_red_green_and_blue(self, sample: dict[str, Tensor]) -> None:
        sample['image_s2'][:, 2] += 800
        red, green, blue = np.moveaxis(pictures(sample)['2018-09-26'], -1, 0)
        assert red.mean() > green.mean() + 0.2
        assert abs(green.mean() - blue.mean()) < 0.1

    def test_one_band_is_grey_and_what_is_missing_has_its_colour(self, sample: dict[str, Tensor]) -> None:
        sample['image_dem'][0, :3] = torch.nan
        picture = pictures(sample)['dem: m']
        np.testing.assert_allclose(picture[:3], np.broadcast_to(MISSING, (3, 16, 3)))
        assert (np.ptp(picture[3:], axis=-1) == 0).all()

    def test_classes_keep_their_colours(self, sample: dict[str, Tensor]) -> None:
        sample['prediction'] = sample['mask'].clone()
        sample['prediction'][0, 0] = 1
        figure = plot_sample(sample, MODALITIES, WAYS, PALETTE)
        (legend,) = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
        assert [text.get_text() for text in legend.get_texts()] == ['0  none', '1  wheat']
        (image,) = [ax.images[0] for ax in figure.axes if ax.get_title() == 'prediction']
        assert image.to_rgba(image.get_array())[0, 0].tolist() == list(to_rgba('orange'))

    def test_outlines_separate_touching_fields(self, sample: dict[str, Tensor]) -> None:
        """Outlines of true fields are on the mask, of predicted ones on the prediction and on the single image."""
        sample['instances'] = torch.zeros(16, 16, dtype=torch.int64)
        sample['instances'][4:8, 2:6], sample['instances'][4:8, 6:10] = 3, 9
        sample |= {'prediction': sample['mask'], 'fields': (sample['instances'] > 0).long()}
        axes = plot_sample(sample, MODALITIES, WAYS, PALETTE).axes
        sides = {ax.get_title(): len(ax.collections[0].get_segments()) for ax in axes if ax.collections}
        assert sides == {'mask': 8 + 8 + 4 * 3, 'prediction': 8 + 8 + 4 * 2, 'dem: m': 8 + 8 + 4 * 2}
        (mask,) = (ax for ax in axes if ax.get_title() == 'mask')
        middle = [line for line in mask.collections[0].get_segments() if (line[:, 0] == 5.5).all()]
        assert sorted(line[0, 1] for line in middle) == [3.5, 4.5, 5.5, 6.5]  # between columns 5 and 6

    def test_what_is_no_class_is_grey(self, sample: dict[str, Tensor]) -> None:
        sample['mask'][0, :2] = torch.tensor([255, -1])
        figure = plot_sample(sample, MODALITIES, WAYS, PALETTE)
        (legend,) = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
        assert [text.get_text() for text in legend.get_texts()] == ['0  none']
        (image,) = [ax.images[0] for ax in figure.axes if ax.get_title() == 'mask']
        assert image.to_rgba(image.get_array())[0, :3, 3].tolist() == [0, 0, 1]

    def test_needs_no_labels(self, sample: dict[str, Tensor]) -> None:
        del sample['mask']
        assert len(pictures(sample)) == 6
        with pytest.raises(RGBBandsMissingError):
            plot_sample(sample, MODALITIES, {}, PALETTE)
