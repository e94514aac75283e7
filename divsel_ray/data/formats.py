"""Row formats: each converter turns one parsed row into canonical messages or reports why it cannot.

| format | row |
|---|---|
| sharegpt | `conversations`: a list of `{"from": ..., "value": ...}` |
| messages | `messages`: a list of `{"role": ..., "content": ...}` |
| openai | the same with `tool_calls` or `function_call` and `"content": null` |
| lima | `conversations`: a list of strings, alternately by the user and the assistant |
| self_instruct | `instruction` and `instances`: a list of `{"input": ..., "output": ...}`; each is a conversation |
| alpaca | `instruction`, `input`, `output` |
| prompt_completion | `prompt` and `completion`, or synonymous keys; texts or lists of messages |

A list of turns may also be called `conversation` or `items`, and its turns may mix the key names of several formats. A text
under the key `system` or `system_prompt` of any row becomes a system message. If no format fits, `with_columns` reads the
parts of a conversation from keys named by the user.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Literal

from divsel_ray.config import ConversationPart
from divsel_ray.data.conversation import BadRow, Message
from divsel_ray.data.turns import Fields, as_text, first_given, has_tool_turns, kind_of, read_turns, text_of
from divsel_ray.errors import InputError

Conversations = list[list[Message]]
Converter = Callable[[object], Conversations]

UNKNOWN = "unknown"
"""Returned by `detect` if no row matches a known format."""
COLUMNS = "columns"
"""Format name of a file whose keys are named by the user."""

_CHOICES = ("choices", "options", "endings")
"""Keys of multiple-choice answers."""
_TURN_LISTS = ("conversations", "messages", "conversation", "items")
_MESSAGE_LISTS = ("messages", "conversations", "conversation", "items")
_SYSTEM = ("system", "system_prompt")
_PROMPTS = ("prompt", "instruction", "question", "query", "input")
_COMPLETIONS = ("completion", "response", "output", "answer")
_COMPANIONS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
)
# Names that belong together come first: a row of question, answer and prompt is a question with its answer.
_PAIRS = tuple(dict.fromkeys([*_COMPANIONS, *product(_PROMPTS, _COMPLETIONS)]))


def from_sharegpt(row: object) -> list[Message]:
    """A ShareGPT row.

        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]

    Role names are case-insensitive and listed in `turns.ROLES`.

    Raises:
        BadRow: the row has another shape, or a role is unknown.
    """
    return _from_turns(row, _TURN_LISTS)


def from_messages(row: object) -> list[Message]:
    """A row of chat messages, as written by OpenAI's and Hugging Face's tools.

        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]

    Raises:
        BadRow: the row has another shape, or a role is unknown.
    """
    return _from_turns(row, _MESSAGE_LISTS)


def from_openai(row: object) -> list[Message]:
    """A row of OpenAI's fine-tuning format; tool calls become text, after the turn's own text and a blank line.

        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Rain?"}]},
                      {"role": "assistant", "content": null, "tool_calls": [
                          {"id": "1", "type": "function", "function": {"name": "sky", "arguments": "{\\"day\\": 1}"}}]}]}
        [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content":
          "<tool_call>\\n{\\"name\\": \\"sky\\", \\"arguments\\": {\\"day\\": 1}}\\n</tool_call>"}]

    Parts of a text are joined by a newline. Call ids, `tool_call_id`, `name`, `weight`, and the tool definitions in `tools`
    and `functions` are ignored: they are not turns of the conversation.

    Raises:
        BadRow: the row has another shape, a role is unknown, or a part of a content is not text.
    """
    return _from_turns(row, _MESSAGE_LISTS)


def from_lima(row: object) -> list[Message]:
    """A row of LIMA.

        {"conversations": ["Hi", "Hello."], "source": "wikihow"}
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]

    Raises:
        BadRow: the row has another shape.
    """
    return _from_turns(row, _TURN_LISTS)


def from_self_instruct(row: object) -> Conversations:
    """A Self-Instruct task: one conversation per instance, all of them or none.

        {"instruction": "Translate.", "instances": [{"input": "Bonjour", "output": "Hello"}, {"input": "Oui", "output": "Yes"}]}
        [[{"role": "user", "content": "Translate.\\n\\nBonjour"}, {"role": "assistant", "content": "Hello"}],
         [{"role": "user", "content": "Translate.\\n\\nOui"}, {"role": "assistant", "content": "Yes"}]]

    Raises:
        BadRow: the row or an instance has another shape.
    """
    fields = _as_object(row)
    instruction, instances = text_of(fields, "instruction"), fields.get("instances")
    if not isinstance(instances, list) or not instances:
        raise BadRow(f"instances is {'empty' if instances == [] else kind_of(instances)}, expected a list of objects")
    shared = {"instruction": instruction, **{key: fields[key] for key in _SYSTEM if key in fields}}
    return [from_alpaca({**_as_object(instance, "an instance"), **shared}) for instance in instances]


def from_alpaca(row: object) -> list[Message]:
    """An Alpaca row; a non-blank input follows the instruction after a blank line, and `history` comes before it.

        {"instruction": "Translate.", "input": "Bonjour", "output": "Hello", "history": [["Hi", "Hello."]]}
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."},
         {"role": "user", "content": "Translate.\\n\\nBonjour"}, {"role": "assistant", "content": "Hello"}]

    Raises:
        BadRow: instruction or output is missing, a field is not a string, or the history is not a list of pairs.
    """
    fields = _as_object(row)
    instruction, output = text_of(fields, "instruction"), text_of(fields, "output")
    asked = _joined(instruction, _optional(fields.get("input"), "input"))
    turns = _history(fields)
    return [*_system(fields), *turns, {"role": "user", "content": asked}, {"role": "assistant", "content": output}]


def from_prompt_completion(row: object) -> list[Message]:
    """A row with two parts, each a text or a list of messages.

        {"prompt": "2 + 2?", "completion": "4"}
        {"prompt": [{"role": "user", "content": "2 + 2?"}], "completion": [{"role": "assistant", "content": "4"}]}
        [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]

    Synonyms are instruction, question, query and input for the prompt, and response, output and answer for the completion.
    An additional `input` or `context` follows the prompt, as in Alpaca, and a `history` precedes it.

    Raises:
        BadRow: a field is missing or has another shape, or the answer is one of several `choices`.
    """
    fields = _as_object(row)
    prompt, completion = _pair(fields) or _PAIRS[0]
    for key in _CHOICES:
        if isinstance(fields.get(key), list | Mapping):
            raise BadRow(f"{key}: a multiple-choice question is not a conversation; write the answers into the prompt")
    asked = _part(fields, prompt, "user")
    extras = _extras(fields, prompt, completion)
    return [*_system(fields), *_history(fields), *_followed(asked, extras), *_part(fields, completion, "assistant")]


def from_unknown(row: object) -> list[Message]:
    """Reject a row of a file whose format is unknown.

    Raises:
        BadRow: always.
    """
    _as_object(row)
    raise BadRow("format not recognised: expected conversations, messages, instruction and output, or prompt and completion")


def with_columns(columns: Mapping[ConversationPart, str]) -> Converter:
    """A converter for rows with user-defined keys: `{"prompt": "data.ask", "completion": "reply"}`.

        {"data": {"ask": "Hi"}, "reply": "Hello."}
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]

    A dot descends into an object unless a key has the whole name. `prompt` and `completion` are texts or lists of messages,
    `messages` is a list of turns in any dialect; `system` comes first, `input` after the prompt and a blank line, and both
    may be null.

    Args:
        columns: part (prompt, input, completion, system, messages) to key.

    Raises:
        InputError: the parts do not form a conversation. The converter raises BadRow if a key is missing.
    """
    parts = set(columns)
    is_pair = {"prompt", "completion"} <= parts and "messages" not in parts
    if not is_pair and parts | {"system"} != {"messages", "system"}:
        raise InputError(
            f"pool.columns: {', '.join(sorted(parts))}: expected prompt and completion (and input, system), "
            "or messages (and system)"
        )
    return lambda row: [_from_columns(_as_object(row), columns)]


def _single(convert: Callable[[object], list[Message]]) -> Converter:
    return lambda row: [convert(row)]


CONVERTERS: dict[str, Converter] = {
    "sharegpt": _single(from_sharegpt),
    "messages": _single(from_messages),
    "openai": _single(from_openai),
    "lima": _single(from_lima),
    "self_instruct": from_self_instruct,
    "alpaca": _single(from_alpaca),
    "prompt_completion": _single(from_prompt_completion),
    UNKNOWN: _single(from_unknown),
}
"""Converters by format name; only self_instruct may return several conversations per row."""


def detect(rows: Iterable[object]) -> str:
    """The most common format of these rows (the first ones of a file); `unknown` if none is recognised."""
    votes = Counter(name for row in rows if (name := _shape(row)) != UNKNOWN)
    # A single tool call among chat messages makes the file OpenAI's format.
    if votes["openai"]:
        votes["openai"] += votes.pop("messages", 0)
    # Ties go to the format that comes first in the table, never to the row that happened to come first.
    return max(CONVERTERS, key=lambda name: votes[name]) if votes.total() else UNKNOWN


def _shape(row: object) -> str:
    if not isinstance(row, Mapping):
        return UNKNOWN
    turns = next((row[key] for key in _TURN_LISTS if _holds_turns(row, key)), None)
    if turns is not None:
        return _dialect(turns)
    if "instruction" in row and isinstance(row.get("instances"), list):
        return "self_instruct"
    if "instruction" in row and "output" in row:
        return "alpaca"
    return "prompt_completion" if _pair(row) else UNKNOWN


def _holds_turns(row: Fields, key: str) -> bool:
    turns = row.get(key)
    if not isinstance(turns, list) or key in _TURN_LISTS[:2]:
        return isinstance(turns, list)
    # The other names are common words: a list under one of them counts only if it starts like a conversation.
    return bool(turns) and isinstance(turns[0], Mapping) and ("from" in turns[0] or "role" in turns[0])


def _dialect(turns: Sequence[object]) -> str:
    first = turns[0] if turns else None
    if isinstance(first, str):
        return "lima"
    if has_tool_turns(turns):
        return "openai"
    return "messages" if isinstance(first, Mapping) and "role" in first else "sharegpt"


def _from_turns(row: object, keys: Sequence[str]) -> list[Message]:
    fields = _as_object(row)
    key = next((key for key in keys if isinstance(fields.get(key), list)), None) or first_given(fields, keys)
    if key is None:
        raise BadRow("no key conversations or messages")
    return _system(fields) + read_turns(fields[key], key)


def _pair(fields: Fields) -> tuple[str, str] | None:
    """The keys of prompt and completion in a row: the first pair with values, else the first pair present."""
    for prompt, completion in _PAIRS:
        if fields.get(prompt) is not None and fields.get(completion) is not None:
            return prompt, completion
    return next((pair for pair in _PAIRS if pair[0] in fields and pair[1] in fields), None)


def _from_columns(fields: Fields, columns: Mapping[ConversationPart, str]) -> list[Message]:
    found = {part: _lookup(fields, key) for part, key in columns.items()}
    messages = _system({"system": _optional(found.get("system"), columns.get("system", ""))})
    if "messages" in columns:
        return messages + read_turns(found["messages"], columns["messages"])
    extra = _optional(found.get("input"), columns.get("input", ""))
    asked = _followed(_side(found["prompt"], columns["prompt"], "user"), [extra])
    return messages + asked + _side(found["completion"], columns["completion"], "assistant")


def _lookup(fields: Fields, key: str) -> object:
    if key in fields:
        return fields[key]
    value: object = fields
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise BadRow(f"no key {key}")
        value = value[name]
    return value


def _part(fields: Fields, key: str, role: Literal["user", "assistant"]) -> list[Message]:
    if key not in fields:
        raise BadRow(f"no key {key}")
    return _side(fields[key], key, role)


def _side(value: object, key: str, role: Literal["user", "assistant"]) -> list[Message]:
    """One side of a pair: a text by this role, or messages with their own roles."""
    return read_turns(value, key) if isinstance(value, list) else [{"role": role, "content": as_text(value, key)}]


def _followed(asked: list[Message], extras: Sequence[str]) -> list[Message]:
    """The turns up to the question, with these texts appended to it unless blank or equal to the question."""
    for turn in asked[-1:]:
        turn["content"] = _joined(turn["content"], *(text for text in extras if text != turn["content"]))
    return asked


def _extras(fields: Fields, prompt: str, completion: str) -> list[str]:
    """Texts that belong to a prompt, judging by their keys."""
    beside = [key for key in ("input", "context") if key != prompt]
    if completion != "output" and fields.get("output") is not None:
        # An input with its own output is a separate pair.
        beside = [key for key in beside if key != "input"]
    if prompt != "instruction":
        # By convention they belong to an instruction; elsewhere a `context` may also be an object with metadata of the row.
        beside = [key for key in beside if isinstance(fields.get(key), str)]
    return [_optional(fields.get(key), key) for key in beside]


def _history(fields: Fields) -> list[Message]:
    """Earlier exchanges in LLaMA-Factory's form: pairs of question and answer."""
    pairs = fields.get("history")
    if pairs is None:
        return []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadRow("history is not a list of pairs [question, answer]")
    turns: list[Message] = []
    for question, answer in pairs:
        turns.append({"role": "user", "content": as_text(question, "history")})
        turns.append({"role": "assistant", "content": as_text(answer, "history")})
    return turns


def _joined(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text.strip())


def _optional(value: object, key: str) -> str:
    return "" if value is None else as_text(value, key)


def _system(fields: Fields) -> list[Message]:
    for key in _SYSTEM:
        text = fields.get(key)
        if isinstance(text, str) and text.strip():
            return [{"role": "system", "content": text}]
    return []


def _as_object(row: object, what: str = "the row") -> Fields:
    if not isinstance(row, Mapping):
        raise BadRow(f"{what} is {kind_of(row)}, expected an object")
    return row
