"""A pipeline that cannot be used is one sentence and exit code 2, from every process that imports it."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heimdex_cli.embedded.ports import free_port
from heimdex_contracts import pipelines
from heimdex_contracts.errors import SettingsError
from tests.support.services import clean_environment, command
from tests.support.waiting import eventually

SCRIPTS = Path(sys.executable).parent
PROCESSES = {
    "gateway": command("gateway"),
    "worker": command("first"),
    "store": command("status-store"),
    "list": command("--list"),
    "check": [str(SCRIPTS / "heimdex"), "check", "my_pipelines"],
    "run": [str(SCRIPTS / "heimdex"), "run"],
    "demo": [str(SCRIPTS / "heimdex"), "demo"],
}
GOOD = """
from heimdex import Pipeline, Stage
PIPELINES = [Pipeline("good", (Stage("first", 1, "code_of_stages:run"), Stage("second", 1, "code_of_stages:run")))]
"""
BAD = {
    "no tuple": f"{GOOD}PIPELINES = [Pipeline('bad', PIPELINES[0].stages, retry_backoff_seconds=(5))]",
    "nan": f"{GOOD}Stage('first', float('nan'), 'code_of_stages:run')",
    "no list": f"{GOOD}PIPELINES = PIPELINES[0]",
    "exit": "raise SystemExit(0)",
    "many lines, and a thread": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(600,)).start()\nraise KeyboardInterrupt('one\\ntwo')",
}


class Declaring:
    """Runs processes that import the module `my_pipelines` of this folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("my_pipelines", GOOD)
        self.write("code_of_stages", "def run(ctx): pass")

    def write(self, module: str, source: str) -> None:
        (self.folder / f"{module}.py").write_text(source)

    def start(self, argv: list[str], *, path: bool = True) -> "subprocess.Popen[str]":
        env = clean_environment()
        if path:
            env["PYTHONPATH"] = os.pathsep.join([str(self.folder), env["PYTHONPATH"]])
        names = ("PORT", "EMBEDDED_NATS_PORT", "EMBEDDED_NATS_MONITOR_PORT")
        env |= {"HEIMDEX_PIPELINES": "my_pipelines", **{f"HEIMDEX_{name}": str(free_port()) for name in names}}
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, cwd=self.folder, env=env, stdout=pipe, stderr=pipe, text=True)

    def refused(self, process: str) -> str:
        """Return the one line on stderr of a process that must end with exit code 2."""
        with self.start(PROCESSES[process]) as running:
            try:
                out, err = running.communicate(timeout=60)
            finally:
                running.kill()
        assert running.returncode == 2, (out, err)
        assert len(err.splitlines()) == 1, err
        return err


@pytest.fixture
def declaring(scratch: Path) -> Declaring:
    return Declaring(scratch)


@pytest.mark.parametrize(
    ("process", "example"),
    [*(("worker", example) for example in BAD), *((process, "exit") for process in PROCESSES if process != "worker")],
)
def test_a_declaration_that_cannot_be_used_is_one_line_and_exit_code_2(
    declaring: Declaring, process: str, example: str
) -> None:
    declaring.write("my_pipelines", BAD[example])
    line = declaring.refused(process)
    assert "The module 'my_pipelines' of HEIMDEX_PIPELINES cannot be used: " in line
    assert not (declaring.folder / ".heimdex" / "logs" / "nats.log").exists(), "NATS was started"


CODE = {
    "misspelt": "def rum(ctx): pass",
    "no function": "run = 5",
    "broken": "def run(ctx) pass",
    "missing import": "import no_such_module",
    "interrupt": "raise KeyboardInterrupt",
}


@pytest.mark.parametrize(
    ("process", "example"), [*(("list", example) for example in CODE), ("worker", "interrupt"), ("run", "misspelt")]
)
def test_code_of_a_stage_that_cannot_be_used_is_one_line_and_exit_code_2(
    declaring: Declaring, process: str, example: str
) -> None:
    declaring.write("my_pipelines", GOOD.replace("second", "third").replace("code_of_stages:run", "other:run", 1))
    declaring.write("other", CODE[example])
    assert "'other:run'" in declaring.refused(process)


def test_what_modules_print_is_not_in_the_list_of_stages_and_a_thread_of_theirs_does_not_keep_it(
    declaring: Declaring,
) -> None:
    chatter = "import os, sys, threading, time\nprint('hello from python')\nos.write(1, b'hello from below\\n')\n"
    thread = "threading.Thread(target=time.sleep, args=(600,)).start()\n"
    declaring.write("my_pipelines", chatter + thread + GOOD)
    declaring.write("code_of_stages", f"{chatter}def run(ctx): pass")
    with declaring.start(PROCESSES["list"]) as listing:
        out, err = listing.communicate(timeout=60)
    assert (listing.returncode, out) == (0, "first\nsecond\n")
    assert err.count("hello from below") == 2


