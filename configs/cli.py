"""The command line that `train.py` and the scripts share: arguments, `--help`, and exit codes."""

import argparse
import errno
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ParamSpec

from durable import Damaged, SaveFailed

from .checks import hint

FAILED, BAD_INPUT, DAMAGED, INTERRUPTED = 1, 2, 3, 130  # exit codes
_RANK_0_FIRST = 1.5  # seconds; torchrun looks ten times a second
_ROOT = Path(__file__).resolve().parent.parent
P = ParamSpec("P")


def parse(
    argv: Sequence[str], *, prog: str, description: str, flags: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """`CONFIG [key.sub=value ...] [--flag ...]` as `.config`, `.overrides` and one attribute for each flag.

    `flags` maps names such as `dry-run` to their help; that flag is then the bool `.dry_run`. One named `slice=I/N`
    takes a value, `--slice 0/4` or `--slice=0/4`, and is the str `.slice`, None when it is not given.
    `key.sub=value` and `--key.sub=value` are the same. `--help` prints the schema and exits 0; a mistake prints one
    line and exits 2.
    """
    flags = flags or {}
    if any(word in ("-h", "--help") for word in argv):
        print(_help(prog, description, flags))
        raise SystemExit(0)
    shapes = dict(flag.partition("=")[::2] for flag in flags)  # name -> what its value looks like, empty: it has none
    found: dict[str, bool | str | None] = {name: None if shape else False for name, shape in shapes.items()}
    files: list[str] = []
    overrides: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in shapes:
            found[name] = _value(prog, name, shapes[name], value if equals else None, words)
        elif word.startswith("-") and "=" not in word:
            _refuse(prog, f"unknown option {word}{_option_hint(word, shapes)}")
        elif "=" in word and not (not files and Path(word).is_file()):
            overrides.append(word)
        else:
            files.append(word)
    if len(files) != 1:
        what = "no config; try configs/quickstart.yaml" if not files else f"one config, not {', '.join(files)}"
        _refuse(prog, f"{what} (--help shows the options)")
    names = {name.replace("-", "_"): value for name, value in found.items()}
    return argparse.Namespace(config=files[0], overrides=tuple(overrides), **names)


def _value(prog: str, name: str, shape: str, given: str | None, words: Iterator[str]) -> bool | str:
    """What a flag is set to: `given` after a `=`, else the next word if it takes one."""
    if not shape:
        if given is not None:
            _refuse(prog, f"--{name} takes no value")
        return True
    value = next(words, "") if given is None else given
    if not value or value.startswith("--"):
        _refuse(prog, f"--{name} needs a value: --{name} {shape}")
    return value


def _option_hint(word: str, flags: Mapping[str, str]) -> str:
    if "." in word:
        return f"; a value is given as {word.lstrip('-')}=VALUE"
    return hint(word, [f"--{name}" for name in (*flags, "help")])


def _refuse(prog: str, message: str) -> None:
    print(f"{prog}: {message}", file=sys.stderr)
    raise SystemExit(BAD_INPUT)


def _help(prog: str, description: str, flags: Mapping[str, str]) -> str:
    from .reference import describe

    options = {f"--{name.replace('=', ' ')}": text for name, text in {**flags, "help": "this text"}.items()}
    width = max(map(len, options)) + 2
    usage = " ".join(["usage:", prog, "CONFIG", "[key.sub=value ...]", *(f"[{name}]" for name in list(options)[:-1])])
    table = "\n".join(f"  {name.ljust(width)}{text}" for name, text in options.items())
    example = f"example: {prog} configs/tiny.yaml train.steps=200 model.dim=128"
    return f"{usage}\n\n{description}\n\n{table}\n\n{example}\n\nCONFIG is YAML with these keys:\n\n{describe()}"


def explain(error: BaseException) -> tuple[int, list[str]] | None:
    """The exit code and the lines that a user should see for an error, or None when it is a bug to show in full.

    A ValueError that this project raises is bad input; one from inside a library is not.
    """
    if isinstance(error, Damaged):
        return DAMAGED, [str(error)]
    if isinstance(error, SaveFailed):
        return FAILED, [str(error)]
    if isinstance(error, MemoryError):
        return FAILED, [str(error) or "out of memory"]
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, ["interrupted"]
    if isinstance(error, ValueError) and _raised_here(error):
        return BAD_INPUT, str(error).splitlines() or [type(error).__name__]
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FAILED, [f"{error.filename or 'output'}: {error.strerror}"]
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return BAD_INPUT, [f"{error.filename or 'output'}: {error.strerror}"]
    paths = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, FileExistsError)
    if isinstance(error, paths) and error.filename is not None:
        return BAD_INPUT, [f"{error.filename}: {error.strerror}"]
    return None


def _raised_here(error: BaseException) -> bool:
    """Whether the innermost frame of the error's traceback is a file of this project."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return True
    file = Path(trace.tb_frame.f_code.co_filename)
    return file.is_relative_to(_ROOT) and "site-packages" not in file.parts


def entry(main: Callable[P, int | None]) -> Callable[P, int]:
    """Make a `main` return an exit code: user errors become lines on stderr, without a traceback."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except (Exception, KeyboardInterrupt) as error:
            known = explain(error)
            if known is None:
                raise
            code, lines = known
            if (rank := os.environ.get("RANK", "0")) != "0":
                time.sleep(_RANK_0_FIRST)  # if it has the same to say, torchrun ends this process meanwhile
                lines = [f"rank {rank}: {line}" for line in lines]
            print(*lines, sep="\n", file=sys.stderr)
            return code

    return run
