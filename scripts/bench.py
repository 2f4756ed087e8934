"""Benchmarks: `python -m scripts.bench NAME [options]`; without a name it lists them."""

import sys
from collections.abc import Sequence
from importlib import import_module

from configs import entry

BENCHES = {
    "train": ("scripts.benches.train", "tokens per second and memory of a training step, beside other tools"),
    "speedrun": ("scripts.benches.speedrun", "time to a stated validation loss, beside nanoGPT"),
    "generate": ("scripts.benches.generate", "tokens per second of generation, beside other tools"),
    "scaling": ("scripts.benches.scaling", "speed and memory against shapes, processes and the size of the corpus"),
    "performance": ("scripts.benches.performance", "docs/performance.md, from the reports of those above"),
    "recipe": ("scripts.benches.recipe", "what each lever of the recipe is worth: docs/recipe.md"),
    "loss": ("scripts.benches.loss", "time and peak memory of the head and its loss, against other ways"),
    "faults": ("scripts.benches.faults", "every fault that a run must survive, injected: docs/reliability.md"),
    "memory": ("scripts.benches.memory", "the memory that --dry-run estimates for a step, against a measured one"),
    "data": ("scripts.benches.data", "throughput of tokenizing, against other ways, and of packing, loading, start-up"),
}


@entry
def main(argv: Sequence[str]) -> int:
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print("usage: python -m scripts.bench NAME [options]    (NAME --help shows the options)\n")
        print(*(f"  {known:<13}{text}" for known, (_, text) in BENCHES.items()), sep="\n")
        return 0
    if name not in BENCHES:
        raise ValueError(f"no benchmark {name!r}; there are: {', '.join(BENCHES)}")
    module, _ = BENCHES[name]
    return import_module(module).main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
