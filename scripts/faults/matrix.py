"""All faults, in words and as functions."""

from . import (
    damage,
    edits,
    guarded,
    kills,
    mistakes,
    places,
    ranks,
    saves,
    shards,
    supervised,
    surroundings,
    trackers,
)
from .scenario import Scenario

MATRIX = (
    Scenario(
        "F1", "Killed", "kill -9 at random steps and moments of one run",
        "goes on alone; the metrics, samples, weights and optimizer of an unbroken run, bit for bit",
        kills.killed, 20, 2,
    ),
    Scenario(
        "F2", "Killed inside a save", "kill -9 at every system call of a save, at some of a first one and of the same "
        "step again",
        "the checkpoint before or the new one, whole; nothing is left behind, and the next save works",
        saves.killed, 600, 3,
    ),
    Scenario(
        "F3", "No room for a save", "a full file system, one too small for what comes, a limit on the size of files",
        "a warning, nothing left behind, what was there is untouched; the next save works",
        saves.full, 3, 1,
    ),
    Scenario(
        "F4", "A file cut off", "every file of the newest checkpoint cut to 0, 50 and 99 %",
        "the checkpoint before it is taken and the reason said; then as unbroken, bit for bit",
        damage.truncated, 3, 0,
    ),
    Scenario(
        "F5", "A bit flipped", "one bit at a random place, in all files of the newest checkpoint in turn",
        "the checkpoint before it is taken and the reason said; then as unbroken, bit for bit",
        damage.flipped, 200, 50,
    ),
    Scenario(
        "F6", "Every checkpoint bad", "all of a run's checkpoints cut, emptied, flipped, or missing files",
        "exit code 3 with the reasons; no file of the run changes, and it is never begun anew",
        damage.ruined, 3, 1,
    ),
    Scenario(
        "F7", "A damaged corpus", "each file of tokens cut, one bit flipped, an id beyond the vocabulary under a right "
        "hash",
        "exit code 3 that names the file, before anything of a run changes; an id never comes to the embedding",
        shards.damaged, 200, 20,
    ),
    Scenario(
        "F8", "A rank dies", "kill -9 of one of two ranks, three times",
        "the launcher restarts all; then as unbroken, bit for bit", supervised.killed_rank, 3, 1,
    ),
    Scenario(
        "F9", "A rank hangs", "one of two ranks sleeps for ever",
        "the stacks of all ranks are shown, all end, the launcher restarts; then as unbroken, bit for bit",
        supervised.hung_rank, 1, 1,
    ),
    Scenario(
        "F10", "A rank raises", "an exception in one of two ranks",
        "the first error is the one that is shown; restarted; then as unbroken, bit for bit",
        supervised.raising_rank, 1, 1,
    ),
    Scenario(
        "F11", "Asked to stop", "SIGTERM to one of two ranks, SIGUSR1 to the launcher; SIGTERM twice",
        "all ranks save the same step, exit code 75, then as unbroken, bit for bit; twice: 130 at once",
        supervised.asked, 1, 1,
    ),
    Scenario(
        "F12", "Ctrl-C", "SIGINT once; SIGINT twice, in the middle of a long step",
        "once: saves, exit code 75; twice: ends at once with 130; then as unbroken, bit for bit",
        kills.interrupted, 4, 2,
    ),
    Scenario(
        "F13", "Loss or weight not finite", "NaN and infinity in one micro-batch of one of two ranks, DDP and FSDP2; "
        "ten steps in a row; without end; a weight just before a save",
        "no rank applies the step, bit for bit; it goes back, leaves the rows out and halves the rate; the fourth time "
        "exit code 4; nothing that is not finite is ever saved",
        guarded.not_finite, 2, 1,
    ),
    Scenario(
        "F14", "A loss spike", "shuffled labels of one batch",
        "no weight changes, bit for bit; the final loss is that of a clean run within 0.02 nats",
        guarded.spike, 3, 1,
    ),
    Scenario(
        "F15", "A wrong config", "configs with three to eight mistakes",
        "exit code 2, each mistake on a line with its place and what would work; nothing is made on the disk",
        mistakes.bad_configs, 20, 2,
    ),
    Scenario(
        "F16", "wandb fails", "not installed, no key, its process killed, unreachable",
        "one warning; training ends with the same numbers",
        trackers.wandb_fails, 4, 2,
    ),
    Scenario(
        "F17", "No place to write", "no permission for a file or folder of a run, a read-only file system, the run's "
        "directory moved away while it trains",
        "exit code 2 before the first step, nothing changes; moved away: exit code 1 in one line after three saves",
        places.unwritable, 11, 11,
    ),
    Scenario(
        "F18", "The clock jumps", "hours forth and back whenever it is looked at, in runs that are stopped once",
        "as unbroken, bit for bit; no duration is wrong",
        surroundings.clock_jumps, 2, 1,
    ),
    Scenario(
        "F19", "Two processes on one run", "a second start while the first lives",
        "exit code 2 that names the holder; the run is not touched, and the first ends as if alone",
        places.locked, 5, 1,
    ),
    Scenario(
        "F20", "The config edited", "each field of the schema given another value under a run's directory",
        "what makes it another run is refused by name and changes nothing; the rest is accepted and written down",
        edits.edited, 6, 1,
    ),
    Scenario(
        "F21", "Another number of processes", "stopped twice, gone on with by 2, 1 and 3 ranks, DDP and FSDP2",
        f"the same rows in the same order, losses within {ranks.WITHIN:g} nats of one process",
        ranks.resharded, 2, 1,
    ),
    Scenario(
        "F22", "A rank is paused", "SIGSTOP and SIGCONT of one of two ranks, in less than the timeout",
        "nothing happens; as unbroken, bit for bit", supervised.paused_rank, 1, 1,
    ),
    Scenario(
        "F23", "Out of memory", "a limit on the address space, and a step that takes more",
        "exit code 1, one line with the parts of the estimate and what would take less; no checkpoint changes",
        surroundings.out_of_memory, 2, 1,
    ),
    Scenario(
        "F24", "Metrics cut in a line", "metrics.jsonl cut at bytes after the checkpoint",
        "no row is lost, none is there twice",
        kills.cut_metrics, 1000, 50,
    ),
)  # fmt: skip
