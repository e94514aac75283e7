"""Losses of rows of which the chat template refuses some."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from divsel_ray.errors import InputError
from divsel_ray.evaluate.loss import LossMeter, losses_of
from tests.models.tiny import save_language_model
from tests.train.rows import NO_SYSTEM, conversations, with_system

ROWS = conversations(5)
HOW = {"max_tokens": 64, "batch_tokens": 100}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_language_model(tmp_path_factory.mktemp("lm")))


@pytest.fixture
def strict(folder):
    """A model and its tokenizer, which refuses system messages."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = NO_SYSTEM
    return AutoModelForCausalLM.from_pretrained(folder), tokenizer


def test_a_refused_row_has_no_part_in_the_mean_loss(strict):
    nats, tokens = losses_of(*strict, [ROWS[0], with_system(ROWS[1]), *ROWS[2:]], *HOW.values())
    known, their_tokens = losses_of(*strict, [ROWS[0], *ROWS[2:]], *HOW.values())
    assert (nats[1], tokens[1]) == (0, 0)
    assert tokens.sum() == their_tokens.sum()
    assert nats.sum() / tokens.sum() == pytest.approx(known.sum() / their_tokens.sum(), rel=1e-5)


def test_a_template_that_refuses_every_row_is_told_in_its_words(strict):
    with pytest.raises(InputError, match=r"refuses all 5 rows, the first because: TemplateError: System role not supported$"):
        losses_of(*strict, [with_system(row) for row in ROWS], *HOW.values())


def test_where_every_row_needs_a_loss_a_refused_one_is_named(folder):
    rows = [*ROWS[:3], *map(with_system, ROWS[3:])]
    with pytest.raises(InputError, match=rf"^row {ROWS[3].row_id}: .*chat template refuses it \(2 of 5 rows\)"):
        LossMeter(folder, chat_template=NO_SYSTEM, **HOW).measure(None, rows)
