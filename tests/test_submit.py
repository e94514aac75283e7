"""`divsel submit` up to the cluster: what is refused here, what is sent, how a job is followed; `tests/e2e` has a real one."""

import random
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus
from typer.testing import CliRunner

from divsel_ray import submit as submitting
from divsel_ray.cli import app
from divsel_ray.errors import JobError
from divsel_ray.submit import Submission, follow, pack, sent_files
from tests.e2e.ray_head import free_ports

CONFIG = "budget: 5\npool: {data: /shared/rows.jsonl}\n"


@pytest.fixture
def folder(tmp_path):
    """A folder with a configuration in it."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "job.yaml").write_text(CONFIG)
    return tmp_path / "work"


@pytest.fixture
def nowhere():
    """An address that nobody listens on."""
    return f"http://127.0.0.1:{free_ports(1)[0]}"


def submit(folder, address, *more, config="job.yaml", out="/shared/run"):
    line = ["submit", folder / config, "--address", address, "--working-dir", folder, "--out", out, *more]
    done = CliRunner().invoke(app, [str(part) for part in line])
    return done.exit_code, done.stderr.strip()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["cluster.kk=4"], "cluster.kk: unknown key; expected one of"),
        (["select.sampler=best"], "select.sampler 'best': expected one of"),
        (["--out", "runs/job"], "--out runs/job: expected an absolute path on storage that every node of the cluster mounts"),
        (["--working-dir", "/nowhere"], "--working-dir /nowhere: no such folder"),
        (["--working-dir", "jobs"], "job.yaml: is outside the folder to upload (jobs)"),
        (
            ["--address", "localhost:8265"],
            "--address localhost:8265: expected the job server's address, e.g. http://localhost:8265",
        ),
        (["--wait-for", "GPU=some"], "--wait-for GPU=some: expected numbers of CPUs and GPUs, e.g. CPU=64,GPU=2"),
        (["--token-file", "/nowhere"], "--token-file /nowhere: cannot be read"),
        (["--token-file", "/dev/null"], "--token-file /dev/null: is empty"),
        ([], "no job server responds there; is the tunnel open"),
    ],
)
def test_what_is_wrong_here_is_told_in_one_line_and_nothing_is_sent(folder, nowhere, more, said):
    code, error = submit(folder, nowhere, *more)
    assert code == 2
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.fixture
def wrong_server():
    """A server that is no job server."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_another_server_at_the_address_is_told_in_one_line(folder, wrong_server):
    code, error = submit(folder, wrong_server)
    assert (code, len(error.splitlines())) == (2, 1)
    assert error.startswith(f"divsel: input: {wrong_server}: rejects this job: ")


def test_the_address_that_is_given_counts_and_not_that_of_the_environment(folder, nowhere, wrong_server, monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", wrong_server)
    _, error = submit(folder, nowhere)
    assert f"{nowhere}: no job server responds there" in error


def names(folder):
    return {path.relative_to(folder).as_posix() for path in sent_files(folder)}


def test_runs_caches_and_what_is_ignored_stay_here(folder):
    kept = ["job.yaml", "code/run.py", "code/runs/table.py"]
    left = [
        "runs/a/pool.parquet",
        ".git/config",
        ".venv/bin/python",
        "code/__pycache__/run.pyc",
        "data/rows.jsonl",
        "code/big.bin",
    ]
    left += ["environment/pyvenv.cfg", "environment/lib/torch.py", ".env", ".netrc", "code/.env.local"]
    for name in (*kept, *left):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "job.yaml").write_text(CONFIG)
    (folder / ".gitignore").write_text("data/\n")
    (folder / "code" / ".rayignore").write_text("*.bin\n")
    assert names(folder) == set(kept)


def test_the_token_is_not_sent_to_where_jobs_can_read_it(folder, tmp_path, monkeypatch):
    for name in ("given", "named", "other"):
        (folder / name).write_text("secret")
    (folder / "linked").symlink_to("given")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "named"))
    with zipfile.ZipFile(pack(folder, tmp_path / "sent.zip", folder / "job.yaml", folder / "given")) as archive:
        assert archive.namelist() == ["job.yaml", "other"]


def test_an_unchanged_folder_is_the_same_archive_whenever_it_is_packed(folder, tmp_path):
    first = pack(folder, tmp_path / "first.zip", folder / "job.yaml").read_bytes()
    (folder / "job.yaml").write_text(CONFIG)
    (folder / "job.yaml").touch()
    assert pack(folder, tmp_path / "second.zip", folder / "job.yaml").read_bytes() == first
    with zipfile.ZipFile(tmp_path / "first.zip") as archive:
        assert archive.read("job.yaml").decode() == CONFIG


