"""Every sign provoked by a real run on tiny models, and a healthy run that shows none. All share one run folder's stages."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from divsel_ray.config.files import build_config
from divsel_ray.pipeline import run_job
from divsel_ray.report.compare import compare_runs
from divsel_ray.report.page import write_report
from divsel_ray.report.signs import Sign, recorded_signs
from tests.models.tiny import save_encoder, save_language_model, save_tokenizer

pytestmark = pytest.mark.slow

FILLER = "rain sea king robot story cats dogs red green blue".split()
SIZES = (60, 40, 20)
LOVED = "good"


def save_word_lover(folder: Path, word: str) -> Path:
    """A BERT reward model by hand: attention looks at all tokens alike, and the score grows with the share of one word."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = len(tokenizer)
    config = BertConfig(
        vocab_size=size, hidden_size=size, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, num_labels=1
    )
    model = BertForSequenceClassification(config)
    layer, pooler = model.bert.encoder.layer[0], model.bert.pooler.dense
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "LayerNorm" not in name:
                value.zero_()
        for weight in (model.bert.embeddings.word_embeddings, layer.attention.self.value, layer.attention.output.dense):
            weight.weight.copy_(torch.eye(size))
        pooler.weight[0, tokenizer.convert_tokens_to_ids(word)] = 0.3
        model.classifier.weight[0, 0] = 1.0
    model.save_pretrained(folder)
    return folder


def save_schooled_language_model(folder: Path) -> Path:
    """A tiny model that already answers in the filler words of the data, so that any other habit costs it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from divsel_ray.train.encoding import Conversation, encode

    save_language_model(folder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    rows = [json.loads(line) for line in write_rows(folder / "lessons.jsonl", lambda topic, draw: 0).open()]
    turns = [(("user", row["prompt"]), ("assistant", row["completion"])) for row in rows]
    lessons = [Conversation(str(at), [{"role": a, "content": b} for a, b in pair]) for at, pair in enumerate(turns)]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for example in encode(tokenizer, lessons, 48) * 2:
        ids = torch.tensor([[*example.prompt, *example.completion]])
        labels = ids.clone()
        labels[:, : len(example.prompt)] = -100
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def write_rows(path: Path, loved: Callable[[int, random.Random], int]) -> Path:
    """Three topics; `loved(topic, draw)` says how many of a completion's eight words are the one that is loved."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for topic, size in enumerate(SIZES):
            for number in range(size):
                many = loved(topic, draw)
                words = [LOVED] * many + draw.choices(FILLER, k=8 - many)
                row = {"prompt": f"{topic} {number} write a story about", "completion": " ".join(words)}
                stream.write(json.dumps(row) + "\n")
    return path


def write_vectors(path: Path, spread: float, dimension: int = 16) -> Path:
    """A vector per row: its topic's direction, and noise of this size."""
    topics = np.repeat(np.eye(len(SIZES), dimension), SIZES, axis=0)
    noise = np.random.default_rng(0).standard_normal(topics.shape) / np.sqrt(dimension)
    np.save(path, (topics if spread < 1 else 0) + spread * noise)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, cluster: object) -> dict[str, Any]:
    """A healthy job: clusters are topics, gold answers differ between them, and training helps."""
    folder = tmp_path_factory.mktemp("signs")
    rows = write_rows(folder / "rows.jsonl", lambda topic, draw: draw.randint(0, 2 * topic + 1))
    model = str(save_language_model(folder / "lm"))
    return {
        "budget": 24,
        "pool": {"data": str(rows)},
        "embed": {"model": str(save_encoder(folder / "encoder")), "given": str(write_vectors(folder / "vectors.npy", 0.3))},
        "cluster": {"k": 3},
        "reward": {"model": str(save_word_lover(folder / "reward", LOVED)), "max_tokens": 64},
        "refine": {
            "rounds": 2,
            "held_out": 12,
            "train": {"model": model, "max_tokens": 48, "learning_rate": 5e-3, "epochs": 3, "max_loss": 1e6},
            "generate": {"engine": "transformers", "max_prompt_tokens": 32, "max_new_tokens": 8},
            "weights": {"tau": 2.0, "ceiling": 1.4},
        },
    }


