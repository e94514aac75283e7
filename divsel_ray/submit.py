"""`divsel submit`: run a job from a local folder on the cluster behind a Ray job server.

The folder (code and configuration, not the data) is packed locally into one archive and uploaded. The archive contains no
timestamps, so an unchanged folder is uploaded only once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Private in Ray 2.60, the required version. Ray's public way to upload a folder, `working_dir`, includes hidden files.
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from divsel_ray.config.files import load_config
from divsel_ray.errors import InputError, JobError, last_line
from divsel_ray.nodes import bundles_of
from divsel_ray.select.registry import check_sampler

UPLOAD_LIMIT = 100 * 2**20
"""Size in bytes of the largest request that Ray's job server accepts."""
_REQUEST_SECONDS = 60.0
"""How long to wait for a response from the job server."""
_LOST_SECONDS = 120.0
"""How long to keep following a job whose server does not respond."""
_POLL_SECONDS = 1.0
_CHUNK = 1 << 20
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submission:
    """What to run, and where.

    Attributes:
        config: the configuration file, inside `working_dir`.
        out: run folder, as a path on the cluster's nodes.
        working_dir: folder to upload.
        address: address of the job server.
        overrides: `key.path=value` changes to the configuration.
        wait_for: resources that the cluster must have free before the job starts (see `nodes.await_nodes`).
        token_file: file with the cluster's token; without one, Ray's own environment variables apply.
    """

    config: Path
    out: str
    working_dir: Path
    address: str
    overrides: Sequence[str] = ()
    wait_for: str | None = None
    token_file: Path | None = None

    @property
    def config_there(self) -> str:
        """Path of the configuration relative to the uploaded folder, which contains it (see `check`)."""
        return self.config.resolve().relative_to(self.working_dir.resolve()).as_posix()

    @property
    def entrypoint(self) -> str:
        """The command that the cluster runs; it works whether the folder contains this package or the nodes have it installed."""
        waiting = ["--wait-for", self.wait_for] if self.wait_for else []
        return shlex.join(
            ["python", "-m", "divsel_ray.cli", "run", self.config_there, "--out", self.out, *waiting, *self.overrides]
        )

    def ray_job(self, action: str, job: str) -> str:
        """The `ray job` command line that performs an action on a submitted job."""
        token = f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={shlex.quote(str(self.token_file))} " if self.token_file else ""
        return f"{token}ray job {action} --address {shlex.quote(self.address)} {job}"

    def check(self) -> None:
        """Detect, before anything is uploaded, errors that the cluster would report.

        Raises:
            InputError: the configuration or `wait_for` is invalid, the folder does not exist or does not contain the
                configuration, or the run folder is not an absolute path.
        """
        check_sampler(load_config(self.config, self.overrides))
        if self.wait_for:
            bundles_of(self.wait_for)
        if not self.working_dir.is_dir():
            raise InputError(f"--working-dir {self.working_dir}: no such folder")
        if not self.config.resolve().is_relative_to(self.working_dir.resolve()):
            raise InputError(
                f"{self.config}: is outside the folder to upload ({self.working_dir}); "
                "move it there or choose another --working-dir"
            )
        if not self.out.startswith("/"):
            raise InputError(
                f"--out {self.out}: expected an absolute path on storage that every node of the cluster mounts, "
                "e.g. /shared/runs/job; the job's working directory on the cluster is deleted with the job"
            )


@dataclass(frozen=True)
class Ending:
    """How a job ended.

    Attributes:
        exit_code: exit code of its process if that is 0, 1 or 2; otherwise 1.
        text: one-line description, with the last line of the log if it failed.
    """

    exit_code: int
    text: str


def submit(submission: Submission) -> tuple[JobSubmissionClient, str]:
    """Submit a job to its cluster and return the client and the submission id, `NAME-DATE-ATTEMPT`.

    Raises:
        InputError: the job fails a check (see `Submission.check`), is too large, or the server rejects it or is unreachable.
    """
    submission.check()
    with tempfile.TemporaryDirectory() as folder:
        archive = pack(submission.working_dir, Path(folder) / "working-dir.zip", submission.config, submission.token_file)
        client = connect(submission.address, submission.token_file)
        with _answered(submission.address):
            return client, _send(client, submission, archive)


def _send(client: JobSubmissionClient, submission: Submission, archive: Path) -> str:
    """Submit under today's first free attempt number."""
    name = re.sub(r"[^A-Za-z0-9_]+", "-", submission.config.stem)
    stem = f"{name}-{datetime.now(UTC):%Y%m%d}-"
    taken = {job.submission_id for job in client.list_jobs()}
    attempt = next(number for number in range(1, len(taken) + 2) if f"{stem}{number}" not in taken)
    return client.submit_job(
        entrypoint=submission.entrypoint,
        submission_id=f"{stem}{attempt}",
        runtime_env={"working_dir": str(archive)},
        metadata={"out": submission.out},
    )


def follow(client: JobSubmissionClient, submission: Submission, job: str, write: Callable[[str], Any]) -> Ending:
    """Wait for a job to end, writing its log as it grows.

    Raises:
        JobError: the server has not responded for two minutes; the job may still be running.
    """
    answered, written = time.monotonic(), 0
    while True:
        try:
            # Status first, then log: if the job has ended, the log is then complete.
            info, log = client.get_job_info(job), client.get_job_logs(job)
        except (OSError, RuntimeError, AuthenticationError) as error:
            if time.monotonic() - answered > _LOST_SECONDS:
                again = submission.ray_job("logs --follow", job)
                raise JobError(
                    f"{submission.address} no longer responds ({last_line(error)}); the job may still be running: {again}"
                ) from None
        else:
            answered = time.monotonic()
            write(log[written:])
            written = len(log)
            if info.status.is_terminal():
                return _ending(info, log)
        time.sleep(_POLL_SECONDS)


