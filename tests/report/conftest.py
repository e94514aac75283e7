"""A small finished run folder, written through the run store as the pipeline writes it, with hostile texts in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.config import Config
from divsel_ray.config.files import build_config
from divsel_ray.store import Stage, Store, write_json

HOSTILE = """<script>alert(1)</script></script><img src=x onerror=alert(2)> {{ 7*7 }} {% raw %} "double" 'single' 🦜 `tick`"""
K, HELD_OUT = 3, 2
WEIGHTS = ([0.5, 0.3, 0.2], [0.4, 0.2, 0.4], [0.2, 0.2, 0.6])
REASONS = {"not JSON": 1, f"no reply {HOSTILE}": 2}


def make_config(rounds: int, fit: bool = True) -> Config:
    """Settings of a small job; static where `rounds` is 0."""
    reward = {"fit": {"base": "package:encoder"}} if fit else {"model": "some/reward-model"}
    values: dict[str, Any] = {
        "budget": 6,
        "pool": {"data": "chats.jsonl"},
        "cluster": {"k": K},
        "quality": {"source": "reward" if rounds else "none"},
        "reward": reward if rounds else None,
    }
    if rounds:
        values["refine"] = {"rounds": rounds, "held_out": HELD_OUT, "train": {"model": "package:tiny"}}
    return build_config(values, "test")


@dataclass
class FakeRun:
    """Builds a run folder stage by stage."""

    root: Path
    rounds: int
    fit: bool = True
    pool_rows: int = 30
    stages: list[tuple[Stage, bool]] = field(default_factory=list)

    def build(self) -> Path:
        """The whole folder, manifest last."""
        config = make_config(self.rounds, self.fit)
        self.pool_and_clusters()
        if self.rounds:
            self.reward_and_quality()
            self.base_answers()
        for number in range(1, max(self.rounds, 1) + 1):
            self.round(number)
        self.diversity()
        self.result(config)
        return self.root

    def diversity(self) -> None:
        """Twice as diverse as random rows by every measure."""
        names = ("clusters_covered", "vendi")
        stage = Store(self.root).stage("diversity", 1, {}, [])
        write_json(
            stage.start() / "diversity.json",
            {
                "selection": {**dict.fromkeys(names, 0.5), "sources": {f"a {HOSTILE}": 0.75, "b": 0.25}},
                "random": {name: {"mean": 0.25, "low": 0.125, "high": None} for name in names},
                "draws": 20,
                "compared": names,
            },
        )
        self.commit("diversity", {"draws": 20})

    def commit(self, name: str, facts: Mapping[str, Any], tables: Mapping[str, Any] | None = None) -> Stage:
        """A committed stage with these Parquet files."""
        stage = Store(self.root).stage(name, 1, {}, [])
        stage.start()
        for file, columns in (tables or {}).items():
            pq.write_table(pa.table(columns), stage.folder / file)
        stage.commit(facts)
        self.stages.append((stage, name == "pool"))
        return stage

    def pool_and_clusters(self) -> None:
        facts = {"rows": self.pool_rows, "rows_read": 40, "bad_rows": 3, "bad_reasons": REASONS, "duplicates": 4, "tokens": 900}
        self.commit("pool", {**facts, "files": {}, "sampled_from": 33, "score_missing": 0})
        sizes = [self.pool_rows - 13, 8, 5]
        self.commit("cluster", {"k": K, "sizes": sizes, "inertia": 12.5, "iterations": 7, "warnings": [f"odd {HOSTILE}"]})

    def reward_and_quality(self) -> None:
        if self.fit:
            by_kind = {"other_prompt": 0.9, "truncated": 0.8, "shuffled": 0.7}
            self.commit("reward", {"held_out_accuracy": 0.81, "accuracy_by_kind": by_kind})
        half = self.pool_rows // 2
        values = np.linspace(-1, 1, self.pool_rows)
        files = {
            "part-00000.parquet": {"row_id": row_ids(0, half), "quality": values[:half]},
            "part-00001.parquet": {
                "row_id": row_ids(half, self.pool_rows),
                "quality": pa.array([None, *values[half + 1 :]], pa.float64()),
            },
        }
        self.commit("quality", {"rows": self.pool_rows, "missing": 1, "mean": 0.0, "sd": 0.5}, files)

    def base_answers(self) -> None:
        ids = row_ids(100, 100 + HELD_OUT)
        self.commit("round-0/generate", {"rows": HELD_OUT}, {"shard-00000.parquet": answers(ids, "untuned answer")})
        self.commit("round-0/score", {"held_out_gap": 2.0}, {"gaps.parquet": gaps(ids, [1.0, 3.0], [True] * HELD_OUT)})

    def round(self, number: int) -> None:
        name, rows = f"round-{number}", 6 * number // max(self.rounds, 1)
        facts = {"rows": rows, "new": 6 // max(self.rounds, 1), "weights": WEIGHTS[number - 1]}
        self.commit(f"{name}/draw", facts, {"selected.parquet": {"row_id": row_ids(0, rows)}})
        if self.rounds:
            self.train(name, number)
            self.answer(name, rows, number)
            self.weigh(name, number)

    def train(self, name: str, number: int) -> None:
        stage = Store(self.root).stage(f"{name}/train", 1, {}, [])
        stage.start()
        (stage.folder / "training").mkdir()
        lines = [json.dumps({"step": step, "steps": 3, "loss": 3.0 - 0.1 * step}) for step in (1, 2, 3)]
        (stage.folder / "training" / "losses.jsonl").write_text("\n".join(lines) + "\n")
        self.commit(f"{name}/train", {"steps": 3, "held_out_loss_base": 3.25, "held_out_loss": 3.25 - 0.5 * number})

    def answer(self, name: str, rows: int, number: int) -> None:
        ids = [*row_ids(0, rows), *row_ids(100, 100 + HELD_OUT)]
        self.commit(f"{name}/generate", {"rows": len(ids)}, {"shard-00000.parquet": answers(ids, f"answer {number} {HOSTILE}")})
        values: list[float | None] = [None, *[0.5] * (rows - 1), 0.5, 1.5]
        table = gaps(ids, values, [False] * rows + [True] * HELD_OUT)
        self.commit(f"{name}/score", {"mean_gap": 0.5, "held_out_gap": 1.0}, {"gaps.parquet": table})

    def weigh(self, name: str, number: int) -> None:
        before, after = WEIGHTS[number - 1], WEIGHTS[number]
        stage = Store(self.root).stage(f"{name}/weights", 1, {}, [])
        stage.start()
        clusters = [{"scored": 2, "before": b, "after": a} for b, a in zip(before, after, strict=True)]
        write_json(stage.folder / "weights.json", clusters)
        facts = {"weights": after, "moved": 0.2, "between": -0.1 if number == 2 else 0.3, "guards": {"step": 1}}
        facts |= {"scored_rows": 2 * K, "scored_clusters": K, **dict.fromkeys(("agreement", "length_slope", "length_share"))}
        self.commit(f"{name}/weights", facts)

    def result(self, config: Config) -> None:
        pq.write_table(selection(self.rounds), self.root / "selection.parquet")
        stages = [
            {"stage": stage.name, "key": stage.key, "seconds": 1.5, "cached": cached, "facts": stage.facts}
            for stage, cached in self.stages
        ]
        execution = {"python": "3.12.0", "device": f"cpu {HOSTILE}", "cores": 2, "versions": {"ray": "2.60.0"}}
        manifest = {"rows": 6, "row_ids_sha256": "ab" * 32, "config": config.model_dump(mode="json"), "stages": stages}
        write_json(
            self.root / "manifest.json",
            {**manifest, "finished": "2026-01-02T03:04:05+00:00", "inputs": [f"chats {HOSTILE}.jsonl"], "execution": execution},
        )


def row_ids(start: int, stop: int) -> list[str]:
    """Ids that sort by number's hash, as real ones do."""
    return [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(start, stop)]


