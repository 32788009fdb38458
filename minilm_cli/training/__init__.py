"""The training engine: batches, steps, evaluation, checkpoints, signals, several processes.

It does not know who shows its progress. It hands out `run.distill`, `run.resume`, `run.dry_run` and `run.follow`, and
`distributed.World` for the command line.
"""
