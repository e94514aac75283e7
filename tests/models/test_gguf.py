"""Models that come as GGUF: what a conversion must not get wrong."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from divsel_ray.errors import InputError
from divsel_ray.models.gguf import check_tokenizer

WORDS = ["river", "market", "garden", "winter"]


def tokenizer_with(merged):
    """A byte-pair tokenizer that knows all words, and the merges that make some of them."""
    vocabulary, merges = {letter: at for at, letter in enumerate(sorted(set("▁" + "".join(WORDS))))}, []
    for word in WORDS:
        made = "▁"
        for letter in word:
            if word in merged and (made, letter) not in merges:
                merges.append((made, letter))
            made += letter
            vocabulary.setdefault(made, len(vocabulary))
    core = Tokenizer(models.BPE(vocabulary, merges))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_a_tokenizer_that_keeps_its_words_whole_is_taken():
    tokenizer = tokenizer_with(WORDS)
    # The pieces that lead to a word are in its vocabulary too, and are words of their own.
    assert tokenizer.tokenize(" river market") == ["▁river", "▁market"]
    check_tokenizer(tokenizer, "some-model")


def test_a_tokenizer_that_lost_its_merges_is_refused_with_the_versions_that_keep_them():
    with pytest.raises(InputError, match=r"some-model: .* its tokenizer's own words .*transformers>=5\.18"):
        check_tokenizer(tokenizer_with([]), "some-model")


def test_a_tokenizer_that_knows_no_words_is_not_refused_for_cutting_them():
    core = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    check_tokenizer(PreTrainedTokenizerFast(tokenizer_object=core), "some-model")
