# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Keep the import paths of modules that moved."""

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = __name__.rpartition('.')[0]
#: Old and new folder of modules that kept their names, below the package.
_FOLDERS = (
    ('datasets', 'datasets.common', 'arguments classes integrity labelcounts plotting series'),
    ('datasets', 'datasets.geo', 'polygons sources tiles'),
    ('datasets', 'datasets.io', 'decoding download files fingerprint headers opening'),
    (
        'datasets',
        'datasets.rasters',
        'bandfiles cf distortion frames georeference netcdf products sentinel stac stacks',
    ),
    ('models', 'models.encoders', 'bands image packing patches published weights'),
    ('models', 'models.encoders.series', 'ltae temporal utae'),
    ('models.encoders', 'models.encoders.series', 'ltae monthly temporal utae'),
    (
        'models.encoders.pretrained',
        'models.encoders.pretrained.images',
        'backbone base copernicusfm croma deo dofa foundation panopticon tokens',
    ),
    (
        'models.encoders.pretrained',
        'models.encoders.pretrained.series',
        'cache composites olmoearth pixels presto tessera',
    ),
    ('utils', 'utils.cli', 'console errors help'),
    ('utils', 'utils.tensors', 'coordinates dates finite observed quantization'),
    ('datamodules', 'datamodules.common', 'plausibility sampling statistics'),
    ('tasks', 'evaluation', 'plots report retrieval subsets'),
)
#: New path of each module by its old one, below the package.
MOVED = {f'{old}.{name}': f'{new}.{name}' for old, new, names in _FOLDERS for name in names.split()} | {
    'callbacks': 'evaluation',
    'callbacks.probe': 'evaluation.probe',
    'datamodules.chips': 'datamodules.geo',
    'datamodules.excluding': 'datamodules.base',
    'datamodules.geosplits': 'datamodules.geo',
    'datamodules.guard': 'datamodules.common.plausibility',
    'datamodules.mapped': 'datamodules.adapters',
    'datamodules.measuring': 'datamodules.base',
    'datamodules.mixing': 'datamodules.mixed',
    'datamodules.resuming': 'datamodules.common.sampling',
    'datamodules.sharded': 'datamodules.adapters',
    'datamodules.stream': 'datamodules.common.statistics',
    'datasets.chipfiles': 'datasets.chips.files',
    'datasets.chipsplits': 'datasets.chips.splits',
    'datasets.configured': 'datasets.geo.config',
    'datasets.figures': 'datasets.common.plotting',
    'datasets.flair_areas': 'datasets.flair',
    'datasets.flair_layout': 'datasets.flair',
    'datasets.flairhub_layout': 'datasets.flairhub',
    'datasets.flairhub_tables': 'datasets.flairhub',
    'datasets.geoparts': 'datasets.geo.parts',
    'datasets.geotiles': 'datasets.geo.tiles',
    'datasets.inspection': 'datasets.common.integrity',
    'datasets.landscape': 'datasets.synthetic.landscape',
    'datasets.mapped': 'datasets.adapters',
    'datasets.multimodal': 'datasets.geo.join',
    'datasets.pastis_layout': 'datasets.pastis',
    'datasets.places': 'datasets.geo.tiles',
    'datasets.raster': 'datasets.rasters.timeseries',
    'datasets.render': 'datasets.synthetic.rendering',
    'datasets.samples': 'datasets.base',
    'datasets.treesatai_layout': 'datasets.treesatai',
    'datasets.treesatai_series': 'datasets.treesatai',
    'datasets.writing': 'datasets.synthetic.writing',
    'errors': 'utils.cli.errors',
    'losses.patches': 'losses.contrastive',
    'models.late': 'models.late_fusion',
    'prediction.cog': 'prediction.raster',
    'prediction.embedding_reader': 'prediction.embeddings.reader',
    'prediction.embedding_writer': 'prediction.embeddings.writer',
    'prediction.few_labels': 'prediction.embeddings.few_labels',
    'prediction.field_outlines': 'prediction.fields.outlines',
    'prediction.similarity': 'prediction.embeddings.similarity',
    'prediction.encoding': 'prediction.raster',
    'prediction.loading': 'prediction.tiling',
    'prediction.overview': 'prediction.raster',
    'prediction.parcels': 'prediction.vector',
    'prediction.seen': 'prediction.raster',
    'prediction.single': 'prediction.raster',
    'prediction.stitching': 'prediction.tiling',
    'prediction.work': 'prediction.writer',
    'quiet': 'utils.cli.console',
    'tasks.degraded': 'evaluation.robustness',
    'tasks.files': 'tasks.checkpoints',
    'tasks.finite': 'utils.tensors.finite',
    'tasks.hub': 'tasks.backbone',
    'tasks.labelled': 'tasks.supervised',
    'tasks.names': 'tasks',
    'tasks.robustness': 'evaluation.subsets',
    'tasks.sharding': 'utils.sharding',
    'tasks.statistics': 'tasks.normalization',
    'tasks.upset': 'evaluation.plots',
    'tasks.encoders': 'tasks.backbone',
    'tasks.weights': 'tasks.backbone',
    'utils.cache': 'utils.atomic',
    'utils.configs': 'utils.reading',
    'utils.jsonfile': 'utils.reading',
    'utils.quiet': 'utils.cli.console',
    'utils.regular': 'utils.reading',
}


def old_names(module: str) -> list[str]:
    """Return the old paths of a module."""
    return [f'{PACKAGE}.{old}' for old, new in MOVED.items() if f'{PACKAGE}.{new}' == module]


class MovedFinder:
    """Import the module that an old path stands for, with a :class:`DeprecationWarning`."""

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return a spec for old paths, and None for all others."""
        package, _, name = fullname.partition('.')
        return ModuleSpec(fullname, self) if package == PACKAGE and name in MOVED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module of the new path."""
        old = spec.name.partition('.')[2]
        warnings.warn(f'{spec.name} is now {PACKAGE}.{MOVED[old]}: change the import', DeprecationWarning, stacklevel=2)
        module = import_module(f'{PACKAGE}.{MOVED[old]}')
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own spec back; it was run when its new path was imported."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


def install_finder() -> None:
    """Add the finder to :data:`sys.meta_path`, once.

    It is the first one: the others would import a module of a moved package a second time under its old path.
    """
    if not any(type(finder).__name__ == MovedFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedFinder())
