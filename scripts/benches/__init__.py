"""The benchmarks that `python -m scripts.bench NAME` runs: what is compared, how it is timed, what is told of it."""
