"""nanoGPT's character recipe, run as its README says, for `python -m scripts.bench speedrun`.

`PYTHON -m scripts.benches.speedrun_nanogpt FOLDER` prints the nll of the checkpoint that was left in a copy of it, over
the whole validation text, and needs torch and numpy only.
"""

import json
import math
import pickle
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .nanogpt import module_of

DATA, OUT = Path("data/shakespeare_char"), Path("out-shakespeare-char")
README = {
    "device": "cpu", "compile": "False", "eval_iters": 20, "log_interval": 1, "block_size": 64, "batch_size": 12,
    "n_layer": 4, "n_head": 4, "n_embd": 128, "max_iters": 2000, "lr_decay_iters": 2000, "dropout": 0.0,
}  # fmt: skip
"""Its README's "I only have a macbook" command."""
ON_CPU = "nullcontext() if device_type == 'cpu' else "
"""What in its train.py keeps autocast out on a CPU, whatever `dtype` says."""
ROWS = 256  # at once, of the nll


def copied(checkout: Path, folder: Path, text: Path, *, autocast: bool) -> Path:
    """A copy of nanoGPT in `folder`, with `text` as its data and, if asked for, autocast on a CPU.

    Raises ValueError when the checkout is none, or is not the one that this was written for.
    """
    if not (checkout / "train.py").is_file():
        raise ValueError(f"--nanogpt {checkout}: must be a checkout of https://github.com/karpathy/nanoGPT")
    shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns(".git", "assets", "*.ipynb", "out*", "*.bin"))
    write_data(text.read_text(encoding="utf-8"), folder / DATA)
    if autocast:
        code = (folder / "train.py").read_text(encoding="utf-8")
        if ON_CPU not in code:
            raise ValueError(f"--nanogpt {checkout}: its train.py has another line for autocast than expected")
        (folder / "train.py").write_text(code.replace(ON_CPU, ""), encoding="utf-8")
    return folder


def write_data(text: str, folder: Path) -> None:
    """The files that its prepare.py would write: ids of the characters in their order, the first 90 % to train."""
    import numpy as np

    names = sorted(set(text))
    ids = {name: i for i, name in enumerate(names)}
    tokens = np.array([ids[character] for character in text], dtype=np.uint16)
    cut = int(len(text) * 0.9)
    folder.mkdir(parents=True, exist_ok=True)
    tokens[:cut].tofile(folder / "train.bin")
    tokens[cut:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(names), "itos": dict(enumerate(names)), "stoi": ids}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def command(python: str, **changes: Any) -> list[str]:
    """Its README's command with `changes`, to be run in a copy."""
    options = [f"--{name}={value}" for name, value in (README | changes).items()]
    return [python, "train.py", "config/train_shakespeare_char.py", *options]


def full_nll(folder: Path) -> dict[str, float]:
    """Mean nll of every character of the validation text but the first, in windows of a block side by side."""
    import numpy as np
    import torch

    module = module_of(folder)
    checkpoint = torch.load(folder / OUT / "ckpt.pt", map_location="cpu", weights_only=True)
    model = module.GPT(module.GPTConfig(**checkpoint["model_args"])).eval()
    model.load_state_dict(checkpoint["model"])
    text = torch.from_numpy(np.fromfile(folder / DATA / "val.bin", dtype=np.uint16).astype(np.int64))
    total, size = 0.0, model.config.block_size
    with torch.no_grad():
        for inputs, targets in windows(text, size):
            logits, _ = model(inputs, targets)  # without targets it gives the last position alone
            total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    return {"nll": total / (len(text) - 1), "targets": len(text) - 1, "step": checkpoint["iter_num"]}


def windows(text: Any, size: int) -> Any:
    """(inputs, targets) of all of a text: rows of `size` side by side, the rest in a shorter one."""
    whole = (len(text) - 1) // size * size
    inputs, targets = text[:whole].view(-1, size), text[1 : whole + 1].view(-1, size)
    for i in range(math.ceil(len(inputs) / ROWS)):
        yield inputs[i * ROWS : (i + 1) * ROWS], targets[i * ROWS : (i + 1) * ROWS]
    if whole < len(text) - 1:
        yield text[whole:-1].view(1, -1), text[whole + 1 :].view(1, -1)


def main(argv: Sequence[str]) -> None:
    print(json.dumps(full_nll(Path(argv[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
