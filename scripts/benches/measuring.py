"""What every benchmark needs: strict arguments, the facts of a machine, and answers of processes of their own."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]


class Parser(argparse.ArgumentParser):
    """One that tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(text)


def surroundings(device: str = "auto", threads: int | None = None) -> dict[str, Any]:
    """Hardware and versions, and one line, `told`, that tells them. Sets the threads of this process.

    Raises ValueError for a `device`, "auto", "cpu" or "cuda", that is not there.
    """
    import torch

    from assemble import usable_cpus
    from trainer.rundir import environment

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: there is none here; --device cpu works")
    device = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if threads:
        torch.set_num_threads(threads)
    threads = torch.get_num_threads()
    made = environment(device, threads, {"load": list(os.getloadavg())})
    hardware = f"{made['cpu']}, {usable_cpus()} CPUs, {threads} thread{'s' * (threads > 1)}"
    if device == "cuda":
        hardware = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    told = f"{hardware}; torch {torch.__version__}; load {made['load'][0]:.1f} before the start"
    return {"told": told, "device": device, "threads": threads, "environment": made}


def ask(module: str, *words: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The JSON object that `python -m module words` prints last; `failed` says why there is none."""
    command = [sys.executable, "-m", module, *words]
    added = os.environ | dict(environment or {})
    done = subprocess.run(command, cwd=ROOT, env=added, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    return {"failed": last_words(done.returncode, done.stderr)}


def last_words(code: int, stderr: str) -> str:
    """Why a process ended with a code, in a line."""
    if code == -9:
        return "killed, perhaps out of memory"
    return (stderr.strip().splitlines() or [f"exit code {code}"])[-1][:200]
