"""What a stage and its child processes write to standard output and error, in a process that captures it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from heimdex_contracts.runtime.output.lines import MAX_LINE, Lines
from heimdex_contracts.runtime.output.running import Recently
from tests.support.services import ROOT

JOB = {"job_id": "one", "stage": "painting", "attempt": 2}
BOUND = 'logs.bound(job_id="one", stage="painting", attempt=2)'
OTHER = 'logs.bound(job_id="two", stage="painting", attempt=1)'

SCRIPT = """
import asyncio, contextlib, ctypes, faulthandler, logging, multiprocessing, os, signal, subprocess, sys, threading, time
import warnings
from heimdex_contracts.runtime import logs

def sh(text):
    subprocess.run(["sh", "-c", text])

def in_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()

def main():
    {before}
    log = logs.configure("info", "heimdex-testing", capture_output=True)
{body}
    logs.flush()
    os._exit(0)

if __name__ == "__main__":
    main()
"""


def run(body: str, folder: Path, code: int | None = 0, before: str = "pass") -> list[dict[str, Any]]:
    """Run these lines in a process that captures its output. Returns its log. code: the expected exit code.

    before: a line to run before the output is captured.
    """
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    script = folder / "script.py"
    script.write_text(SCRIPT.format(body=indented, before=before))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])},
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.split("\n")[:-1]]


def outputs(entries: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(entry["stream"], entry["message"]) for entry in entries if entry["event"] == "stage_output"]


WRITERS = {
    "print": ("print('a line')", "stdout"),
    "print to stderr": ("print('a line', file=sys.stderr)", "stderr"),
    "bytes": ("sys.stdout.buffer.write(b'a line\\n')", "stdout"),
    "no newline": ("print('a line', end='', flush=True)", "stdout"),
    "in pieces": ("print('in', 'pieces')", "stdout"),
    "a thread": ("in_thread(print, 'a line')", "stdout"),
    "the descriptor": ("os.write(2, b'a line\\n')", "stderr"),
    "a C library": ("ctypes.CDLL(None).puts(b'a line'); ctypes.CDLL(None).fflush(None)", "stdout"),
    "a child": ("sh('echo a line')", "stdout"),
    "a child on stderr": ("sh('echo a line >&2')", "stderr"),
    "a child without newline": ("sh('printf \"a line\"'); sh('echo')", "stdout"),
    "a child given our stream": ("subprocess.run(['echo', 'a line'], stdout=sys.stderr)", "stderr"),
    "a grandchild": ("sh('sh -c \"echo a line\"')", "stdout"),
    "a forked child": (
        "process = multiprocessing.get_context('fork').Process(target=print, args=('a line',))\n"
        "    process.start(); process.join()",
        "stdout",
    ),
    "a spawned child": (
        "process = multiprocessing.get_context('spawn').Process(target=print, args=('a line',))\n"
        "    process.start(); process.join()",
        "stdout",
    ),
}


def test_a_line_of_output_is_an_entry_of_its_attempt_whoever_writes_it(tmp_path: Path) -> None:
    body = f"with {BOUND}:\n"
    for how, (write, _) in WRITERS.items():
        body += f"    {write.replace('a line', how)}\n    print()\n"
    entries = {entry["message"]: entry for entry in run(body, tmp_path)}
    assert {how: entry["stream"] for how, entry in entries.items()} == {how: of for how, (_, of) in WRITERS.items()}
    for entry in entries.values():
        assert (entry["event"], entry["service"], entry["level"]) == ("stage_output", "heimdex-testing", "info")
        assert {name: entry.get(name) for name in JOB} == JOB


LOGGERS = {
    "logging": 'logging.getLogger("mine").error("oh")',
    "logging in a thread": 'in_thread(logging.getLogger("mine").error, "oh")',
    "a warning": 'warnings.warn("oh")',
    "our logger": 'log.error("oh")',
    "a task": 'async def child():\n        logging.getLogger("mine").error("oh")\n'
    "    async def stage():\n        await asyncio.create_task(child())\n    asyncio.run(stage())",
}


def test_an_entry_of_any_logger_has_the_attempt_of_its_context(tmp_path: Path) -> None:
    body = f"with {BOUND}:\n" + "".join(f"    {call}\n" for call in LOGGERS.values())
    entries = run(body, tmp_path)
    assert len(entries) == len(LOGGERS)
    for entry in entries:
        assert "oh" in entry["event"]
        assert {name: entry.get(name) for name in JOB} == JOB


def test_an_uncaught_exception_of_a_thread_is_json_on_each_line(tmp_path: Path) -> None:
    entries = run(f"with {BOUND}:\n    in_thread(lambda: 1 / 0)", tmp_path)
    assert ("stderr", "ZeroDivisionError: division by zero") in outputs(entries)
    assert all({name: entry.get(name) for name in JOB} == JOB for entry in entries)


def test_beside_another_attempt_only_what_python_code_prints_has_an_attempt(tmp_path: Path) -> None:
    body = f"""
