"""Tiny models for tests, made on the spot: a word-level tokenizer, a language model, an encoder, a reward model."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

WORDS = (
    "how are you i am fine be brief word write a story about cats dogs rain the sea king robot answer question "
    "hello world good bad one two three four five six seven eight nine ten red green blue user assistant system : . ? , !"
).split()
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "[CLS]", "[SEP]"]


def save_tokenizer(folder: Path, chat_template: str | None = None) -> Path:
    """A whitespace tokenizer over a few dozen words."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *WORDS]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return folder


def save_language_model(folder: Path, seed: int = 0) -> Path:
    """A two-layer Llama of 32 dimensions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    save_tokenizer(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.4,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_unpackable_model(folder: Path) -> Path:
    """A two-layer Bloom of 32 dimensions, whose attention knows of no position ids."""
    import torch
    from transformers import BloomConfig, BloomForCausalLM

    save_tokenizer(folder)
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=len(SPECIAL) + len(WORDS), hidden_size=32, n_layer=2, n_head=2, initializer_range=0.4)
    BloomForCausalLM(config).save_pretrained(folder)
    return folder


def save_encoder(folder: Path, seed: int = 0) -> Path:
    """A two-layer BERT of 32 dimensions, readable by sentence-transformers and as a reward model's base."""
    import torch
    from transformers import BertModel

    save_tokenizer(folder)
    torch.manual_seed(seed)
    BertModel(_bert_config()).save_pretrained(folder)
    return folder


def save_reward_model(folder: Path, seed: int = 0) -> Path:
    """A two-layer BERT with a scalar head."""
    import torch
    from transformers import BertForSequenceClassification

    save_tokenizer(folder)
    torch.manual_seed(seed)
    config = _bert_config()
    config.num_labels = 1
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def _bert_config():
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        pad_token_id=0,
    )
