"""The stages of a round: fine-tune, generate, score, update the weights. `stages.py` contains those before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from divsel_ray.actors import answer_of
from divsel_ray.config import Config, RefineConfig, RewardConfig
from divsel_ray.data.stage import CHUNK_ROWS, by_row_id
from divsel_ray.generate.stage import EngineSettings, Fleet, read_chat_template
from divsel_ray.models.references import fingerprint, resolve_model, unconverted
from divsel_ray.score.crew import Crew
from divsel_ray.score.gaps import write_gaps
from divsel_ray.score.spec import ScorerSpec
from divsel_ray.score.stage import reward_reference
from divsel_ray.select.gaps import RowGaps
from divsel_ray.select.weights import WeightUpdate, explain_weights, move_weights
from divsel_ray.stage_maker import VERSIONS
from divsel_ray.stage_names import round_name
from divsel_ray.stages import Before, Job, Sources, settings_of
from divsel_ray.store import Stage, digest, write_json, write_table
from divsel_ray.streaming import Stream
from divsel_ray.train.finetune import Origin
from divsel_ray.train.stage import Round, train_round, trained_folder

_GAP_COLUMNS = ("gap", "gold_tokens", "generated_tokens", "second_gap")


@dataclass
class RefiningJob(Job):
    """A job with rounds, each of which learns from the model trained so far."""

    _stream: Stream | None = None

    @property
    def refinement(self) -> RefineConfig:
        """The refinement settings of a job that has rounds."""
        if self.config.refine is None:
            raise RuntimeError("this job has no rounds")
        return self.config.refine

    def train(self, number: int | None, draw: Stage, before: Before | None) -> Stage:
        """The model of this round: the base model trained on all rows so far, or the previous round's on the new ones."""
        config, seed = self.refinement.train, self.config.seed
        last = before.model if before and config.mode == "continue" else None
        template = read_chat_template(self.refinement.generate)

        def build(folder: Path) -> dict[str, Any]:
            """Train on the drawn rows."""
            self._fetch_model()
            base_loss = before.model.facts["held_out_loss_base"] if before else None
            origin = Origin(base_loss, trained_folder(last.folder, config) if last else None, template)
            new = draw.folder / "selected.parquet" if last else None
            round_ = Round(draw.folder / "selected_rows.parquet", draw.folder / "held_out_rows.parquet", seed, origin, new)
            return self.fine_tune(round_, folder)

        return self.make(
            round_name(number, "train"),
            {
                **settings_of(config, "checkpoint_steps", "max_failures", "max_loss"),
                "seed": seed,
                "world_size": config.workers.count,
                "threads": config.workers.cpus,
            },
            [draw.key, fingerprint(config.model), *([last.key] if last else []), *_template_digests(template)],
            build,
            lambda facts: (
                f"{facts['steps']} steps, loss {facts['train_loss']:.3f}"
                + (
                    f", held-out loss {facts['held_out_loss_base']:.3f} -> {facts['held_out_loss']:.3f}"
                    if math.isfinite(facts["held_out_loss"])
                    else ""
                )
            ),
        )

    def fine_tune(self, round_: Round, folder: Path) -> dict[str, Any]:
        """Run a round's training in a stage's folder and return its facts."""
        return train_round(round_, self.refinement.train, folder, self.hardware, self.progress)

    def generate(self, number: int, draw: Stage, trained: Stage | None, reward: Stage | None) -> Stage:
        """Completions of the scored and the held-out prompts; the untrained base model completes only the held-out ones.

        Scoring (`score`) starts with the first shard, if the cluster has room for it.
        """
        config, scored = self.refinement.generate, self.refinement.scored
        names = ["held_out", scored] if trained else ["held_out"]
        template = read_chat_template(config)
        model_key = trained.key if trained else fingerprint(self.refinement.train.model)

        def build(folder: Path) -> dict[str, Any]:
            """Complete the prompts in the order of their row ids."""
            self._fetch_model()
            parts = [pq.read_table(draw.folder / f"{name}_rows.parquet", columns=["row_id", "messages"]) for name in names]
            prompts = folder / "prompts.parquet"
            write_table(prompts, by_row_id(pa.concat_tables(parts)), row_group_size=CHUNK_ROWS)
            model = str(trained_folder(trained.folder, self.refinement.train)) if trained else None
            scores = self._score_stage(number, folder.name, reward).folder
            return self._streaming(reward).generate(prompts, model, folder, scores, self.progress)

        return self.make(
            round_name(number, "generate"),
            {**settings_of(config, "chat_template"), "seed": self.config.seed, "threads": config.workers.cpus, "rows": names},
            [draw.key, model_key, *_template_digests(template)],
            build,
            lambda facts: (
                f"{facts['completions']:,} completions of {facts['rows']:,} prompts, {facts['tokens']:,} tokens, "
                f"{facts['truncated']:,} cut at the limit" + (f", {facts['errors']:,} failed" if facts["errors"] else "")
            ),
        )

    def _streaming(self, reward: Stage | None) -> Stream:
        """The fleet and crews that generate and score, the same for all rounds."""
        if self._stream is None:
            refine, train = self.refinement, self.refinement.train
            rank = train.lora_rank if train.method == "lora" else 0
            template = read_chat_template(refine.generate)
            engine = EngineSettings(train.model, refine.generate, rank, self.config.seed, template, train.trust_remote_code)
            crews = [
                Crew(name, section, spec, config.workers, self.hardware) for name, section, config, spec in self._scorers(reward)
            ]
            self._stream = Stream(Fleet(engine, self.hardware), crews, train.workers, self.hardware)
        return self._stream

    def _scorers(self, reward: Stage | None) -> list[tuple[str, str, RewardConfig, ScorerSpec]]:
        """The scorers of completions: name, section name, section of the configuration, and scorer specification."""
        scorers = [("rewards", "reward", self.reward_config, self.reward_spec(reward)[0])]
        second = self.refinement.second
        if second is not None:
            scorers.append(("second", "refine.second", second, second_spec(second)))
        return scorers

    def static_control(self, budget: int, sources: Sources) -> Stage:
        """The model of a single training on a static selection of the whole budget: same sampler, same held-out rows."""
        return self.train(None, self.draw(None, budget, sources, before=None), before=None)

    def _fetch_model(self) -> None:
        """Convert the language model, if its format requires it, before a stage that loads it would have to wait."""
        reference = self.refinement.train.model
        if unconverted(reference):
            self.progress.note(f"converting {reference} once for this machine (about a minute); its own terms of use apply")
            answer_of(ray.remote(max_calls=1)(resolve_model).remote(reference), f"refine.train.model {reference}")

    def close(self) -> None:
        """Stop the actors that outlive a stage."""
        if self._stream is not None:
            self._stream.close()

    def score(self, number: int, draw: Stage, generated: Stage, reward: Stage | None) -> Stage:
        """Rewards of gold and generated completions, and their gap (Yu et al. 2024, Eq. 4)."""

        def build(folder: Path) -> dict[str, Any]:
            """Score every shard and compare the rewards."""
            shards = [Path(file) for file in generated.files("shard-*.parquet")]
            scored = self._streaming(reward).score(shards, folder, self.progress)
            held_out = set(pq.read_table(draw.folder / "held_out.parquet")["row_id"].to_pylist())
            rewards, second = (scored.get(name, ([], {})) for name in ("rewards", "second"))
            gaps = write_gaps(shards, rewards[0], second[0], held_out, folder / "gaps.parquet")
            return {**gaps, "rewards": rewards[1], "second": second[1]}

        stage = self._score_stage(number, generated.key, reward)
        return self.make(
            stage.name,
            stage.identity["config"],
            stage.identity["inputs"],
            build,
            lambda facts: ", ".join(
                f"gap {facts[name]:.3f} on {rows} rows"
                for name, rows in (("mean_gap", self.refinement.scored), ("held_out_gap", "held-out"))
                if facts[name] is not None
            ),
        )

    def _score_stage(self, number: int, generated: str, reward: Stage | None) -> Stage:
        """The stage that scores the completions with this key; known before any exist."""
        spec, inputs = self.reward_spec(reward)
        identity: dict[str, Any] = {"scorer": "reward", **spec.limits}
        second = self.refinement.second
        if second is not None:
            other = second_spec(second)
            identity["second"] = [other.identity(), *other.limits.values()]
        return self.store.stage(round_name(number, "score"), VERSIONS["score"], identity, [generated, *inputs])

    def weights(self, number: int, draw: Stage, clusters: Stage, scored: Stage) -> Stage:
        """The next round's cluster weights, with an explanation for every cluster."""
        config = self.refinement.weights

        def build(folder: Path) -> dict[str, Any]:
            """Update the weights and write the explanations."""
            update = update_of_round(self.config, number, draw, scored)
            write_json(folder / "weights.json", explain_weights(clusters.facts["sizes"], update))
            return update.facts(config)

        return self.make(
            round_name(number, "weights"),
            {**config.model_dump(), "second": self.refinement.second is not None},
            [draw.key, scored.key],
            build,
            lambda facts: f"{facts['moved']:.1%} of the weight moved",
        )