with {OTHER}, {BOUND}:
    print("ours")
    sh("echo whose?")
    in_thread(print, "who")
"""
    by_line = {entry["message"]: entry for entry in run(body, tmp_path)}
    assert by_line["ours"]["job_id"] == "one"
    assert not by_line["whose?"].keys() & JOB.keys()
    assert not by_line["who"].keys() & JOB.keys()


def test_what_is_printed_outside_of_attempts_has_none(tmp_path: Path) -> None:
    entries = run("print('before')\nsh('echo child')", tmp_path)
    assert sorted(outputs(entries)) == [("stdout", "before"), ("stdout", "child")]
    assert not any(entry.keys() & JOB.keys() for entry in entries)


def test_lines_of_threads_do_not_mix_and_flush_ends_no_line(tmp_path: Path) -> None:
    body = """
def say(word):
    for _ in range(20):
        print(word, end=" ", flush=True)
        time.sleep(0.001)
        print(word)
threads = [threading.Thread(target=say, args=(word,)) for word in ("a", "b", "c")]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    assert sorted({line for _, line in outputs(run(body, tmp_path))}) == ["a a", "b b", "c c"]


def test_neither_binary_output_nor_a_long_line_breaks_the_log(tmp_path: Path) -> None:
    body = """
sys.stdout.buffer.write(bytes(range(256)) + b"\\n")
sh("head -c 300000 /dev/urandom")
sh("echo; head -c 100000 /dev/zero | tr '\\\\0' x")
print("\\ud800 done")
"""
    lines = [line for _, line in outputs(run(body, tmp_path))]
    assert "\\ud800 done" in lines
    assert max(map(len, lines)) <= MAX_LINE
    assert sum(line.count("x") for line in lines if set(line) == {"x"}) >= 100_000


def test_a_flood_of_output_beside_long_entries_keeps_every_line_whole(tmp_path: Path) -> None:
    body = """
flood = subprocess.Popen(["sh", "-c", "seq 1 5000; seq 1 5000 >&2"])
for number in range(50):
    log.info("ours", text="x" * 20000)
flood.wait()
"""
    entries = run(body, tmp_path)
    assert len([entry for entry in entries if entry["event"] == "ours"]) == 50
    numbers = [str(number) for number in range(1, 5001)]
    for stream in ("stdout", "stderr"):
        assert [line for of, line in outputs(entries) if of == stream] == numbers


def test_a_library_that_holds_the_interpreter_lock_may_write_more_than_a_pipe_holds(tmp_path: Path) -> None:
    body = """
text = b"y" * 999 + b"\\n"
many = ctypes.create_string_buffer(text * 3000)
assert ctypes.PyDLL(None).write(2, many, len(text) * 3000) == len(text) * 3000
"""
    assert len(run(body, tmp_path)) == 3000


DEATHS = {
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGABRT": "os.abort()",
    "SIGSEGV": "ctypes.string_at(0)",
}


@pytest.mark.parametrize("death", DEATHS)
def test_the_last_words_of_a_killed_process_are_kept(death: str, tmp_path: Path) -> None:
    entries = run(
        f"with {BOUND}:\n    os.write(2, b'last words\\n')\n    {DEATHS[death]}",
        tmp_path,
        -getattr(__import__("signal"), death),
    )
    assert outputs(entries)[0] == ("stderr", "last words")
    assert all({name: entry.get(name) for name in JOB} == JOB for entry in entries)
    if death != "SIGKILL":
        assert any("most recent call first" in line for _, line in outputs(entries))


