"""The Python source of installed packages, found without importing them."""

import difflib
import importlib.metadata
import importlib.util
import os
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from ..config import SourceConfig
from ..errors import DataError
from .files import Part, excluded

SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"})
"""Folders that a `python` source never enters: tests, and (inside the standard library) other packages."""


_LICENSE_CHARACTERS = 100  # some packages put the whole text where its name should be


def package_paths(package: str) -> list[Path]:
    """Folders, or the one file, that hold a package's source; found without importing it.

    Raises DataError, with the nearest name, when it is missing or has no Python source.
    """
    if package == "stdlib":
        return [Path(sysconfig.get_path("stdlib"))]
    top, *inner = package.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        known = [*sys.stdlib_module_names, *importlib.metadata.packages_distributions()]
        near = difflib.get_close_matches(top, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "install it, or take it out of packages"
        raise DataError(f"package {package!r} is not installed: {hint}")
    if spec.submodule_search_locations is None:
        paths = [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") and not inner else []
    else:
        roots = [Path(root).joinpath(*inner) for root in spec.submodule_search_locations]
        paths = [root for root in roots if root.is_dir()]
        paths += [file for root in roots if inner and (file := root.with_suffix(".py")).is_file()]
    if not paths:
        raise DataError(f"package {package!r} has no Python source files")
    return paths


def python_files(root: Path) -> Iterator[Path]:
    """Every `.py` file below a folder, tests left out."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
        yield from (Path(folder, file) for file in sorted(files) if file.endswith(".py"))


def python_parts(source: str, config: SourceConfig) -> list[tuple[Part, int]]:
    """(file, bytes): package after package, each sorted by path; the package is a label."""
    found: dict[str, tuple[Part, int]] = {}
    for package in config.packages:
        name = package.replace(".", "/")
        sized = []
        for root in package_paths(package):
            for path in [root] if root.is_file() else python_files(root):
                relative = path.name if root.is_file() else path.relative_to(root).as_posix()
                identity = relative if root.is_file() else f"{name}/{relative}"
                if not excluded(config, relative, identity):
                    part = Part(str(path), identity, labels={"package": package})
                    sized.append((part, path.stat().st_size))
        for part, size in sorted(sized, key=lambda item: (item[0].id, item[0].path)):
            found.setdefault(part.path, (part, size))
    if not found:
        raise DataError(f"data source {source!r}: no .py file in packages {', '.join(config.packages)}")
    return list(found.values())


def versions(config: SourceConfig) -> dict[str, str]:
    """Versions of the packages that a `python` source reads, or `unknown`; empty for other kinds."""
    return _of_packages(config, platform.python_version(), importlib.metadata.version)


def licenses(config: SourceConfig) -> dict[str, str]:
    """Licences of the packages that a `python` source reads, as their metadata name them, or `unknown`; empty for
    other kinds."""
    return _of_packages(config, "PSF-2.0", _license)


def _of_packages(config: SourceConfig, stdlib: str, tell: Callable[[str], str]) -> dict[str, str]:
    """What is known of each package of a `python` source: `stdlib` of the standard library, else what `tell` says of
    its distribution."""
    if config.kind != "python":
        return {}
    distributions = importlib.metadata.packages_distributions()
    found = {}
    for package in config.packages:
        top = package.split(".")[0]
        if package == "stdlib" or top in sys.stdlib_module_names:
            found[package] = stdlib
        else:
            names = distributions.get(top, [])
            found[package] = tell(names[0]) if names else "unknown"
    return found


def _license(distribution: str) -> str:
    """An SPDX expression, else the `License` line when it is a name and no whole text, else the classifiers."""
    metadata = importlib.metadata.metadata(distribution)
    named = [metadata[field].strip() for field in ("License-Expression", "License") if field in metadata]
    kinds = [kind for kind in metadata.get_all("Classifier") or () if kind.startswith("License ::")]
    short = [text for text in named if text and len(text) <= _LICENSE_CHARACTERS and "\n" not in text]
    return (short or [", ".join(kind.rpartition(" :: ")[2] for kind in kinds)])[0] or "unknown"
