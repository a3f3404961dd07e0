# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""SyntheticLandscapes: made-up farmland in PASTIS-HD's files."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from torchgeo.datasets.utils import Path as PathLike
from torchgeo.datasets.utils import Sample

from ..pastis import PASTISMultimodal
from .writing import Recipe, write_landscapes


class SyntheticLandscapes(PASTISMultimodal):
    """Ten crops on made-up farmland that no sensor, and no pair of sensors, tells apart alone.

    Everything is drawn from a seed and written once, in the layout of PASTIS-HD, so
    :class:`PASTISMultimodal` reads the same directory. What comes out of a model here
    says nothing about real fields; results are to be called synthetic.

    A tile is a square of parcels between roads, woods and houses. Sentinel-2 sees the
    seasons of the crops through clouds, Sentinel-1 their structure under speckle, from
    two orbits, SPOT rows and trees once. Crops share what two of (S2, S1, SPOT) see and
    differ in the third (:data:`~torchgeo_omnisat.datasets.synthetic.landscape.CROPS`): winter
    wheat, barley (S2) and triticale (S1); beet, corn (S1) and potatoes (SPOT); meadow,
    orchard (SPOT) and fodder (S2); and rapeseed. A single pixel says less than its
    parcel. Dates are few and differ between tiles and sensors, and some tiles lack SPOT
    or Sentinel-1 descending.

    The seed determines every tile whatever the number of tiles, and a root holds what
    one set of arguments determines: another set is an error, not a second directory
    below it, because the root itself is the dataset that others read.
    """

    #: The data are made up, and whoever shows results from them says so.
    synthetic: ClassVar[bool] = True

    def __init__(
        self,
        root: PathLike = 'data/synthetic',
        num_tiles: int = 160,
        seed: int = 0,
        size: int = 32,
        dates: tuple[int, int] = (8, 14),
        folds: Sequence[int] = (1, 2, 3, 4, 5),
        modalities: Sequence[str] | None = None,
        bands: Mapping[str, Sequence[str]] | None = None,
        max_dates: int | None = None,
        date_range: tuple[str, str] | None = None,
        exclude: Collection[str] = (),
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        """Write the landscapes, unless they are there, and read the index.

        Args:
            root: Directory to write to: absent, empty, or holding these landscapes.
            num_tiles: Number of tiles, dealt to the five folds in turn.
            seed: Seed of every draw.
            size: Pixels of 10 m a side, a multiple of 4.
            dates: Least and greatest number of dates of a series.
            folds: Which of the folds 1 to 5 to take.
            modalities: Names of the modalities to read; None for all.
            bands: Bands to keep by modality, such as ``{'s1a': ('VV', 'VH')}``.
            max_dates: How many days of a series to read, spread evenly; None for all.
            date_range: First and last day to read.
            exclude: Names of samples to leave out.
            transforms: What to do with a sample.

        Raises:
            ValueError: If *root* holds anything else, or an argument is not as described.
        """
        write_landscapes(Path(root).expanduser(), Recipe(num_tiles, seed, size, dates))
        super().__init__(
            root=root,
            folds=folds,
            modalities=modalities,
            bands=bands,
            max_dates=max_dates,
            date_range=date_range,
            missing='allow',
            exclude=exclude,
            transforms=transforms,
        )
