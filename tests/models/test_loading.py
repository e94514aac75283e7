"""Loading of models: the tokenizer with the template that was asked for, and one line where there is none to load."""

import pytest
from transformers import BertConfig, BloomConfig

from divsel_ray.errors import InputError
from divsel_ray.models.loading import load_tokenizer, loading, positions_of
from tests.models.tiny import save_tokenizer

OWN, OTHER = "{{ messages[0].content }}", "be brief {{ messages[0].content }}"


@pytest.mark.parametrize(("given", "rendered"), [(None, "write"), (OTHER, "be brief write")])
def test_a_given_chat_template_takes_the_place_of_the_models_own(tmp_path, given, rendered):
    tokenizer = load_tokenizer(str(save_tokenizer(tmp_path, chat_template=OWN)), given)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "write"}], tokenize=False) == rendered


def test_a_folder_without_a_model_is_told_in_one_line_with_the_name_that_the_user_knows(tmp_path):
    with pytest.raises(InputError, match=r"^embed\.model mine: cannot be loaded: [^\n]+$"), loading("embed.model mine"):
        load_tokenizer(str(tmp_path))


def test_what_was_said_already_passes_as_it_is(tmp_path):
    with pytest.raises(InputError, match=r"^model \S+/nowhere: no such folder"), loading("embed.model mine"):
        load_tokenizer(f"{tmp_path}/nowhere")


def test_a_model_says_how_many_positions_it_has_or_nothing():
    assert positions_of(BertConfig(max_position_embeddings=256)) == 256
    assert positions_of(BloomConfig()) is None
