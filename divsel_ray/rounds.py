"""The stages of a round: fine-tune, generate, score, move the weights. `stages.py` holds those before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from divsel_ray.config import RefineConfig, WeightsConfig
from divsel_ray.generate.stage import Fleet
from divsel_ray.models.references import fingerprint, resolve_model, unconverted
from divsel_ray.score.gaps import pair_exchanges, write_gaps
from divsel_ray.score.stage import score_exchanges
from divsel_ray.select.weights import ClusterGaps, cluster_gaps, explain_weights, update_weights
from divsel_ray.stages import Before, Job, round_name, settings_of, write_table
from divsel_ray.store import Stage, write_json
from divsel_ray.train.stage import Round, adapter_folder, train_round


@dataclass
class RefiningJob(Job):
    """A job whose rounds learn from the model they train."""

    _fleet: Fleet | None = None

    @property
    def refinement(self) -> RefineConfig:
        """The refinement settings of a job that has rounds."""
        if self.config.refine is None:
            raise RuntimeError("this job has no rounds")
        return self.config.refine

    def train(self, number: int, draw: Stage, before: Before | None) -> Stage:
        """The base model fine-tuned on all rows selected so far."""
        config, seed = self.refinement.train, self.config.seed

        def build(folder: Path) -> dict[str, Any]:
            self._fetch_model()
            base_loss = before.model.facts["held_out_loss_base"] if before else None
            round_ = Round(draw.folder / "selected_rows.parquet", draw.folder / "held_out_rows.parquet", seed, base_loss)
            return train_round(round_, config, folder, self.hardware, self.progress)

        return self.make(
            round_name(number, "train"),
            {**settings_of(config), "seed": seed, "world_size": config.workers.count, "threads": config.workers.cpus},
            [draw.key, fingerprint(config.model)],
            build,
            lambda facts: (
                f"{facts['steps']} steps, held-out loss {facts['held_out_loss_base']:.3f} -> {facts['held_out_loss']:.3f}"
            ),
        )

    def generate(self, number: int, draw: Stage, trained: Stage | None) -> Stage:
        """Completions of the selected and the held-out prompts; by the base model for held-out ones only when untrained."""
        config = self.refinement.generate
        names = ["held_out", "selected"] if trained else ["held_out"]

        def build(folder: Path) -> dict[str, Any]:
            self._fetch_model()
            parts = [pq.read_table(draw.folder / f"{name}_rows.parquet", columns=["row_id", "messages"]) for name in names]
            prompts = folder / "prompts.parquet"
            write_table(pa.concat_tables(parts).sort_by("row_id"), prompts)
            adapter = str(adapter_folder(trained.folder)) if trained else None
            return self._generate(prompts, adapter, folder)

        return self.make(
            round_name(number, "generate"),
            {**settings_of(config), "seed": self.config.seed, "threads": config.workers.cpus, "rows": names},
            [draw.key, *([trained.key] if trained else [])],
            build,
            lambda facts: f"{facts['rows']:,} completions, {facts['tokens']:,} tokens, {facts['truncated']:,} cut at the limit",
        )

    def _generate(self, prompts: Path, adapter: str | None, folder: Path) -> dict[str, Any]:
        """Use the fleet, and end it where the cluster cannot hold it beside what comes next."""
        refinement, scoring = self.refinement, self.reward_config.workers
        training = refinement.train.workers
        if self._fleet is None:
            rank = refinement.train.lora_rank
            self._fleet = Fleet(refinement.train.model, refinement.generate, rank, self.config.seed, self.hardware)
        facts = self._fleet.generate(prompts, adapter, folder, self.progress)
        others = [(training, training.count or 1), (scoring, scoring.count or 1)]
        if not self.hardware.holds_together((refinement.generate.workers, self._fleet.size), *others):
            self._fleet.close()
        return facts

    def _fetch_model(self) -> None:
        """Convert the language model, where it comes in a form that must be, before a stage that loads it waits for it."""
        reference = self.refinement.train.model
        if unconverted(reference):
            self.progress.note(f"converting {reference} once for this machine, about a minute; its own terms of use apply")
            ray.get(ray.remote(max_calls=1)(resolve_model).remote(reference))

    def close(self) -> None:
        """End the actors that outlive a stage."""
        if self._fleet is not None:
            self._fleet.close()

    def score(self, number: int, draw: Stage, generated: Stage, reward: Stage | None) -> Stage:
        """Rewards of gold and generated completions, and their gap (Yu et al. 2024, Eq. 4)."""
        spec, inputs = self.reward_spec(reward)
        config = self.reward_config

        def build(folder: Path) -> dict[str, Any]:
            pairs = pa.concat_tables([pq.read_table(file) for file in generated.files("shard-*.parquet")])
            write_table(pair_exchanges(pairs), folder / "exchanges.parquet")
            scores = folder / "scores.parquet"
            score_exchanges(str(folder / "exchanges.parquet"), spec, scores, self.hardware, config.workers, self.progress)
            held_out = set(pq.read_table(draw.folder / "held_out.parquet")["row_id"].to_pylist())
            return write_gaps(pairs["row_id"].to_pylist(), held_out, scores, folder / "gaps.parquet")

        return self.make(
            round_name(number, "score"),
            {"scorer": "reward", "max_tokens": spec.max_tokens, "batch_tokens": spec.batch_tokens},
            [generated.key, *inputs],
            build,
            lambda facts: ", ".join(
                f"gap {facts[name]:.3f} on {rows} rows"
                for name, rows in (("mean_gap", "selected"), ("held_out_gap", "held-out"))
                if facts[name] is not None
            ),
        )

    def weights(self, number: int, draw: Stage, clusters: Stage, scored: Stage) -> Stage:
        """The next round's cluster weights, every cluster explained."""
        config = self.refinement.weights

        def build(folder: Path) -> dict[str, Any]:
            gaps = read_gaps(draw, clusters, scored, config)
            before = np.array(draw.facts["weights"])
            after = update_weights(before, gaps, config)
            write_json(folder / "weights.json", explain_weights(clusters.facts["sizes"], gaps, before, after))
            moved = float(np.abs(after - before).sum() / 2)
            return {"weights": after.tolist(), "moved": moved, "between": gaps.between, "direction": config.direction}

        return self.make(
            round_name(number, "weights"),
            config.model_dump(),
            [draw.key, scored.key],
            build,
            lambda facts: f"{facts['moved']:.1%} of the weight moved",
        )


def read_gaps(draw: Stage, clusters: Stage, scored: Stage, config: WeightsConfig) -> ClusterGaps:
    """The gaps of a round's selected rows by cluster."""
    selected = pq.read_table(draw.folder / "selected.parquet", columns=["row_id", "cluster"])
    of_row = dict(zip(selected["row_id"].to_pylist(), selected["cluster"].to_pylist(), strict=True))
    gaps = [row for row in pq.read_table(scored.folder / "gaps.parquet").to_pylist() if not row["held_out"]]
    values = np.array([np.nan if row["gap"] is None else row["gap"] for row in gaps])
    cluster = np.array([of_row[row["row_id"]] for row in gaps], dtype=np.int64)
    return cluster_gaps(values, cluster, clusters.facts["k"], shrinkage=config.shrinkage)
