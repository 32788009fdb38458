"""A run on disk: its folder, its plan, its checkpoints and its metrics.

It does not know how training works. It hands out `folder.RunFolder`, `lookup.find_run`, `plan.Plan`,
`checkpoint`, `run_state.RunState` and `sinks`.
"""
