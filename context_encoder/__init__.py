"""Context encoders: feature learning by filling holes in photographs, and inpainting.

``python -m context_encoder.train`` trains, ``python -m context_encoder.inpaint`` fills. The names
below are imported on first use, which keeps importing the package cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from context_encoder.config import TrainConfig
    from context_encoder.inpainting import HoleFiller, Inpainted, Inpainter
    from context_encoder.training import run_training
    from context_encoder.utils.version import __version__

__all__ = ["HoleFiller", "Inpainted", "Inpainter", "TrainConfig", "__version__", "run_training"]

_WHERE = {
    "HoleFiller": "context_encoder.inpainting",
    "Inpainted": "context_encoder.inpainting",
    "Inpainter": "context_encoder.inpainting",
    "TrainConfig": "context_encoder.config",
    "__version__": "context_encoder.utils.version",
    "run_training": "context_encoder.training",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
