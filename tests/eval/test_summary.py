"""The final text, to the letter."""

import subprocess
import sys

import eval
from eval.summary import summarize

SCORES = {
    "train/loss": 2.0,
    "val/nll": 2.46812,
    "val/ppl": 11.8,
    "val/bpb": 1.41,
    "val/accuracy": 0.4567,
    "val/a/nll": 2.5,
    "val/a/ppl": 12.18,
    "val/a/bpb": None,
    "val/a/accuracy": 0.5,
    "val/b/nll": 2.4,
}


def test_a_full_summary() -> None:
    text = summarize(
        name="quickstart",
        step=300,
        tokens=2457600,
        seconds=301.2,
        tokens_per_s=8765.4,
        scores=SCORES,
        compression={"gzip -9": 1.70123, "xz -9": 1.4},
        best=(300, 2.46812),
        paths={"curves": "runs/q/curves.png", "samples": "runs/q/samples.jsonl"},
        commands=["python -m scripts.generate runs/q --prompt 'def '"],
    )
    assert text.splitlines() == [
        "quickstart: 300 steps, 2,457,600 tokens in 5 min 01 s (median 8,765 tokens/s in training)",
        "",
        "held-out text  nats/token  perplexity  bits/byte  accuracy",
        "----------------------------------------------------------",
        "all                2.4681       11.80     1.4100    45.7 %",
        "  a                2.5000       12.18          -    50.0 %",
        "  b                2.4000           -          -         -",
        "gzip -9                                   1.7012",
        "xz -9                                     1.4000",
        "",
        "best saved checkpoint: step 300, 2.4681 nats/token",
        "",
        "curves   runs/q/curves.png",
        "samples  runs/q/samples.jsonl",
        "",
        "next:",
        "  python -m scripts.generate runs/q --prompt 'def '",
    ]


def test_a_bare_summary() -> None:
    scores = {"val/nll": 1.0, "val/only/nll": 1.0}  # one source says nothing new
    text = summarize(name="r", step=1, tokens=8, seconds=3700, tokens_per_s=0, scores=scores)
    assert text.splitlines()[0] == "r: 1 steps, 8 tokens in 1 h 01 min (median 0 tokens/s in training)"
    assert len(text.splitlines()) == 5


def test_the_package_is_lazy() -> None:
    code = "import sys, eval, eval.config; print(sorted({'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
    assert all(callable(getattr(eval, name)) for name in eval.__all__)


def test_values_of_labels_stand_after_the_sources() -> None:
    scores = {"val/nll": 1.0, "val/language=de/nll": 2.0, "val/zoo/nll": 1.5, "val/a/nll": 0.5, "val/domain=x/nll": 3.0}
    text = summarize(name="r", step=1, tokens=8, seconds=1, tokens_per_s=0, scores=scores)
    rows = [line.split()[:2] for line in text.splitlines()[4:9]]
    want = [["all", "1.0000"], ["a", "0.5000"], ["zoo", "1.5000"], ["domain=x", "3.0000"], ["language=de", "2.0000"]]
    assert rows == want
