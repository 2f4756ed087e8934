"""What `python -m scripts.bench faults` tells: a page and a picture, all from what reliability.json holds."""

import textwrap
from typing import Any

from ..faults.matrix import MATRIX
from ..faults.runs import SAVE_EVERY
from ..faults.scenario import Scenario

Report = dict[str, Any]

PAGE = """\
# Reliability

{summary}

## Three promises

1. **A single fault costs at most `save.every` steps of work, and a request to stop costs none.** The same command goes
   on by itself. {lost}
2. **A run that goes on is the run that it would have been**: the same metrics, samples, weights and optimizer, bit for
   bit; with another number of processes, the same rows in the same order and losses within 1e-5 nats.
   {equal}
3. **A damaged checkpoint is never loaded silently.** The newest intact one is taken instead, and the reason said; when
   none is left, the run is refused, never begun anew.
   {detected}

{picture}## Every fault

{table}

*times*: injections, each on a real run or checkpoint. *Survived*: all that the list below asks for held. *Steps lost*:
the most that one injection cost, where a checkpoint was due every {save_every} steps. *Noticed*: how many were, where
there is something to notice. *Seconds*: of the whole row, clean runs for comparison included.

### What surviving means

{meanings}
{failures}
## What survival costs

{costs}

## Not shown here

- A power cut. What a kernel had not yet written is lost then and not after `kill -9`: the order of writes, `fsync` and
  renames is made for it, and no test here takes the power away.
- GPUs. All of this ran on CPUs, the processes over gloo.
- Two faults at once, such as a damaged newest checkpoint while the disk is full.
- Bits that flip in memory: what they make infinite is noticed, what they make wrong is not.
- File systems over a network, whose renames and locks may promise less than a local one's.

## Run it

```bash
python -m scripts.bench faults             # all of it, {minutes:.0f} min on the machine above; writes this page
python -m scripts.bench faults --quick     # small counts, a few minutes
python -m scripts.bench faults --only F5   # one fault
```

`make test` and `make soak` inject every fault as well, less often.
"""


def line(scenario: Scenario, found: dict[str, Any]) -> str:
    """A row of the table as one line for a terminal."""
    lost = "" if found["lost"] is None else f"  lost at most {found['lost']} steps"
    told = f"{scenario.fault:<4}{scenario.name:<30}survived {found['survived']}/{found['injected']}{lost}"
    failed = "".join(f"\n    {failure}" for failure in found["failures"][:5])
    return f"{told}  {found['seconds']:.0f} s{failed}"


def markdown(report: Report) -> str:
    """The page."""
    faults = {s: report["faults"][s.fault] for s in MATRIX if s.fault in report["faults"]}
    return PAGE.format(
        summary=_summary(report, faults), picture=_picture(report), table=_table(faults), save_every=SAVE_EVERY,
        meanings="\n".join(f"- **{s.fault} {s.name.lower()}**: {s.promise}." for s in faults),
        failures=_failures(faults), costs=_costs(report), minutes=report["seconds"] / 60, **_promises(report),
    )  # fmt: skip


def _summary(report: Report, faults: dict[Scenario, dict[str, Any]]) -> str:
    injected = sum(found["injected"] for found in faults.values())
    survived = sum(found["survived"] for found in faults.values())
    place, git = report["surroundings"], report["surroundings"]["git"]
    at = f" at commit {git['commit'][:7]}{', modified' * git['modified']}" if git else ""
    return textwrap.fill(
        f"{len(faults)} kinds of faults, injected {injected:,} times and survived {survived:,} times. Nothing was "
        "simulated: processes were killed, disks were full, bytes on disk were flipped; what goes bad inside of a "
        "process (F13, F14, F18) was put there while it ran. Every number on this page was "
        f"written by `python -m scripts.bench faults{' --quick' * report['quick']}` on {place['date']}{at}, on "
        f"{place['cpus']} cores of an {_cpu(place)} with torch {place['torch']} and Python {place['python']}; the runs "
        "are those of [configs/tiny.yaml](../configs/tiny.yaml), with one thread each.",
        120, break_on_hyphens=False,
    )  # fmt: skip


def subtitle(report: Report) -> str:
    """Of the picture."""
    place = report["surroundings"]
    return f"configs/tiny.yaml on a core of an {_cpu(place)}; a checkpoint every {SAVE_EVERY} steps"


def _cpu(place: dict[str, Any]) -> str:
    return place["cpu"].replace(" Processor", "")


