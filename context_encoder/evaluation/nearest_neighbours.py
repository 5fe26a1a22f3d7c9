"""Exact nearest-neighbour search among crops of photographs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from context_encoder.data import Crops, ImageFile, contents
from context_encoder.evaluation.descriptors import Descriptor

__all__ = [
    "Neighbours",
    "check_candidates",
    "same_photographs",
]


class Neighbours:
    """Exact search among candidates that excludes the query's own photograph.

    All neighbours are different photographs; each is represented by its nearest crop.

    Args:
        candidates: the crops to search.
        descriptor: built for these candidates.
    """

    def __init__(self, candidates: Crops, descriptor: Descriptor) -> None:
        self.candidates = candidates
        self.descriptor = descriptor
        self._contents = [contents(path) for path in candidates.paths]

    def __call__(
        self, image: Tensor, mask: Tensor, paths: Sequence[ImageFile], k: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The nearest candidates of each query, nearest first; ties are in candidate order.

        Args:
            image, mask: see :class:`Descriptor`.
            paths: the files of the queries. Candidates from files with the same bytes are excluded.
            k: number of neighbours.

        Returns:
            Indices of the candidates, int64 ``(B, k)``, and their distances, float32 ``(B, k)``.

        Raises:
            ValueError: fewer than ``k`` photographs are left for a query.
        """
        distances = self.descriptor.distances(image, mask)
        numbers = torch.empty(len(image), k, dtype=torch.int64)
        for i, (order, path) in enumerate(
            zip(distances.argsort(dim=1, stable=True).tolist(), paths, strict=True)
        ):
            best: dict[str, int] = {}  # nearest crop per photograph
            for number in order:
                if self._contents[number] != contents(path):
                    best.setdefault(self._contents[number], number)
                if len(best) == k:
                    break
            else:
                raise _too_few(path, len(best), k)
            numbers[i] = torch.tensor(list(best.values()))
        return numbers, distances.gather(1, numbers)


def same_photographs(queries: Crops, candidates: Crops) -> int:
    """Number of pairs of a query and a candidate from one photograph, which search excludes."""
    found = Counter(contents(path) for path in candidates.paths)
    return sum(found[contents(path)] for path in queries.paths)


def check_candidates(queries: Crops, candidates: Crops, k: int = 1) -> None:
    """ValueError if a query has fewer than ``k`` other photographs to search."""
    searched = {contents(path) for path in candidates.paths}
    for path in queries.paths:
        left = len(searched - {contents(path)})
        if left < k:
            raise _too_few(path, left, k)


def _too_few(path: ImageFile, left: int, k: int) -> ValueError:
    return ValueError(
        f"{left} of the photographs to search are others than {path}, {k} are needed; give "
        "`candidates` a folder with more photographs"
    )
