"""From conversations to the text a language model reads: chat templates, and a plain one for base models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from divsel_ray.errors import InputError, one_line

Message = Mapping[str, str]

_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ {'system': 'System', 'user': 'User', 'assistant': 'Assistant', 'tool': 'Tool'}[message.role] }}: {{ message.content }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
)
"""What `render_prompt` writes for a model without a chat template, as one: for programs that know no other way."""
STOP = "\nUser:"
"""Where a completion in the plain template ends when the model goes on by itself."""


def read_template(file: str | None, setting: str) -> str | None:
    """The text of a chat template, or None for the model's own.

    Args:
        file: that holds it; None for the model's own.
        setting: that names it, for messages.

    Raises:
        InputError: the file cannot be read, or is no Jinja template.
    """
    if file is None:
        return None
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
        # Of no conversation: to compile it. What transformers takes is more than Jinja: `{% generation %}`, say.
        render_jinja_template([], chat_template=text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{setting}: {file}: cannot be read: {one_line(error)}") from None
    except TemplateSyntaxError as error:
        raise InputError(f"{setting}: {file}: line {error.lineno}: not a Jinja template: {error.message}") from None
    return text


def render_prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The text before the completion: the model's own chat template, or `User: ...\\nAssistant:` where it has none.

    Args:
        tokenizer: a transformers tokenizer.
        messages: the conversation without its last (assistant) message.
    """
    if getattr(tokenizer, "chat_template", None):
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    turns = [f"{_NAMES.get(message['role'], message['role'])}: {message['content']}" for message in messages]
    return "\n".join([*turns, "Assistant:"])


def encode_prompt(tokenizer: Any, messages: Sequence[Message], max_tokens: int) -> list[int]:
    """Token ids of the prompt, beginning-of-sequence token exactly once, cut from the left to `max_tokens`.

    Some tokenizers (Gemma's from GGUF) do not add the token although the model needs it; some chat templates write it
    themselves. Both end up with one.
    """
    ids = list(tokenizer(render_prompt(tokenizer, messages), add_special_tokens=False).input_ids)
    start = tokenizer.bos_token_id
    if start is None:
        return ids[-max_tokens:]
    body = ids[1:] if ids[:1] == [start] else ids
    return [start, *body[-(max_tokens - 1) :]]


def encode_completion(tokenizer: Any, completion: str, max_tokens: int) -> list[int]:
    """Token ids of a completion with the end-of-sequence token, cut to `max_tokens` (then without that token)."""
    text = completion if getattr(tokenizer, "chat_template", None) else f" {completion.lstrip()}"
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return ids[:max_tokens]


def cut_completion(tokenizer: Any, completion: str, max_tokens: int) -> str:
    """The completion's first `max_tokens` tokens as text (gold and generated are cut alike before scoring)."""
    encoded = tokenizer(completion, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    return completion if len(offsets) <= max_tokens else completion[: offsets[max_tokens - 1][1]]
