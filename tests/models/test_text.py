"""Prompts and completions as tokens: one beginning token, cuts where they belong."""

import copy

import pytest
from transformers import AutoTokenizer

from divsel_ray.errors import InputError
from divsel_ray.models.text import PLAIN_TEMPLATE, cut_completion, encode_completion, encode_prompt, read_template, render_prompt
from tests.models.tiny import save_tokenizer

CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUESTION = [{"role": "user", "content": "how are you"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(save_tokenizer(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(save_tokenizer(tmp_path_factory.mktemp("chat"), chat_template=CHAT))


def test_a_model_without_a_template_gets_the_plain_one(tokenizer):
    turns = [{"role": "system", "content": "be brief"}, *QUESTION]
    assert render_prompt(tokenizer, turns) == "System: be brief\nUser: how are you\nAssistant:"


def test_the_plain_template_writes_what_models_without_one_are_given(tokenizer):
    with_template = copy.deepcopy(tokenizer)
    with_template.chat_template = PLAIN_TEMPLATE
    turns = [{"role": role, "content": f"{role} speaks"} for role in ("system", "user", "assistant", "tool", "user")]
    assert render_prompt(with_template, turns) == render_prompt(tokenizer, turns)


def test_a_chat_template_is_used_where_there_is_one(chat_tokenizer):
    assert render_prompt(chat_tokenizer, QUESTION).endswith("<user>how are you<assistant>")


@pytest.mark.parametrize("name", ["tokenizer", "chat_tokenizer"])
def test_the_beginning_token_is_there_exactly_once(name, request):
    tokenizer = request.getfixturevalue(name)
    ids = encode_prompt(tokenizer, QUESTION, max_tokens=50)
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_long_prompt_loses_its_beginning_but_not_the_beginning_token(tokenizer):
    long = [{"role": "user", "content": " ".join(["word"] * 100) + " how are you"}]
    ids = encode_prompt(tokenizer, long, max_tokens=8)
    assert len(ids) == 8
    assert ids[0] == tokenizer.bos_token_id
    assert ids[1:] == encode_prompt(tokenizer, long, max_tokens=500)[-7:]


def test_a_completion_ends_with_the_end_token_unless_it_was_cut(tokenizer):
    whole = encode_completion(tokenizer, "i am fine", max_tokens=10)
    assert whole[-1] == tokenizer.eos_token_id
    assert encode_completion(tokenizer, "i am fine", max_tokens=2) == whole[:2]


def test_text_is_cut_at_a_token_and_otherwise_left_alone(tokenizer):
    assert cut_completion(tokenizer, "i am fine", 2) == "i am"
    assert cut_completion(tokenizer, "i  am fine", 3) == "i  am fine"


@pytest.mark.parametrize("start", ["", "{% generation %}"])
def test_a_file_of_a_chat_template_is_read_as_it_is(tmp_path, start):
    path = tmp_path / "chat.jinja"
    end = "{% endgeneration %}" if start else ""
    path.write_text(f"{{% for m in messages %}}{start}{{{{ m.content }}}}{end}{{% endfor %}}")
    assert read_template(str(path), "chat_template") == path.read_text()


def test_a_template_that_would_refuse_a_conversation_is_read_all_the_same(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("{{ raise_exception('no system') if messages[0].role == 'system' }}")
    assert read_template(str(path), "chat_template") == path.read_text()


def test_no_file_is_the_models_own_template_and_a_broken_one_is_refused(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("\n{% for m in messages %}")
    assert read_template(None, "chat_template") is None
    with pytest.raises(InputError, match=r"^chat_template: \S+chat\.jinja: line \d: not a Jinja template"):
        read_template(str(path), "chat_template")
