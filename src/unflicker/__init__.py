"""unflicker makes networks that were trained on single images steady on video."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ROOMS = {
    "stabilize": "model",
    "StabilizedModel": "model",
    "EMA": "stabilizers",
    "LearnedEMA": "stabilizers",
    "Gaussian": "stabilizers",
    "Controlled": "stabilizers",
    "Spatial": "stabilizers",
    "Aligned": "stabilizers",
    "Merged": "stabilizers",
    "Chain": "stabilizers",
    "Controller": "controllers",
    "save_adapter": "checkpoint",
    "load_adapter": "checkpoint",
    "load_task": "tasks",
    "TransformInvariance": "regularizers",
    "SparseJacobian": "regularizers",
    "Stability": "regularizers",
    "NoiseStability": "regularizers",
    "weight_of": "regularizers",
    "ratio_of": "regularizers",
    "finetune": "finetuning",
    "InputError": "checks",
}
_MODULES = {"corruptions", "data", "export", "losses", "metrics", "state", "training", "video"}
__all__ = ["__version__", *_ROOMS]

if TYPE_CHECKING:
    from unflicker.checkpoint import load_adapter as load_adapter
    from unflicker.checkpoint import save_adapter as save_adapter
    from unflicker.checks import InputError as InputError
    from unflicker.controllers import Controller as Controller
    from unflicker.finetuning import finetune as finetune
    from unflicker.model import StabilizedModel as StabilizedModel
    from unflicker.model import stabilize as stabilize
    from unflicker.regularizers import (
        NoiseStability as NoiseStability,
    )
    from unflicker.regularizers import (
        SparseJacobian as SparseJacobian,
    )
    from unflicker.regularizers import (
        Stability as Stability,
    )
    from unflicker.regularizers import (
        TransformInvariance as TransformInvariance,
    )
    from unflicker.regularizers import (
        ratio_of as ratio_of,
    )
    from unflicker.regularizers import (
        weight_of as weight_of,
    )
    from unflicker.stabilizers import (
        EMA as EMA,
    )
    from unflicker.stabilizers import (
        Aligned as Aligned,
    )
    from unflicker.stabilizers import (
        Chain as Chain,
    )
    from unflicker.stabilizers import (
        Controlled as Controlled,
    )
    from unflicker.stabilizers import (
        Gaussian as Gaussian,
    )
    from unflicker.stabilizers import (
        LearnedEMA as LearnedEMA,
    )
    from unflicker.stabilizers import (
        Merged as Merged,
    )
    from unflicker.stabilizers import (
        Spatial as Spatial,
    )
    from unflicker.tasks import load_task as load_task


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that `import unflicker` and `unflicker --help` stay quick."""
    if name in _MODULES:
        return importlib.import_module(f"unflicker.{name}")
    if name not in _ROOMS:
        raise AttributeError(f"module 'unflicker' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"unflicker.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
