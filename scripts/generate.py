"""Write text with a trained model: `python -m scripts.generate RUN --prompt TEXT`."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from configs import entry


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.generate", description="Write text with a trained model.")
    parser.add_argument("run", help="run directory or checkpoint")
    parser.add_argument("--prompt", default="", help="text to go on from; empty starts a document")
    parser.add_argument("--chat", action="store_true", help="the prompt is a user's turn; write the assistant's answer")
    parser.add_argument("--checkpoint", help="best, last or a step (default: best, before an evaluation last)")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="default: 256")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0 is greedy (default: 0.8)")
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K most likely tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="among the fewest that hold P of the probability")
    parser.add_argument("--min-p", type=float, metavar="P", help="among those at least P times as likely as the first")
    parser.add_argument("--beams", type=int, metavar="B", help="beam search with B beams instead of sampling")
    parser.add_argument("--weights", choices=("fp32", "bf16", "int8"), default="fp32",
                        help="how each token reads them: bf16 and int8 (cpu only) are faster, not exact")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed writes the same text")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")
    return parser


@entry
def main(argv: Sequence[str]) -> None:
    args = arguments().parse_args(argv)
    if args.max_new_tokens < 1:
        raise ValueError("--max-new-tokens must be at least 1")
    if args.beams is not None and args.weights != "fp32":
        raise ValueError(f"--weights {args.weights} does not go with --beams")
    from data import chat_prompt, load_tokenizer
    from durable import find_checkpoint
    from model import beam_search, read_model, stream
    from trainer.distributed import Place, pick_device

    def warn(reason: str) -> None:
        print(f"warning: {reason}", file=sys.stderr)

    evaluated = (Path(args.run) / "checkpoints" / "best").is_file()
    device = pick_device(args.device, Place())
    path = find_checkpoint(args.run, args.checkpoint or ("best" if evaluated else "last"), warn=warn)
    tokenizer, model = load_tokenizer(path), read_model(path, device)
    prompt, stop = (
        chat_prompt(args.prompt, tokenizer) if args.chat else (tokenizer.encode(args.prompt), tokenizer.end_id)
    )
    prompt = [tokenizer.end_id, *prompt]
    ids: Iterable[int]
    count, start = 0, time.perf_counter()
    if args.beams is not None:
        ids = beam_search(model, prompt, beams=args.beams, max_new_tokens=args.max_new_tokens, stop_id=stop)
    else:
        ids = stream(
            model, prompt, max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_k=args.top_k,
            top_p=args.top_p, min_p=args.min_p, stop_id=stop, seed=args.seed, weights=args.weights,
        )  # fmt: skip
    if not args.chat:
        print(args.prompt, end="", flush=True)

    def counted() -> Iterator[int]:
        nonlocal count
        for token in ids:
            count += 1
            yield token

    for piece in whole_characters(counted(), tokenizer.decode):
        print(piece, end="", flush=True)
    print()
    seconds = time.perf_counter() - start
    print(f"{count} tokens in {seconds:.1f} s: {count / seconds:,.0f} tokens/s", file=sys.stderr)


def whole_characters(ids: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Text as it becomes certain: a token may end in the middle of a character."""
    seen: list[int] = []
    shown = ""
    for token in ids:
        seen.append(token)
        text = decode(seen)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
            if len(seen) > 64 and "\n" in shown[-8:]:  # decoding is linear in what it is given
                seen, shown = [], ""
    if seen:
        yield decode(seen)[len(shown) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
