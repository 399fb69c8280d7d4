"""Stand-ins for the services' console scripts, for tests of the embedded system and the command line.

`commands` creates the console scripts; run as a program, this file is one of them. The environment controls them:

- STANDIN_SPEED: the factor by which jobs run faster than real ones.
- STANDIN_STUBBORN: the name of a service that ignores SIGTERM.
- STANDIN_EXIT: a service that exits at once, and its exit code (`analyzing=2`).
- STANDIN_NEVER_FAILS: a job that should fail completes instead.
- STANDIN_CUT: every live stream breaks after this number of events.
- STANDIN_WAITS: a job advances only while a client reads its live stream, so that a slow machine misses no event.
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
from urllib.parse import parse_qsl, urlsplit

STAGES = ["extracting", "analyzing", "indexing"]
SERVICES = ["gateway", *STAGES, "status-store"]
PARAMS = {
    "$ref": "#/$defs/Clip",
    "$defs": {
        "Clip": {
            "title": "Clip",
            "type": "object",
            "properties": {
                "source": {"type": "string"},
                "language": {"enum": ["auto", "en"], "default": "auto"},
                "level": {"anyOf": [{"enum": [1, 2]}, {"type": "null"}], "default": None},
                "box": {"anyOf": [{"$ref": "#/$defs/Box"}, {"type": "null"}], "default": None},
                "tags": {"type": "array", "items": {"type": "string"}, "default": []},
                "counts": {"type": "object", "additionalProperties": {"type": "integer"}, "default": {}},
                "share": {"type": "number", "default": 0.5},
                "loud": {"type": "boolean", "default": False},
                "either": {"anyOf": [{"type": "integer"}, {"type": "string"}], "default": 1},
                "any": {"default": None},
                "a.dot": {"type": "integer", "default": 1},
            },
            "required": ["source"],
        },
        "Box": {
            "title": "Box",
            "type": "object",
            "properties": {"width": {"type": "integer"}, "name": {"type": "string", "default": ""}},
            "required": ["width"],
        },
    },
}
TYPES = {"mock_process": None, "clip": PARAMS}
CREATED_AT = "2025-10-28T12:00:00.000000Z"


def commands(folder: Path) -> Path:
    """Create console scripts with the names of the real ones in this folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("gateway", "stage-worker", "status-store"):
        script = folder / f"heimdex-{name}"
        words = shlex.join([sys.executable, str(Path(__file__).resolve()), name])
        script.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        script.chmod(0o755)
    return folder


