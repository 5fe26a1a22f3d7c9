"""Photographs for training: reading, cropping, splitting and batches."""

from context_encoder.data.crops import Crops, contents, load_crops, same_contents
from context_encoder.data.decoded import DecodedCache
from context_encoder.data.folder import (
    DEFAULT_CACHE_BYTES,
    PhotoFolder,
    Sample,
    embedded_photos,
    split_photos,
)
from context_encoder.data.images import (
    SUFFIXES,
    Scan,
    UnreadableImage,
    find_images,
    list_images,
    read_image,
    read_square,
    scan_images,
    to_input,
)
from context_encoder.data.loader import Batch, collate, end_workers, make_loader, sample_loader
from context_encoder.data.replacing import DataError, Readable, Replacements
from context_encoder.data.sampler import SampleStream
from context_encoder.data.shards import ImageFile, ShardImage
from context_encoder.data.storage import StorageError

__all__ = [
    "DEFAULT_CACHE_BYTES",
    "SUFFIXES",
    "Batch",
    "Crops",
    "DataError",
    "DecodedCache",
    "ImageFile",
    "PhotoFolder",
    "Readable",
    "Replacements",
    "Sample",
    "SampleStream",
    "Scan",
    "ShardImage",
    "StorageError",
    "UnreadableImage",
    "collate",
    "contents",
    "embedded_photos",
    "end_workers",
    "find_images",
    "list_images",
    "load_crops",
    "make_loader",
    "read_image",
    "read_square",
    "same_contents",
    "sample_loader",
    "scan_images",
    "split_photos",
    "to_input",
]
