"""nanoGPT's model, from a checkout. Needs the standard library only, so that any interpreter can have it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def module_of(folder: str | Path) -> ModuleType:
    """Its model.py, as a module of another name than ours."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks there
    spec.loader.exec_module(module)
    return module
