"""One token a step: the decoder's logits are those of a whole forward pass, in every form of its products."""

import gc
import itertools
import mmap
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from model import Transformer, generate
from model.decode import Decoder, ThroughModule
from model.pages import Pages
from model.products import product, quantize

from .conftest import PRESETS, Make

SHAPES: list[dict[str, Any]] = [
    {"preset": preset, "tie": tie, "kv_heads": kv_heads}
    for preset, tie, kv_heads in itertools.product(PRESETS, (True, False), (None, 2, 1))
    if preset != "gpt2" or kv_heads is None
]
ODD: dict[str, Any] = {"dim": 28, "heads": 2, "hidden": 37, "vocab_size": 3, "context": 24}  # no block is even
ROWS = {"one row": [7], "rows alike": [7, 7, 7], "rows of unequal length": [1, 12, 7]}
LOWER: tuple[Literal["bf16", "int8"], ...] = ("bf16", "int8")


def read_and_step(reader: Decoder | ThroughModule, tokens: Tensor, lengths: list[int]) -> list[list[Tensor]]:
    """Logits of each row after its first `length` tokens, and after each of 12 more."""
    made = [list(reader.read([row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)]).clone())]
    for i in range(12):
        made.append(list(reader.step([int(row[n + i]) for row, n in zip(tokens, lengths, strict=True)]).clone()))
    return [list(row) for row in zip(*made, strict=True)]


def off(model: Transformer, lengths: list[int], reader: Decoder | ThroughModule) -> list[float]:
    """Distance of a reader's logits from a whole forward pass's, relative to their size, for each token."""
    tokens = torch.randint(model.vocab_size, (len(lengths), 24), generator=torch.Generator().manual_seed(1))
    whole = model(tokens).detach()
    with torch.no_grad():
        found = read_and_step(reader, tokens, lengths)
    return [
        float((logits - whole[row, n + i - 1]).norm() / whole[row, n + i - 1].norm())
        for row, n in enumerate(lengths)
        for i, logits in enumerate(found[row])
    ]


@pytest.mark.parametrize("lengths", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("shape", [*SHAPES, *(ODD | {"preset": preset} for preset in PRESETS)], ids=str)
def test_logits_are_those_of_a_whole_forward_pass(make: Make, shape: dict[str, Any], lengths: list[int]) -> None:
    model = make(**shape)
    assert max(off(model, lengths, Decoder(model, len(lengths), 24))) < 1e-5
    assert max(off(model, lengths, ThroughModule(model, 24))) < 1e-5


@pytest.mark.parametrize("lengths", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("preset", PRESETS)
def test_logits_of_fewer_bits_are_near(make: Make, preset: str, lengths: list[int]) -> None:
    # bf16 keeps 8 bits: inputs, weights and result of a product are off by 2^-8 of themselves at most, 0.2 % in the
    # mean. int8 keeps a weight within 1/254 of its row's largest, which for normal weights is 2 to 3 deviations: by
    # 0.6 % of a deviation in the mean square. So each of the 9 products is off by less than 1 %, and all together, if
    # they are independent, by 3 %. Single logits of small norm may be off by more.
    model = make(preset=preset, kv_heads=None if preset == "gpt2" else 2)
    for weights in LOWER:
        found = off(model, lengths, Decoder(model, len(lengths), 24, weights))
        assert 1e-4 < sum(found) / len(found) < 0.03 and max(found) < 0.1, weights


def test_a_decoder_reads_again(make: Make) -> None:
    model = make()
    decoder = Decoder(model, 2, 24)
    assert max(off(model, [3, 12], decoder)) < 1e-5
    assert max(off(model, [5, 5], decoder)) < 1e-5
    assert max(off(model, [4, 1], decoder)) < 1e-5


@pytest.mark.parametrize("weights", ["fp32", *LOWER])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("sizes", [(5, [3]), (64, [64, 32, 32]), (33, [19, 1]), (1, [130]), (24, [8])], ids=str)
def test_products(weights: Any, rows: int, sizes: tuple[int, list[int]]) -> None:
    inputs, outputs = sizes
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, inputs, generator=generator) for n in outputs]
    x, out = torch.randn(rows, inputs, generator=generator), torch.empty(rows, sum(outputs))
    for biases in ([None for _ in parts], [torch.randn(n, generator=generator) for n in outputs]):
        multiply = product(parts, biases, x, out, weights)
        for _ in range(2):  # its input may change
            x.normal_(generator=generator)
            multiply()
            weight, bias = torch.cat(parts).double(), torch.cat([torch.zeros(0) if b is None else b for b in biases])
            wanted = x.double() @ weight.t() + (bias if len(bias) else 0)
            size = x.double().abs() @ weight.abs().t() + (bias.abs() if len(bias) else 0)
            bound = {"fp32": 1e-6, "bf16": 3.1 * 2**-8, "int8": 2.1 * 2**-8}[weights] * size  # x, weight, result
            if weights == "int8":  # and half a scale a weight
                bound += x.double().abs().sum(1, keepdim=True) * quantize(weight)[1].double() / 2 * 1.01
            assert ((out - wanted).abs() <= bound).all()


