"""The tools a run needs: optimizer, schedule, precision, ranks, checkpoints, guard, meters, tracking."""
