from __future__ import annotations

import json

import numpy as np
import pytest

from divsel_ray.data.conversation import BadRow
from divsel_ray.data.readers import Record
from divsel_ray.errors import InputError
from divsel_ray.progress import Silent
from divsel_ray.score.reward_model import RewardModel
from divsel_ray.score.scorer import Exchange
from divsel_ray.train_reward import Training, parse_preference, read_preferences, split_by_prompt, train_reward, wilson_interval
from tests.e2e.jobs import divsel
from tests.json_lines import read_lines
from tests.models.tiny import WORDS, save_encoder, save_language_model
from tests.train.rows import NO_SYSTEM


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def write(path, rows) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def preferences(count: int) -> list[dict]:
    """Whoever answers `good` is preferred to who answers `bad`."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS[:40], 5)) for _ in range(2 * count)]
    pairs = zip(texts[:count], texts[count:], strict=True)
    return [{"prompt": prompt, "chosen": f"good {text}", "rejected": f"bad {text}"} for prompt, text in pairs]


def parse(row):
    return parse_preference(Record("line 1", row))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        {"prompt": [user("p")], "chosen": [assistant("c")], "rejected": [assistant("r")]},
        {"prompt": "p", "chosen": [assistant("c")], "rejected": [assistant("r")]},
        {"chosen": [user("p"), assistant("c")], "rejected": [user("p"), assistant("r")]},
        {"prompt": "p", "chosen": [user("p"), assistant("c")], "rejected": [user("p"), assistant("r")], "score": 1},
    ],
)
def test_all_forms_of_a_preference_give_the_same_pair(row):
    pair = parse(row)
    assert list(pair.chosen.messages) == list(pair.rejected["rejected"].messages) == [user("p")]
    assert (pair.chosen.completion, pair.rejected["rejected"].completion) == ("c", "r")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "chosen": "c"}, "no key rejected"),
        ({"chosen": "c", "rejected": "r"}, "no key prompt"),
        ({"prompt": "p", "chosen": "c", "rejected": " c "}, "chosen and rejected are identical"),
        ({"prompt": "p", "chosen": "c", "rejected": "  "}, "blank"),
        ({"prompt": "p", "chosen": 3, "rejected": "r"}, "a number, expected a string"),
        ({"chosen": [user("p"), assistant("c")], "rejected": [user("q"), assistant("r")]}, "different prompts"),
        (["p", "c", "r"], "expected an object"),
    ],
)
def test_a_row_that_is_no_preference_is_bad_and_says_why(row, reason):
    with pytest.raises(BadRow, match=reason):
        parse(row)


def test_bad_rows_are_listed_and_counted_and_a_pair_counts_once(tmp_path):
    rows = preferences(12)
    file = write(tmp_path / "prefs.jsonl", [*rows, rows[0], "{broken", {"prompt": "p", "chosen": "c"}])
    pairs, bad = read_preferences([file], tmp_path / "bad.jsonl")
    assert (len(pairs), bad) == (12, 2)
    listed = read_lines(tmp_path / "bad.jsonl")
    assert [(row["file"], row["position"]) for row in listed] == [("prefs.jsonl", "line 14"), ("prefs.jsonl", "line 15")]
    assert listed[0]["row"] == "{broken"
    with pytest.raises(InputError, match=r"2 bad rows \(at most 1 are allowed\); the first is prefs\.jsonl line 14"):
        read_preferences([file], tmp_path / "bad.jsonl", max_bad_rows=1)


def test_too_few_pairs_are_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="9 distinct pairs \\(at least 10 are needed\\)"):
        read_preferences([write(tmp_path / "few.jsonl", preferences(9))], tmp_path / "bad.jsonl")


def test_no_prompt_is_both_trained_on_and_held_out_and_the_order_of_rows_does_not_matter():
    rows = [{"prompt": f"p{at % 20}", "chosen": f"c{at}", "rejected": f"r{at}"} for at in range(60)]
    pairs = [parse(row) for row in rows]
    train, held_out = split_by_prompt(pairs, 0.2, 0)
    prompts = [{pair.chosen.row_id for pair in part} for part in (train, held_out)]
    assert (len(prompts[0]), len(prompts[1])) == (16, 4)
    assert not prompts[0] & prompts[1]
    assert len(train) + len(held_out) == 60
    assert split_by_prompt(pairs[::-1], 0.2, 0) == (train, held_out)
    assert split_by_prompt(pairs, 0.2, 1)[1] != held_out


def test_the_interval_is_that_of_wilson():
    assert wilson_interval(9, 10) == (0.5958, 0.9821)
    assert wilson_interval(10, 10)[1] == 1
    assert wilson_interval(0, 10)[0] == 0


@pytest.mark.parametrize("save", [save_encoder, save_language_model])
def test_a_reward_model_learns_what_is_preferred(tmp_path, save):
    file, out = write(tmp_path / "prefs.jsonl", preferences(150)), tmp_path / "reward"
    training = Training(str(save(tmp_path / "base")), epochs=4, learning_rate=3e-3, max_tokens=48)
    facts = train_reward([file], out, training)
    assert facts["held_out_accuracy"] > 0.8
    assert facts["held_out_interval"][0] < facts["held_out_accuracy"] <= facts["held_out_interval"][1]
    assert (facts["pairs"], facts["held_out_pairs"], facts["bad_rows"]) == (135, 15, 0)
    assert json.loads((out / "train-reward.json").read_text())["pairs"] == 135
    rows = [Exchange(word, [user("how are you")], f"{word} one two three") for word in ("good", "bad")]
    scores = RewardModel(str(out), 48, 256).score(rows)
    assert scores[0] > scores[1]


def test_a_folder_or_file_of_something_else_is_left_as_it_is(tmp_path):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("ten years of work")
    missing, training = [str(tmp_path / "none.jsonl")], Training(str(tmp_path / "no-base"))
    with pytest.raises(InputError, match=r"^--out .*thesis: contains files not written by this command"):
        train_reward(missing, thesis, training)
    with pytest.raises(InputError, match=r"^--out .*chapter\.txt: is a file; choose a new folder$"):
        train_reward(missing, thesis / "chapter.txt", training)
    assert (thesis / "chapter.txt").read_text() == "ten years of work"


def test_a_model_of_this_command_is_replaced_and_an_empty_folder_filled(tmp_path):
    file, out = write(tmp_path / "prefs.jsonl", preferences(12)), tmp_path / "reward"
    out.mkdir()
    training = Training(str(save_encoder(tmp_path / "base")), max_tokens=48)
    first = train_reward([file], out, training)
    assert train_reward([file], out, training) | {"seconds": 0} == first | {"seconds": 0}


def test_pairs_that_the_chat_template_refuses_are_left_out_counted_and_told(tmp_path):
    from transformers import AutoTokenizer

    said: list[str] = []
    progress = Silent()
    progress.note = said.append  # type: ignore[method-assign]
    base = save_language_model(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = NO_SYSTEM
    tokenizer.save_pretrained(base)
    plain = preferences(24)
    system = {"role": "system", "content": "be brief"}
    strict = [{**row, "prompt": [system, user(row["prompt"])], "chosen": [assistant(row["chosen"])]} for row in plain]
    strict = [{**row, "rejected": [assistant(row["rejected"])]} for row in strict]
    training = Training(str(base), max_tokens=48, held_out=0.5)
    some = write(tmp_path / "some.jsonl", [*plain[:20], *strict[20:]])
    facts = train_reward([some], tmp_path / "reward", training, progress)
    assert (facts["pairs"] + facts["held_out_pairs"], facts["refused"], facts["bad_rows"]) == (20, 4, 0)
    assert [line for line in said if "4 pairs are left out because the chat template of" in line] == said != []
    with pytest.raises(InputError, match=r"refuses every one of 12 prompts: row \S+: TemplateError: System role not supported"):
        train_reward([write(tmp_path / "all.jsonl", strict)], tmp_path / "other", training)


def test_a_base_that_is_no_model_is_one_clear_line(tmp_path):
    file = write(tmp_path / "prefs.jsonl", preferences(12))
    with pytest.raises(InputError, match="not a model that transformers can load"):
        train_reward([file], tmp_path / "reward", Training(str(tmp_path)))


def test_a_bad_row_that_is_no_utf_8_is_listed_too(tmp_path):
    file = write(tmp_path / "prefs.jsonl", [*preferences(12), '{"prompt": "\\ud800", "chosen": 3}'])
    assert read_preferences([file], tmp_path / "bad.jsonl")[1] == 1
    assert json.loads((tmp_path / "bad.jsonl").read_text(encoding="utf-8"))["position"] == "line 13"


def test_wrong_settings_and_bases_are_told_before_any_data_is_read(tmp_path):
    missing, base = [str(tmp_path / "none.jsonl")], str(save_encoder(tmp_path / "base"))
    with pytest.raises(InputError, match=r"^--learning-rate 0\.0: input should be greater than 0$"):
        train_reward(missing, tmp_path / "reward", Training(base, learning_rate=0.0))
    with pytest.raises(InputError, match="not a model that transformers can load"):
        train_reward(missing, tmp_path / "reward", Training(str(tmp_path), learning_rate=1e-3))


@pytest.mark.slow
def test_the_command_prints_what_it_measured(tmp_path):
    file = write(tmp_path / "prefs.jsonl", preferences(40))
    base = save_encoder(tmp_path / "base")
    found = divsel("train-reward", file, "--out", tmp_path / "reward", "--base", base, "--held-out", "0.25", "--json")
    assert found.returncode == 0, found.stderr
    facts = json.loads(found.stdout)
    assert facts["held_out_pairs"] == 10
    assert 0 <= facts["held_out_interval"][0] <= facts["held_out_accuracy"] <= facts["held_out_interval"][1] <= 1
    refused = divsel("train-reward", tmp_path / "none.jsonl", "--out", tmp_path / "reward")
    assert refused.returncode == 2
