# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Base class of all tasks: hyper-parameters from the datamodule, optimiser, statistics, checks of weights."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torchgeo.datasets import RGBBandsMissingError
from torchgeo.datasets.utils import Sample
from torchgeo.tasks import BaseTask

from .. import models
from ..batch import available
from ..modality import Modality, as_modalities, half_up
from ..models.compiling import CUDA_GRAPHS, MODES, Mode, compile_regions, require_compiler
from ..models.encoders.registry import checkpoint_encoders, plain_encoders
from ..prediction import seen_bits
from ..transforms import Denormalize, Normalize
from ..transforms.base import probability
from ..utils.checks import check_choice
from ..utils.figures import log_figure
from ..utils.sharding import refuse_strategy, shard_task
from ..utils.tensors.coordinates import COORDINATES, LOCATION_VALID
from ..utils.tensors.finite import Watch, refuse_output, refuse_weights
from ..utils.tensors.observed import BlindCount, ImplausibleCounts
from .backbone import describe_encoders, learning_rates, load_weights, make_backbone, modalities_of
from .checkpoints import limited_size, secure_checkpoints
from .console.progress import EpochSummary
from .embedding import Embedder, make_embedder
from .normalization import (
    KINDS,
    Inherited,
    Statistics,
    check_statistics,
    choose,
    first_of,
    inform_encoders,
    initial_statistics,
    measured_statistics,
)
from .setup.hyperparameters import check_modalities, location_as_encoder, plain_value, taken_from
from .setup.optimization import extend_optimizer_states, make_optimizer, warmup_cosine


