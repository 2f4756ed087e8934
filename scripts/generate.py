"""Write text with a trained model: `python -m scripts.generate RUN --prompt TEXT`."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import entry

if TYPE_CHECKING:
    from model import Transformer


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.generate", description="Write text with a trained model.")
    parser.add_argument("run", help="run directory or checkpoint")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="to go on from, also several (default: "
                        "empty, which starts a document)")  # fmt: skip
    parser.add_argument("--chat", action="store_true", help="the prompt is a user's turn; write the assistant's answer")
    parser.add_argument("--checkpoint", help="best, last or a step (default: best, before an evaluation last)")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="default: 256")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0 is greedy (default: 0.8)")
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K most likely tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="among the fewest that hold P of the probability")
    parser.add_argument("--min-p", type=float, metavar="P", help="among those at least P times as likely as the first")
    parser.add_argument("--beams", type=int, metavar="B", help="beam search with B beams instead of sampling")
    parser.add_argument("--weights", choices=("fp32", "bf16", "int8"), default="fp32",
                        help="how each token reads them: bf16 and int8 (cpu only) are not exact, and faster once the "
                        "weights outgrow the caches of the processor")  # fmt: skip
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="the same seed writes the same text; each further prompt has the next one",
    )
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
    from model import read_model
    from trainer.distributed import Place, pick_device
    from trainer.spinning import Spinning

    def warn(reason: str) -> None:
        print(f"warning: {reason}", file=sys.stderr)

    evaluated = (Path(args.run) / "checkpoints" / "best").is_file()
    device = pick_device(args.device, Place())
    path = find_checkpoint(args.run, args.checkpoint or ("best" if evaluated else "last"), warn=warn)
    tokenizer, model = load_tokenizer(path), read_model(path, device)
    prompts = args.prompt or [""]
    encoded = [chat_prompt(text, tokenizer) if args.chat else (tokenizer.encode(text), tokenizer.end_id)
               for text in prompts]  # fmt: skip
    starts, stop = [[tokenizer.end_id, *ids] for ids, _ in encoded], encoded[0][1]
    count, start = 0, time.perf_counter()

    def counted(ids: Iterable[int]) -> Iterator[int]:
        nonlocal count
        for token in ids:
            count += 1
            yield token

    with Spinning(device):
        for i, (prompt, ids) in enumerate(zip(prompts, written(model, starts, stop, args), strict=True)):
            if len(prompts) > 1:
                print("\n" * (i > 0) + f"[{i + 1}/{len(prompts)}]")
            print("" if args.chat else prompt, end="", flush=True)
            for piece in whole_characters(counted(ids), tokenizer.decode):
                print(piece, end="", flush=True)
            print()
    seconds = time.perf_counter() - start
    print(f"{count} tokens in {seconds:.1f} s: {count / seconds:,.0f} tokens/s", file=sys.stderr)


def written(
    model: "Transformer", starts: Sequence[list[int]], stop: int, args: argparse.Namespace
) -> Iterable[Iterable[int]]:
    """The ids that go on from each start; those of a single one, or by beams of each, as soon as they are known."""
    from model import beam_search, generate, stream

    if args.beams is not None:
        return (
            beam_search(model, ids, beams=args.beams, max_new_tokens=args.max_new_tokens, stop_id=stop)
            for ids in starts
        )
    how: dict[str, Any] = {
        "max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "top_k": args.top_k,
        "top_p": args.top_p, "min_p": args.min_p, "stop_id": stop, "seed": args.seed, "weights": args.weights,
    }  # fmt: skip
    return [stream(model, starts[0], **how)] if len(starts) == 1 else generate(model, [*starts], **how)


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
