"""Models whose losses can be said by heart, adapters, and a run's folder as far as evaluation reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from divsel_ray.data.conversation import row_id
from tests.models.tiny import SPECIAL, WORDS, save_language_model

VOCABULARY = len(SPECIAL) + len(WORDS)
QUESTIONS = [
    {"question": "how are you", "choices": ["fine", "one two three"], "answer": 0},
    {"question": "who is the king", "choices": ["one two", "robot"], "answer": 1},
    {"question": "count", "choices": ["one", "two three four"], "answer": 1},
]


def save_indifferent_model(folder: Path) -> Path:
    """A language model to which every token is as likely as any other: each costs log(VOCABULARY) nats."""
    from transformers import AutoModelForCausalLM

    save_language_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data.zero_()
    model.save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, seed: int = 1, **settings) -> Path:
    """A LoRA adapter of random weights, as PEFT saves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {"target_modules": "all-linear", **settings}
    config = LoraConfig(r=4, lora_alpha=64, task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


def conversation(prompt: str, completion: str) -> dict:
    """A row as a draw's files hold it."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return {"row_id": row_id(messages), "messages": messages}


def write_run(folder: Path, held_out: list[dict], selected: list[dict], clusters: dict[str, int], **settings) -> Path:
    """A finished run of one round: a base model, an adapter, held-out and selected rows, two clusters at (1, 0) and (0, 1).

    Settings are sections of its configuration.
    """
    base = save_language_model(folder / "base")
    stages = {"cluster": "c", "round-1/draw": "d", "round-1/train": "t"}
    places = {name: folder / name / key for name, key in stages.items()}
    for place in places.values():
        place.mkdir(parents=True)
    np.save(places["cluster"] / "centroids.npy", np.eye(2, dtype=np.float32))
    part = {"row_id": list(clusters), "cluster": pa.array(clusters.values(), pa.int32())}
    pq.write_table(pa.table(part), places["cluster"] / "part-00000.parquet")
    for name, rows in (("held_out_rows", held_out), ("selected", selected)):
        pq.write_table(pa.Table.from_pylist(rows), places["round-1/draw"] / f"{name}.parquet")
    save_adapter(places["round-1/train"] / "training" / "adapter", base)
    config = {
        "budget": 2,
        "pool": {"data": ["rows.jsonl"]},
        "reward": {"model": "reward"},
        "refine": {"rounds": 1, "train": {"model": str(base), "max_tokens": 48}, "generate": {"engine": "transformers"}},
        **settings,
    }
    entries = [{"stage": name, "key": key, "facts": {}, "seconds": 1.0, "cached": False} for name, key in stages.items()]
    (folder / "manifest.json").write_text(json.dumps({"rows": 2, "config": config, "stages": entries}))
    return folder


def write_task(folder: Path, name: str = "local_choice", **settings) -> Path:
    """A multiple-choice task over a small file of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "questions.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **settings,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder
