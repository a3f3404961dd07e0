# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Models of checkpoints as programs of torch.export and ONNX, which run without this package."""

import copy
import json
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample

from ... import __version__
from ...modality import Modality, half_up
from ...transforms import Normalize
from ...utils.atomic import atomic_file
from ...utils.checks import check_choice
from ...utils.tensors.coordinates import COORDINATES
from ..backbone import export_hub, load_hub
from ..checkpoints import read_checkpoint, read_config
from ..regression import OmniSatRegression
from ..segmentation import OmniSatSegmentation
from .inference import Predictor, is_supervised

#: Ending of a file by format.
ENDINGS: Mapping[str, str] = {'torch': '.pt2', 'onnx': '.onnx'}
#: Maximum difference of an exported output, relative to its largest absolute value, or absolute if that is below 1.
TOLERANCE = 3e-5
#: Where float32 rounding alone changes the outputs by as much, the maximum is this many times as large, below 0.01.
ROUNDINGS = 8
#: Hyper-parameters of a task that the description contains, if it has them.
_DESCRIBED = ('labels', 'label_names', 'ignore_index', 'label_gsd', 'patch_size', 'target_name', 'target_unit')


class Exported(NamedTuple):
    """Result of :func:`export_model`.

    Attributes:
        description: JSON file beside the program.
        difference: Largest difference from the model, see :data:`TOLERANCE`; None if it was not checked.
        rounding: Effect of float32 rounding on the outputs of the model, see :func:`rounding_error`.
        any_batch: Whether the program accepts any batch size; otherwise it is 1.
    """

    description: Path
    difference: float | None
    rounding: float
    any_batch: bool


