"""The loss is the plain one of each row, however rows are put into batches and sequences."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from divsel_ray.train.encoding import Example, collate
from divsel_ray.train.loss import completion_loss, mean_loss
from tests.models.tiny import save_language_model

EXAMPLES = [Example([2, 8, 9, 10], [11, 3]), Example([2, 7], [12, 13, 14, 3]), Example([2, 9], [15])]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request, tmp_path_factory):
    folder = save_language_model(tmp_path_factory.mktemp("lm"))
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=request.param)


@pytest.fixture(scope="module")
def expected(model):
    """The summed loss of the rows one by one, by the model's own loss."""
    total = 0.0
    for example in EXAMPLES:
        ids = torch.tensor([example.prompt + example.completion])
        labels = ids.clone()
        labels[0, : len(example.prompt)] = -100
        with torch.no_grad():
            total += model(input_ids=ids, labels=labels).loss.item() * len(example.completion)
    return total


@pytest.mark.parametrize(
    "sequences",
    [[[e] for e in EXAMPLES], [EXAMPLES], [EXAMPLES[:2], EXAMPLES[2:]], [EXAMPLES[::-1]]],
    ids=["padded", "packed", "packed and padded", "packed the other way round"],
)
def test_a_batch_has_the_losses_of_its_rows(model, expected, sequences):
    with torch.no_grad():
        loss, tokens = completion_loss(model, collate(sequences, padding=0))
    assert tokens == 7
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_packed_rows_have_the_gradients_of_rows_apart(model):
    gradients = []
    for sequences in ([[e] for e in EXAMPLES], [EXAMPLES]):
        model.zero_grad()
        completion_loss(model, collate(sequences, padding=0))[0].backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for apart, together in zip(*gradients, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_the_mean_is_over_tokens(model, expected):
    for batch_size in (1, 2):
        assert mean_loss(model, EXAMPLES, 0, batch_size) == pytest.approx(expected / 7, rel=1e-5)


def test_no_held_out_rows_give_no_loss(model):
    assert math.isnan(mean_loss(model, [], 0, 4))


def test_a_batch_of_nothing_has_no_loss_and_no_gradient(model):
    model.zero_grad()
    loss, tokens = completion_loss(model, collate([], padding=0))
    loss.backward()
    assert (float(loss), tokens) == (0.0, 0)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
