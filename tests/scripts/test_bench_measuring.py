"""What benchmarks share: who is asked for, what is told of a failure, the words of a command, titles of pictures."""

from pathlib import Path

import pytest

from scripts.benches import measuring
from scripts.benches.picture import Bar, Heading, rates

NAMES = ["a", "a, b", "a, c", "d"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (None, NAMES),
        (["a"], ["a"]),  # a name, though it is also in others
        ([", "], ["a, b", "a, c"]),
        (["d", "b"], ["a, b", "d"]),  # in the order of the names
        (["a, c", "c", "a"], ["a", "a, c"]),
    ],
)
def test_a_word_asks_for_its_name_or_for_those_it_is_in(words: list[str] | None, found: list[str]):
    assert measuring.asked_for(NAMES, words) == found


def test_a_word_that_no_name_has_is_refused():
    with pytest.raises(ValueError, match="^--only 'no one': there are a; a, b; a, c; d$"):
        measuring.asked_for(NAMES, ["a", "no one"])


def test_a_failure_is_told_by_its_reason():
    assert measuring.last_words(2, "heads 5 does not divide 384\n1 error; nothing was run.\n") == (
        "heads 5 does not divide 384"
    )
    assert measuring.last_words(1, "Traceback:\n  line\nValueError: no\n\n") == "ValueError: no"
    assert measuring.last_words(3, "\n") == "exit code 3"
    assert measuring.last_words(-9, "whatever") == "killed, perhaps out of memory"


def opened(path: Path, told: str = "a CPU; load 1", *, resume: bool = True, **left_out: str) -> measuring.Notebook:
    return measuring.Notebook(path / "x.json", "x", {"repeats": 2}, resume=resume, told=told, left_out=left_out)


def test_a_start_asks_again_only_for_what_failed_before(tmp_path: Path):
    book = opened(tmp_path)
    for name, answer in (("a", {"n": 1}), ("a", {"n": 2}), ("b", {"n": 3}), ("b", {"failed": "why"})):
        book.add("case", name, answer)
    assert not any(book.wants("case", name, turn) for name in "ab" for turn in range(2)), "not in the same start"
    again = opened(tmp_path)
    assert [again.wants("case", "b", turn) for turn in range(2)] == [False, True]
    assert again.wants("other", "c", 0) and again.report["answers"] == book.report["answers"], "nobody is forgotten"
    again.add("case", "b", {"n": 4})
    assert again.of("case", "b") == [{"n": 3}, {"n": 4}]
    again = opened(tmp_path, resume=False)
    assert again.report["answers"] == {}


def test_a_report_is_of_one_machine(tmp_path: Path):
    opened(tmp_path).write()
    opened(tmp_path, "a CPU; load 9")
    with pytest.raises(ValueError, match="was measured on a CPU, and this is another"):
        opened(tmp_path, "another; load 1")


def test_a_finished_report_leaves_out_who_never_answered(tmp_path: Path):
    book = opened(tmp_path, nanoGPT="left out  nanoGPT", litgpt="left out  litgpt")
    book.add("case", "nanoGPT bf16", {"n": 1})
    assert not book.report["finished"] and len(book.report["left_out"]) == 2
    book.finish()
    assert book.report["finished"] and book.report["left_out"] == {"litgpt": "left out  litgpt"}


def test_no_table_of_aims_without_aims():
    assert measuring.aim_lines([]) == []
    assert measuring.aim_lines([measuring.Aim("x", 2, 1.5), measuring.Aim("y", 2, 1.5, True)]) == [
        "", "aim  wanted  found", "x      >= 2   1.50  missed", "y      <= 2   1.50     met",
    ]  # fmt: skip


def test_a_quick_look_is_called_one():
    report = {"told": "some CPU; torch 1; load 0.5 before the start", "settings": {"quick": True}}
    assert measuring.subtitle(report, "greedy") == f"{measuring.QUICK}; greedy; some CPU; torch 1"
    report["settings"] = {}
    assert measuring.subtitle(report) == "some CPU; torch 1"


@pytest.mark.parametrize(
    "told",
    [
        "a quick look: neither times nor losses say anything; Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz "
        "(family 6, model 143), 2 CPUs, 2 threads; torch 2.13.0+cpu",
        "NVIDIA RTX 6000 Ada Generation, CUDA 13.0; AMD Ryzen Threadripper PRO 7995WX 96-Cores (family 25, model 24), "
        "192 CPUs, 96 threads",
    ],
)
def test_a_subtitle_stays_in_its_picture(told: str, tmp_path: Path, monkeypatch):
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    draw = Heading.draw

    def seen(self: Heading, figure: Figure) -> None:
        draw(self, figure)
        drawn.append(figure)

    monkeypatch.setattr(Heading, "draw", seen)
    rates([Bar("ours", 2.0, True)], tmp_path / "x.png", "Title", told)
    (figure,) = drawn
    lines = figure.texts[1:]
    assert " ".join(line.get_text() for line in lines) == told and len(lines) > 1
    boxes = [line.get_window_extent() for line in figure.texts]
    assert all(box.x0 > 0 and box.x1 < figure.bbox.width for box in boxes)
    assert all(above.y0 > below.y1 for above, below in zip(boxes, boxes[1:], strict=False))
    assert boxes[-1].y0 - figure.axes[0].get_window_extent().y1 > 0.1 * figure.dpi


def test_the_command_is_told_without_what_divides_it():
    words = [
        "--python",
        "/x/python",
        "--only",
        "a",
        "b",
        "--quick",
        "--shapes",
        "1x2",
        "3x4",
        "--out",
        "/y",
        "--resume",
    ]
    assert measuring.spoken("x", words) == "python -m scripts.bench x --python PYTHON --quick --shapes 1x2 3x4"
    assert measuring.spoken("x", ["--text", "/a/b.txt", "--quick"]) == "python -m scripts.bench x --text TEXT --quick"
    words = ["--nanogpt=/home/me", "--out=/y", "--quick", "--python", "/z"]
    assert measuring.spoken("x", words) == "python -m scripts.bench x --nanogpt NANOGPT --quick --python PYTHON"
    assert measuring.spoken("x", ["--only", "a b", "c"]) == "python -m scripts.bench x --only 'a b' c"


def test_rounds_begin_with_another_each_time():
    assert list(measuring.rounds("ab", 3)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