class RawModel(nn.Module):
    """Model of a checkpoint for batches of raw images.

    The images are normalised inside, as in :class:`.Predictor`. ``coordinates`` are an input if the model has the
    location as a modality or prototypes of regions. Encoders that take them do not need them.

    Args:
        checkpoint: Checkpoint of one of our tasks. Of a pre-training, the backbone is used.

    Raises:
        ValueError: If it has no mean and standard deviation, or several.
    """

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        hparams = read_checkpoint(checkpoint)[1]
        self._decode: Any = None
        if is_supervised(hparams):
            task = Predictor(checkpoint).task
            self.model = task.model
            self._decode = [task]  # in a list, so that losses and metrics are not parts of this module
            self.backbone, self.hparams = task.model.backbone, dict(task.hparams)
        else:
            with TemporaryDirectory() as folder:
                export_hub(checkpoint, folder)
                self.backbone, self.hparams = load_hub(folder), read_config(Path(folder))
        if self.hparams['mean'] is None or self.hparams['std'] is None or self.hparams.get('sources'):
            raise ValueError(f'{checkpoint} has no single mean and std, expected those of a training on one source')
        self.normalise = Normalize(self.modalities.values(), self.hparams['mean'], self.hparams['std'])
        self.eval()

    @property
    def modalities(self) -> dict[str, Modality]:
        """Modalities of the images, by name."""
        return self.backbone.modalities

    @property
    def uses_location(self) -> bool:
        """Whether ``coordinates`` are an input."""
        return self.backbone.location is not None or self.backbone.context is not None

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs of a batch of raw images.

        Args:
            batch: See :mod:`torchgeo_omnisat.batch`.

        Returns:
            ``embeddings`` ``(B, rows, columns, D)``; of a segmentation ``logits`` ``(B, K, H, W)``, minus infinity for
            an ignored class; of a classification ``logits`` ``(B, K)``; of a regression ``values`` ``(B, H, W)``.
        """
        out = self.backbone(self.normalise(batch))
        found = {'embeddings': rearrange(out.fused, 'b (r c) d -> b r c d', r=out.grid[0])}
        for task in self._decode or ():
            logits, _ = task.infer_from(out)
            if isinstance(task, OmniSatSegmentation):
                found['logits'] = task.without_ignored(logits)
            elif isinstance(task, OmniSatRegression):
                found['values'] = task.answer(logits)
            else:
                found['logits'] = logits
        return found


def export_model(
    checkpoint: Path, path: Path, kind: Literal['torch', 'onnx'], size: int, dates: int | None = None
) -> Exported:
    """Write the model of a checkpoint as a program, and a description beside it as JSON.

    The program is read again, and its outputs are compared with those of the model, before it has its name. ONNX is
    only compared if onnxruntime is installed.

    Args:
        checkpoint: Checkpoint of one of our tasks.
        path: File to write, ``.pt2`` or ``.onnx``.
        kind: Format.
        size: Side of a tile in pixels of the modality with the largest GSD.
        dates: Number of dates of a time series. Shorter ones are padded, with ``valid`` False.

    Raises:
        ImportError: If a package for ONNX is missing.
        ValueError: If an argument does not fit, or an output differs by more than :data:`TOLERANCE` and by more than
            :data:`ROUNDINGS` times :func:`rounding_error`.
    """
    check_choice(kind=(kind, ENDINGS))
    if path.suffix != ENDINGS[kind]:
        raise ValueError(f'output is {str(path)!r}, expected a name that ends in {ENDINGS[kind]}')
    if kind == 'onnx' and (missing := [name for name in ('onnx', 'onnxscript') if find_spec(name) is None]):
        raise ImportError(f'ONNX needs {" and ".join(missing)}: pip install "torchgeo_omnisat[onnx]"')
    model = RawModel(checkpoint)
    if dates is None and any(m.temporal for m in model.modalities.values()):
        raise ValueError('dates is not set, expected the number of dates of a time series, such as 12')
    with torch.no_grad():
        program, any_batch = _trace(model, size, dates or 1)
        description = path.with_suffix('.json')
        example = example_batch(model, size, dates or 1, 3 if any_batch else 1)
        outputs = model(example)
        with atomic_file(path) as file, atomic_file(description) as text:
            if kind == 'torch':
                torch.export.save(program, file)
                found = torch.export.load(file).module()(example)
            else:
                found = _write_onnx(program, file, example, outputs)
            difference = None if found is None else largest_difference(found, outputs)
            rounding = rounding_error(model, example, outputs)
            most = max(TOLERANCE, min(ROUNDINGS * rounding, 0.01))
            if difference is not None and not difference <= most:
                raise ValueError(
                    f'outputs of {path} differ from the model by {difference:.1e}, expected at most {most:.0e}'
                )
            text.write_text(json.dumps(_describe(model, example, outputs, any_batch), indent=2), encoding='utf-8')
    return Exported(description, difference, rounding, any_batch)


def example_batch(model: RawModel, size: int, dates: int, count: int) -> Sample:
    """Return a random batch in raw units, with nodata, invalid dates, and samples without last modality or location.

    Args:
        model: Model.
        size: Side of a tile in pixels of the modality with the largest GSD.
        dates: Number of dates of a time series.
        count: Number of samples.
    """
    generator = torch.Generator().manual_seed(0)
    extent = size * max(m.gsd for m in model.modalities.values())
    batch: Sample = {}
    for modality in model.modalities.values():
        side, bands = max(1, half_up(extent / modality.gsd)), len(modality.bands)
        length = dates if modality.temporal else 1
        mean, std = (torch.tensor(model.hparams[kind][modality.name])[:, None, None] for kind in ('mean', 'std'))
        image = mean + std * torch.randn(count, length, bands, side, side, generator=generator)
        image[-1, :, :, : (side + 1) // 2, : side // 2] = torch.nan
        valid = torch.ones(count, length, dtype=torch.bool)
        valid[:, 1::3] = False
        days = 18600 + 13 * torch.arange(length) + torch.randint(0, 13, (count, length), generator=generator)
        batch |= {modality.image_key: image if modality.temporal else image[:, 0]}
        batch |= {modality.dates_key: days, modality.valid_key: valid}
    if count > 1 and len(model.modalities) > 1:
        batch[modality.valid_key][0] = False
    if model.uses_location:
        batch[COORDINATES] = torch.tensor([[2.35, 48.85]] * count, dtype=torch.float64)
        batch[COORDINATES][1:] = torch.nan
    return batch


def largest_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest difference of outputs; see :data:`TOLERANCE`. It is infinite if not finite in one alone."""
    most = 0.0
    for name, value in expected.items():
        if found[name].shape != value.shape:
            return float('inf')
        finite = value.isfinite()
        if not torch.equal(found[name].where(~finite, 0), value.where(~finite, 0)):
            return float('inf')
        scale = max(1.0, float(value.where(finite, 0).abs().max()))
        error = float((found[name] - value).where(finite, 0).abs().max()) / scale
        if not error <= most:
            most = error if error == error else float('inf')
    return most