def _ending(info: Any, log: str) -> Ending:
    if info.status == JobStatus.SUCCEEDED:
        return Ending(0, "succeeded")
    code = info.driver_exit_code if info.driver_exit_code in (1, 2) else 1
    if info.status == JobStatus.STOPPED:
        return Ending(code, "was stopped; submit it again to resume")
    return Ending(code, f"failed: {_last_written(log) or _last_written(info.message or '')}")


def _last_written(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def connect(address: str, token_file: Path | None = None) -> JobSubmissionClient:
    """Return a client of the job server at an address.

    Raises:
        InputError: nothing responds there, it is not a job server, or it requires another token.
    """
    if not address.startswith(("http://", "https://")):
        raise InputError(f"--address {address}: expected the job server's address, e.g. http://localhost:8265")
    for kind in JobSubmissionClient.__mro__:
        logging.getLogger(kind.__module__).setLevel(logging.ERROR)
    headers = {"Authorization": f"Bearer {_token(token_file)}"} if token_file else None
    with _answered(address), _named_in_environment(address):
        return _Client(address, headers=headers)


class _Client(JobSubmissionClient):
    """Ray's client with a request timeout of `_REQUEST_SECONDS`."""

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        return super()._do_request(*arguments, timeout=_REQUEST_SECONDS, **options)


@contextlib.contextmanager
def _named_in_environment(address: str) -> Iterator[None]:
    """Set the address in the environment as well, since Ray's client prefers that one to its argument."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _token(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token-file {file}: cannot be read ({error})") from None
    if not token:
        raise InputError(f"--token-file {file}: is empty; expected the token that `ray get-auth-token` prints on the cluster")
    return token


@contextlib.contextmanager
def _answered(address: str) -> Iterator[None]:
    """Turn errors of a job server, or of the connection to it, into one-line messages.

    Raises:
        InputError: the message says what to do about it.
    """
    try:
        yield
    except AuthenticationError as error:
        wrong = "rejects this token" if "authentication failed" in str(error).lower() else "requires a token"
        raise InputError(
            f"{address} {wrong}: pass its file as --token-file, or set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE"
        ) from None
    except ConnectionError:
        raise InputError(f"{address}: no job server responds there; is the tunnel open (`ray dashboard cluster.yaml`)?") from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{address}: rejects this job: {last_line(error)}") from None


def pack(folder: Path, archive: Path, config: Path, token_file: Path | None = None) -> Path:
    """Write the files of a folder to upload (see `sent_files`), except the cluster's token, into an archive and return it.

    Raises:
        InputError: the archive would be larger than a job server accepts, or the configuration is not among the files.
    """
    tokens = {Path(file).resolve() for file in (token_file, os.environ.get("RAY_AUTH_TOKEN_PATH")) if file}
    files = [file for file in sent_files(folder) if file.resolve() not in tokens]
    if config.resolve() not in {file.resolve() for file in files}:
        raise InputError(f"{config}: is excluded from the upload by .gitignore, .rayignore, its name or its folder; move it")
    with archive.open("wb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target:
        for file in files:
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with file.open("rb") as source, target.open(entry, "w") as part:
                while chunk := source.read(_CHUNK):
                    part.write(chunk)
                    if stream.tell() > UPLOAD_LIMIT:
                        raise InputError(_too_large(folder, files))
    return archive


def sent_files(folder: Path) -> list[Path]:
    """The files of a folder to upload to a cluster, sorted by path.

    Excluded are paths matched by .gitignore and .rayignore, the top-level `runs`, virtual environments, caches, linked folders,
    and everything hidden, because files such as .env and .netrc contain keys.
    """
    return sorted(_walk(folder, [], top=True))


def _walk(folder: Path, rules: list[Callable[[Path], bool]], *, top: bool = False) -> Iterator[Path]:
    rules = [*rules, *get_excludes_from_ignore_files(folder, include_gitignore=True, logger=_LOGGER)]
    for path in folder.iterdir():
        if path.name.startswith(".") or any(rule(path) for rule in rules):
            continue
        if path.is_dir():
            if not (path.is_symlink() or _stays_here(path) or (top and path.name == "runs")):
                yield from _walk(path, rules)
        elif path.is_file():
            yield path


def _stays_here(folder: Path) -> bool:
    """Whether a folder is specific to this machine."""
    return folder.name == "__pycache__" or (folder / "pyvenv.cfg").exists()


def _too_large(folder: Path, files: Sequence[Path]) -> str:
    largest = sorted(files, key=lambda file: file.stat().st_size, reverse=True)[:3]
    named = ", ".join(f"{file.relative_to(folder)} ({file.stat().st_size / 2**20:,.0f} MiB)" for file in largest)
    return (
        f"--working-dir {folder}: the upload exceeds {UPLOAD_LIMIT >> 20} MiB, the limit of a job server; "
        f"the largest files are {named}; keep data on storage that every node mounts, or list it in .rayignore"
    )
