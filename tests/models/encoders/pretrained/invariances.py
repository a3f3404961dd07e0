"""Invariances that hold for every encoder of time series, with two of them and an image encoder."""

import copy

from ... import test_invariance
from ...conftest import S2, random_batch

#: Arguments after the modality by test; None for tests without a modality. The others are about layers of ours.
INVARIANCES = {
    'test_padding_is_invisible': (float('nan'),),
    'test_absent_modality_is_invisible': (1e4,),
    'test_absent_keys_equal_absent_everywhere': (),
    'test_order_of_dates_is_invisible': (),
    'test_dates_matter': (),
    'test_other_samples_are_invisible': None,
    'test_nan_image_equals_absent_image': None,
    'test_nan_date_equals_invalid_date': (),
    'test_unmeasured_patch_takes_no_part': None,
    'test_nothing_available_is_finite': None,
    'test_restricting_equals_encoding_less': None,
    'test_pixel_without_any_band_adds_nothing': (),
}


def check(name, segmenter, pixels=16):
    """Run a test of the module with a copy of a segmenter of ``s2``, ``s1a`` and ``spot``."""
    arguments = INVARIANCES[name]
    batch = random_batch(pixels=pixels, modalities=segmenter.backbone.modalities)
    rest = () if arguments is None else (S2, *arguments)
    getattr(test_invariance, name)(copy.deepcopy(segmenter), batch, *rest)