def _promises(report: Report) -> dict[str, str]:
    """A measured sentence for each promise, empty where it was not measured."""
    faults, told = report["faults"], {"lost": "", "equal": "", "detected": ""}
    losses = [found["lost"] for found in faults.values() if found["lost"] is not None]
    if losses:
        told["lost"] = f"Measured: {max(losses)} at most, of {SAVE_EVERY}."
    if (f1 := faults.get("F1")) and (f21 := faults.get("F21")):
        nats = f"{f21['figures'].get('nats', 0):.1g}"
        told["equal"] = f"Measured: {f1['survived']} of {f1['injected']} kills, and at most {nats} nats."
    if (f4 := faults.get("F4")) and (f5 := faults.get("F5")) and (f6 := faults.get("F6")):
        told["detected"] = (
            f"Measured: {f5['detection']} flipped bits and {f4['detection']} cut files noticed; {f6['survived']} of "
            f"{f6['injected']} runs without an intact checkpoint refused."
        )
    return told


def _picture(report: Report) -> str:
    found = report["faults"].get("F1")
    if not found or not found["figures"]:
        return ""
    kills = found["figures"]["kills"]
    back = sum(at - saved for at, saved in kills)
    told = textwrap.fill(
        f"*Above: the loss at each step of two runs, of which one was killed {len(kills)} times (crosses). The thin "
        "line lies on the thick one because all values are equal to the last bit. Below: how far the killed run was "
        f"over time; each kill takes it back to its last checkpoint, {back} steps in all.*",
        120, break_on_hyphens=False,
    )  # fmt: skip
    return f"![The loss of a run that was killed, over that of one that was not](reliability.png)\n\n{told}\n\n"


def _table(faults: dict[Scenario, dict[str, Any]]) -> str:
    lines = [
        "| | fault | injected | times | survived | steps lost | noticed | seconds |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for scenario, found in faults.items():
        lost = "-" if found["lost"] is None else found["lost"]
        survived = f"{found['survived']:,}" if found["survived"] == found["injected"] else f"**{found['survived']:,}**"
        lines.append(
            f"| {scenario.fault} | {scenario.name} | {scenario.how} | {found['injected']:,} | {survived} | {lost} "
            f"| {found['detection']} | {found['seconds']:.0f} |"
        )
    return "\n".join(lines)


def _failures(faults: dict[Scenario, dict[str, Any]]) -> str:
    told = [f"- {s.fault}: {failure[:300]}" for s, found in faults.items() for failure in found["failures"]]
    return "\n### Not survived\n\n" + "\n".join(told) + "\n" if told else ""


def _costs(report: Report) -> str:
    lines = []
    if (f5 := report["faults"].get("F5")) and f5["figures"]:
        size, each = f5["figures"]["checkpoint_bytes"], f5["figures"]["milliseconds_each"]
        lines.append(
            f"- Finding a damaged checkpoint of {size / 2**20:.1f} MiB and the intact one before: {each:.1f} ms."
        )
    if (f1 := report["faults"].get("F1")) and f1["figures"]:
        clean, kills = f1["figures"]["clean_seconds"], len(f1["figures"]["kills"])
        whole = f1["figures"]["progress"][-1][-1][0]
        lines.append(
            f"- A kill and the start after it: {(whole - clean) / kills:.1f} s, most of it Python importing torch "
            f"({clean:.0f} s without a kill, {whole:.0f} s with {kills})."
        )
    if (f14 := report["faults"].get("F14")) and f14["figures"]:
        lines.append(
            f"- Spikes of the loss, skipped ({f14['injected']} in one run): its final loss is "
            f"{f14['figures']['nats']:+.4f} nats from that of a clean run."
        )
    if saving := report["figures"].get("saving"):
        size = f"{saving['parameters'] / 1e6:.1f}M parameters with AdamW's state, {saving['bytes'] / 1e9:.2f} GB"
        share = saving["background"] / saving["foreground"]
        lines.append(
            f"- A checkpoint of {size}: {saving['foreground']:.2f} s when training waits for it. In the background it\n"
            f"  holds training up for {saving['background']:.2f} s ({share:.1%}); sharing the machine with it "
            f"costs steps of {saving['step']:.2f} s\n  another {saving['contention']:.2f} s in all."
        )
    if wandb := report["figures"].get("wandb"):
        lines.append(
            f"- A step while wandb cannot be reached: {wandb['unreachable']:.2f} ms, {wandb['off']:.2f} ms without it\n"
            f"  ({wandb['ratio'] - 1:+.1%} by the median of pairs of runs, which say {wandb['least'] - 1:+.1%} to "
            f"{wandb['most'] - 1:+.1%})."
        )
    return "\n".join(lines)
