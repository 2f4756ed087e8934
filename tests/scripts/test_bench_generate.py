"""`python -m scripts.bench generate`: the same weights and text for everyone, and tables that tell what was found."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import bench
from scripts.benches import generate, generate_contest, measuring
from scripts.benches.generate_contest import Request, bytes_per_token, make_model

# What nanoGPT's model.py offers, in the words of transformers
NANOGPT = """
from dataclasses import dataclass
import torch
from transformers import GPT2Config, GPT2LMHeadModel

@dataclass
class GPTConfig:
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    bias: bool
    dropout: float

class GPT(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.inner = GPT2LMHeadModel(GPT2Config(n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd,
                                     n_positions=c.block_size, vocab_size=c.vocab_size))
    def load_state_dict(self, state, strict):
        state = {k: v.t() if v.ndim == 2 and ".h." in k else v for k, v in state.items()}
        return self.inner.load_state_dict(state, strict)
    @torch.no_grad()
    def generate(self, ids, count, temperature=1.0, top_k=None):
        assert top_k == 1
        for _ in range(count):
            ids = torch.cat((ids, self.inner(ids).logits[:, -1:].argmax(-1)), 1)
        return ids
"""


@pytest.fixture
def in_process(monkeypatch) -> None:
    """Workers that cost no new process."""

    def ask(module: str, words: str, python: str = "") -> dict[str, Any]:
        request = Request(**json.loads(words))
        found = generate_contest.bandwidth(request) if request.who == "memory" else generate_contest.measure(request)
        return json.loads(json.dumps(found))

    monkeypatch.setattr(measuring, "ask", ask)
    monkeypatch.setattr(generate_contest, "LARGE", 1 << 20)


def test_everyone_writes_the_same(in_process, tmp_path: Path, capsys):
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "model.py").write_text(NANOGPT)
    argv = ["generate", "--quick", "--nanogpt", str(tmp_path / "nano"), "--out", str(tmp_path / "out")]
    assert bench.main(argv) == 0
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "bench_generate.json").read_text())
    assert set(report["answers"]["gpt2"]) == set(generate.ENTRANTS)
    assert set(report["answers"]["qwen3"]) == set(generate.ENTRANTS) - {"nanoGPT fp32"}
    for preset, rows in (("gpt2", 1), ("gpt2", 3), ("qwen3", 1), ("qwen3", 3)):
        assert set(generate.speeds(report, preset, rows)) == set(report["answers"][preset]) - {generate.MEMORY}
        assert generate.differing(report, preset, rows) == []
    assert "failed" not in out and "wrong" not in out and "qwen3, 3 prompts" in out
    assert (tmp_path / "out" / "bench_generate.png").read_bytes().startswith(b"\x89PNG")


def answer(rate: float, *ids: int) -> dict[str, Any]:
    return {"1": {"tokens_per_s": rate, "ids": [list(ids)]}, "parameters": 1000}


def test_what_is_told_by_hand():
    memory = {
        "large": 4e9,
        **{name: {"bytes": n, "per_s": 8e9} for name, n in (("fp32", 4000), ("bf16", 2000), ("int8", 1000))},
    }
    report = {
        "settings": {"presets": ["llama"], "rows": [1], "quick": False, "layers": 1, "dim": 8, "vocab": 5, "tokens": 3,
                     "prompt": 2},
        "answers": {"llama": {
            "ours fp32": [answer(rate, 1, 2, 3, 4) for rate in (500e3, 700e3, 600e3)],
            "ours int8": [answer(1500e3, 1, 2, 0, 4)],
            "transformers fp32": [answer(200e3, 1, 2, 3, 4)],
            "transformers fp32, static cache": [answer(900e3, 1, 2, 3, 5)],
            "transformers bf16": [answer(250e3, 0, 2, 3, 4)],
            "nanoGPT fp32": [{"failed": "no such file"}],
            "memory": [memory],
        }},
    }  # fmt: skip
    lines = generate.tables(report)
    rows = {line.split("  ")[0]: line.split()[-5:] for line in lines if "x" in line and "%" in line}
    assert rows["ours fp32"] == ["600,000", "33%", "3.00x", "100%", "60%"]  # of 4e9 / 4000
    assert rows["ours int8"] == ["1,500,000", "0%", "7.50x", "50%", "38%"]
    assert rows["transformers bf16"] == ["250,000", "0%", "1.25x", "0%", "12%"]
    assert not any(line.startswith("transformers fp32, static") for line in lines)
    assert "wrong   transformers fp32, static cache: another text than ours" in lines
    assert "failed  nanoGPT fp32 (llama): no such file" in lines
    found = {aim.what: (aim.found, aim.met) for aim in generate.aims(report, "llama")}
    assert found == {
        "llama, 1 prompt: ours fp32 / transformers fp32": (3.0, True),
        "llama, 1 prompt: ours int8 / transformers bf16": (6.0, True),
    }
    assert any("1,000,000 tokens/s" in line and "2,000,000 tokens/s" in line for line in lines)


def test_bytes_of_a_step_by_hand():
    request = Request("ours", "gpt2", 1, 8, 2, 16, 5, prompt=4, tokens=6, rows=[1], calls=1)
    matrices = 4 * 8 * 8 + 2 * 8 * 32 + 5 * 8  # attention, feed-forward, head
    cache = 2 * 8 * (4 + 3)
    assert bytes_per_token(make_model(request), request, 2) == 2 * matrices + 4 * cache


def test_what_does_not_fit_is_refused(tmp_path: Path, capsys):
    for argv, told in (
        (["--tokens", "300"], "--prompt 32 and --tokens 300: more ids than --context 256"),
        (["--nanogpt", str(tmp_path)], f"--nanogpt {tmp_path}: must be a checkout"),
        (["--rows", "0"], "--rows: '0' is not an integer >= 1"),
    ):
        assert bench.main(["generate", "--out", str(tmp_path), *argv]) == 2
        out, err = capsys.readouterr()
        assert told in err and err.count("\n") == 1 and not out
