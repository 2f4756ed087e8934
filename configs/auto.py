"""Numbers in the place of `auto`, so that a loaded config alone says what a run does."""

from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

from data.config import TokenizerConfig
from trainer import rules
from trainer.config import AUTO, Rates
from trainer.schedule import parse_tokens

from .schema import RunConfig

FEW, MANY = 128, 32768
"""Ids that a tokenizer of single letters, and one in a file that is not read for this, are taken to have."""


def vocabulary(tokenizer: TokenizerConfig) -> int:
    """About how many ids a tokenizer has, as far as a config tells."""
    if tokenizer.train is not None:
        return tokenizer.train.vocab_size
    return FEW if tokenizer.level is not None else MANY


def has_auto(config: RunConfig) -> bool:
    """Whether a number is still to come from a rule or from the run's own record."""
    return AUTO in (config.train.batch_tokens, *vars(config.optim.rates).values())


def without_auto(config: RunConfig, began: RunConfig | None = None) -> RunConfig:
    """The config with a number for each `auto` of optim.rates and train.batch_tokens.

    It is the number of the last start of a run that `began` before, so that one that is made longer keeps its rates; in
    a new run it is the one of `trainer.rules`.
    """
    if began is not None and (began.model, began.optim.name) != (config.model, config.optim.name):
        began = None  # another run, which will be refused

    def pick(value: Any, before: Any, rule: Any) -> Any:
        if value != AUTO:
            return value
        return rule if began is None else before

    train, optim, model, was = config.train, config.optim, config.model, began or config
    tokens = None
    with suppress(ValueError):  # which the checks tell
        tokens = None if train.tokens is None else parse_tokens(train.tokens)
    by_rule = rules.batch_tokens(model.context, tokens, train.steps)
    batch = pick(train.batch_tokens, was.train.batch_tokens, by_rule)
    ruled = rules.rates(optim.name, model.dim, model.tie, vocabulary(config.data.tokenizer))
    rates = {
        f.name: pick(*(getattr(rates, f.name) for rates in (optim.rates, was.optim.rates, ruled)))
        for f in fields(Rates)
    }
    return replace(config, optim=replace(optim, rates=Rates(**rates)), train=replace(train, batch_tokens=batch))