def _template_digests(template: str | None) -> list[str]:
    return [] if template is None else [digest(template)]


def second_spec(config: RewardConfig) -> ScorerSpec:
    """Specification of the second scorer."""
    return ScorerSpec.of_reward(config, reward_reference(config, Path()))


def update_of_round(config: Config, number: int, draw: Stage, scored: Stage) -> WeightUpdate:
    """The weight update that follows from a round's gaps, computed from committed artefacts only."""
    assert config.refine is not None
    facts = draw.facts
    exhausted = np.array(facts["drawn"]) >= np.array(facts["capacity"])
    rows = read_gaps(draw, scored, config.refine)
    return move_weights(np.array(facts["weights"]), rows, exhausted, config.refine.weights, config.seed, number)


def read_gaps(draw: Stage, scored: Stage, config: RefineConfig) -> RowGaps:
    """The gaps of the rows that drive the weights, by row id: those selected so far, or the probe; never the held-out rows."""
    clusters = pq.read_table(draw.folder / f"{config.scored}.parquet", columns=["row_id", "cluster"])
    of_row = dict(zip(clusters["row_id"].to_pylist(), clusters["cluster"].to_pylist(), strict=True))
    table = pq.read_table(scored.folder / "gaps.parquet").sort_by("row_id")
    table = table.filter(pc.invert(table["held_out"]))
    numbers = {name: table[name].cast(pa.float64()).to_numpy() for name in _GAP_COLUMNS}
    return RowGaps(
        numbers["gap"],
        np.array([of_row[row_id] for row_id in table["row_id"].to_pylist()], dtype=np.int64),
        numbers["gold_tokens"] - numbers["generated_tokens"],
        numbers["second_gap"] if config.second is not None else None,
    )
