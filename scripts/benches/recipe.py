"""What each lever of the recipe is worth: `python -m scripts.bench recipe`.

Runs of `configs/speedrun.yaml` through the real training path, in this process: as it is, and with one thing changed at
a time; each with several seeds. What is compared is the nll over the whole validation split at the end. With
`--sweep` also what the rule for `auto` rests on: rates at several widths, and batches. Writes recipe.md, recipe.json
and recipe.png, the numbers after each run, so that one that was cut off can go on.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from configs import RunConfig, entry, load

from . import measuring
from .measuring import ROOT, Notebook, Parser, positive
from .speedrun import RECIPE, SEED, corpus, read_from

RUNS, SWEEP = "runs", "sweep"
BASE = "the recipe"
SHORT = ("train.steps=3", "model.layers=1", "model.dim=32", "schedule.warmup=1", "data.split.val=0.01")


@dataclass(frozen=True)
class Lever:
    """One change of the recipe."""

    name: str
    overrides: Callable[[RunConfig], Sequence[str]]
    """From the recipe to `key=value` texts."""
    what: str
    patch: Callable[[], AbstractContextManager[None]] = nullcontext
    """For what no key changes."""


def plain(*overrides: str) -> Callable[[RunConfig], Sequence[str]]:
    return lambda config: overrides


def rate(role: str, times: float) -> Callable[[RunConfig], Sequence[str]]:
    return lambda config: (f"optim.rates.{role}={getattr(config.optim.rates, role) * times!r}",)


def batch(tokens: float, steps: float) -> Callable[[RunConfig], Sequence[str]]:
    """Steps of so many times the tokens, and so many times the steps."""

    def overrides(config: RunConfig) -> Sequence[str]:
        assert config.train.steps is not None
        return (f"train.batch_tokens={round(config.train.batch_tokens * tokens)}",
                f"train.steps={round(config.train.steps * steps)}")  # fmt: skip

    return overrides


@contextmanager
def drawn_at_random() -> Iterator[None]:
    """Output projections and the head drawn like all other matrices, instead of zero."""
    from model import transformer

    table = transformer.init_table

    def drawn(config: Any) -> dict[str, float]:
        found = table(config)
        wide = config.ffn_dim**-0.5
        return found | {"out.weight": found["q.weight"], "down.weight": wide, "head.weight": found["q.weight"]}

    transformer.init_table = drawn
    try:
        yield
    finally:
        transformer.init_table = table


def iterations(steps: int) -> Callable[[], AbstractContextManager[None]]:
    """So many iterations of Newton and Schulz."""

    @contextmanager
    def patch() -> Iterator[None]:
        from trainer import muon

        before = muon.orthogonalize
        muon.orthogonalize = partial(before, steps=steps)
        try:
            yield
        finally:
            muon.orthogonalize = before

    return patch


LEVERS = (
    Lever("AdamW for Muon", plain("optim.name=adamw", "optim.rates=auto"),
          "AdamW on everything, at the rates of `auto`: the best of a small sweep"),
    Lever("cosine to 10 %", plain("schedule={name: cosine, final: 0.1}"),
          "a cosine to a tenth of the rates, instead of a straight fall to zero"),
    Lever("decay over 60 %", plain("schedule={name: wsd, decay: 0.6}"),
          "the rates stay, and fall to zero over the last 60 % of the run"),
    Lever("decay over 30 %", plain("schedule={name: wsd, decay: 0.3}"), "the same over the last 30 % of the run"),
    Lever("constant rates", plain("schedule.name=constant"), "no decay at all"),
    Lever("no warm-up", plain("schedule.warmup=0"), "full rates from the first step"),
    Lever("gpt2 preset", plain("model.preset=gpt2"),
          "learned positions, LayerNorm, GELU and biases for rotary positions, RMSNorm, SwiGLU and QK-norm"),
    Lever("llama preset", plain("model.preset=llama"), "no norm on queries and keys"),
    Lever("tied head", plain("model.tie=true", "optim.rates.embed=auto"),
          "the output head is the embedding, at the rate of `auto` for it"),
    Lever("random projections", plain(), "output projections and head drawn at random, not zero", drawn_at_random),
    Lever("matrix rate x 2", rate("matrix", 2), "Muon's rate doubled"),
    Lever("matrix rate / 2", rate("matrix", 0.5), "Muon's rate halved"),
    Lever("embedding rate x 4", rate("embed", 4), "of the embedding alone"),
    Lever("embedding rate / 4", rate("embed", 0.25), "of the embedding alone"),
    Lever("head rate x 4", rate("head", 4), "of the output head alone"),
    Lever("head rate / 4", rate("head", 0.25), "of the output head alone"),
    Lever("momentum 0.95", plain("optim.momentum=0.95"), "Muon's, for 0.9"),
    Lever("momentum 0.95, warmed up", plain("optim.momentum=0.95", "optim.momentum_warmup=300"),
          "from 0.85 on a line that would end after 300 steps: the default of every other recipe"),
    Lever("AdamW betas 0.9, 0.95", plain("optim.betas=[0.9, 0.95]"), "of embedding, head and norms"),
    Lever("weight decay 0.1", plain("optim.weight_decay=0.1"), "of matrices"),
    Lever("cautious decay 0.1", plain("optim.weight_decay=0.1", "optim.cautious=true"),
          "of matrices, where the update makes a weight smaller anyway"),
    Lever("no clipping", plain("optim.grad_clip=null"), "gradients of any norm"),
    Lever("batch x 2, steps / 2", batch(2, 0.5), "as many tokens in half of the steps, at the same rates"),
    Lever("batch / 2, steps x 2", batch(0.5, 2), "as many tokens in twice the steps, at the same rates"),
    Lever("batch x 2", batch(2, 1), "twice the tokens"),
    Lever("4 iterations", plain(), "of Newton and Schulz, for 5", iterations(4)),
    Lever("fp32", plain("train.precision=fp32"), "products in fp32 instead of bf16"),
)  # fmt: skip


def sweep() -> dict[str, Lever]:
    """What the rule for `auto` was fitted to, by name; the rates that are not swept are `auto`."""
    values = {"matrix": (0.02, 0.04, 0.08), "embed": (0.05, 0.1, 0.2), "head": (0.01, 0.02, 0.04)}
    told: list[tuple[str, tuple[str, ...]]] = [
        (f"{dim} wide: rates.{role} {value:g}", (f"model.dim={dim}", f"optim.rates.{role}={value}"))
        for role in values
        for dim in (64, 128, 256)
        for value in values[role]
    ]
    told += [(f"tied, 128 wide: rates.embed {value:g}", ("model.tie=true", f"optim.rates.embed={value}"))
             for value in (0.01, 0.03, 0.09)]  # fmt: skip
    told += [(f"AdamW, 128 wide: rates.matrix {value:g}", ("optim.name=adamw", f"optim.rates.matrix={value}"))
             for value in (0.003, 0.006, 0.012)]  # fmt: skip
    told += [(f"172,032 tokens: batch_tokens {tokens}", (f"train.batch_tokens={tokens}",
              f"train.steps={172_032 // tokens}")) for tokens in (384, 768, 1536, 3072)]  # fmt: skip
    return {name: Lever(name, plain("optim.rates=auto", *overrides), "") for name, overrides in told}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("recipe", "The validation nll of the recipe with one lever changed at a time.")
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="runs of each, with a seed each")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="CPU threads")
    parser.add_only("levers")
    parser.add_text()
    parser.add_report("recipe.md, recipe.json and recipe.png")
    parser.add_argument("--sweep", action="store_true", help="also the rates and batches behind `auto`, one seed each")
    return parser.parse(argv, {}, "a few steps of a tiny model; says nothing about the loss")


@entry
def main(argv: Sequence[str]) -> None:
    args = arguments(argv)
    from .recipe_report import draw, page, table

    corpus(args.text)
    names = measuring.asked_for([lever.name for lever in LEVERS], args.only)
    levers = [lever for lever in LEVERS if lever.name in names]
    facts = measuring.surroundings("cpu", args.threads)
    recipe = load(str(ROOT / RECIPE))
    settings = {"quick": args.quick, "threads": args.threads, "text": args.text}
    spoken = measuring.spoken("recipe", argv)
    book = Notebook(args.out / "recipe.json", spoken, settings, resume=args.resume, **facts)
    todo = [(RUNS, turn, lever) for turn in range(args.seeds) for lever in (Lever(BASE, plain(), "as it is"), *levers)]
    todo += [(SWEEP, 0, lever) for lever in sweep().values() if args.sweep]
    with tempfile.TemporaryDirectory(prefix="thimble-bench-") as folder:
        for case, turn, lever in todo:
            if book.wants(case, lever.name, turn):
                answer = run(lever, recipe, SEED + turn, args, Path(folder))
                book.add(case, lever.name, answer)
                told = answer.get("failed") or f"nll {answer['nll']:.4f}, {answer['seconds']:.1f} s"
                print(f"[{turn + 1}] {lever.name}: {told}", file=sys.stderr, flush=True)
    book.finish()
    print(*table(book.report), sep="\n")
    draw(book.report, args.out / "recipe.png")
    (args.out / "recipe.md").write_text(page(book.report), encoding="utf-8")
    print(f"files   {args.out}/recipe.md, .json and .png")


def run(lever: Lever, recipe: RunConfig, seed: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train once: the nll over the whole validation split, steps and seconds; or why it `failed`."""
    import train

    short = SHORT if args.quick else ()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        config = load(
            str(ROOT / RECIPE),
            [*lever.overrides(recipe), *short, *read_from(args.text), f"run.seed={seed}", "run.name=run",
             f"run.dir={place}", f"data.dir={folder / 'corpora'}", f"run.threads={args.threads}",
             "eval.sample_tokens=0", "eval.every=0.999999", "save.every=0.999999"],
        )  # fmt: skip
        start, said = time.perf_counter(), io.StringIO()
        with lever.patch(), redirect_stdout(said), redirect_stderr(said):
            code = train.run(config, restart=False, profile=False)
        if code:
            return {"seed": seed, "failed": said.getvalue().strip().splitlines()[-1][:200]}
        rows = [json.loads(line) for line in Path(place, "run", "metrics.jsonl").read_text().splitlines()]
    return {"seed": seed, "nll": rows[-1]["val/nll"], "steps": rows[-1]["step"], "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