class OmniSatTask(BaseTask):
    """Base class of tasks that take unset hyper-parameters from their datamodule.

    When the trainer builds the model, hyper-parameters that are ``None`` take the value
    of the datamodule's attribute of the same name. They are saved, so that a checkpoint
    rebuilds its model without a datamodule.

    The images that the model receives are always normalised with *mean* and *std* of its
    hyper-parameters. If a datamodule used other statistics, the task replaces them. If *mean*
    and *std* are not set, the statistics of *weights* are used, or else those of the datamodule.
    A model that was trained on a mixture has statistics by source, in *sources*. Images of a
    single source are normalised with the statistics of that source; *statistics* selects it if
    the data do not determine it (``torchgeo_omnisat.tasks.normalization.choose``).

    DDP, FSDP1 (``FSDPStrategy``) and FSDP2 (``ModelParallelStrategy``) train a task on several devices. FSDP
    shards it as one unit; see ``torchgeo_omnisat.utils.sharding``.

    Args:
        backbone: Name of a builder in :mod:`torchgeo_omnisat.models`.
        modalities: Plain dictionaries of the modalities (:meth:`.Modality.as_dict`), or the
            modalities by name.
        patch_size: Side of a ground patch in metres.
        mean: Mean of every band by modality, in the units of the datasets.
        std: Standard deviation of every band by modality. Images are normalised with *mean* and *std*
            of the task, even if the datamodule has other statistics.
        weights: Checkpoint that initialises the backbone; see :func:`.load_backbone`. Not saved in
            checkpoints.
        freeze_backbone: Whether to train only heads and decoders; the backbone stays in evaluation mode.
        backbone_args: Further arguments of the builder, in plain types.
        lr: Learning rate after the warm-up.
        weight_decay: Weight decay of AdamW.
        scheduler: ``'cosine'``, by step, or ``'plateau'`` of the validation loss, as in TorchGeo.
        warmup: Fraction of the steps with a linear warm-up to *lr*.
        patience: Epochs without improvement before ``'plateau'`` reduces the learning rate.
        sources: Mean and standard deviation by source, of a model that was trained on a mixture.
        statistics: Source whose statistics normalise the images, if the model or *weights* have several
            and the data do not determine it. Not saved in checkpoints.
        location_dropout: Probability that the location of a training tile is withheld, of a model that has it as a
            modality (``backbone_args={'encoders': {'location': 'scaled'}}``, see :class:`.OmniSat`).
        compile: Whether a trainer compiles the layers of the model with ``torch.compile``, or the mode in which it
            does; see ``torchgeo_omnisat.models.compiling``. Not saved in checkpoints.

    Raises:
        ValueError: If *location_dropout* or *warmup* is not from 0 to 1, or *compile* or *scheduler* is unknown.
    """

    #: Hyper-parameters that are required to build the model.
    required: ClassVar[tuple[str, ...]] = ('modalities', 'patch_size')
    #: Further hyper-parameters that are taken from the datamodule if it has them.
    optional: ClassVar[tuple[str, ...]] = ()
    #: Required hyper-parameters that may differ from those of a later datamodule.
    adaptable: ClassVar[tuple[str, ...]] = ('modalities', 'patch_size')

    #: Whether predictions depend on a head.
    heads_count: ClassVar[bool] = False
    #: Whether random weights may be evaluated, for tests.
    allow_random: bool = False
    #: Function that returns embeddings instead of predictions, set by :class:`.EmbeddingWriter`.
    embedder: Embedder | None = None
    #: Arguments that are not saved in checkpoints.
    ignore: tuple[str, ...] = ('weights', 'statistics', 'compile')

    weights: str | None
    statistics: str | None
    #: The argument ``compile``; modules have a method of this name.
    compiled: bool | Mode
    _blind: BlindCount
    _units: dict[str | None, tuple[nn.Module, ...]]
    _inherited: Inherited
    _watch: Watch
    _implausible: ImplausibleCounts
    _fresh: dict[str, tuple[int, int]]

    def __init__(
        self,
        backbone: str = 'omnisat_small',
        modalities: Sequence[dict[str, Any]] | Mapping[str, Modality] | None = None,
        patch_size: float | None = None,
        mean: Mapping[str, Sequence[float]] | None = None,
        std: Mapping[str, Sequence[float]] | None = None,
        weights: str | None = None,
        freeze_backbone: bool = False,
        backbone_args: dict[str, Any] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        scheduler: Literal['cosine', 'plateau'] = 'cosine',
        warmup: float = 0.05,
        patience: int = 10,
        sources: Mapping[str, dict[str, Any]] | None = None,
        statistics: str | None = None,
        location_dropout: float = 0.5,
        compile: bool | Mode = False,
    ) -> None:
        probability(location_dropout, 'location_dropout')
        if not 0 <= warmup <= 1:
            raise ValueError(f'warmup is {warmup}, expected a fraction of the steps, from 0 to 1')
        check_choice(compile=(compile, (False, True, *MODES)), scheduler=(scheduler, ('cosine', 'plateau')))
        self.weights, self.statistics, self.compiled = weights, statistics, compile
        super().__init__()

    @abstractmethod
    def build(self) -> nn.Module:
        """Build the model with :meth:`build_backbone`; all hyper-parameters are set."""

    @property
    def is_configured(self) -> bool:
        """Whether the hyper-parameters suffice to build the model."""
        return all(self.hparams[name] is not None for name in self.required)

    @property
    def known(self) -> dict[str, Modality]:
        """The modalities of the hyper-parameters by name; a baseline may use only some of them."""
        return as_modalities(self.hparams['modalities'])

    @property
    def modalities(self) -> dict[str, Modality]:
        """The modalities of the model, by name."""
        return modalities_of(self.hparams['backbone'], self.known, self.hparams['backbone_args'] or {})

    @property
    def datamodule(self) -> Any:
        """The trainer's datamodule; None without a trainer or if it has none."""
        return getattr(self._trainer, 'datamodule', None)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Any:
        """Load a task from a checkpoint; only tensors and plain types are unpickled.

        Args:
            checkpoint_path: File or URL.
            map_location: Device of the tensors.
            hparams_file: YAML file of hyper-parameters, if the checkpoint has none.
            strict: Whether the names of all parameters must match.
            weights_only: Whether to reject any other content. With False, code in a checkpoint is run.
            **kwargs: Hyper-parameters to replace. Encoders with a ``class_path`` that is not registered have to be
                given again in ``backbone_args``.

        Raises:
            ValueError: If the hyper-parameters of the checkpoint do not describe this task, or describe a model that
                is much larger than the file.
        """
        loading: Any = nullcontext() if 'backbone_args' in kwargs else checkpoint_encoders(str(checkpoint_path))
        kwargs = {
            'weights': None,
            'statistics': None,
            'compile': False,
        } | kwargs  # of the user, never of the checkpoint
        with loading, limited_size(checkpoint_path):
            try:
                return super().load_from_checkpoint(
                    checkpoint_path, map_location, hparams_file, strict, weights_only=weights_only, **kwargs
                )
            except (TypeError, AttributeError, LookupError) as error:
                raise ValueError(
                    f'{checkpoint_path} does not describe a {cls.__name__} ({error or type(error).__name__}), expected '
                    'the hyper-parameters of one'
                ) from error

    def configure_models(self) -> None:
        """Build the model if all required hyper-parameters are set; otherwise the trainer builds it."""
        given = {name: self.hparams[name] for name in (*self.required, *self.optional, *KINDS, 'sources')}
        self.save_hyperparameters({name: plain_value(type(self), name, value) for name, value in given.items()})
        self.save_hyperparameters(location_as_encoder(self.hparams['modalities'], self.hparams['backbone_args']))
        self._blind, self._units, self._inherited = BlindCount(), {}, Inherited()
        self._watch, self._implausible = Watch(), ImplausibleCounts()
        if self.hparams['modalities'] is not None:
            check_statistics(self.hparams, self.known)
        self.model = self.build() if self.is_configured else None
        if self.model is not None:  # a checkpoint is read without the pre-trained weights
            self.save_hyperparameters({'backbone_args': plain_encoders(self.hparams['backbone_args'])})
        if self.model is not None:
            self._inform_encoders()
        self._fresh = {} if self.model is None else {name: _version(p) for name, p in self.model.named_parameters()}

    def configure_model(self) -> None:
        """Take missing hyper-parameters from the datamodule and build the model, once.

        Lightning calls this before every run.

        Raises:
            ValueError: If a required hyper-parameter is missing, or the datamodule does not fit the model.
            RuntimeError: If *compile* is set and a compiler is missing.
        """
        datamodule = self.datamodule
        strategy = getattr(self._trainer, 'strategy', None)
        if strategy is not None:
            refuse_strategy(strategy)
            secure_checkpoints(strategy)
        plugin = getattr(self._trainer, 'precision_plugin', None)
        if plugin is not None:
            # bf16-true would round bounds by kilometres, and images before they are normalised.
            vars(plugin)['convert_input'] = _unchanged
        if self.model is None:
            self.save_hyperparameters(taken_from(datamodule, self))
            self.configure_models()
            self.configure_losses()
            self.configure_metrics()
        self._check_datamodule(datamodule)
        if getattr(getattr(self._trainer, 'state', None), 'fn', None) == TrainerFn.FITTING:
            rank_zero_info(f'Encoders: {describe_encoders(self)}')
        shard_task(self, strategy)
        if self.compiled:
            if strategy is not None:
                require_compiler(strategy.root_device)
            if self.compiled in CUDA_GRAPHS and getattr(self._trainer, 'accumulate_grad_batches', 1) > 1:
                raise ValueError(
                    f'compile is {self.compiled!r}, whose CUDA graphs overwrite gradients of the previous batch: '
                    'expected accumulate_grad_batches=1, or compile=True'
                )
            self.compile_model()

    def compile_model(self) -> None:
        """Compile those layers of the model that are not compiled yet, if *compile* is set."""
        if self.compiled:
            compile_regions(self.model, mode=None if self.compiled is True else self.compiled)

    def begin_batch(self, *args: Any) -> None:
        """Let CUDA graphs reuse the memory of the results of the previous batch."""
        if self.compiled in CUDA_GRAPHS:
            torch.compiler.cudagraph_mark_step_begin()

    on_train_batch_start = on_validation_batch_start = begin_batch  # type: ignore[assignment]
    on_test_batch_start = on_predict_batch_start = begin_batch  # type: ignore[assignment]

    def teardown(self, stage: str) -> None:
        """Restore the precision plugin, and warn of implausible values."""
        vars(self.trainer.precision_plugin).pop('convert_input', None)
        self.warn_extreme()

    @classmethod
    def validation_score(cls) -> tuple[str, str, str]:
        """Return the logged name of the main validation score, its title, and ``'max'`` or ``'min'``."""
        return str(cls.monitor), 'validation loss', str(cls.mode)

    def configure_callbacks(self) -> list[Callback]:
        """Return a summary of each epoch for the console, if the task is trained."""
        trainer: Any = self.trainer
        if trainer.state.fn != TrainerFn.FITTING or any(isinstance(c, EpochSummary) for c in trainer.callbacks):
            return []
        return [EpochSummary(*self.validation_score())]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Set up AdamW with a cosine schedule after a linear warm-up, or with TorchGeo's plateau.

        Returns:
            Optimiser and scheduler. Biases, norms and the terms of missing bands have no weight decay. Layers of an
            encoder with ``layer_decay`` have their own learning rates.

        Raises:
            ValueError: If the schedule is a cosine and the number of steps is unknown.
        """
        optimizer = make_optimizer(self, self.hparams['lr'], self.hparams['weight_decay'], learning_rates(self))
        if self.hparams['scheduler'] == 'plateau':
            plateau = ReduceLROnPlateau(
                optimizer, mode='min' if self.mode == 'min' else 'max', patience=self.hparams['patience']
            )
            # A validation without labels has no loss: if not strict, Lightning only warns.
            return {
                'optimizer': optimizer,
                'lr_scheduler': {'scheduler': plateau, 'monitor': self.monitor, 'strict': False},
            }
        total = self.trainer.estimated_stepping_batches
        if not 0 < total < math.inf:
            raise ValueError(
                "scheduler='cosine' needs the number of training steps, "
                "expected max_epochs or max_steps of the trainer, or scheduler='plateau'"
            )
        rate = warmup_cosine(int(total), self.hparams['warmup'])
        return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': LambdaLR(optimizer, rate), 'interval': 'step'}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reject weights that are not finite, and extend the optimiser state by the terms of missing bands.

        Older checkpoints lack these terms.

        Raises:
            ValueError: If a tensor is not finite.
        """
        saved = checkpoint.get('state_dict', {})
        refuse_weights(saved, 'the checkpoint')
        extend_optimizer_states(checkpoint, self)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of the gradient to one, or to ``--trainer.gradient_clip_val``; 0 disables it.

        Args:
            optimizer: The optimiser.
            gradient_clip_val: Argument of the trainer.
            gradient_clip_algorithm: ``'norm'`` or ``'value'``.
        """
        value = 1.0 if gradient_clip_val is None else gradient_clip_val
        if isinstance(self.trainer.strategy, FSDPStrategy) and gradient_clip_algorithm != 'value':
            model: Any = self.trainer.model  # only this can compute the norm over all shards
            norm = model.clip_grad_norm_(value or math.inf)
            self._watch.begin(self.global_step + 1, norm, optimizer.param_groups[0]['lr'], self._scaled)
            return
        by_norm = bool(value) and gradient_clip_algorithm != 'value'
        parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
        norm = nn.utils.clip_grad_norm_(parameters, value if by_norm else math.inf)
        self._watch.begin(self.global_step + 1, norm, optimizer.param_groups[0]['lr'], self._scaled)
        if not by_norm:
            self.clip_gradients(optimizer, value, gradient_clip_algorithm)

    def on_train_start(self) -> None:
        """Start to check the gradients."""
        self._watch = Watch()

    def on_before_backward(self, loss: Tensor) -> None:
        """Store the loss of a step for the error message if its gradient is not finite.

        Args:
            loss: Loss, divided by the number of batches over which gradients are accumulated.
        """
        self._watch.loss = loss.detach() * self.trainer.accumulate_grad_batches

    def on_train_batch_end(self, outputs: Any, batch: Sample, batch_idx: int) -> None:
        """Store the loss of a step without the factor of a gradient scaler."""
        loss = outputs['loss'] if isinstance(outputs, Mapping) else outputs
        if self._watch.pending is not None and isinstance(loss, Tensor):
            self._watch.pending = self._watch.pending._replace(loss=loss.detach())

    def on_validation_start(self) -> None:
        """Reject random weights, and stop training if gradients are not finite."""
        self.refuse_random()
        self._watch.check(self._scaled)
        self._blind.warn()

    def on_test_start(self) -> None:
        """Reject random weights."""
        self.refuse_random()

    def on_predict_start(self) -> None:
        """Reject random weights."""
        self.refuse_random()

    def on_train_end(self) -> None:
        """Raise an error if the last step was not finite."""
        self._watch.check(self._scaled)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reject weights that are not finite, so that the last valid checkpoint is kept.

        Raises:
            ValueError: If a weight or a gradient is not finite.
        """
        self._watch.check(self._scaled)
        refuse_weights(checkpoint.get('state_dict') or {}, f'the model after step {self.global_step}')

    @property
    def _scaled(self) -> bool:
        """Whether a gradient scaler skips steps without a finite gradient."""
        return getattr(self.trainer.precision_plugin, 'scaler', None) is not None

    def build_backbone(self) -> models.OmniSat:
        """Build the backbone, load the weights of a checkpoint if configured, and freeze it if configured.

        The baselines ``'utae'``, ``'dual_stream'`` and ``'late_fusion'`` have one token per pixel of
        the label. ``backbone_args={'series': NAME}`` selects the time series of ``'utae'``.

        Raises:
            ValueError: If *backbone* is unknown, or no part of the checkpoint fits.
        """
        hparams = self.hparams
        sizes = hparams['patch_size'], hparams.get('label_gsd')
        backbone = make_backbone(hparams['backbone'], self.known, *sizes, hparams['backbone_args'] or {})
        if self.weights is not None:
            self._inherited = load_weights(backbone, self.weights, self.modalities)
        if self.hparams['freeze_backbone']:
            backbone.requires_grad_(False).eval()
        return backbone

    def train(self, mode: bool = True) -> 'OmniSatTask':
        """Set the mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.model is not None and self.hparams['freeze_backbone']:
            self.model.backbone.eval()
        return self

    def with_image(self, batch: Sample) -> Sample:
        """Return a batch with an invalid image of the model, if a baseline uses none of the modalities in the batch.

        The same object if nothing changes, or no image tells the size of the tiles.
        """
        own = self.modalities
        if 'window' in batch or any(modality.image_key in batch for modality in own.values()):
            return batch
        other = next((modality for modality in self.known.values() if modality.image_key in batch), None)
        if other is None:
            return batch
        modality, image = next(iter(own.values())), batch[other.image_key]
        size = [max(1, half_up(side * other.gsd / modality.gsd)) for side in image.shape[-2:]]
        lead = (len(image), 1) if modality.temporal else (len(image),)
        added = {
            modality.image_key: image.new_full((*lead, len(modality.bands), *size), torch.nan),
            modality.dates_key: torch.zeros(len(image), 1, dtype=torch.int64, device=image.device),
            modality.valid_key: torch.zeros(len(image), 1, dtype=torch.bool, device=image.device),
        }
        return {**batch, **added}

    def renormalise(self, batch: Sample) -> Sample:
        """Return the batch in the units and precision of the model; the same object if nothing changes."""
        self._warn_without_coordinates(batch)
        source = getattr(self.datamodule, 'latest', None)
        for transform in self._units.get(source, ()):
            batch = transform(batch)
        for name, modality in self.modalities.items():
            if modality.image_key in batch:
                self._implausible.add(name, batch[modality.image_key], batch[modality.valid_key])
        dtype = next((p.dtype for p in self.model.parameters()), torch.float32)
        other = {key: value.to(dtype) for key, value in batch.items() if _is_image(key, value) and value.dtype != dtype}
        return {**batch, **other} if other else batch

    def drop_location(self, batch: Sample) -> Sample:
        """Return a training batch in which the location of some samples is withheld from the fusion.

        Encoders that take ``coordinates`` themselves keep them.
        """
        if not self.has_location(batch):
            return batch
        like = batch[COORDINATES]
        kept = torch.rand(len(like), 1, dtype=torch.float32, device=like.device) >= self.hparams['location_dropout']
        return {**batch, LOCATION_VALID: kept & batch.get(LOCATION_VALID, torch.ones_like(kept))}

    def has_location(self, batch: Mapping[str, Tensor]) -> bool:
        """Return whether the model has the location as a modality, and a batch has coordinates."""
        return self.model.backbone.location is not None and COORDINATES in batch

    def _warn_without_coordinates(self, batch: Mapping[str, Tensor]) -> None:
        backbone = self.model.backbone
        if COORDINATES not in batch and (backbone.location is not None or backbone.context is not None):
            warnings.warn(
                'the model uses the location, but a batch has no coordinates: expected data with bounds and a CRS',
                stacklevel=3,
            )

    def statistics_of(self, measured: Mapping[str, Any], names: Collection[str]) -> tuple[str | None, Statistics]:
        """Choose the statistics that images of one source are normalised with.

        Args:
            measured: Statistics of the datamodule: ``mean`` and ``std``, None if they were not computed,
                ``data``, its class name, and ``source``, its name in a mixture.
            names: Modalities of the images.

        Returns:
            Name of the source, None if the model has only one, and mean and standard deviation by
            modality, without modalities of unknown statistics.

        Raises:
            ValueError: If the source is ambiguous.
        """
        mean, sources = self.hparams['mean'], self.hparams['sources']
        if sources and (mean is None or mean == first_of(sources)['mean']):
            source = measured.get('source')
            wanted = self.statistics or (source if source in sources else None)
            return choose(sources, measured, [name for name in names if name in self.known], wanted)
        if self.statistics is not None:
            raise ValueError(
                f'statistics is {self.statistics!r}, but the model was trained on a single source: expected the '
                'checkpoint or the weights of a model that was trained on a mixture'
            )
        stored = {kind: self.hparams[kind] or {} for kind in KINDS}
        return None, {kind: {n: stored[kind][n] for n in names if all(n in stored[k] for k in KINDS)} for kind in KINDS}

    def make_embedder(
        self, subsets: Sequence[tuple[str, ...]], dim: int, gsd: float, files: Sequence[Path], weights: str
    ) -> Embedder:
        """Return the embeddings of the model: its head, or else principal components of its features.

        Rank 0 fits the components if none of the *files* exists, and writes them to the first writable one.

        Args:
            subsets: Subsets of the modalities whose embedding is compared with that of all.
            dim: Number of components.
            gsd: GSD of the components in metres.
            files: Possible files of the components.
            weights: Digest of the weights.

        Raises:
            ValueError: If the file has other components or another GSD, or belongs to other weights.
        """
        return make_embedder(self, subsets, dim, gsd, files, weights)

    def predict_embeddings(self, batch: Sample, batch_idx: int) -> dict[str, Tensor | None]:
        """Return the embeddings of a batch, computed by :attr:`embedder`.

        Returns:
            ``embeddings`` ``(B, D, H, W)``, ``seen``, see :func:`.seen_bits`, and ``bounds`` and ``window`` as in the
            batch or None.
        """
        assert self.embedder is not None
        windows = batch.get('window')
        size = None if windows is None else (int(windows[0, 2]), int(windows[0, 3]))
        if size is None or any(modality.image_key in batch for modality in self.modalities.values()):
            embeddings = self.embedder(self.renormalise(batch), size)
            refuse_output(embeddings, batch, batch_idx, self.model)
        else:
            count = self.embedder.channels
            embeddings = torch.zeros(len(batch['window']), count, *size, dtype=torch.float32, device=self.device)
        seen = seen_bits(batch, self.modalities, (embeddings.shape[-2], embeddings.shape[-1]))
        bounds = batch.get('bounds') if windows is None else None
        return {'embeddings': embeddings, 'seen': seen, 'window': windows, 'bounds': bounds}

    def zero_loss_over_all_parameters(self) -> Tensor | float:
        """Return zero, as a sum over every trained parameter if there are several ranks.

        A modality may be absent from the batch of one rank and present in another's. With this
        term in the loss, every parameter has a gradient on every rank, as
        DistributedDataParallel expects; it is zero where the modality is absent.
        """
        if self.trainer.world_size == 1:
            return 0.0
        return 0.0 * torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum()

    def warn_without_modalities(self, batch: Mapping[str, Tensor]) -> None:
        """Warn, once per rank, of samples without any modality."""
        if not self._blind.warned:
            self._blind.add(available(batch, self.modalities).any(-1), self.modalities)

    def warn_extreme(self) -> None:
        """Warn of implausible values, which count as not observed, and of samples without any modality."""
        self._implausible.warn()
        self._blind.warn()

    def show(self, tag: str, draw: Callable[[], Figure]) -> None:
        """Add a figure to the loggers that accept figures, or else write it as PNG. Call this on every rank.

        Args:
            tag: Name of the figure, such as ``'val/0'``. A file is called
                ``figures/<tag>/<step>.png`` below :attr:`folder`.
            draw: Function that draws it, called on rank 0 only.
        """
        folder = self.folder
        if not self.trainer.is_global_zero:
            return
        try:
            figure = draw()
        except RGBBandsMissingError:
            return
        log_figure(figure, tag, self.global_step, self.loggers, folder)
        plt.close(figure)

    @property
    def folder(self) -> Path:
        """Output folder: that of the first logger, or of the trainer. Read this on every rank."""
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

    def check_classes(self, who: str, datamodule: Any) -> None:
        """Validate the classes of a datamodule; a task without classes accepts any."""

    def refuse_random(self) -> None:
        """Raise an error if weights were neither trained nor loaded.

        Random weights cannot be tested or used for prediction; a random head cannot be validated either.
        A random backbone can be validated, as the reference of pre-training.
        """
        trainer: Any = self._trainer
        state = getattr(trainer, 'state', None)
        stages = ('validate', 'test', 'predict') if self.heads_count else ('test', 'predict')
        if self.allow_random or state is None or state.fn not in stages:
            return
        now = {name: _version(parameter) for name, parameter in self.model.named_parameters()}
        fresh = {name for name, version in now.items() if self._fresh.get(name) == version}
        heads = {name for name in now if not name.startswith('backbone.')}
        if fresh == set(now) and self.weights is None:
            what = f'the model of {type(self).__name__} has random weights'
        elif self.heads_count and heads and heads <= fresh:
            parts = ', '.join(dict.fromkeys(name.split('.')[0] for name in now if name in heads))
            what = f'{parts} of {type(self).__name__} has random weights (weights are for the backbone alone)'
        else:
            return
        raise ValueError(
            f'{what}, so {state.fn.value} is not meaningful: expected --ckpt_path FILE of a trained model, or in '
            'Python load_from_checkpoint, load_state_dict or fit first'
        )

    def _add_facts(self, modalities: Mapping[str, Modality]) -> None:
        """Add facts about the modalities that an older checkpoint lacks; the model does not change."""
        if modalities == self.known:
            return
        args = dict(self.hparams['backbone_args'] or {})
        args |= {'series': next(iter(self.modalities))} if self.hparams['backbone'] == 'utae' else {}
        self.save_hyperparameters(
            {'modalities': plain_value(type(self), 'modalities', modalities), 'backbone_args': args or None}
        )

    def _check_datamodule(self, datamodule: Any) -> None:
        """Validate a datamodule and set up re-normalisation."""
        self._units = {}
        declared = getattr(datamodule, 'modalities', None)
        if declared is None:
            return
        who, theirs, ours = type(datamodule).__name__, as_modalities(declared), self.known
        check_modalities(who, theirs, ours)
        self._add_facts({name: ours[name].joined(theirs.get(name, ours[name])) for name in ours})
        self.check_classes(who, datamodule)
        for name in self.required:
            if name in self.adaptable or self.trainer.predicting:
                continue
            value = plain_value(type(self), name, getattr(datamodule, name, None))
            if value not in (None, self.hparams[name]):
                raise ValueError(f'{name} of {who} is {value}, but the model was built for {self.hparams[name]}')
        self._set_statistics(measured_statistics(datamodule), theirs)

    def _set_statistics(self, measured: dict[str | None, dict[str, Any]], theirs: Mapping[str, Modality]) -> None:
        """Set the statistics of the model, and the transforms that re-normalise images of each source."""
        mixed = {source: entry for source, entry in measured.items() if source is not None}
        if any(self.hparams[kind] is None for kind in KINDS):
            self.save_hyperparameters(initial_statistics(measured, self._inherited, self.statistics))
            self.statistics = None  # from here on the model has the chosen statistics
        elif mixed and not self.hparams['sources'] and self.hparams['mean'] == first_of(mixed)['mean']:
            self.save_hyperparameters({'sources': mixed})  # an older checkpoint lacks sources
        self._inform_encoders()
        chosen = {}
        for source, entry in measured.items():
            names = [name for name in theirs if mixed == {} or name in entry['mean']]
            chosen[source], own = self.statistics_of({**entry, 'source': source}, names)
            if any(entry[kind] is None for kind in KINDS):
                continue
            other = [theirs[name] for name in own['mean'] if any(entry[k].get(name) != own[k][name] for k in KINDS)]
            if other:
                self._units[source] = (Denormalize(other, entry['mean'], entry['std']), Normalize(other, **own))
        if elsewhere := {source: name for source, name in chosen.items() if name is not None and name != source}:
            known = ', '.join(self.hparams['sources'])
            parts = '; '.join(f'{"images" if source is None else source}: {name}' for source, name in elsewhere.items())
            rank_zero_info(f'Images are normalised with the statistics of these sources, of {known}: {parts}')

    @property
    def cached_modalities(self) -> frozenset[str]:
        """Modalities whose frozen encoders cache embeddings by the values of pixels, which must not be augmented."""
        encoders = getattr(getattr(self.model, 'backbone', None), 'encoders', {})
        return frozenset(name for name, encoder in encoders.items() if getattr(encoder, 'is_cached', False))

    def _inform_encoders(self) -> None:
        """Set the statistics of encoders that convert images to the units of their pre-trained weights."""
        if any(self.hparams[kind] is None for kind in KINDS):
            return
        inform_encoders(self.model.backbone.encoders, self.hparams)


def _unchanged(batch: Any) -> Any:
    """Return the batch unchanged; :meth:`OmniSatTask.renormalise` casts its images."""
    return batch


def _is_image(key: str, value: Any) -> bool:
    return key.startswith('image') and isinstance(value, Tensor) and value.is_floating_point()


def _version(parameter: nn.Parameter) -> tuple[int, int]:
    """Return identity and write count of a parameter, which change if it is trained or loaded."""
    return id(parameter), 0 if parameter.is_inference() else parameter._version
