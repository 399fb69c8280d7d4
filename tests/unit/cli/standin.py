"""Stand-ins for the services' console scripts, so that the supervisor is tested without the services.

`commands` makes the console scripts; run as a program, this file is one of them. STANDIN_SPEED: how many times
faster than real the jobs run. STANDIN_STUBBORN: a service that ignores SIGTERM. STANDIN_EXIT: a service that ends
at once, and with which code (`analyzing=2`). STANDIN_NEVER_FAILS: a job that should fail completes.
"""

import json
import os
import shlex
import signal
import sys
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any

STAGES = ["extracting", "analyzing", "indexing"]
SERVICES = ["gateway", *STAGES, "status-store"]
CREATED_AT = "2025-10-28T12:00:00.000000Z"


def commands(folder: Path) -> Path:
    """Console scripts named like the real ones. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("gateway", "stage-worker", "status-store"):
        script = folder / f"heimdex-{name}"
        words = shlex.join([sys.executable, str(Path(__file__).resolve()), name])
        script.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        script.chmod(0o755)
    return folder


class Gateway(BaseHTTPRequestHandler):
    """Jobs in memory; where a job is follows from the time since it was submitted."""

    jobs: dict[str, tuple[float, str | None]] = {}  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if body["type"] != "mock_process":
            return self.answer(422, {"detail": "type: must be mock_process"})
        job_id = str(uuid.uuid4())
        self.jobs[job_id] = (time.monotonic(), body.get("fail_at_stage"))
        return self.answer(202, {"job_id": job_id})

    def do_GET(self) -> None:
        job_id = self.path.rpartition("/")[2]
        if self.path == "/readyz":
            self.answer(200, {})
        elif job_id in self.jobs:
            self.answer(200, self.job(job_id))
        else:
            self.answer(404, {"detail": "Job not found"})

    def job(self, job_id: str) -> dict[str, Any]:
        submitted_at, failing_stage = self.jobs[job_id]
        seconds = (time.monotonic() - submitted_at) * float(os.environ.get("STANDIN_SPEED", "1"))
        fails = failing_stage is not None and "STANDIN_NEVER_FAILS" not in os.environ
        done = seconds >= 6
        stage = "extracting" if seconds < 2 else "analyzing" if fails or seconds < 5 else "indexing"
        progress = min(int(seconds / 6 * 100), 33 if fails else 99 if not done else 100)
        return {
            "id": job_id,
            "status": "processing" if not done else "failed" if fails else "completed",
            "stage": stage,
            "progress": progress,
            "result": {"stages_completed": STAGES, "total_duration_seconds": 6.0} if done and not fails else None,
            "error": "analyzing failed after 4 attempts: it was told to" if done and fails else None,
            "created_at": CREATED_AT,
            "updated_at": CREATED_AT,
        }

    def answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def serve(port: int) -> ThreadingHTTPServer:
    """A stand-in API, not yet running; port 0 chooses one."""
    return ThreadingHTTPServer(("127.0.0.1", port), Gateway)


def main() -> None:
    command, *arguments = sys.argv[1:]
    if arguments == ["--list"]:
        print("\n".join(STAGES))
        return
    name = arguments[0] if arguments else command
    doomed, _, code = os.environ.get("STANDIN_EXIT", "").partition("=")
    if doomed == name:
        print(f"HEIMDEX_SOMETHING of {name} is wrong", file=sys.stderr)
        sys.exit(int(code))

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(0)

    ignores = os.environ.get("STANDIN_STUBBORN") == name
    signal.signal(signal.SIGTERM, signal.SIG_IGN if ignores else end)
    print(json.dumps({"event": "started", "pid": os.getpid()}), file=sys.stderr, flush=True)
    if name == "gateway":
        serve(int(os.environ["HEIMDEX_PORT"])).serve_forever()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
