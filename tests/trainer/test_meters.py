"""Rates against numbers by hand, on a clock that the test moves."""

import mmap
import os
import subprocess

import numpy as np
import pytest
import torch

from trainer.meters import (
    WALL_CLOCK,
    Throughput,
    clock_text,
    listed_peak,
    measured_peak,
    memory,
    peak_flops,
    seconds_left,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_window_by_hand() -> None:
    clock = Clock()
    meter = Throughput(flops_per_token=6e3, peak=1e6, world_size=2, clock=clock)
    meter.add(300)
    with meter.waiting():
        clock.now += 2
    clock.now += 8
    meter.add(200)
    with meter.paused():  # an evaluation counts neither as training nor as waiting
        clock.now += 40
    assert meter.rate() == 50
    row = meter.read()
    assert row["train/tokens_per_s"] == 50
    assert row["train/mfu"] == pytest.approx(50 * 6e3 / 2e6)
    assert row["train/data_wait"] == pytest.approx(0.2)
    assert row["time/elapsed"] == 50
    assert row["train/memory"] > 0.01
    assert set(row) == WALL_CLOCK

    clock.now += 1
    meter.add(7)
    again = meter.read()  # a new window, the same start
    assert (again["train/tokens_per_s"], again["train/data_wait"], again["time/elapsed"]) == (7, 0, 51)


def test_time_goes_on_over_starts() -> None:
    clock = Clock()
    meter = Throughput(1.0, 1.0, elapsed=1000.0, clock=clock)
    clock.now += 10
    meter.add(50)
    assert meter.elapsed == 1010
    assert (meter.rate(), meter.read()["time/elapsed"]) == (5, 1010)  # the rate is that of this start


def test_no_time_is_no_rate() -> None:
    meter = Throughput(1.0, 1.0, clock=Clock())
    meter.add(5)
    assert meter.read()["train/tokens_per_s"] == 0


def test_a_pause_ends_when_it_raises() -> None:
    clock = Clock()
    meter = Throughput(1.0, 1.0, clock=clock)
    with pytest.raises(RuntimeError), meter.paused():
        clock.now += 5
        raise RuntimeError
    clock.now += 2
    meter.add(4)
    assert meter.rate() == 2


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA RTX A4000", None),
        ("Tesla T4", None),
    ],
)
def test_peaks_by_name(name: str, tflops: float | None) -> None:
    assert listed_peak(name) == (None if tflops is None else pytest.approx(tflops * 1e12))


def test_a_cpu_is_measured() -> None:
    assert 1e7 < measured_peak("cpu", torch.float32, size=128, seconds=0.01) < 1e15
    value, source = peak_flops("cpu", torch.float32)
    assert value > 1e7 and source == "measured"


def test_a_measurement_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    arange = torch.arange
    monkeypatch.setattr(torch, "arange", lambda stop, device: arange(stop))
    for name in ("mps", "cuda"):
        monkeypatch.setattr(getattr(torch, name), "synchronize", lambda name=name: calls.append(name))
        measured_peak(name, torch.float32, size=8, seconds=0.0)
    assert calls == ["mps"] * 6 + ["cuda"] * 6  # before and after each of three products


def resident() -> float:
    """GiB in this process now."""
    command = ["ps", "-o", "rss=", "-p", str(os.getpid())]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 2**20


def test_memory_is_in_gib() -> None:
    now = resident()
    size = int((memory("cpu") - now + 0.25) * 2**30)  # 256 MiB above the largest so far
    before = memory("cpu")
    block = mmap.mmap(-1, size)  # pages of its own: an allocator may have kept some that count already
    np.frombuffer(block, np.uint8)[:: mmap.PAGESIZE] = 1
    assert 0.01 < before < 512
    assert 0.2 < memory("cpu") - before < 0.5
    block.close()
    assert memory("cpu") - before > 0.2  # the largest, not the present


def test_time_left() -> None:
    assert seconds_left(start=100, step=150, total=300, elapsed=10) == 30
    assert seconds_left(0, 0, 10, 5) is None
    assert seconds_left(0, 12, 10, 5) == 0 == seconds_left(1, 1, 1, 0)
    assert [clock_text(s) for s in (None, 7.4, 723, 3723)] == ["?", "0:07", "12:03", "1:02:03"]
    assert [clock_text(3600 * h) for h in (47, 48, 887)] == ["47:00:00", "2 days 0 h", "36 days 23 h"]
