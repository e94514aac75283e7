"""Turns conversations into the text a language model reads: chat templates, and a plain template for base models."""

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
"""The format that `render_prompt` uses without a chat template, as a Jinja template for programs that require one."""
STOP = "\nUser:"
"""Marks the end of a completion in the plain template if the model continues with the next turn."""


def read_template(file: str | None, setting: str) -> str | None:
    """Read a chat template; None stands for the model's own.

    Args:
        file: file with the template; None for the model's own.
        setting: setting that names the file, for messages.

    Raises:
        InputError: the file cannot be read, or is not a Jinja template.
    """
    if file is None:
        return None
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
        # An empty conversation, only to compile it with transformers' extensions of Jinja, e.g. `{% generation %}`.
        render_jinja_template([], chat_template=text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{setting}: {file}: cannot be read: {one_line(error)}") from None
    except TemplateSyntaxError as error:
        raise InputError(f"{setting}: {file}: line {error.lineno}: not a Jinja template: {error.message}") from None
    return text


def render_prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Render the text before the completion by the model's own chat template, else as `User: ...\\nAssistant:`.

    Args:
        tokenizer: a transformers tokenizer.
        messages: the conversation without its last (assistant) message.
    """
    if getattr(tokenizer, "chat_template", None):
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    turns = [f"{_NAMES.get(message['role'], message['role'])}: {message['content']}" for message in messages]
    return "\n".join([*turns, "Assistant:"])


def encode_prompt(tokenizer: Any, messages: Sequence[Message], max_tokens: int) -> list[int]:
    """Token ids of the prompt with exactly one beginning-of-sequence token, truncated from the left to `max_tokens`.

    Some tokenizers (Gemma's from GGUF) do not add the token although the model needs it; some chat templates write it
    themselves.
    """
    ids = list(tokenizer(render_prompt(tokenizer, messages), add_special_tokens=False).input_ids)
    start = tokenizer.bos_token_id
    if start is None:
        return ids[-max_tokens:]
    body = ids[1:] if ids[:1] == [start] else ids
    return [start, *body[-(max_tokens - 1) :]]


def encode_completion(tokenizer: Any, completion: str, max_tokens: int) -> list[int]:
    """Token ids of a completion with the end-of-sequence token, truncated to `max_tokens` (then without that token)."""
    text = completion if getattr(tokenizer, "chat_template", None) else f" {completion.lstrip()}"
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return ids[:max_tokens]


def cut_completion(tokenizer: Any, completion: str, max_tokens: int) -> str:
    """The completion's first `max_tokens` tokens as text (gold and generated are cut to the same length before scoring)."""
    encoded = tokenizer(completion, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    return completion if len(offsets) <= max_tokens else completion[: offsets[max_tokens - 1][1]]