def test_quantized_by_hand() -> None:
    weight = torch.tensor([[127.0, -127.0, 0.4, 0.6, -63.5], [0.0, 0.0, 0.0, 0.0, 0.0], [2.0, -1.0, 0.5, 0.0, 0.25]])
    integers, scale = quantize(weight)
    # 2 / 127 = 0.015748... is not a bf16 number: between 129 and 130 times 2^-13, of which the upper one is taken
    assert scale.tolist() == [1.0, 1.0, 130 / 2**13] and scale.dtype == torch.bfloat16
    assert integers.tolist() == [[127, -127, 0, 1, -64], [0, 0, 0, 0, 0], [126, -63, 32, 0, 16]]
    assert integers.dtype == torch.int8
    drawn = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 50)[:, None]
    integers, scale = quantize(drawn)
    assert ((integers * scale.float()[:, None] - drawn).abs() <= scale.float()[:, None] * 0.5001).all()


@pytest.mark.parametrize("huge", [True, False])
def test_pages_hold_what_was_put_there(monkeypatch: pytest.MonkeyPatch, huge: bool) -> None:
    if not huge:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    pages = Pages(4096)
    parts = [torch.randn(n, 7) for n in (3, 50, 1, 200, 2)]  # one fits no block
    kept = [pages.joined([part, -part]) for part in parts]
    narrow = pages.empty((3, 5), torch.bfloat16).fill_(2)
    del pages
    gc.collect()
    assert all(torch.equal(found, torch.cat([part, -part])) for found, part in zip(kept, parts, strict=True))
    assert narrow.tolist() == [[2.0] * 5] * 3 and narrow.is_contiguous()
    assert all(found.data_ptr() % 64 == 0 for found in (*kept, narrow))


def test_weights_that_there_are_not() -> None:
    x = torch.empty(1, 4, device="meta")
    with pytest.raises(ValueError, match=r"int8 weights are for the cpu, not meta; bf16 works"):
        product([x], [None], x, x, "int8")
    with pytest.raises(ValueError, match="weights must be fp32, bf16, int8, not 'fp8'"):
        product([x], [None], x, x, "fp8")  # type: ignore[arg-type]


def test_text_of_fewer_bits_goes_on_past_the_context(make: Make) -> None:
    model = make(kv_heads=2)
    for weights in LOWER:
        text = generate(model, [[1, 2, 3], [4]], max_new_tokens=60, temperature=0, weights=weights)
        assert [len(row) for row in text] == [60, 60]
        assert text == generate(model, [[1, 2, 3], [4]], max_new_tokens=60, temperature=0, weights=weights)


def test_changed_weights_and_autocast(make: Make) -> None:
    """A decoder is made for each text; and it is exact, wherever it is called."""
    model, other = make(seed=0), make(seed=1)
    prompts = [[1, 2, 3], [4]]
    options: dict[str, Any] = {"max_new_tokens": 30, "temperature": 0}
    before = generate(model, prompts, **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert generate(model, prompts, **options) == before
    model.load_state_dict(other.state_dict())
    assert generate(model, prompts, **options) == generate(other, prompts, **options) != before


def test_sharded_weights_go_through_the_module(make: Make) -> None:
    model, calls = make(), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    prompts, options = [[1, 2, 3], [4]], {"max_new_tokens": 30, "seed": 3}
    assert generate(model, prompts, sharded=True, **options) == generate(model, prompts, **options)  # type: ignore[arg-type]
    assert len(calls) > 30


def test_training_goes_on_after_a_text(make: Make) -> None:
    """No weight is left in inference mode, nor in autocast's cache."""
    model = make().train()
    with torch.autocast("cpu", torch.bfloat16):
        for prompts in ([[1, 2]], [[1], [2, 3]]):
            generate(model, prompts, max_new_tokens=3)
            model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