def answers(ids: Sequence[str], text: str) -> dict[str, Any]:
    """Columns of a generation shard."""
    prompt = [{"role": "user", "content": f"question {HOSTILE}"}]
    return {
        "row_id": ids,
        "sample": [0] * len(ids),
        "prompt_messages": [prompt] * len(ids),
        "gold": ["gold answer"] * len(ids),
        "generated": [text] * len(ids),
    }


def gaps(ids: Sequence[str], values: Sequence[float | None], held_out: Sequence[bool]) -> dict[str, Any]:
    """Columns of gaps.parquet; gold is rewarded 4, and what was generated 4 less the gap."""
    generated = [None if value is None else 4.0 - value for value in values]
    return {"row_id": ids, "gold": [4.0] * len(ids), "generated": generated, "gap": values, "held_out": held_out}


def selection(rounds: int) -> pa.Table:
    """Six rows: three of cluster 0, two of cluster 1, one of cluster 2."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": HOSTILE}]
    conversation = [*messages, {"role": "assistant", "content": f"reply {HOSTILE} " + "long " * 200}]
    quality = pa.array([1.0, 2.0, 3.0, 4.0, 5.0, None] if rounds else [None] * 6, pa.float64())
    return pa.table(
        {
            "messages": [conversation] * 6,
            "row_id": row_ids(0, 6),
            "cluster": pa.array([0, 0, 0, 1, 1, 2], pa.int32()),
            "quality": quality,
            "round": pa.array([min(at // 3, max(rounds, 1) - 1) + 1 for at in range(6)], pa.int32()),
            "source": ["chats.jsonl"] * 6,
            "weight": [5.0] * 6,
            "budget": [6] * 6,
            "why": [f"kmq: reason {HOSTILE}"] * 6,
        }
    )


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Builds a finished run folder: `make_run(rounds=2)`, or rounds=0 for a static selection."""
    return lambda **settings: FakeRun(tmp_path / "run", **{"rounds": 2, **settings}).build()
