"""Training steps of other tools, as their own training loops take them, for `python -m scripts.bench train`.

`PYTHON -m scripts.benches.train_peers REQUEST` does one measurement and prints a JSON object. Nothing of ours is
imported but `train_pace` and `nanogpt`, so that PYTHON may be any interpreter in which the tool is installed.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib import import_module
from typing import Any

from .nanogpt import module_of
from .train_pace import BATCHES, RATE, Pace, Request, Shape, batches, batches_on, load_compiler

DECAY, BETAS, CLIP = 0.1, (0.9, 0.95), 1.0


def nanogpt(request: Request) -> dict[str, Any]:
    """nanoGPT's model, its optimizer and the step of its train.py, which compiles the model only if so requested.

    On a CPU its train.py leaves autocast out whatever `dtype` says: what it does there is fp32, and under bf16 autocast
    is put in.
    """
    import torch
    import torch._dynamo  # its optimizer would, and the memory of that is no step's

    if request.options.get("compile"):
        load_compiler()
    module = module_of(request.options["path"])
    shape, device, pace = request.shape, request.device, Pace(request.seconds, request.device)
    torch.manual_seed(1337)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    config = module.GPTConfig(
        n_layer=shape.layers, n_head=shape.heads, n_embd=shape.dim, block_size=shape.context, bias=True,
        vocab_size=shape.vocab, dropout=0.0,
    )  # fmt: skip
    model = module.GPT(config).to(device)
    scaler = torch.amp.GradScaler(device, enabled=False)
    optimizer = model.configure_optimizers(DECAY, RATE, BETAS, device)
    parameters = sum(p.numel() for p in model.parameters())
    if request.options.get("compile"):
        model = torch.compile(model)
    feed, context, losses = batches_on(device, shape), autocast(request), list[torch.Tensor]()
    tokens, targets = next(feed)
    while True:
        for group in optimizer.param_groups:
            group["lr"] = RATE
        with context:
            _, loss = model(tokens, targets)
        tokens, targets = next(feed)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if pace.done():
            return pace.answer(shape, losses, parameters)


def trainer(request: Request) -> dict[str, Any]:
    """`transformers.Trainer` on GPT2LMHeadModel: rows in memory, its own AdamW (fused), no logging, saving or
    evaluation. A callback times its steps. A tiny model goes first, since much of it is imported on the way."""
    import_module("transformers").logging.set_verbosity_error()
    _trained(
        request, replace(request.shape, layers=1, dim=request.shape.heads, rows=1, vocab=2), Pace(0.0, request.device)
    )
    if request.options.get("compile"):
        import_module("torch").compiler.reset()  # or the model would be compiled anew, for a batch of any size
    return _trained(request, request.shape, Pace(request.seconds, request.device))


def _trained(request: Request, shape: Shape, pace: Pace) -> dict[str, Any]:
    transformers = import_module("transformers")  # not a dependency
    transformers.set_seed(1337)
    config = transformers.GPT2Config(
        vocab_size=shape.vocab, n_positions=shape.context, n_embd=shape.dim, n_layer=shape.layers,
        n_head=shape.heads, activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    feed = batches(shape)
    rows = [row for _ in range(BATCHES) for row in next(feed)[0]]

    class Rows:
        def __len__(self) -> int:
            return len(rows)  # few: the sampler makes a list of all numbers

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"input_ids": rows[i], "labels": rows[i]}

    class Watch(transformers.TrainerCallback):  # type: ignore[name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = pace.done()

    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            output_dir=folder, use_cpu=request.device == "cpu", bf16=request.precision == "bf16",
            torch_compile=bool(request.options.get("compile")), max_steps=1 << 19, learning_rate=RATE,
            per_device_train_batch_size=shape.rows, weight_decay=DECAY, adam_beta1=BETAS[0], adam_beta2=BETAS[1],
            max_grad_norm=CLIP, logging_strategy="no", save_strategy="no", eval_strategy="no", report_to="none",
            disable_tqdm=True, dataloader_num_workers=0,
        )  # fmt: skip
        made = transformers.Trainer(model=model, args=args, train_dataset=Rows(), callbacks=[Watch()])
        loss = made.train().training_loss
    return pace.answer(shape, [loss], sum(p.numel() for p in model.parameters()))


def litgpt(request: Request) -> dict[str, Any]:
    """litgpt's model and loss in the step of its pretrain.py, on one process, with a GPT-2-like shape.

    It knows rotary positions, not learned ones. AdamW is fused, which pretrain.py asks for on GPUs alone, and the
    model is compiled, which it does everywhere, only if so requested.
    """
    import torch

    module, tools = import_module("litgpt"), import_module("litgpt.utils")  # not a dependency
    if request.options.get("compile"):
        load_compiler()
    shape, device, pace = request.shape, request.device, Pace(request.seconds, request.device)
    torch.manual_seed(1337)
    torch.set_float32_matmul_precision("high")
    config = module.Config(
        name="bench", block_size=shape.context, n_layer=shape.layers, n_head=shape.heads, n_embd=shape.dim,
        vocab_size=shape.vocab, padded_vocab_size=shape.vocab, rotary_percentage=1.0, parallel_residual=False,
        bias=True, attn_bias=True, mlp_class_name="GptNeoxMLP", intermediate_size=4 * shape.dim,
        gelu_approximate="none", norm_class_name="LayerNorm",
    )  # fmt: skip
    model = module.GPT(config).to(device)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    model.transformer.wte.weight = model.lm_head.weight
    if request.precision == "bf16-true":
        model = model.to(torch.bfloat16)
    if request.options.get("compile"):
        model = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY, fused=True)
    feed, context, losses = batches_on(device, shape), autocast(request), list[torch.Tensor]()
    while True:
        tokens, targets = next(feed)
        with context:
            logits = model(tokens).float()  # which its Fabric does to all outputs
        loss = tools.chunked_cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if pace.done():
            return pace.answer(shape, losses, sum(p.numel() for p in model.parameters()))


def autocast(request: Request) -> AbstractContextManager[Any]:
    import torch

    mixed = request.precision in ("bf16", "bf16-mixed")
    return torch.autocast(request.device, dtype=torch.bfloat16) if mixed else nullcontext()


PEERS: dict[str, Callable[[Request], dict[str, Any]]] = {"nanoGPT": nanogpt, "Trainer": trainer, "litgpt": litgpt}


def main(argv: Sequence[str]) -> None:
    request = Request.read(argv[0])
    answer = PEERS[request.who](request) | {"precision": request.precision}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
