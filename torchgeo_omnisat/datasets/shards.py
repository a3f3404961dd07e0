# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Shards: samples of any dataset in a few large files, on disk or in an object store.

The files are litdata chunks. Each sample is stored as bytes, so samples may lack modalities and
have time series of any length, which litdata's encoding of tensors does not allow.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torchgeo.datasets.utils import Sample

from ..modality import as_modalities
from ..utils.reading import load_json, parse_json, refuse_special
from .base import MultimodalDataset
from .io.links import refuse_outside

#: Description of the shards in a directory.
FILE = 'shards.json'
#: File names of shards.
_SHARD = re.compile(r'[A-Za-z0-9_-]+\.bin')
#: Serialized PyTorch tree of a sample: one leaf, which is not of a class.
_SPEC = [1, {'type': None, 'context': None, 'children_spec': []}]
#: Values in an index other than None, and keys whose values may be integers.
_CONFIG: Mapping[str, Any] = {'data_format': ['bytes'], 'item_loader': 'PyTreeLoader', 'types': 'bytes'}
_NUMBERS = ('chunk_size', 'chunk_bytes')
#: Keys of pixels of 64-bit integers.
_INTEGERS = ('mask', 'instances')
#: Smaller data types for images and masks, used where they are exact.
_NARROW = (torch.uint8, torch.int16, torch.float16)


def encode_sample(sample: Sample) -> bytes:
    """Return a sample as bytes, with images and masks in the smallest data type that is exact."""
    return save({key: _narrowed(key, value).contiguous() for key, value in sample.items()})


def decode_sample(data: bytes) -> Sample:
    """Invert :func:`encode_sample`."""
    return {key: _widened(key, value) for key, value in load(data).items()}


def _wide(key: str) -> torch.dtype | None:
    """Return the data type of a value that may be stored in a smaller one; None for other values."""
    return torch.float32 if key.startswith('image_') else torch.int64 if key in _INTEGERS else None


def _widened(key: str, value: Tensor) -> Tensor:
    # A mask in single or double precision has continuous values; integers are stored in the types of _NARROW.
    wide = _wide(key)
    return value if wide is None or value.dtype in (torch.float32, torch.float64) else value.to(wide)


def _narrowed(key: str, value: Tensor) -> Tensor:
    if key in _INTEGERS and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    if value.dtype != _wide(key):
        return value
    for dtype in _NARROW:
        small = value.to(dtype)
        if torch.allclose(small.to(value.dtype), value, rtol=0, atol=0, equal_nan=True):
            return small
    return value


def write_split(samples: Iterable[bytes], folder: Path, megabytes: float) -> list[int]:
    """Write the shards of a split, of about so many *megabytes*; return the number of samples in each."""
    writer = _litdata('streaming.writer').BinaryWriter(str(folder), chunk_bytes=round(megabytes * 1e6))
    for index, sample in enumerate(samples):
        writer[index] = sample
    writer.done()
    writer.merge(1)
    return [chunk['chunk_size'] for chunk in load_json(folder / 'index.json')['chunks']]


def read_description(root: str) -> dict[str, Any]:
    """Read and validate ``shards.json``."""
    address = f'{os.path.expanduser(root).rstrip("/")}/{FILE}'
    try:
        described: dict[str, Any] = _read_json(address)
        as_modalities(described['modalities'])
        for split, lengths in described['shards'].items():
            if not (isinstance(lengths, list) and all(type(length) is int and length > 0 for length in lengths)):
                raise ValueError(f'shards of {split!r} are {lengths!r}, expected the number of samples of each')
        if not isinstance(described['labels'], list | None):
            raise ValueError(f'labels are {described["labels"]!r}, expected names')
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f'{address} cannot be read ({error!r}), expected what shard wrote') from error
    except FileNotFoundError:
        raise ValueError(
            f'there is no {address}, expected what `python -m torchgeo_omnisat shard --output {root}` writes'
        ) from None
    return described


