"""Data sets on the Hugging Face hub: `hf:OWNER/NAME`, `hf:OWNER/NAME@REVISION`, `hf:OWNER/NAME/data/*.parquet`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from divsel_ray.errors import InputError, first_line

HUB = "hf:"
_REFERENCE = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>(refs/(convert|pr)/)?[^/]+))?(/(?P<path>.+))?")
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json")
"""Metadata files with a data suffix but no rows."""


@dataclass(frozen=True)
class HubDataset:
    """A parsed reference.

    Attributes:
        name: OWNER/NAME.
        revision: branch, tag or commit; None for the newest.
        path: file, folder or glob inside the data set; empty for everything.
    """

    name: str
    revision: str | None
    path: str


def parse_reference(reference: str) -> HubDataset:
    """Parse a reference.

    Raises:
        InputError: the reference is malformed.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise InputError(f"{reference}: expected hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/PATH")
    return HubDataset(match["name"], match["revision"], (match["path"] or "").strip("/"))


def download(reference: str, suffixes: Sequence[str]) -> Path:
    """Download a data set's files with these suffixes into the hub's cache unless cached; returns their folder.

    Raises:
        InputError: no such data set or revision, no access, or no network and nothing cached.
    """
    # Imported here because the hub's client takes half a second to import.
    import huggingface_hub
    from huggingface_hub import errors

    dataset = parse_reference(reference)
    try:
        return Path(
            huggingface_hub.snapshot_download(
                dataset.name,
                repo_type="dataset",
                revision=dataset.revision,
                allow_patterns=_patterns(dataset.path, suffixes),
                ignore_patterns=[pattern for name in DESCRIPTIONS for pattern in (name, f"*/{name}")],
            )
        )
    except errors.GatedRepoError:
        problem = "access is restricted; request it on the hub, then set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        problem = "no such data set on the Hugging Face hub, or it is private; check the name or set HF_TOKEN"
    except errors.RevisionNotFoundError:
        problem = f"no revision {dataset.revision}"
    except errors.LocalEntryNotFoundError:
        problem = "the Hugging Face hub cannot be reached and the data set is not in the local cache"
    except Exception as error:
        # The client's transports raise their own errors.
        problem = first_line(error)
    raise InputError(f"{reference}: {problem}")


def _patterns(path: str, suffixes: Sequence[str]) -> list[str]:
    if not path:
        return [f"*{suffix}" for suffix in suffixes]
    # In the hub's patterns `**/` matches at least one folder, in a glob also none.
    return sorted({path, path.replace("**/", ""), f"{path}/*"})
