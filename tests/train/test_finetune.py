"""Fine-tuning: the loss is the plain one on completions, adapters learn, the same seed gives the same bytes."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from divsel_ray.config import TrainConfig
from divsel_ray.errors import JobError
from divsel_ray.train.finetune import Conversation, Example, collate, completion_loss, encode, finetune, mean_loss
from tests.models.tiny import save_language_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return str(save_language_model(tmp_path_factory.mktemp("lm")))


def conversation(number: int, prompt="how are you", completion="i am fine") -> Conversation:
    return Conversation(f"{number:032x}", [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}])


def test_completions_of_a_batch_begin_at_the_same_position():
    batch = collate([Example([5, 6, 7], [8]), Example([5], [9, 10])], padding=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 0], [0, 0, 5, 9, 10]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 3], [0, 0, 0, 1, 2]]
    assert batch["labels"].tolist() == [[8, -100], [9, 10]]


def test_the_batched_loss_is_the_plain_loss_of_each_row(model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    examples = [Example([2, 8, 9, 10], [11, 3]), Example([2, 7], [12, 13, 14, 3])]
    expected = 0.0
    for example in examples:
        ids = torch.tensor([example.prompt + example.completion])
        labels = ids.clone()
        labels[0, : len(example.prompt)] = -100
        expected += model(input_ids=ids, labels=labels).loss.item() * len(example.completion)
    with torch.no_grad():
        loss, tokens = completion_loss(model, collate(examples, padding=0))
    assert tokens == 6
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert mean_loss(model, examples, 0, batch_size=1) == pytest.approx(expected / 6, rel=1e-5)


def test_no_held_out_rows_give_no_loss(model_folder):
    assert math.isnan(mean_loss(AutoModelForCausalLM.from_pretrained(model_folder), [], 0, 4))


def test_a_long_prompt_leaves_room_for_the_completion(model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    [example] = encode(tokenizer, [conversation(0, prompt="word " * 200, completion="fine " * 200)], max_tokens=32)
    assert (len(example.prompt), len(example.completion)) == (16, 16)
    [short] = encode(tokenizer, [conversation(0, prompt="word " * 200)], max_tokens=32)
    assert len(short.prompt) + len(short.completion) == 32
    assert short.completion[-1] == tokenizer.eos_token_id


def test_training_lowers_the_loss_and_is_the_same_twice(model_folder, tmp_path):
    rows = [conversation(i) for i in range(16)]
    config = TrainConfig(model=model_folder, epochs=4, learning_rate=0.05, max_tokens=32)
    weights = []
    for attempt in ("first", "second"):
        facts = finetune(model_folder, rows, rows[:4], config, seed=3, folder=tmp_path / attempt)
        assert facts["held_out_loss"] < facts["held_out_loss_base"] - 0.1
        assert facts["steps"] == 16
        weights.append((tmp_path / attempt / "adapter" / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    lines = [json.loads(line) for line in (tmp_path / "first" / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_diverging_loss_stops_with_what_to_change(model_folder, tmp_path):
    config = TrainConfig(model=model_folder, max_loss=0.5, max_tokens=32)
    with pytest.raises(JobError, match=r"lower refine\.train\.learning_rate"):
        finetune(model_folder, [conversation(i) for i in range(8)], [], config, seed=0, folder=tmp_path)
