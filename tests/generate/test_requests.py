"""From rows to requests and back: seeds, order, bad prompts, equal cuts."""

import pytest

from divsel_ray.config import GenerateConfig
from divsel_ray.errors import InputError, JobError
from divsel_ray.generate.engine import Completion
from divsel_ray.generate.requests import SCHEMA, complete_rows, completion_seed, plan_requests
from tests.models.tiny import save_tokenizer

CONFIG = GenerateConfig(max_new_tokens=3, max_prompt_tokens=8)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def row(name, prompt, gold="one two three four five"):
    return {"row_id": name, "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": gold}]}


class Echo:
    """Answers with the prompt's length and the seed, and refuses prompts that hold a token."""

    def __init__(self, refused=-1):
        self.refused, self.calls = refused, []

    def generate(self, prompts, seeds, trained):
        self.calls.append([len(prompt) for prompt in prompts])
        if any(self.refused in prompt for prompt in prompts):
            raise RuntimeError("refused\nfor good")
        return [Completion(f"red {seed}", 2, "stop") for _, seed in zip(prompts, seeds, strict=True)]


ROWS = [row("a", "cats"), row("b", "write a story about cats"), row("c", "the sea"), row("d", "how are you")]


def test_longest_prompts_are_asked_first_and_rows_come_back_in_order(tokenizer):
    engine = Echo()
    table = complete_rows(ROWS, tokenizer, engine, CONFIG, 7, None)
    [lengths] = engine.calls
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 1
    assert table.schema.equals(SCHEMA)
    assert table["row_id"].to_pylist() == ["a", "b", "c", "d"]
    assert table["generated"].to_pylist() == [f"red {completion_seed(7, name, 0)}" for name in "abcd"]


def test_every_sample_of_a_row_has_its_own_seed(tokenizer):
    config = CONFIG.model_copy(update={"samples": 3, "temperature": 1.0})
    table = complete_rows(ROWS, tokenizer, Echo(), config, 7, None)
    assert table.select(["row_id", "sample"]).to_pylist() == [{"row_id": r, "sample": n} for r in "abcd" for n in range(3)]
    assert len(set(table["generated"].to_pylist())) == 12
    assert completion_seed(7, "a", 1) != completion_seed(8, "a", 1)


def test_gold_and_generated_are_cut_to_the_same_number_of_tokens(tokenizer):
    class Wordy:
        def generate(self, prompts, seeds, trained):
            return [Completion(" green blue red good bad ", 5, "length") for _ in prompts]

    [found] = complete_rows(ROWS[:1], tokenizer, Wordy(), CONFIG, 0, None).to_pylist()
    assert (found["gold"], found["gold_tokens"]) == ("one two three", 3)
    assert (found["generated"], found["generated_tokens"], found["tokens"]) == ("green blue red", 3, 5)


def test_a_shard_says_which_texts_were_cut(tokenizer):
    """Here, or by the engine, which may leave fewer tokens than it took."""

    class Scripted:
        def generate(self, prompts, seeds, trained):
            answers = [("red red red red", "stop"), ("red red red", "stop"), (" red red", "length"), ("red", "stop")]
            return [Completion(text, 3, reason) for text, reason in answers]

    golds = ["one two three", "one two three four", "one", "one"]
    rows = [row(str(number), "cats", gold) for number, gold in enumerate(golds)]
    table = complete_rows(rows, tokenizer, Scripted(), CONFIG, 0, None)
    assert table["gold_cut"].to_pylist() == [False, True, False, False]
    assert table["generated_cut"].to_pylist() == [True, False, True, False]
    failed = complete_rows(ROWS, tokenizer, Echo(refused=tokenizer.convert_tokens_to_ids("sea")), CONFIG, 7, None)
    assert failed["generated_cut"].to_pylist() == [False, False, None, False]


def test_one_prompt_that_the_engine_refuses_is_an_error_row_and_the_others_are_completed(tokenizer):
    engine = Echo(refused=tokenizer.convert_tokens_to_ids("sea"))
    table = complete_rows(ROWS, tokenizer, engine, CONFIG, 7, None).to_pylist()
    assert [found["finish_reason"] for found in table] == ["stop", "stop", "error", "stop"]
    assert (table[2]["generated"], table[2]["generated_tokens"], table[2]["error"]) == (
        None,
        None,
        "RuntimeError: refused for good",
    )
    assert table[2]["gold"] == "one two three"
    assert [found["generated"] for found in table if found["row_id"] != "c"] == [f"red {completion_seed(7, n, 0)}" for n in "abd"]


def test_an_engine_that_refuses_every_prompt_ends_the_job(tokenizer):
    start = tokenizer.bos_token_id
    with pytest.raises(JobError, match=r"none of 4 prompts could be completed; .*: RuntimeError: refused for good"):
        complete_rows(ROWS, tokenizer, Echo(refused=start), CONFIG, 7, None)


def test_a_model_that_cannot_be_used_is_no_prompts_fault(tokenizer):
    class Unusable:
        def generate(self, prompts, seeds, trained):
            raise InputError("weights are missing")

    with pytest.raises(InputError, match="weights are missing"):
        complete_rows(ROWS, tokenizer, Unusable(), CONFIG, 7, None)


def test_a_long_prompt_is_cut_from_the_left_or_an_error_row(tokenizer):
    long = [row("a", "hello " * 20 + "cats"), row("b", "cats")]
    requests, problems = plan_requests(long, tokenizer, CONFIG, 0)
    assert {request.row: len(request.prompt) for request in requests}[0] == 8
    assert not problems
    strict = CONFIG.model_copy(update={"long_prompts": "error"})
    requests, problems = plan_requests(long, tokenizer, strict, 0)
    assert [request.row for request in requests] == [1]
    assert problems == {0: "ValueError: the prompt is longer than max_prompt_tokens = 8"}
    whole = len(plan_requests(long[1:], tokenizer, strict, 0)[0][0].prompt)
    exact = strict.model_copy(update={"max_prompt_tokens": whole})
    assert not plan_requests(long[1:], tokenizer, exact, 0)[1]


def test_a_chat_template_that_refuses_a_row_makes_an_error_row(tmp_path):
    from transformers import AutoTokenizer

    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    chat = AutoTokenizer.from_pretrained(save_tokenizer(tmp_path, template))
    bad = {"row_id": "b", "messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]}
    table = complete_rows([ROWS[0], bad], chat, Echo(), CONFIG, 0, None).to_pylist()
    assert [found["finish_reason"] for found in table] == ["stop", "error"]
    assert "no tools" in table[1]["error"]
