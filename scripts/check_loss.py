"""Prove a config's loss on both heads: `python -m scripts.check_loss CONFIG [key.sub=value ...]`."""

import sys
from collections.abc import Sequence

from configs import entry, load, parse


@entry
def main(argv: Sequence[str]) -> int:
    args = parse(argv, prog="python -m scripts.check_loss", description="Prove a config's loss on both heads.")
    config = load(args.config, args.overrides)

    from data import lookup
    from learner import training_loss
    from loss.proof import prove
    from scripts.plan import assumed_vocabulary

    data = lookup(config.data, config.model.context)
    size = data.tokenizer.vocab_size if data else assumed_vocabulary(config)
    objective = training_loss(config, size, data)
    shown = " + ".join(f"{part.name}" for part, _ in objective.recipe.terms)
    print(f"loss      {shown}, over {size:,} ids{'' if data else ' (assumed: corpus not prepared)'}")
    print(f"inputs    {', '.join(sorted(objective.reads)) or 'none'} besides logits and targets\n")
    failed = 0
    for verdict in prove(objective):
        failed += not verdict.ok
        print(f"{'ok' if verdict.ok else 'FAILED':<8}  {verdict.name:<34}  {verdict.detail}".rstrip())
    print(f"\n{failed} of the checks failed" if failed else "\nEvery check holds.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
