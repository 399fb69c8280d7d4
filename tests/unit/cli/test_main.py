"""The command line against a stand-in API: what it prints, and its exit codes."""

import json

import pytest

from heimdex_cli.embedded.ports import free_port
from heimdex_cli.main import call
from tests.support.standin_services import Gateway


def test_submit_prints_the_id_and_get_the_job(api: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["submit"]) == 0
    job_id = capsys.readouterr().out.strip()
    assert job_id in Gateway.jobs
    assert call(["get", job_id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == job_id
    assert call(["get", job_id]) == 0
    assert job_id in capsys.readouterr().out


def test_submit_sends_its_options_and_nothing_else(api: str) -> None:
    assert call(["submit"]) == 0
    assert Gateway.bodies[-1] == {"type": "mock_process"}
    assert call(["submit", "--fail-at", "analyzing", "--callback-url", "https://shop.example/hooks"]) == 0
    assert Gateway.bodies[-1] == {
        "type": "mock_process",
        "fail_at_stage": "analyzing",
        "callback_url": "https://shop.example/hooks",
    }


def test_watch_shows_the_stages_and_exits_0_when_completed(api: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["submit", "--watch"]) == 0
    out = capsys.readouterr().out
    assert "processing extracting" in out
    assert "completed  indexing   100%" in out
    assert out.endswith("The job completed in 6.0 s.\n")


def test_watch_exits_1_when_failed(api: str, capsys: pytest.CaptureFixture[str]) -> None:
    call(["submit", "--fail-at", "analyzing", "--json"])
    job_id = json.loads(capsys.readouterr().out)["job_id"]
    assert call(["watch", job_id]) == 1
    assert "The job failed: analyzing failed after 4 attempts" in capsys.readouterr().out


def test_watch_exits_3_when_canceled(api: str, capsys: pytest.CaptureFixture[str]) -> None:
    call(["submit"])
    job_id = capsys.readouterr().out.strip()
    call(["cancel", job_id])
    assert call(["watch", job_id]) == 3
    assert "The job was canceled." in capsys.readouterr().out


def test_with_json_standard_output_is_the_response_only(api: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["submit", "--watch", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["status"] == "completed"
    assert "extracting" in captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["get", "01a20685-7164-746b-829f-d1636dcdeb5e"], "Job not found"),
        (["list", "--limit", "9" * 30], "--limit"),
        (["submit", "--type", "x"], "type: must be mock_process"),
        (["submit", "--nonsense"], "--nonsense"),
        (["get"], "See `heimdex --help`"),
        (["nonsense"], "nonsense"),
    ],
)
def test_unusable_input_is_one_sentence_and_exit_code_2(
    api: str, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert call(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("heimdex: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


@pytest.mark.parametrize("command", ["get", "watch", "events", "cancel", "retry"])
@pytest.mark.parametrize(
    "job_id",
    [
        "",
        " ",
        "no-such-job",
        "../healthz?x",
        "01a20685-7164-746b-829f-d1636dcdeb5e/events",
        "01a20685-7164-746b-829f-d1636dcdeb5e ",
        "01a206857164746b829fd1636dcdeb5e",
        "{01a20685-7164-746b-829f-d1636dcdeb5e}",
    ],
)
def test_a_malformed_id_is_refused_without_a_request(
    api: str, capsys: pytest.CaptureFixture[str], command: str, job_id: str
) -> None:
    assert call([command, job_id]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("heimdex: ")
    assert captured.err.endswith("give the UUID that the API returned when the job was submitted.\n")
    assert Gateway.asked == []


@pytest.mark.parametrize("word", ["--type", "--fail-at", "--callback-url"])
def test_an_argument_that_is_not_text_is_one_sentence_and_exit_code_2(
    api: str, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    assert call(["submit", word, "\udcff"]) == 2
    assert capsys.readouterr().err == "heimdex: The argument '\\udcff' is not valid UTF-8 and cannot be sent.\n"
    assert Gateway.asked == []


@pytest.mark.parametrize("arguments", [["submit"], ["submit", "--watch"], ["list"], ["get"], ["events"], ["cancel"]])
@pytest.mark.parametrize("answer", [{}, [], "text", {"unrelated": 1}])
def test_another_api_is_exit_code_4(
    api: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], answer: object
) -> None:
    for method in ("do_GET", "do_POST"):
        monkeypatch.setattr(Gateway, method, lambda self: self.answer(200, answer))
    needs_id = arguments[0] not in ("submit", "list")
    assert call([*arguments, *(["01a20685-7164-746b-829f-d1636dcdeb5e"] if needs_id else [])]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("is it Heimdex?\n")


def test_a_password_in_the_url_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    monkeypatch.setenv("HEIMDEX_URL", f"http://user:s3cret@127.0.0.1:{port}/")
    assert call(["list"]) == 4
    errors = capsys.readouterr().err
    assert f"Nothing answers at http://127.0.0.1:{port} " in errors
    assert "s3cret" not in errors


def test_a_missing_file_of_certificate_authorities_is_exit_code_2(
    api: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    assert call(["list"]) == 2
    assert "SSL_CERT_FILE" in capsys.readouterr().err


def test_an_api_that_does_not_answer_is_exit_code_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("HEIMDEX_URL", url)
    assert call(["submit"]) == 4
    assert f"Nothing answers at {url}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://x",
        "http://",
        "x",
        "http://x:99999",
        "http://x?y=1",
        "http://x/#y",
        "http://a..b",
        f"http://{'a' * 64}.com",
        "http://x/\udcff",
    ],
)
def test_an_unusable_url_is_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    monkeypatch.setenv("HEIMDEX_URL", url)
    assert call(["submit"]) == 2
    assert f"HEIMDEX_URL={url!r}" in capsys.readouterr().err


def test_help_and_version_exit_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["--help"]) == 0
    assert "submit" in capsys.readouterr().out
    assert call(["--version"]) == 0
