"""Training rows for tests: short conversations of tiny words, each of another length than the next."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.train.encoding import Conversation

NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ m.content }} : {% endfor %}"
)
"""A chat template that refuses a system message, as Gemma's does."""


def conversations(count: int) -> list[Conversation]:
    """Rows in the order of their row ids."""
    rows = []
    for number in range(count):
        prompt, completion = "how are you " * (number % 5 + 1), "i am fine " * (number % 3 + 1)
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        rows.append(Conversation(hashlib.sha256(str(number).encode()).hexdigest()[:32], messages))
    return sorted(rows, key=lambda row: row.row_id)


def with_system(row: Conversation) -> Conversation:
    """The row after a system message."""
    return Conversation(row.row_id, [{"role": "system", "content": "be brief"}, *row.messages])


def write_rows(path: Path, rows: list[Conversation]) -> Path:
    """The Parquet that a draw leaves."""
    pq.write_table(pa.table({"row_id": [row.row_id for row in rows], "messages": [row.messages for row in rows]}), path)
    return path
