import time
from dataclasses import dataclass

import numpy as np
import pytest

from divsel_ray.config import EvaluateConfig, Workers
from divsel_ray.errors import InputError, JobError
from divsel_ray.evaluate import stage
from divsel_ray.evaluate.loss import LossMeter
from divsel_ray.evaluate.measures import Losses, read_losses
from divsel_ray.evaluate.models import Model
from divsel_ray.evaluate.stage import measure_all
from divsel_ray.progress import Silent
from tests.evaluate.worlds import save_adapter
from tests.models.tiny import save_language_model
from tests.train.rows import conversations, write_rows

CONFIG = EvaluateConfig(max_tokens=64, batch_tokens=100)


def test_models_are_measured_at_once_and_never_again(tmp_path, cluster):
    rows, base = conversations(5), save_language_model(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    models = [Model("untuned", str(base)), Model("tuned", str(base), adapter)]
    losses, out = Losses(write_rows(tmp_path / "rows.parquet", rows), CONFIG), tmp_path / "out"

    files = measure_all([(model, losses) for model in models], out, CONFIG, lambda: cluster, Silent())
    for model, measured in zip(models, files, strict=True):
        nats, tokens = LossMeter(model.base, chat_template=None, max_tokens=64, batch_tokens=100).measure(model.adapter, rows)
        np.testing.assert_allclose(read_losses(measured)[0], nats, rtol=1e-6)
        assert read_losses(measured)[1].tolist() == tokens.tolist()

    written = [one.stat().st_mtime_ns for one in files]
    again = measure_all([(models[1], losses), (models[0], losses)], out, CONFIG, _no_cluster, Silent())
    assert again == files[::-1]
    assert [one.stat().st_mtime_ns for one in files] == written


def _no_cluster():
    raise AssertionError("there is nothing to do")


@dataclass(frozen=True)
class _Slow:
    seconds: float
    problem: str = ""
    name = "slow"
    file = ("slow", ".txt")
    own_engine = True

    def identity(self):
        return [self.seconds, self.problem]

    def check(self):
        if self.problem:
            raise InputError(self.problem)

    def write(self, model, loaded, target):
        time.sleep(self.seconds)
        target.parent.mkdir(exist_ok=True)
        target.write_text(model.name)


def test_what_takes_too_long_is_ended_and_what_is_finished_is_kept(tmp_path, cluster):
    config, wanted = EvaluateConfig(time_limit_s=1), [(Model(name, f"some/{name}"), _Slow(300)) for name in ("done", "slow")]
    kept = stage._target(tmp_path, *wanted[0])
    kept.write_text("done")
    began = time.monotonic()
    with pytest.raises(JobError, match="not finished after 1 s"):
        measure_all(wanted, tmp_path, config, lambda: cluster, Silent())
    assert time.monotonic() - began < 60
    assert [file.read_text() for file in tmp_path.glob("slow-*")] == ["done"]


def test_what_a_measurement_lacks_is_an_input_error_of_one_line(tmp_path, cluster):
    with pytest.raises(InputError, match=r"^no such task$"):
        measure_all([(Model("m", "some/a"), _Slow(0, "no such task"))], tmp_path, CONFIG, lambda: cluster, Silent())


def test_a_worker_that_no_node_can_hold_is_refused(tmp_path, cluster):
    config = EvaluateConfig(workers=Workers(cpus=10_000))
    with pytest.raises(InputError, match=r"evaluate\.workers: one worker requests 10000 CPUs"):
        measure_all([(Model("m", "some/a"), _Slow(0))], tmp_path, config, lambda: cluster, Silent())


def test_models_of_one_base_share_a_process_and_others_run_beside_it():
    due = [stage._Due(Model(name, base), _Slow(0), None) for name, base in (("a", "x"), ("b", "x"), ("c", "y"), ("d", "x"))]
    names = lambda groups: [[one.model.name for one in group] for group in groups]  # noqa: E731
    assert names(stage._groups(due, 1)) == [["a", "b", "d"], ["c"]]
    assert names(stage._groups(due, 4)) == [["a"], ["b"], ["d"], ["c"]]
