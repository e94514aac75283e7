"""Tiny models made on the spot, and a toy pool whose completions can be told from spoiled ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.score import bradley_terry
from divsel_ray.score.scorer import Exchange

WORDS = [f"w{number}" for number in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[BOS]", "[EOS]"]
CHAT = "{{ '[BOS]' }}{% for m in messages %}{{ ' ' + m['role'] + ' ' + m['content'] }} [EOS]{% endfor %}"


def _word_tokenizer(chat: bool = False):
    """One token per word; pairs are [CLS] a [SEP] b [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *WORDS, "user", "assistant", "User", "Assistant", ":"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if not chat:
        ends = [("[CLS]", 2), ("[SEP]", 3)]
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        )
    tokenizer.post_processor = processors.TemplateProcessing("[BOS] $A", "[BOS] $A $B", [("[BOS]", 4)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Two threads wait for each other longer than a tiny model computes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bradley_terry, "THREADS", 1)
        yield


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    """A BERT reward model: 2 layers of 32 dimensions, 64 positions."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=80,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    _word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_reward(tmp_path_factory) -> Path:
    """A Llama reward model with a chat template and no padding token; its last token is [EOS]. (vLLM has no heads of 16.)"""
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama-reward")
    LlamaForSequenceClassification(llama_config(num_labels=1, head_dim=32)).save_pretrained(folder)
    tokenizer = _word_tokenizer(chat=True)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def language_model(tmp_path_factory) -> Path:
    """A Llama language model."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(llama_config()).save_pretrained(folder)
    _word_tokenizer(chat=True).save_pretrained(folder)
    return folder


def llama_config(**settings):
    """Two layers of 32 dimensions, 64 positions."""
    from transformers import LlamaConfig

    values = {
        "vocab_size": 80,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 4,
        "eos_token_id": 5,
        "initializer_range": 0.5,
    }
    return LlamaConfig(**{**values, **settings})


def digit_tokenizer():
    """The language model's, with the digits 1 to 6 as words."""
    tokenizer = _word_tokenizer(chat=True)
    tokenizer.add_tokens(list("123456"))
    return tokenizer


@pytest.fixture(scope="session")
def pair_tokenizer():
    """Of a model without a chat template."""
    return _word_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer():
    """Of a chat model whose template writes the beginning-of-sequence token that the tokenizer also adds."""
    tokenizer = _word_tokenizer(chat=True)
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(scope="session")
def save_language_tokenizer() -> Callable[[Path], None]:
    """Save the language model's tokenizer (no chat template) beside another tiny model."""
    return lambda folder: _word_tokenizer(chat=True).save_pretrained(folder)


@pytest.fixture
def exchanges() -> list[Exchange]:
    """40 exchanges of 1 to 30 words a side."""
    generator = np.random.default_rng(3)
    texts = [" ".join(generator.choice(WORDS, generator.integers(1, 31))) for _ in range(80)]
    prompts = [[{"role": "user", "content": text}] for text in texts[:40]]
    return [Exchange(f"row{number:02d}", prompts[number], texts[number + 40]) for number in range(40)]


@pytest.fixture
def write_pool(tmp_path) -> Callable[[list[Exchange], int], list[str]]:
    """Write exchanges as pool partitions of so many rows."""

    def write(rows: list[Exchange], size: int) -> list[str]:
        folder = tmp_path / "pool"
        folder.mkdir(exist_ok=True)
        files = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            table = pa.table(
                {
                    "row_id": [row.row_id for row in part],
                    "messages": [[*row.messages, {"role": "assistant", "content": row.completion}] for row in part],
                    "prompt": [row.messages[-1]["content"] for row in part],
                    "completion": [row.completion for row in part],
                    "score": pa.array([float(number) if number else None for number in range(len(part))], pa.float64()),
                }
            )
            files.append(str(folder / f"part-{start:05d}.parquet"))
            pq.write_table(table, files[-1])
        return files

    return write
