"""Say what this machine and installation can do: `python -m scripts.doctor`. Exit code 1 when something is missing."""

import importlib.util
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from configs import entry

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent


@entry
def main(argv: Sequence[str]) -> int:
    if argv:
        raise ValueError("python -m scripts.doctor takes no arguments")
    problems = 0
    for good, what, found in checks():
        problems += not good
        print(f"{'ok  ' if good else 'FAIL'}  {what:<12}  {found}")
    print("ready: make train" if not problems else f"{problems} to mend first")
    return int(problems > 0)


def checks() -> Iterator[tuple[bool, str, str]]:
    """(whether all is well, what was looked at, what was found)."""
    yield sys.version_info >= (3, 11), "python", f"{platform.python_version()} (3.11 or newer is needed)"
    missing = []
    for name in dependencies():
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    yield not missing, "packages", f"missing: {', '.join(missing)}" if missing else "all there"
    foreign = [name for name in ("configs", "data", "model", "loss", "trainer", "eval") if not _ours(name)]
    told = f"{', '.join(foreign)} would come from another package; use a virtual environment of its own"
    yield not foreign, "imports", told if foreign else "from this checkout"
    if "torch" not in missing:
        yield from torch_checks()
    free = shutil.disk_usage(ROOT).free / 2**30
    yield free > 2, "disk", f"{free:.0f} GiB free here (the default run needs about 1)"


def dependencies(*extras: str) -> list[str]:
    """Names of the packages that Thimble needs, and that `extras` add, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    added = [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [re.split(r"[<>=!~ \[]", line)[0] for line in [*project["dependencies"], *added]]


def _ours(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None and Path(spec.origin).is_relative_to(ROOT)


def torch_checks() -> Iterator[tuple[bool, str, str]]:
    import torch

    from trainer.distributed import Place, pick_device
    from trainer.meters import measured_peak
    from trainer.precision import DTYPES, Name, resolve

    device = pick_device("auto", Place())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    yield True, "torch", f"{torch.__version__}, {torch.get_num_threads()} CPU threads"
    yield True, "device", f"{device.type} ({name})"
    chosen = resolve("auto", device)
    names: list[Name] = sorted({"fp32", chosen})
    speeds = {key: measured_peak(device, DTYPES[key]) / 1e9 for key in names}
    told = ", ".join(f"{key} {speed:,.0f} GFLOP/s" for key, speed in speeds.items())
    yield True, "precision", f"auto is {chosen}; matrix products here: {told}"
    if device.type == "cuda":
        yield from gpu_checks(device, DTYPES[chosen])


def gpu_checks(device: "torch.device", dtype: "torch.dtype") -> Iterator[tuple[bool, str, str]]:
    """What a run asks of a GPU, tried on small shapes against what torch does without."""
    from model import ModelConfig, compiler_fails, float8_fails, tiles_fail

    reason = compiler_fails(device)
    yield reason is None, "compile", f"blocks will run eagerly: {reason}" if reason else "torch.compile works"
    if reason is None:
        reason = tiles_fail(ModelConfig(dim=512, heads=8, kv_heads=4, context=512), device, dtype)
        told = (
            f"a dense mask will keep documents apart: {reason}" if reason else "FlexAttention agrees with a dense mask"
        )
        yield reason is None, "attention", told
    reason = float8_fails(device)
    yield True, "train.fp8", f"not here: {reason}" if reason else "products in float8 are near those in fp32"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