@pytest.fixture
def signs(base: dict[str, Any]) -> Callable[..., dict[str, Sign]]:
    def run(**changes: Any) -> dict[str, Sign]:
        """Run the job with these settings changed, keys joined by two underscores; the recorded signs by name."""
        folder = Path(base["pool"]["data"]).parent / "run"
        values = json.loads(json.dumps(base))
        for key, value in changes.items():
            *path, last = key.split("__")
            section = values
            for name in path:
                section = section[name]
            section[last] = value
        run_job(build_config(values, "test"), folder)
        write_report(folder)
        return {sign.name: sign for sign in recorded_signs(folder)}

    return run


def test_a_healthy_run_shows_none(signs: Callable[..., dict[str, Sign]]) -> None:
    assert signs() == {}


def test_a_large_tau_stalls_the_weights(signs: Callable[..., dict[str, Sign]]) -> None:
    found = signs(refine__weights={"tau": 1e6})
    assert found.keys() == {"stalled weights"}
    assert "too mild" in found["stalled weights"].cause


def test_a_tiny_tau_without_guards_lets_one_cluster_swallow_the_rest(signs: Callable[..., dict[str, Sign]], base: dict) -> None:
    rows = Path(base["pool"]["data"])
    # The smallest topic, a sixth of the rows, has by far the best answers.
    assert SIZES[2] / sum(SIZES) < 1 / 4
    rare = write_rows(rows.with_name("rare.jsonl"), lambda topic, draw: draw.randint(5, 8) if topic == 2 else 0)
    found = signs(pool={"data": str(rare)}, refine__weights={"tau": 0.02, "max_step": None, "floor": 0.0}, cluster={"k": 3})
    assert "one cluster swallowed the rest" in found


def test_answers_that_are_alike_in_all_clusters_make_noisy_scores(signs: Callable[..., dict[str, Sign]], base: dict) -> None:
    """Nearly every row is selected and scored, and all topics hold the same mixture, so means hardly differ."""
    turn = iter(range(sum(SIZES)))
    rows = Path(base["pool"]["data"]).with_name("alike.jsonl")
    alike = write_rows(rows, lambda topic, draw: 6 * (next(turn) % 2))
    found = signs(pool={"data": str(alike)}, budget=108, refine__rounds=1)
    assert "noisy scores" in found


def test_random_vectors_make_clusters_that_hardly_differ(signs: Callable[..., dict[str, Sign]], base: dict) -> None:
    vectors = write_vectors(Path(base["embed"]["given"]).with_name("random.npy"), 1.0, 384)
    assert signs(embed__given=str(vectors), refine=None).keys() == {"clusters that hardly differ"}


def test_an_absurd_learning_rate_makes_the_model_worse(signs: Callable[..., dict[str, Sign]], base: dict) -> None:
    model = save_schooled_language_model(Path(base["pool"]["data"]).parent / "clever")
    found = signs(refine__train__model=str(model), refine__train__learning_rate=50.0, refine__rounds=1)
    assert "getting worse" in found
    assert "untuned model" in found["getting worse"].evidence


def test_a_reward_that_loves_one_word_is_hacked(signs: Callable[..., dict[str, Sign]], base: dict) -> None:
    """One answer in twenty is that word alone; quality by the same reward selects those, and the model learns to say it."""
    folder = Path(base["pool"]["data"]).parent
    hacked = write_rows(folder / "hacked.jsonl", lambda topic, draw: 8 * (draw.random() < 0.05))
    model = save_schooled_language_model(folder / "schooled")
    found = signs(
        pool={"data": str(hacked)},
        budget=4,
        quality={"source": "reward"},
        select={"temperature": 0.02},
        refine__rounds=1,
        refine__train__model=str(model),
        refine__train__learning_rate=2e-2,
        refine__train__epochs=8,
    )
    assert "reward hacking" in found


def test_runs_that_end_far_apart_are_named_and_those_of_two_seeds_are_not(
    signs: Callable[..., dict[str, Sign]], base: dict, tmp_path: Path
) -> None:
    def kept(name: str, **changes: Any) -> Path:
        signs(**changes)
        return Path(shutil.copytree(Path(base["pool"]["data"]).parent / "run", tmp_path / name))

    one, other = kept("one"), kept("other", seed=1)
    assert compare_runs([one, other]).signs == []
    spoiled = kept("spoiled", refine__train__learning_rate=50.0)
    assert [sign.name for sign in compare_runs([one, spoiled]).signs] == ["results vary from run to run"]
