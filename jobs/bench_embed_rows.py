"""Rows and a tiny model for the benchmark of the encoder."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from divsel_ray.data.conversation import BadRow
from divsel_ray.data.formats import from_sharegpt
from divsel_ray.data.readers import read_records
from divsel_ray.errors import InputError
from divsel_ray.models.references import PACKAGE, packaged_data

_WORDS = [f"w{number}" for number in range(60)]


def instruction_texts(reference: str, count: int) -> list[str]:
    """The first rows, prompt and completion, as the embed stage receives them.

    Args:
        reference: JSONL with prompt and completion, or package:NAME of ShareGPT conversations, of which the first
            user turn and its reply are used.
        count: number of rows.

    Raises:
        InputError: the file or package does not exist, or has too few rows.
    """
    if reference.startswith(PACKAGE):
        rows = _exchanges(packaged_data(reference))
    elif Path(reference).is_file():
        rows = _pairs(Path(reference))
    else:
        raise InputError(f"--data {reference}: no such file; expected JSONL with prompt and completion, or package:NAME")
    texts = list(islice(rows, count))
    if len(texts) < count:
        raise InputError(f"--rows {count}: {reference} has {len(texts)} rows; ask for fewer")
    return texts


def _pairs(file: Path) -> Iterator[str]:
    for record in read_records(file):
        value = record.value
        if not (isinstance(value, dict) and isinstance(value.get("prompt"), str) and isinstance(value.get("completion"), str)):
            raise InputError(f"--data {file}: row {record.position}: expected prompt and completion as texts")
        yield f"{value['prompt']}\n{value['completion']}"


def _exchanges(files: list[Path]) -> Iterator[str]:
    for record in (record for file in files for record in read_records(file)):
        try:
            turns = from_sharegpt(record.value)
        except BadRow:
            continue
        if [turn["role"] for turn in turns[:2]] == ["user", "assistant"]:
            yield f"{turns[0]['content']}\n{turns[1]['content']}"


def smoke_texts(count: int) -> list[str]:
    """Texts of 1 to 40 words from the vocabulary of the tiny model."""
    draw = random.Random(0)
    return [" ".join(draw.choices(_WORDS, k=1 + number % 40)) for number in range(count)]


def smoke_model(folder: Path) -> str:
    """Generate a two-layer BERT over a small vocabulary."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=300, **size)).save_pretrained(folder)
    return str(folder)
