"""Which runs of a list are to be done, and their doing, some at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from tqdm.auto import tqdm

from .experiment_job import Job, stop
from .experiment_run import Run, RunFailed, State

POLL_SECONDS = 0.2


def plan(selected: Iterable[Run]) -> dict[Run, State]:
    """The selected runs and those whose checkpoints they lack, with what is to be done of each."""
    states: dict[Run, State] = {}

    def visit(run: Run, checkpoint_needed: bool) -> None:
        state = run.state(checkpoint_needed=checkpoint_needed)
        kinds = {"nothing": (), "test": ("test",)}.get(state.todo, ("fit", "test"))
        for needed in {needed: None for kind in kinds for needed in run.needs[kind].values()}:
            visit(needed, checkpoint_needed=True)
        if run not in states or state.todo != "nothing":
            states[run] = state

    for run in selected:
        visit(run, checkpoint_needed=False)
    return states


def work(
    states: Mapping[Run, State],
    begin: Callable[[Run], Job],
    jobs: int,
    finished: Callable[[Run], None],
    say: Callable[[str], None] = tqdm.write,
) -> dict[Run, str]:
    """Do what is to be done, in order, as far as the runs that others need are there.

    Args:
        begin: makes the job of a run. finished: called after each run that went well.

    Returns:
        The runs that failed and why. A run whose needed run failed is one of them; the others go on.
    """
    failures: dict[Run, str] = {}
    pending = [run for run, state in states.items() if state.todo != "nothing"]
    active: list[Job] = []
    waited_for: set[Run] = set()
    bar = tqdm(total=len(states), initial=len(states) - len(pending), unit="run", disable=None, dynamic_ncols=True)

    def fail(run: Run, why: str) -> None:
        failures[run] = why
        say(f"{run}: FAILED: {why}")
        bar.update()

    def begin_next() -> bool:
        """Take the first run that can be begun; whether there was one, or one that never can."""
        for run in pending:
            missing = [needed for needed in run.needed_runs if needed.checkpoint() is None]
            lost = [needed for needed in missing if needed in failures or needed not in states]
            if lost:
                pending.remove(run)
                fail(run, f"it needs the checkpoint of {lost[0]}, which failed")
                return True
            if missing:
                continue
            job = begin(run)
            if not job.is_locked_out:
                pending.remove(run)
                active.append(job)
                return True
            if run not in waited_for:
                waited_for.add(run)
                say(f"{run}: another process works on it; waiting")
        return False

    def look_after(job: Job) -> None:
        try:
            if not job.advance():
                return
            finished(job.run)
            bar.update()
        except (RunFailed, OSError, ValueError) as failure:
            fail(job.run, str(failure))
        active.remove(job)

    try:
        while pending or active:
            while len(active) < jobs and begin_next():
                pass
            for job in list(active):
                look_after(job)
            bar.set_postfix_str(doing(active))
            time.sleep(POLL_SECONDS)
    finally:
        stop(active)
        bar.close()
    return failures


def doing(jobs: Sequence[Job]) -> str:
    """What the bar shows beside the count."""
    now = time.monotonic()
    return "; ".join(f"{job.run} {job.doing} {(now - job.began) / 60:.0f} min" for job in jobs)
