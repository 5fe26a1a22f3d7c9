"""Interface of mask samplers, and the random words of a sample."""

from __future__ import annotations

import copy
import zlib

import torch
from torch import Tensor, nn

from cekernels import philox4x32

MIN_SIZE, MAX_SIZE = 32, 1024


class MaskSampler(nn.Module):
    """Draws the mask of a sample as a function of ``(seed, epoch, index)`` alone.

    All arithmetic is exact, so the same sample gets the same mask on every device, in every
    process, alone or in a batch. There is no random state, no work on the host and no
    synchronization: samplers can be compiled with ``fullgraph=True`` and captured in a CUDA graph.
    ``.to(device)`` moves the tables; they are not part of the state dict.

    Random words come from Philox-4x32 with the key ``(seed low, seed high)`` and the counter
    ``(index, epoch, stream, block)``, all 32 bits: ``stream`` is a hash of the sampler's
    ``kind``, ``block`` numbers the quadruples of words that a sample uses.
    """

    #: Names the stream of random words.
    kind: str

    def __init__(self, size: int, seed: int) -> None:
        """
        Args:
            size: side S of the square masks in pixels, 32 to 1024.
            seed: 0 to 2**64 - 1.

        Raises:
            ValueError: an argument is out of its range.
        """
        super().__init__()
        if not MIN_SIZE <= size <= MAX_SIZE:
            raise ValueError(f"size must be {MIN_SIZE} to {MAX_SIZE} pixels, got {size}")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed must be in 0..2**64 - 1, got {seed}")
        self.size = size
        self.seed = seed
        self._stream = zlib.crc32(self.kind.encode())

    def forward(self, epoch: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of a batch.

        Args:
            epoch: int64 ``(B,)``.
            index: int64 ``(B,)``, the number of the sample in the data set; same device. Both
                count modulo 2**32.

        Returns:
            mask, bool ``(B, 1, S, S)``, True where the image is missing; area, int64
            ``(B,)``, the number of missing pixels.

        Raises:
            TypeError, ValueError: a wrong dtype, shape or device.
        """
        for name, value in (("epoch", epoch), ("index", index)):
            if value.dtype != torch.int64 or value.dim() != 1:
                raise TypeError(
                    f"{name} must be an int64 tensor of shape (B,), "
                    f"got {value.dtype} {tuple(value.shape)}"
                )
        if epoch.shape != index.shape or epoch.device != index.device:
            raise ValueError(
                "epoch and index must have the same length and device, got "
                f"{tuple(epoch.shape)} on {epoch.device} and {tuple(index.shape)} on {index.device}"
            )
        for table in self.buffers():
            if table.device != index.device:
                raise ValueError(
                    f"the sampler is on {table.device}, epoch and index on {index.device}; "
                    "move the sampler with .to(device)"
                )
        return self.draw(epoch, index)

    def draw(self, epoch: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`forward` without the checks; each kind of mask defines it."""
        raise NotImplementedError

    def with_seed(self, seed: int) -> MaskSampler:
        """A sampler of the same masks with another seed; it shares the tables."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def words(self, epoch: Tensor, index: Tensor, count: int) -> Tensor:
        """``count`` random words per sample: int64 ``(B, count)``, in [0, 2**32)."""
        return sample_words(self.seed, self._stream, epoch, index, count)

    def extra_repr(self) -> str:
        return f"size={self.size}, seed={self.seed}"


def sample_words(seed: int, stream: int, epoch: Tensor, index: Tensor, count: int) -> Tensor:
    """``count`` random words per sample, with the key and counter of :class:`MaskSampler`.

    Args:
        seed: 0 to 2**64 - 1.
        stream: separates different draws for the same samples.
        epoch, index: int64 ``(B,)``.
        count: number of words.

    Returns:
        int64 ``(B, count)``, in [0, 2**32).
    """
    block = torch.arange(-(-count // 4), device=index.device)
    counter = (index[:, None], epoch[:, None], torch.full_like(block, stream), block)
    words = torch.stack(philox4x32(counter, (seed, seed >> 32)), dim=-1)
    return words.flatten(1)[:, :count]
