"""Job types of one stage that runs a command: `<name>-blocking` in a thread, `<name>-awaiting` on the event loop.

The command of `endless` ignores SIGTERM and has two children of an hour, one of them in a session of its own. That of
`limited` is the same, in a stage with a timeout. `failing` runs a command that fails, `quick` one that leaves its
children behind and succeeds. `Processes` is the interface for the test.
"""

import os
from pathlib import Path

import psutil

from heimdex import Context, Pipeline, Stage

FOLDER = "TEST_COMMANDS_FOLDER"
KINDS = ("blocking", "awaiting")
STAGES = tuple(f"{kind}-commands" for kind in KINDS)
TIMEOUT_SECONDS = 3.0

_CHILDREN = """
setsid sh -c 'echo $$ >>"$1"; exec sleep 3600' - "$1" &
sh -c 'echo $$ >>"$1"; exec sleep 3600' - "$1" &
echo $$ >>"$1"
while [ "$(wc -l <"$1")" -lt 3 ]; do sleep 0.02; done
"""
SCRIPTS = {
    "endless": f'trap \'\' TERM; {_CHILDREN} mv "$1" "$1.pids"; while true; do sleep 3600; done',
    "quick": f'{_CHILDREN} mv "$1" "$1.pids"; echo done',
    "failing": "echo 'no such codec' >&2; exit 3",
}
SCRIPTS["limited"] = SCRIPTS["endless"]


PIPELINES = tuple(
    Pipeline(
        type=f"{name}-{kind}",
        stages=(
            Stage(
                f"{kind}-commands",
                expected_seconds=1,
                code=f"{__name__}:{function}",
                timeout_seconds=TIMEOUT_SECONDS if name == "limited" else None,
            ),
        ),
        retry_backoff_seconds=(),
    )
    for kind, function in (("blocking", "block"), ("awaiting", "wait"))
    for name in SCRIPTS
)


class Processes:
    """The processes that these commands leave. Every service needs `env`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        from tests.support.pipelines import with_pipelines

        return {FOLDER: str(self.folder), "HEIMDEX_RETRY_BACKOFF_SECONDS": "", **with_pipelines("commands")}

    def pids(self, job_id: str, stage: str) -> list[int]:
        """Return the pids of the command of this stage and of its two children; none before it has started them."""
        path = self.folder / f"{job_id}-{stage}.pids"
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def living(self, pids: list[int]) -> list[int]:
        return [pid for pid in pids if _lives(pid)]


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def words(ctx: Context) -> list[str]:
    return [
        "sh",
        "-c",
        SCRIPTS[ctx.job_type.partition("-")[0]],
        "-",
        str(Path(os.environ[FOLDER]) / f"{ctx.job_id}-{ctx.stage}"),
    ]


def block(ctx: Context) -> None:
    ctx.run_command(words(ctx))


async def wait(ctx: Context) -> None:
    await ctx.run_command(words(ctx))
