"""A run that is told to end, loses a process or fills the disk: soon over, and gone on with."""

import ctypes
import multiprocessing
import os
import signal
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from evals.eval_run import Part, answer, draw, metrics, parts_of

from cdkit.errors import CdkitError
from cdkit.evals.runner.run_folder import Content, Fingerprints, opened
from cdkit.evals.runner.stopping import Stopped, stopped_by_signals

TOLD = 7
"""The exit status here of a run that ended with an error that the user can mend."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Part]:
    return parts_of(draw(tmp_path_factory.mktemp("world")))


def content(place: Path) -> Content:
    return {
        "settings": {"methods": {"cmac": {}}},
        "checkpoint": {},
        "identity": Fingerprints({}, {}, {}).to_dict(),
    }


def fork(target: Callable[[], None]) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks in general
        process.start()
    return process


def fill_up(limit: int) -> None:
    """From here on a journal takes so many bytes, and then half of a write."""
    write = os.write

    def writing(file: int, data: bytes) -> int:
        if not os.readlink(f"/proc/self/fd/{file}").endswith(".jsonl"):
            return write(file, data)
        room = limit - os.fstat(file).st_size
        if room <= 0:
            raise OSError(28, "No space left on device")
        return write(file, data[:room])

    os.write = writing  # type: ignore[assignment]


def begun(
    parts: list[Part],
    folder: Path,
    devices: int,
    limit: int | None = None,
    workers: int = 0,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """A run as the command line has it, in a fork; an error is written beside its folder."""

    def run() -> None:
        os.environ.update(environment or {})
        torch.set_num_threads(1)  # see test_eval_kills
        if limit is not None:
            fill_up(limit)
        try:
            with stopped_by_signals():
                answer(
                    parts, folder, resume=True, batch_size=1, devices=devices, start="fork",
                    workers=workers,
                )  # fmt: skip
        except CdkitError as error:
            rank = os.environ.get("RANK", "")
            folder.with_name(f"{folder.name}{rank}.txt").write_text(str(error), "utf-8")
            os._exit(TOLD)

    return fork(run)


def answering(process: BaseProcess, folder: Path, wanted: int) -> list[int]:
    """Wait until each of the processes has answers; returns the ranks that were started."""
    while process.is_alive():
        files = [*folder.glob("journal/*.jsonl")]
        if len(files) == wanted and all(f.read_bytes().count(b"\n") > 2 for f in files):
            break
        time.sleep(0.01)
    assert process.pid is not None
    return children(process.pid)


def children(number: int) -> list[int]:
    found = Path(f"/proc/{number}/task").glob("*/children")
    return [int(each) for file in found for each in file.read_text("utf-8").split()]


def gone(numbers: list[int], within: float = 10.0) -> bool:
    """Soon: an orphan is there until the system has taken note of its end."""
    until = time.monotonic() + within
    while any(Path(f"/proc/{number}").exists() for number in numbers):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(
    ("number", "at", "devices", "status"),
    [
        (signal.SIGTERM, "main", 1, 143),
        (signal.SIGINT, "main", 2, 130),
        (signal.SIGTERM, "rank", 2, 143),
        (signal.SIGKILL, "rank", 2, TOLD),
    ],
)
def test_a_signal_ends_every_process(
    parts: list[Part], tmp_path: Path, number: int, at: str, devices: int, status: int
) -> None:
    process = begun(parts, tmp_path / "run", devices)
    ranks = answering(process, tmp_path / "run", devices)
    assert process.pid is not None
    os.kill(process.pid if at == "main" else ranks[-1], number)
    process.join(90)
    assert process.exitcode == status and gone(ranks)
    if status == TOLD:
        told = (tmp_path / "run.txt").read_text("utf-8")
        assert "ended by SIGKILL" in told and "kept" in told and "--resume" in told
    if devices == 2 and at == "rank":
        again = answer(parts, tmp_path / "run", resume=True)
        assert metrics(again)["chair"]["scored"] == metrics(again)["chair"]["samples"]


@pytest.mark.parametrize("devices", [1, 2])
def test_a_lost_worker_is_one_error(parts: list[Part], tmp_path: Path, devices: int) -> None:
    """A process that loads images is killed, as the system does where memory runs out."""
    process = begun(parts, tmp_path / "run", devices, workers=1)
    started = answering(process, tmp_path / "run", devices)
    workers = started if devices == 1 else [each for rank in started for each in children(rank)]
    os.kill(workers[-1], signal.SIGKILL)
    process.join(90)
    assert process.exitcode == TOLD and gone([*started, *workers])
    told = (tmp_path / "run.txt").read_text("utf-8")
    # of two ranks, the one that knows why may be ended before it has said so
    silent = devices == 2 and "could not say why" in told
    assert "a process that loads images (--workers) is gone" in told or silent
    assert "kept" in told and "--resume" in told and len(told.splitlines()) == 1
    again = answer(parts, tmp_path / "run", resume=True)
    assert metrics(again)["chair"]["scored"] == metrics(again)["chair"]["samples"]


def test_a_lost_peer_is_one_error(parts: list[Part], tmp_path: Path) -> None:
    """Of two processes that a launcher started, each of which knows the other by a socket alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    ranks = [
        begun(
            parts,
            tmp_path / "run",
            2,
            environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    answering(ranks[0], tmp_path / "run", 2)
    ranks[1].kill()
    ranks[0].join(60)
    assert ranks[0].exitcode == TOLD
    told = (tmp_path / "run0.txt").read_text("utf-8")
    assert "another process of the run is gone" in told
    assert "kept" in told and "--resume" in told and len(told.splitlines()) == 1
    again = answer(parts, tmp_path / "run", resume=True)
    assert metrics(again)["chair"]["scored"] == metrics(again)["chair"]["samples"]


@pytest.mark.parametrize("devices", [1, 2])
def test_a_full_disk_is_one_error(parts: list[Part], tmp_path: Path, devices: int) -> None:
    process = begun(parts, tmp_path / "run", devices, limit=2000)
    process.join(60)
    assert process.exitcode == TOLD
    told = (tmp_path / "run.txt").read_text("utf-8")
    assert "cannot write" in told and "No space left" in told
    assert "kept" in told and "--resume" in told and len(told.splitlines()) == 1
    assert answer(parts, tmp_path / "run", resume=True).torn


def test_a_full_disk_at_the_results_is_told(tmp_path: Path) -> None:
    with pytest.raises(CdkitError, match=r"No space left.* kept: .* --resume"):
        with opened(tmp_path / "run", content, resume=False):
            raise OSError(28, "No space left on device")


def test_a_process_in_c_code_is_ended() -> None:
    """Its main thread never comes to the handler, as in a barrier."""

    def stuck() -> None:
        with stopped_by_signals(grace=0.1):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            ctypes.CDLL(None).sleep(60)

    process = fork(stuck)
    time.sleep(0.5)
    process.terminate()
    process.join(10)
    assert process.exitcode == 143


def test_signals_are_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with pytest.raises(Stopped) as caught, stopped_by_signals():
            os.kill(os.getpid(), number)
            time.sleep(5)
        assert caught.value.code == status
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    with stopped_by_signals():
        process = fork(lambda: time.sleep(60))
        process.terminate()
        process.join(10)
        time.sleep(0.2)  # its signal does not reach this process
    assert process.exitcode == -signal.SIGTERM


@pytest.mark.parametrize("name", ["run", "other"])
def test_drafts_of_killed_runs_are_swept(tmp_path: Path, name: str) -> None:
    dead = fork(lambda: None)
    dead.join()
    draft, alive = tmp_path / f".{name}.{dead.pid}", tmp_path / f".{name}.{os.getppid()}"
    foreign = tmp_path / ".notes.2147483646"
    for each in (draft, alive, foreign):
        (each / "journal").mkdir(parents=True)
    (draft / ".settings.json.draft").touch()
    (foreign / "mine.txt").touch()
    with opened(tmp_path / "run", content, resume=False):
        left = {path.name for path in tmp_path.iterdir()}
    assert left == {"run", alive.name, foreign.name}