def rounding_error(model: nn.Module, example: Sample, outputs: Mapping[str, Tensor], draws: int = 4) -> float:
    """Return how much float32 rounding changes the outputs, measured as for :data:`TOLERANCE`.

    The weights change at random by one part in 2 ** 23, the spacing of float32. This is far below :data:`TOLERANCE`
    for most models. A GroupNorm over two almost equal values, as in a narrow encoder whose feature map of a small tile
    is a single pixel, amplifies rounding up to 300 times.

    Args:
        model: Model.
        example: Batch.
        outputs: Its outputs.
        draws: Number of random changes; the largest effect counts.
    """
    generator, changed = torch.Generator().manual_seed(0), copy.deepcopy(model)
    most = 0.0
    for _ in range(draws):
        for weight, original in zip(changed.parameters(), model.parameters(), strict=True):
            steps = torch.randint(-1, 2, original.shape, generator=generator).to(original.device)
            weight.data = original.data * (1 + 2.0**-23 * steps)
        most = max(most, largest_difference(changed(example), outputs))
    return most


def _trace(model: RawModel, size: int, dates: int) -> tuple[torch.export.ExportedProgram, bool]:
    """Return the program, and whether it accepts any batch size."""
    example = example_batch(model, size, dates, 2)
    any_size = {'batch': {name: {0: torch.export.Dim('batch', min=1)} for name in example}}
    try:
        return torch.export.export(model, (example,), dynamic_shapes=any_size), True
    except Exception:  # errors of other libraries; an encoder may depend on the batch size
        logging.getLogger(__name__).debug('exported with a batch size of 1', exc_info=True)
        return torch.export.export(model, (example_batch(model, size, dates, 1),)), False


def _write_onnx(
    program: torch.export.ExportedProgram, file: Path, example: Sample, outputs: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Write a program as ONNX, and return its outputs; None without onnxruntime."""
    names: dict[str, Any] = {'input_names': list(example), 'output_names': list(outputs)}
    written = cast(Any, torch.onnx.export(program, dynamo=True, verbose=False, **names))
    written.save(file)
    if find_spec('onnxruntime') is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    inputs = {entry.name for entry in session.get_inputs()}  # without those that have no influence
    values = session.run(list(outputs), {name: value.numpy() for name, value in example.items() if name in inputs})
    return {name: torch.from_numpy(value) for name, value in zip(outputs, values, strict=True)}


def _describe(model: RawModel, inputs: Sample, outputs: Mapping[str, Tensor], any_batch: bool) -> dict[str, Any]:
    def shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            name: {
                'shape': ['batch' if any_batch else 1, *value.shape[1:]],
                'dtype': str(value.dtype).removeprefix('torch.'),
            }
            for name, value in tensors.items()
        }

    hparams = {name: model.hparams[name] for name in _DESCRIBED if model.hparams.get(name) is not None}
    return {
        'torchgeo_omnisat': __version__,
        'torch': torch.__version__,
        'inputs': shapes(inputs),
        'outputs': shapes(outputs),
        'normalisation': 'inside: images are in the units of the training data, NaN is nodata',
        'modalities': [modality.as_dict() for modality in model.modalities.values()],
        **{kind: {name: model.hparams[kind][name] for name in model.modalities} for kind in ('mean', 'std')},
        **hparams,
    }
