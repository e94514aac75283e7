"""`README.md` of a run folder: the dataset card of the selection, in the format of the Hugging Face hub."""

from __future__ import annotations

import yaml

from divsel_ray.config import Config
from divsel_ray.report.facts import Run

CARD = "README.md"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
_COLUMNS = {
    "messages": "the conversation: a list of `role` and `content`; the last message is the completion",
    "row_id": "hash of the conversation, 32 hex digits",
    "cluster": "the k-means cluster the row was drawn from",
    "quality": "quality from the source named above; null if unknown",
    "round": "the round in which it was first drawn",
    "source": "the input file it came from",
    "weight": "inverse of the probability with which it was drawn; 1 if it was not drawn at random",
    "budget": "the smallest of the nested budgets whose selection contains it",
    "why": "why the sampler selected it",
}
_LOAD = """```python
from datasets import load_dataset

rows = load_dataset("json", data_files="selection.jsonl", split="train")
```"""


def dataset_card(run: Run) -> str:
    """The card as Markdown with YAML front matter."""
    sections = [
        f"# {run.rows:,} selected instructions",
        f"{run.rows:,} rows selected from {run.pool.rows:,} by divsel-ray, first for diversity, then for quality"
        + (", refined by what a model learned from them." if run.config.refine else "."),
        f"## Source\n\n{_source(run)}",
        f"## How the rows were chosen\n\n{_method(run)}",
        f"## Columns\n\n{_columns()}",
        f"## Loading\n\n{_LOAD}",
        f"## Limits\n\n{_limits(run)}",
    ]
    return f"---\n{_front_matter(run)}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(run: Run) -> str:
    values = {
        "pretty_name": f"{run.rows:,} selected instructions",
        "task_categories": ["text-generation"],
        "tags": ["instruction-tuning", "data-selection", "divsel-ray"],
        "size_categories": [next((label for limit, label in _SIZES if run.rows < limit), "n>10M")],
        "configs": [{"config_name": "default", "data_files": "selection.jsonl"}],
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _source(run: Run) -> str:
    pool = run.pool
    lines = [f"- {_code(name)}" for name in run.inputs]
    counts = (
        f"{pool.rows_read:,} rows were read; {pool.bad_rows:,} bad ones were set aside and {pool.duplicates:,} exact "
        f"duplicates removed. The pool contains {pool.rows:,} of the {pool.sampled_from:,} distinct rows."
    )
    if run.cleaned:
        counts += f" Cleaning removed {sum(run.cleaned.values()):,} of these."
    return "\n".join([*lines, "", counts])


def _method(run: Run) -> str:
    config, clusters = run.config, len(run.clustering.clusters)
    lines = [
        f"- every row {_vectors(config)} and is assigned to one of {clusters:,} clusters by k-means",
        f"- sampler {_code(config.select.sampler)}, quality {_code(config.quality.source)}, seed {config.seed}",
    ]
    if config.refine:
        weights = config.refine.weights
        lines.append(
            f"- {config.refine.rounds} rounds: {_code(config.refine.train.model)} is fine-tuned on the rows so far and answers "
            f"their prompts; the gap between the scores of the data's answer and its own moves the cluster weights (update "
            f"{_code(weights.update)}, direction {_code(weights.direction)}); after Yu et al. 2024, arXiv 2409.11378"
        )
    if config.reward and config.reward.model:
        lines.append(f"- reward model {_code(config.reward.model)}")
    return "\n".join([*lines, f"- SHA-256 of the row ids: {_code(run.row_ids_sha256)}"])


def _vectors(config: Config) -> str:
    source = _code(config.embed.source)
    return f"comes with its own vector ({source})" if config.embed.given else f"is embedded with {source}"


def _columns() -> str:
    return "\n".join(["| column | content |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in _COLUMNS.items())])


def _limits(run: Run) -> str:
    lines = ["- The texts are those of the source, with its licence, its errors and its personal data; nothing was rewritten."]
    if run.stand_in and run.config.reward and run.config.reward.fit:
        lines.append(
            f"- **Rewards come from a stand-in**, fitted on the pool itself from {_code(run.config.reward.fit.base)} "
            f"(`reward.fit`; right on {run.stand_in.accuracy:.0%} of held-out pairs). It learned to prefer a prompt's own "
            "completion to another prompt's, a truncated or a shuffled one; it knows nothing about helpfulness or truth."
        )
    if run.config.quality.source == "none":
        alike = {"kmq": ": within a cluster every row was equally likely", "random": ": every row was equally likely"}
        alike["kmrandom"] = alike["kmq"]
        lines.append(f"- No quality was measured{alike.get(run.config.select.sampler, '')}.")
    if run.config.refine and run.config.reward and run.config.reward.perplexity:
        model = _code(run.config.reward.perplexity)
        lines.append(f"- Completions were scored by their perplexity under {model}: higher means stranger, not better.")
    clean = run.config.clean
    if clean.near_duplicates is None and clean.semantic_duplicates is None:
        lines.append("- Only exact duplicates were removed; near duplicates may remain.")
    if not clean.benchmarks:
        lines.append("- The rows were not compared with any benchmark and may contain evaluation data.")
    return "\n".join(lines)


def _code(text: str) -> str:
    """Wrap a text in a code span that it cannot break out of."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