def test_a_forked_child_that_forgets_to_exit_changes_nothing_here(tmp_path: Path) -> None:
    body = f"""
with {BOUND}:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
if not child:
    os._exit(0)
with {BOUND}:
    sh("echo still ours")
"""
    (entry,) = run(body, tmp_path)
    assert entry["job_id"] == "one"


def test_the_stages_children_are_all_that_it_waits_for(tmp_path: Path) -> None:
    body = """
try:
    while True:
        os.wait()
except ChildProcessError:
    print("no children")
"""
    assert outputs(run(body, tmp_path)) == [("stdout", "no children")]


def test_a_closed_stream_and_new_handlers_stay_captured(tmp_path: Path) -> None:
    body = """
sys.stdout.close()
print("still open")
logging.basicConfig(force=True, format="plain %(message)s")
logging.getLogger("mine").warning("hm")
print(sys.__stderr__.isatty(), sys.stdout.isatty(), sys.stdout.fileno(), sys.stdout.encoding)
"""
    assert outputs(run(body, tmp_path)) == [
        ("stdout", "still open"),
        ("stderr", "plain hm"),
        ("stdout", "False False 1 utf-8"),
    ]


def test_a_process_and_its_children_continue_without_the_reader(tmp_path: Path) -> None:
    body = """
alive = os.readlink(f"/proc/self/fd/{logs._capture._alive}")
for pid in filter(str.isdigit, os.listdir("/proc")):
    with contextlib.suppress(OSError):
        if int(pid) != os.getpid() and alive in {os.readlink(f.path) for f in os.scandir(f"/proc/{pid}/fd")}:
            os.kill(int(pid), signal.SIGKILL)
logs._capture._ended.wait(30)
sh("echo '{\\"event\\":\\"as it is\\"}' >&2")
print("goes on")
"""
    assert [entry["event"] for entry in run(body, tmp_path)] == ["output_not_captured", "as it is", "stage_output"]


def test_a_process_that_cannot_fork_at_its_start_logs_that_and_goes_on(tmp_path: Path) -> None:
    body = """os.write(2, b'{"event":"as it is"}\\n')"""
    before = "os.fork = lambda: os.kill(0, 99)  # raises OSError"
    assert [entry["event"] for entry in run(body, tmp_path, before=before)] == ["output_not_captured", "as it is"]


def test_a_closed_log_does_not_hurt_the_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    body = f"open({str(tmp_path / 'ended')!r}, 'w').write(str(signal.getsignal(signal.SIGPIPE)))"
    script.write_text(
        SCRIPT.format(
            before="pass", body=f"    time.sleep(0.2); print(1); log.error('x'); sh('seq 1 20000; true'); {body}"
        )
    )
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE)
    assert process.stderr
    process.stderr.close()
    assert process.wait(60) == 0
    assert (tmp_path / "ended").exists()


def test_lines_end_at_returns_and_keep_characters_whole() -> None:
    lines = Lines()
    assert lines.feed(b"10 %\r20 %\r\n\n \nw\xc3") == ["10 %", "20 %"]
    assert lines.begun
    assert lines.feed(b"\xb6rd") == []
    assert lines.feed(b"", final=True) == ["wörd"]
    assert lines.feed(b"x" * (MAX_LINE + 1)) == ["x" * MAX_LINE, "x"]
    assert not lines.begun


ONE, TWO = {"job_id": "one"}, {"job_id": "two"}


@pytest.mark.parametrize(
    ("recently", "only"),
    [
        (Recently(), {}),
        (Recently(now=ONE), ONE),
        (Recently(last=ONE, last_ended=11), ONE),
        (Recently(last=ONE, last_ended=9), {}),
        (Recently(now=TWO, last=ONE, last_ended=11), {}),
        (Recently(now=TWO, last=ONE, last_ended=9), TWO),
        (Recently(now=ONE, last=ONE, last_ended=11), ONE),
        (Recently(now=TWO, unknown_until=11), {}),
        (Recently(now=TWO, unknown_until=9), TWO),
    ],
)
def test_a_line_belongs_to_an_attempt_if_no_other_one_ran_since_it_may_have_been_written(
    recently: Recently, only: dict[str, str]
) -> None:
    assert recently.only(since=10) == only