def test_a_configuration_that_would_stay_here_is_refused(folder, nowhere):
    (folder / ".rayignore").write_text("job.yaml\n")
    code, error = submit(folder, nowhere)
    assert code == 2
    assert "job.yaml: is excluded from the upload" in error


def test_a_folder_too_large_to_send_is_refused_with_its_largest_files(folder, nowhere, monkeypatch):
    monkeypatch.setattr(submitting, "UPLOAD_LIMIT", 3 << 20)
    (folder / "noise.bin").write_bytes(random.Random(0).randbytes(4 << 20))
    code, error = submit(folder, nowhere)
    assert code == 2
    assert (
        "the upload exceeds 3 MiB, the limit of a job server; the largest files are noise.bin (4 MiB), job.yaml (0 MiB)" in error
    )
    (folder / "noise.bin").write_bytes(bytes(4 << 20))
    assert "no job server responds" in submit(folder, nowhere)[1]


def submission(folder, **more):
    return Submission(folder / "my job.yaml", "/shared/a run", folder, "http://head:8265", **more)


def test_the_cluster_runs_the_command_on_the_path_inside_the_folder(folder):
    run = "python -m divsel_ray.cli run 'my job.yaml' --out '/shared/a run'"
    assert submission(folder, overrides=["cluster.k=4", "pool.format=a b"]).entrypoint == f"{run} cluster.k=4 'pool.format=a b'"
    assert submission(folder, wait_for="GPU=2").entrypoint == f"{run} --wait-for GPU=2"


class Server:
    """A job server's client: each answer of `ends` is the status of a job, its log and its exit code, or no answer."""

    def __init__(self, *ends, taken=()):
        self.ends, self.taken, self.sent = list(ends), taken, []

    def list_jobs(self):
        return [SimpleNamespace(submission_id=name) for name in self.taken]

    def submit_job(self, **job):
        self.sent.append(job)
        return job["submission_id"]

    def get_job_info(self, _):
        if self.ends[0] is None:
            if len(self.ends) > 1:
                self.ends.pop(0)
            raise ConnectionError("refused")
        self.status, self.log, code = self.ends.pop(0)
        return SimpleNamespace(status=JobStatus(self.status), driver_exit_code=code, message="Ray says why")

    def get_job_logs(self, _):
        return self.log


def test_every_attempt_of_a_day_has_a_name_of_its_own(folder, tmp_path):
    server = Server()
    for number in (1, 2, 3):
        name = submitting._send(server, submission(folder), tmp_path / "archive.zip")
        assert name.startswith("my-job-2")
        assert name.endswith(f"-{number}")
        server.taken = (*server.taken, name, "another-1")


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(submitting, "_POLL_SECONDS", 0)


def test_a_log_is_shown_once_as_it_grows_and_a_lost_answer_is_asked_for_again(folder, at_once):
    shown = []
    server = Server(
        ("PENDING", "", None),
        ("RUNNING", "a\nb", None),
        None,
        None,
        ("RUNNING", "a\nb\nc\n", None),
        ("SUCCEEDED", "a\nb\nc\nd\n", 0),
    )
    assert follow(server, submission(folder), "job-1", shown.append).exit_code == 0
    assert "".join(shown) == "a\nb\nc\nd\n"


@pytest.mark.parametrize(
    ("end", "code", "text"),
    [
        (("FAILED", "+ pool\ndivsel: input: no\n\n", 2), 2, "failed: divsel: input: no"),
        (
            ("FAILED", "ModuleNotFoundError: No module named 'divsel_ray'\n", 1),
            1,
            "failed: ModuleNotFoundError: No module named 'divsel_ray'",
        ),
        (("FAILED", "", 137), 1, "failed: Ray says why"),
        (("FAILED", "", None), 1, "failed: Ray says why"),
        (("STOPPED", "+ pool\n", None), 1, "was stopped; submit it again to resume"),
    ],
)
def test_a_job_that_did_not_succeed_passes_on_its_exit_code_and_last_line(folder, end, code, text):
    outcome = follow(Server(end), submission(folder), "job-1", lambda _: None)
    assert (outcome.exit_code, outcome.text) == (code, text)


def test_a_server_that_answers_no_more_is_not_waited_for_for_ever(folder, at_once, monkeypatch):
    monkeypatch.setattr(submitting, "_LOST_SECONDS", 0.05)
    asked = submission(folder, token_file=Path("/home/me/the token"))
    with pytest.raises(JobError) as raised:
        follow(Server(None), asked, "job-1", lambda _: None)
    assert str(raised.value) == (
        "http://head:8265 no longer responds (refused); the job may still be running: RAY_AUTH_MODE=token "
        "RAY_AUTH_TOKEN_PATH='/home/me/the token' ray job logs --follow --address http://head:8265 job-1"
    )
