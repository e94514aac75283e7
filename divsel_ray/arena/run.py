"""`divsel arena` below the command line: every contender with every seed, then tables and a page.

All parts of a cell, including its measurement, are committed stages of one folder: running the same command again resumes and
computes only the missing ones.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from divsel_ray.arena.contenders import contenders_of
from divsel_ray.arena.ground import Grounds
from divsel_ray.arena.page import write_page
from divsel_ray.arena.result import Result, summarise, write_result
from divsel_ray.arena.runner import Runner
from divsel_ray.arena.worker import Bench, check_places
from divsel_ray.config.arena import Arena
from divsel_ray.needs import check_cluster
from divsel_ray.pipeline import require_models, require_training
from divsel_ray.progress import Progress, Silent
from divsel_ray.resources import connect
from divsel_ray.store import Store


def run_arena(arena: Arena, out: str | Path, progress: Progress | None = None) -> Result:
    """Run or resume an arena in a folder, and write `arena.json` and `arena.html` there.

    Raises:
        InputError: the data, a sampler, a model or the cluster does not fit the settings.
        JobError: another process has locked the folder, a stage failed, or contenders' budgets differ.
    """
    contenders = contenders_of(arena)
    store, progress = Store(out), progress or Silent()
    with store.lock():
        require_models(arena.without_rounds(arena.job))
        require_training()
        cluster = replace(connect(), placement_timeout_s=arena.job.placement_timeout_s)
        check_cluster(arena.job, cluster, rounds=bool(arena.settings.iterative))
        grounds = Grounds(arena, store, cluster, progress)
        check_places(arena, cluster)
        bench = Bench(arena.refine.train, grounds.measurement(), cluster, arena.settings.parallel)
        with contextlib.closing(bench):
            cells = Runner(arena, contenders, grounds, bench, progress).run()
        result = summarise(arena, contenders, cells, grounds)
        write_result(result, store.root)
        write_page(result, store.root)
    return result