def check_index(address: str, lengths: Sequence[int] | None = None) -> None:
    """Validate that an index of shards has the content that ``shard`` writes, with *lengths* if they are known.

    litdata would unpickle samples of another data format, import the classes that a data spec names, and read shards of
    other directories.
    """
    index = f'{address.removeprefix("local:")}/index.json'
    expected = 'expected what shard wrote'
    try:
        content = _read_json(index)
        chunks, config = list(content['chunks']), dict(content['config'])
        names, sizes = [chunk['filename'] for chunk in chunks], [chunk['chunk_size'] for chunk in chunks]
        spec = parse_json(config['data_spec'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f'{index} cannot be read ({error!r}), {expected}') from error
    if strange := [name for name in names if not isinstance(name, str) or not _SHARD.fullmatch(name)]:
        raise ValueError(f'{index} names the shard {strange[0]!r}, expected files of its folder')
    for chunk in chunks:
        file, size = os.path.join(os.path.dirname(index), chunk['filename']), chunk.get('chunk_bytes')
        if type(size) is int and os.path.isfile(file) and os.path.getsize(file) < size:  # litdata would wait for it
            raise ValueError(f'{file} has {os.path.getsize(file)} bytes, expected {size}: it is truncated')
    if spec != _SPEC:
        raise ValueError(f'{index} states the data_spec {config["data_spec"]!r}, expected {_SPEC}')
    for key, value in config.items():
        numbers = key in _NUMBERS and type(value) is int
        if key != 'data_spec' and value != _CONFIG.get(key) and not numbers:
            raise ValueError(f'{index} states {key} {value!r}, expected {_CONFIG.get(key)!r}')
    if lacking := [key for key in ('data_format', 'item_loader') if key not in config]:
        raise ValueError(f'{index} states no {lacking[0]}, expected {_CONFIG[lacking[0]]!r}')
    if lengths is not None and sizes != list(lengths):
        raise ValueError(f'{index} lists shards with {sizes} samples, expected {list(lengths)} as in {FILE}')


def _read_json(address: str) -> Any:
    import fsspec

    if '://' not in address:
        refuse_special(address, 'a JSON file')
    with fsspec.open(address) as file:
        return parse_json(file.read())


class ShardedDataset(MultimodalDataset):
    """Dataset of one split of the shards written by ``python -m torchgeo_omnisat shard``.

    A shard in an object store is downloaded to *cache* on the first access to one of its samples.

    Args:
        root: Directory, or a URL supported by litdata, such as ``s3://bucket/folder``.
        split: ``'train'``, ``'val'`` or ``'test'``.
        cache: Directory for downloaded shards; None for that of litdata.
        allow_outside: Whether symbolic links in *root* may lead out of it.

    Raises:
        ValueError: If there are no shards of this split.
    """

    def __init__(self, root: str, split: str = 'train', cache: str | None = None, allow_outside: bool = False) -> None:
        root = os.path.expanduser(root)
        refuse_outside(root, (FILE, split), allow_outside)
        description = read_description(root)
        if split not in description['shards']:
            raise ValueError(f'split is {split!r}, expected one of {list(description["shards"])} that {root} holds')
        self.root, self.path, self.split, self.cache = root, Path(root), split, cache
        self.labels = description['labels']
        self.modalities = as_modalities(description['modalities'])
        #: CRS of ``bounds``; None if samples have no location.
        self.crs = description.get('crs')
        #: Number of samples in each shard.
        self.lengths = tuple(description['shards'][split])
        self._opened: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return sum(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample as it was written."""
        if not -len(self) <= index < len(self):
            raise IndexError(f'index is {index}, expected less than {len(self)}')
        if self._opened is None or self._opened[0] != os.getpid():
            address = f'{self.root.rstrip("/")}/{self.split}'
            check_index(address, self.lengths)
            where = None if self.cache is None else str(Path(self.cache).expanduser() / self.split)
            self._opened = os.getpid(), _litdata().StreamingDataset(address, cache_dir=where)
        try:
            return decode_sample(bytes(self._opened[1][index % len(self)]))
        except Exception as error:  # a damaged shard raises any error of litdata and safetensors
            if isinstance(error, OSError):
                raise
            where = f'sample {index} of {self.split!r} in {self.root}'
            raise ValueError(f'{where} cannot be read ({error!r}), expected what shard wrote') from error

    def __getstate__(self) -> Mapping[str, Any]:
        """Return the state without open files."""
        return {**self.__dict__, '_opened': None}


def _litdata(part: str = '') -> Any:
    from importlib import import_module

    os.environ.setdefault('LITDATA_DISABLE_VERSION_CHECK', '1')
    try:
        return import_module(f'litdata.{part}' if part else 'litdata')
    except ImportError as error:
        raise ImportError("shards need litdata: pip install 'torchgeo_omnisat[shards]'") from error
