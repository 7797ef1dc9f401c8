import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerBase

from inscp.data import workers
from inscp.data.cache import CachedRows
from inscp.data.pipeline import Pipeline, as_sources
from inscp.data.sources import OnBadRecord
from inscp.data.tagging import ConversationTagger
from inscp.data.workers import parallel_map
from inscp.errors import RunError, UserError


def with_process(number: int) -> tuple[int, int]:
    return number, os.getpid()


def test_results_come_in_order_from_several_processes_and_the_first_from_this_one() -> None:
    results = list(parallel_map(with_process, range(20), processes=3))
    assert [number for number, _ in results] == list(range(20))
    here, *there = (process for _, process in results)
    assert here == os.getpid()
    assert os.getpid() not in there


def test_a_single_batch_starts_no_process_and_none_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inscp.data.workers.ProcessPoolExecutor", None)
    assert list(parallel_map(with_process, [7])) == [(7, os.getpid())]
    assert list(parallel_map(with_process, [])) == []


def test_an_error_of_a_process_is_reported_as_it_is_after_the_results_before_it() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise UserError("a.jsonl:3", "it is none", "Mend it.")
        return number

    results = parallel_map(work, range(9), processes=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match=r"^a\.jsonl:3: it is none\. Mend it\.$"):
        next(results)


def test_what_the_batches_raise_is_raised() -> None:
    def batches() -> Iterator[int]:
        yield from range(3)
        raise UserError("b.jsonl", "it cannot be read", "Mend it.")

    with pytest.raises(UserError, match="cannot be read"):
        list(parallel_map(with_process, batches(), processes=2))


def test_signals_to_all_processes_are_left_to_the_one_that_waits() -> None:
    def work(number: int) -> int:
        if number:
            os.kill(os.getpid(), signal.SIGTERM)
        return number

    assert list(parallel_map(work, range(4), processes=1)) == [0, 1, 2, 3]


def test_a_process_that_is_killed_ends_the_work_in_a_line() -> None:
    with pytest.raises(RunError, match="lack of memory"):
        list(parallel_map(lambda number: number and os.kill(os.getpid(), signal.SIGKILL), range(4), processes=1))


def test_processes_end_with_a_parent_that_is_killed() -> None:
    script = (
        "import os, signal\n"
        "from inscp.data import workers\n"
        "workers._POLL_SECONDS = 0.1\n"
        "results = workers.parallel_map(lambda number: os.getpid(), range(9), processes=1)\n"
        "print([next(results) for _ in range(2)][1], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60)  # which ends when all have closed their output
    assert done.returncode == -signal.SIGKILL
    assert int(done.stdout)


def test_one_whose_parent_was_killed_before_it_began_ends_too() -> None:
    script = "from inscp.data import workers\nworkers._initialise(print, 0)\nimport time\ntime.sleep(60)"
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, timeout=30)
    assert (done.returncode, done.stderr) == (1, b"")


def test_where_not_all_processes_can_be_started_none_is_kept_and_the_work_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fork, pids = os.fork, []

    def fork_twice() -> int:
        if len(pids) == 2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        pids.append(fork())
        return int(pids[-1])

    monkeypatch.setattr(os, "fork", fork_twice)
    assert list(parallel_map(with_process, range(9), processes=4)) == [(number, os.getpid()) for number in range(9)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [-signal.SIGKILL] * 2


def worked_by_one() -> list[tuple[int, int]]:
    return list(parallel_map(with_process, range(3)))


def test_a_daemon_which_must_have_no_children_does_all_itself() -> None:
    with get_context("fork").Pool(1) as pool:
        assert len({process for _, process in pool.apply(worked_by_one)}) == 1


@pytest.fixture
def prepared(tmp_path: Path, chatml_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Rows of thousands of conversations, some of them refused by the reader, the tagger and the tokenisation."""
    lines = [
        '{"prompt": "How many?", "response": "%s of them."}' % (f"{number} " * (1 + number % 3))
        for number in range(3000)
    ]
    lines[1500], lines[2500], lines[2900] = "broken", '{"text": "nobody answers"}', lines[0].replace("0 ", "0 " * 99)
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(lines), "utf-8")

    def rows(processes: int, on_bad_record: OnBadRecord = "skip") -> CachedRows:
        monkeypatch.setenv("INSCP_CACHE", str(tmp_path / f"cache{processes}"))
        monkeypatch.setattr(workers, "_process_count", lambda: processes)
        return Pipeline(as_sources(str(file)), chatml_tokenizer, ConversationTagger(), 64, on_bad_record).rows()

    return rows


def test_rows_and_what_is_left_out_are_the_same_for_any_number_of_processes(prepared) -> None:  # type: ignore[no-untyped-def]
    here, there = prepared(0), prepared(3)
    assert there.report == here.report
    assert sum(here.report.skipped.popitem()[1].values()) == 3
    tables: tuple[pa.Table, ...] = (here.table, there.table)
    assert tables[0].equals(tables[1])


def test_the_first_bad_record_is_reported_whoever_comes_upon_it(prepared) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"pairs\.jsonl:1501: not valid JSON"):
        prepared(2, "error")
