# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Dataset of synthetic landscapes in the file layout of PASTIS-HD."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchgeo.datasets.utils import Path as PathLike

from ...modality import finer_factor
from ...utils.signatures import with_arguments_of
from ..pastis import PASTISMultimodal, PASTISPatch
from .writing import FIRST_ID, Recipe, draw_instances, write_landscapes


class SyntheticLandscapes(PASTISMultimodal):
    """Dataset of synthetic farmland with ten crops that require all sensors to be distinguished.

    It is generated from a seed and written once, in the layout of PASTIS-HD, so
    :class:`PASTISMultimodal` reads the same directory. Results on it do not apply to real fields
    and must be reported as synthetic.

    A tile is a square of parcels between roads, woods and buildings. Sentinel-2 shows the phenology of
    the crops, with clouds; Sentinel-1 their structure, with speckle, from two orbits; and SPOT rows and
    trees on one date. Crops of a group look the same to two of (S2, S1, SPOT) and differ in the third
    (:data:`~torchgeo_omnisat.datasets.synthetic.landscape.CROPS`): winter wheat, barley (S2) and
    triticale (S1); beet, corn (S1) and potatoes (SPOT); meadow, orchard (SPOT) and fodder (S2); and
    rapeseed. A single pixel is less informative than its parcel. Time series are short, with dates that
    differ between tiles and sensors. Some tiles lack SPOT or Sentinel-1 descending.

    A tile depends on the seed, but not on the number of tiles. A directory contains the data of one set
    of arguments, and opening it with others raises an error. Adjacent parcels of one crop are
    different instances.

    Version 2 is harder and closer to real data: Sentinel-2 mixes adjacent parcels, its bands of 20 m are averages over
    2 x 2 pixels, and thin clouds remain; each sensor is displaced by up to half a pixel of 10 m relative to the labels;
    some crops are eight times as frequent as others; and in the fifth fold all seasons are two weeks later.

    With *regions*, the tiles are in regions all over Europe, and crop calendars depend on the latitude: seasons are 4
    days later per degree to the north, in both versions. Each fold has other regions, so validation and test are on
    regions that are not among the training data. Places have no other influence on the landscapes; tiles with the same
    seed and index have the same parcels with and without regions.
    """

    #: Whether the data are synthetic, so that results are reported as such.
    synthetic: ClassVar[bool] = True
    _missing_instances: ClassVar[str] = (
        ': it was written before landscapes had them, so delete it or choose another root'
    )

    @with_arguments_of(PASTISMultimodal, without=('missing', 'download', 'checksum'), is_last=True)
    def __init__(
        self,
        root: PathLike = 'data/synthetic',
        num_tiles: int = 160,
        seed: int = 0,
        size: int = 32,
        dates: tuple[int, int] = (8, 14),
        version: int = 1,
        instance_gsd: float | None = None,
        regions: int = 0,
        **kwargs: Any,
    ) -> None:
        """Write the landscapes unless they exist, and initialize the dataset.

        Args:
            root: Directory of the data, which is written if it does not exist or is empty.
            num_tiles: Number of tiles, assigned to the five folds in turn.
            seed: Random seed.
            size: Side of a tile in pixels of 10 m, a multiple of 4.
            dates: Minimum and maximum number of dates of a time series.
            version: Version of the landscapes, 1 or 2.
            instance_gsd: GSD of *instances* in metres, 10 divided by a whole number; defaults to 10. The landscapes
                have a resolution of one metre, and strips of two metres between parcels belong to none.
            regions: Number of regions, a multiple of five; 0 for tiles next to each other.
            **kwargs: Arguments of PASTISMultimodal.

        Raises:
            ValueError: If *root* contains other files, or an argument is invalid.
        """
        self._recipe = Recipe(num_tiles, seed, size, dates, version, regions)
        self._factor = finer_factor(self.label_gsd, instance_gsd, 'instance_gsd')
        self._instances: dict[int, Tensor] = {}
        write_landscapes(Path(root).expanduser(), self._recipe)
        super().__init__(root, missing='allow', **kwargs)

    def _read_instances(self, patch: PASTISPatch, size: tuple[int, ...]) -> Tensor:
        if self._factor == 1:
            return super()._read_instances(patch, size)
        if patch.id not in self._instances:
            recipe = replace(self._recipe, size=size[0])
            drawn = draw_instances(recipe, patch.id - FIRST_ID, self.label_gsd / self._factor)
            self._instances[patch.id] = torch.from_numpy(drawn.astype(np.int32))
        return self._instances[patch.id].long()
