"""list, cancel, retry, events and watch against a stand-in API: tables for people, lines for scripts."""

import json
from pathlib import Path

import pytest

from heimdex_cli.main import call
from tests.support.standin_services import Gateway

Printed = pytest.CaptureFixture[str]
TRACEBACK = ["    Traceback:", '      File "x.py", line 1', "    Boom"]
UNKNOWN = "01a20685-7164-746b-829f-d1636dcdeb5e"


def submit(printed: Printed, *words: str) -> str:
    call(["submit", *words])
    return printed.readouterr().out.strip()


def test_list_is_a_table_newest_first_and_follows_the_pages(api: str, capsys: Printed) -> None:
    job_ids = [submit(capsys) for _ in range(7)]
    assert call(["list"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["id", "status", "stage", "progress", "created", "took", "error"]
    assert [row.split()[0] for row in rows] == job_ids[::-1]


def test_list_with_json_is_one_job_a_line(api: str, capsys: Printed) -> None:
    job_ids = [submit(capsys) for _ in range(4)]
    assert call(["list", "--json", "--all"]) == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["id"] for line in captured.out.splitlines()] == job_ids[::-1]
    assert captured.err == ""


def test_list_reports_that_there_are_more_jobs_than_its_limit(api: str, capsys: Printed) -> None:
    job_ids = [submit(capsys) for _ in range(5)]
    assert call(["list", "--limit", "4", "--json"]) == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["id"] for line in captured.out.splitlines()] == job_ids[:0:-1]
    assert captured.err == "There are more jobs: these are the newest 4 (see --limit and --all).\n"
    assert call(["list", "--limit", "5"]) == 0
    assert capsys.readouterr().err == ""


def test_list_sends_its_filters(api: str, capsys: Printed) -> None:
    submit(capsys)
    assert call(["list", "--status", "failed", "--type", "a b&c", "--limit", "9"]) == 0
    assert Gateway.asked[-1][1] == "/jobs?status=failed&type=a+b%26c&limit=10"


def test_cancel_and_retry_print_a_confirmation_or_the_job(api: str, capsys: Printed) -> None:
    job_id = submit(capsys)
    assert call(["cancel", job_id]) == 0
    assert capsys.readouterr().out == "The job is canceled.\n"
    assert call(["cancel", job_id]) == 2
    assert "The job has ended. (409 from" in capsys.readouterr().err
    assert call(["retry", job_id]) == 0
    assert Gateway.asked[-1][1] == f"/jobs/{job_id}/retry"
    assert capsys.readouterr().out == "The job runs again.\n"
    assert call(["cancel", job_id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "canceled"
    assert call(["retry", job_id, "--from-start", "--json"]) == 0
    assert Gateway.asked[-1][1] == f"/jobs/{job_id}/retry?from=start"
    assert json.loads(capsys.readouterr().out)["status"] == "processing"


def test_retry_with_watch_follows_the_job_until_it_is_finished(api: str, capsys: Printed) -> None:
    job_id = submit(capsys)
    call(["cancel", job_id])
    assert call(["retry", job_id, "--watch"]) == 0
    assert capsys.readouterr().out.endswith("The job completed in 6.0 s.\n")


def test_events_is_a_table_or_one_event_a_line(api: str, capsys: Printed) -> None:
    job_id = submit(capsys, "--fail-at", "analyzing")
    assert call(["watch", job_id]) == 1
    capsys.readouterr()
    assert call(["events", job_id]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["id", "at", "run", "event", "stage", "took", "attempt", "error"]
    assert [row.split()[4] for row in rows] == [
        "submitted",
        "handed_over",
        "attempt_lost",
        "attempt_failed",
        "failed",
    ]
    assert rows[2].split(maxsplit=6)[6].rstrip() == "0.5 s  1 of analyzing  worker lost: it died"
    assert rows[3].split(maxsplit=6)[6].rstrip() == "0.5 s  2 of analyzing  it was told to; next attempt in 1.5 s"
    assert call(["events", job_id, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["0.0", "1.0", "2.0", "3.0", "4.0"]
    assert call(["events", job_id, "--traceback"]) == 0
    assert capsys.readouterr().out.splitlines()[len(rows) + 1 :] == ["", "3.0  attempt_failed", *TRACEBACK]


def test_watch_shows_each_attempt_that_failed_or_was_lost(api: str, capsys: Printed) -> None:
    job_id = submit(capsys, "--fail-at", "analyzing")
    assert call(["watch", job_id]) == 1
    shown = capsys.readouterr().out
    assert f"{job_id}  attempt 1 at analyzing was lost: it died\n" in shown
    assert f"{job_id}  attempt 2 at analyzing failed: it was told to; next attempt in 1.5 s\n" in shown
    assert "Traceback" not in shown


def test_watch_shows_tracebacks_on_request(api: str, capsys: Printed) -> None:
    job_id = submit(capsys, "--fail-at", "analyzing")
    assert call(["watch", job_id, "--traceback"]) == 1
    assert "\n".join(TRACEBACK) in capsys.readouterr().out


def test_watch_resumes_a_broken_stream_after_the_last_event(
    api: str, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_CUT", "1")
    job_id = submit(capsys)
    before = len(Gateway.asked)
    assert call(["watch", job_id, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["status"] == "completed"
    assert "analyzing" in captured.err
    asked = [headers for _, path, headers in Gateway.asked[before:] if path.endswith("/events")]
    assert [headers.get("last-event-id") for headers in asked] == [None, "0.0", "1.0"]


def test_the_key_is_sent_as_a_bearer_token_if_it_is_set(
    api: str, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(capsys)
    assert "authorization" not in Gateway.asked[-1][2]
    monkeypatch.setenv("HEIMDEX_API_KEY", "s3cret")
    job_id = submit(capsys)
    assert Gateway.asked[-1][2] == {"authorization": "Bearer s3cret"}
    call(["watch", job_id])
    assert all(headers["authorization"] == "Bearer s3cret" for *_, headers in Gateway.asked[-3:])


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "clé"])
def test_a_key_that_cannot_be_sent_is_exit_code_2_and_is_not_shown(
    api: str, capsys: Printed, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("HEIMDEX_API_KEY", key)
    assert call(["list"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("heimdex: HEIMDEX_API_KEY cannot be sent")
    assert key not in errors


def test_an_api_that_is_too_busy_is_exit_code_4(api: str, capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gateway, "do_GET", lambda self: self.answer(429, {"detail": "Too many requests."}))
    assert call(["list"]) == 4
    assert "Too many requests. (429 from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "--status", "done"], "--status"),
        (["list", "--limit", "0"], "--limit"),
        (["list", "--limit", "x"], "--limit"),
        (["cancel", UNKNOWN], "Job not found"),
        (["retry", UNKNOWN], "Job not found"),
        (["events", UNKNOWN], "Job not found"),
        (["watch", UNKNOWN], "Job not found"),
        (["cancel"], "job-id"),
    ],
)
def test_an_invalid_request_is_one_sentence_and_exit_code_2(
    api: str, capsys: Printed, arguments: list[str], words: str
) -> None:
    assert call(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("heimdex: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err.lower() or words in captured.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_for_a_shell(
    capsys: Printed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ZSH", "ZSH_CUSTOM"):
        monkeypatch.delenv(name, raising=False)
    assert call(["--install-completion", "--shell", shell]) == 0
    written = [path.read_text() for path in tmp_path.rglob("*heimdex*") if path.is_file()]
    assert len(written) == 1
    for word in ("submit", "watch", "list", "cancel", "retry", "events", "from-start", "canceled"):
        assert word in written[0]