class Gateway(BaseHTTPRequestHandler):
    """A stand-in for the API with its jobs in memory. The state of a job follows from the time since its submission.

    `asked` has the method, the path with the query and the relevant headers of every request; `bodies` has the decoded
    bodies of the POSTs.
    """

    jobs: dict[str, tuple[float, str | None]] = {}  # noqa: RUF012
    listened: dict[str, float] = {}  # noqa: RUF012
    canceled: set[str] = set()  # noqa: RUF012
    asked: list[tuple[str, str, dict[str, str]]] = []  # noqa: RUF012
    bodies: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.note()
        parts = urlsplit(self.path).path.split("/")[2:]
        body = json.loads(self.rfile.read(int(self.headers["content-length"] or 0)) or "{}")
        self.bodies.append(body)
        if parts:
            return self.change(parts[0], parts[1])
        if body["type"] not in TYPES:
            return self.answer(422, {"detail": "type: must be mock_process"})
        job_id = str(uuid.uuid4())
        self.jobs[job_id] = (time.monotonic(), body.get("fail_at_stage"))
        return self.answer(202, {"job_id": job_id})

    def change(self, job_id: str, what: str) -> None:
        if job_id not in self.jobs:
            return self.answer(404, {"detail": "Job not found"})
        if what == "cancel":
            if self.job(job_id)["status"] != "processing":
                return self.answer(409, {"detail": "The job has ended."})
            self.canceled.add(job_id)
        else:
            self.canceled.discard(job_id)
            self.listened.pop(job_id, None)
            self.jobs[job_id] = (time.monotonic(), None)
        return self.answer(200, self.job(job_id))

    def do_GET(self) -> None:
        self.note()
        if self.path == "/readyz":
            return self.answer(200, {})
        url = urlsplit(self.path)
        parts = url.path.split("/")[2:]
        if url.path == "/job-types":
            stages = [{"name": name, "expected_seconds": 1.0} for name in STAGES]
            types = [{"type": name, "stages": stages, "params": params} for name, params in TYPES.items()]
            return self.answer(200, {"job_types": types})
        if not parts:
            return self.answer(200, self.page(dict(parse_qsl(url.query))))
        if parts[0] not in self.jobs or parts[1:] not in ([], ["events"]):
            return self.answer(404, {"detail": "Job not found"})
        if not parts[1:]:
            return self.answer(200, self.job(parts[0]))
        if self.headers["accept"] == "text/event-stream":
            return self.stream(parts[0])
        return self.answer(200, {"events": self.events(parts[0])})

    def page(self, query: dict[str, str]) -> dict[str, Any]:
        jobs = [self.job(job_id) for job_id in reversed(self.jobs)]
        jobs = [job for job in jobs if query.get("status") in (None, job["status"])]
        start = int(query.get("cursor", 0))
        end = start + min(int(query["limit"]), 3)  # small pages, so that most lists have several
        return {"jobs": jobs[start:end], "next_cursor": str(end) if end < len(jobs) else None}

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """Return the history of the job until now."""
        job, seconds = self.job(job_id), self.seconds(job_id)
        fails = self.jobs[job_id][1] is not None
        events = [(0.0, "submitted", "extracting", None), (2.0, "handed_over", "analyzing", None)]
        attempts = [(3.0, "attempt_lost", "analyzing", 1), (4.0, "attempt_failed", "analyzing", 2)]
        events += attempts if fails else [(5.0, "handed_over", "indexing", None)]
        events = [event for event in events if event[0] <= seconds]
        if job["status"] != "processing":
            events.append((6.0, job["status"], job["stage"], None))
        return [
            {
                "id": f"{number}.0",
                "event": kind,
                "run": 1,
                "stage": stage,
                "at": f"2025-10-28T12:00:{at + 1:09.6f}Z",
                "ended": {"stage": stage, "attempt": attempt, "started_at": None, "duration_seconds": 0.5}
                if attempt
                else None,
                "error": {1: "worker lost: it died", 2: "it was told to"}.get(attempt or 0),
                "retry_in_seconds": {1: 0.0, 2: 1.5}.get(attempt or 0),
                "traceback": 'Traceback:\n  File "x.py", line 1\nBoom' if attempt == 2 else None,
            }
            for number, (at, kind, stage, attempt) in enumerate(events)
        ]

    def stream(self, job_id: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b"retry: 1000\n\n")
        sent = int((self.headers["last-event-id"] or "-1.0").partition(".")[0])
        left = int(os.environ.get("STANDIN_CUT", "1000"))
        while True:
            for entry in self.events(job_id)[sent + 1 :]:
                if not left:
                    return
                left -= 1
                sent += 1
                lines = f"id: {entry['id']}\nevent: {entry['event']}\ndata: {json.dumps(entry)}\n\n"
                self.wfile.write(lines.encode())
                if entry["event"] in ("completed", "failed", "canceled"):
                    return
            at = f"2025-10-28T12:00:{self.seconds(job_id) + 1:09.6f}Z"
            tick = {
                "stage": self.job(job_id)["stage"],
                "attempt": 1,
                "progress": self.job(job_id)["progress"],
                "at": at,
            }
            self.wfile.write(f": still here\n\nevent: progress\ndata: {json.dumps(tick)}\n\n".encode())
            self.listened[job_id] = self.listened.get(job_id, 0) + 0.5
            time.sleep(0.01)

    def seconds(self, job_id: str) -> float:
        if "STANDIN_WAITS" in os.environ:
            return self.listened.get(job_id, 0)
        return (time.monotonic() - self.jobs[job_id][0]) * float(os.environ.get("STANDIN_SPEED", "1"))

    def note(self) -> None:
        headers = {name: self.headers[name] for name in ("authorization", "last-event-id") if self.headers[name]}
        self.asked.append((self.command, self.path, headers))

    def job(self, job_id: str) -> dict[str, Any]:
        failing_stage = self.jobs[job_id][1]
        seconds = self.seconds(job_id)
        fails = failing_stage is not None and "STANDIN_NEVER_FAILS" not in os.environ
        done = seconds >= 6
        stage = "extracting" if seconds < 2 else "analyzing" if fails or seconds < 5 else "indexing"
        progress = min(int(seconds / 6 * 100), 33 if fails else 99 if not done else 100)
        return {
            "id": job_id,
            "status": "canceled"
            if job_id in self.canceled
            else "processing"
            if not done
            else "failed"
            if fails
            else "completed",
            "stage": stage,
            "progress": progress,
            "result": {"stages_completed": STAGES, "total_duration_seconds": 6.0} if done and not fails else None,
            "error": "analyzing failed after 4 attempts: it was told to" if done and fails else None,
            "created_at": CREATED_AT,
            "updated_at": CREATED_AT,
        } | {
            name: {"of": name}
            for name in dict(parse_qsl(urlsplit(self.path).query)).get("include", "").split(",")
            if name
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
    """Create a stand-in API, without running it; port 0 chooses a free port."""
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