TYPED = """
import msgspec
from heimdex import Pipeline, Stage

class Video(msgspec.Struct):
    source: str

PIPELINES = [
    Pipeline("video", (Stage("first", 1, "code_of_stages:run"), Stage("second", 1, "other:run")), params=Video),
]
"""
#: Data that cannot be used: refused by every process with the same words.
BAD_DATA = {
    "params that are no struct": TYPED.replace("params=Video", "params=dict"),
    "stages that bind alike": TYPED.replace("first", "a_b").replace("second", "a-b"),
    "output without a type": TYPED.replace('"other:run"', '"other:run", output=open'),
    "misspelt field": TYPED.replace("params=Video", "param=Video"),
    "a type twice": TYPED + "PIPELINES *= 2",
    "no such module": "import no_such_module",
}
#: Code that cannot be used, of a stage `first` that is declared well: refused by its worker and by `heimdex check`.
BAD_CODE = {
    "misspelt argument": "def run(param): pass",
    "a later stage": "def run(second): pass",
    "the stage itself": "def run(ctx, first): pass",
    "a generator": "def run(ctx):\n    yield 1",
    "no function of this name": "def rum(ctx): pass",
}


@pytest.mark.parametrize(
    ("processes", "example"),
    [
        *((("check", "worker"), example) for example in BAD_DATA),
        (("gateway", "store"), "params that are no struct"),
        *(pytest.param(("gateway", "store"), example, marks=pytest.mark.full) for example in list(BAD_DATA)[1:]),
    ],
)
def test_data_is_refused_by_the_check_and_by_every_service_with_the_same_words(
    declaring: Declaring, processes: tuple[str, ...], example: str
) -> None:
    declaring.write("my_pipelines", BAD_DATA[example])
    first, *others = [declaring.refused(process) for process in processes]
    assert first.startswith("The module")
    assert others == [first]
    with pytest.raises(SettingsError) as refused:
        load_from(declaring.folder)
    assert first == f"{refused.value}\n"


def load_from(folder: Path) -> None:
    """Load the module of this folder as every process does, and forget it."""
    sys.path.insert(0, str(folder))
    try:
        pipelines.load(["my_pipelines"])
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("my_pipelines", None)
        importlib.invalidate_caches()


@pytest.mark.parametrize("example", BAD_CODE)
def test_code_is_refused_by_the_check_and_by_its_worker_with_the_same_words(declaring: Declaring, example: str) -> None:
    declaring.write("my_pipelines", TYPED)
    declaring.write("code_of_stages", BAD_CODE[example])
    by_worker, by_check = declaring.refused("worker"), declaring.refused("check")
    assert by_worker == by_check
    assert by_check.startswith("The stage's code 'code_of_stages:run' ")


def test_a_good_module_is_listed_with_what_each_stage_binds(declaring: Declaring) -> None:
    declaring.write("my_pipelines", "print('hello')\n" + TYPED)
    declaring.write("code_of_stages", "def run(ctx, speed=3): pass")
    declaring.write("other", "async def run(first, params): pass")
    with declaring.start([*PROCESSES["check"]], path=False) as checking:
        out, err = checking.communicate(timeout=60)
    assert (checking.returncode, err) == (0, "hello\n")
    assert out == "video  first   ctx\nvideo  second  first, params\n"


def test_types_that_share_a_stage_name_each_have_their_code_checked(declaring: Declaring) -> None:
    second = GOOD.replace("PIPELINES =", "PIPELINES +=").replace("good", "other").replace("code_of_stages", "other")
    declaring.write("my_pipelines", GOOD + second)
    declaring.write("other", "def run(ctx, params): pass")
    line = declaring.refused("worker")
    assert line == declaring.refused("check")
    assert (
        "'other:run' has the argument 'params', which cannot be bound at the stage 'first' of the job type 'other'"
        in line
    )


SLOW = "import pathlib, time\npathlib.Path('imports').touch()\ntime.sleep(600)\n"


@pytest.mark.parametrize(
    ("process", "number"),
    [("worker", signal.SIGTERM), ("worker", signal.SIGHUP), ("store", signal.SIGINT), ("run", signal.SIGINT)],
)
async def test_a_process_ends_with_0_at_a_signal_while_a_module_is_imported(
    declaring: Declaring, process: str, number: signal.Signals
) -> None:
    declaring.write("my_pipelines", SLOW)
    with declaring.start(PROCESSES[process]) as importing:
        try:
            await eventually((declaring.folder / "imports").exists)
            began_at = time.monotonic()
            importing.send_signal(number)
            out, err = importing.communicate(timeout=60)
        finally:
            importing.kill()
    assert importing.returncode == 0, (out, err)
    assert err == ""
    assert time.monotonic() - began_at < 50
