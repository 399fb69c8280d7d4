"""`submit --params` and `--param`, `types`, and `--include`, against a stand-in API."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from heimdex_cli.main import call
from tests.support.standin_services import Gateway

Printed = pytest.CaptureFixture[str]


def sent(*words: str) -> Any:
    """Submit a job of the type `clip` with these words. Returns the parameters that the API got."""
    assert call(["submit", "--type", "clip", *words]) == 0
    return Gateway.bodies[-1].get("params")


def refused(printed: Printed, *words: str) -> str:
    """Submit a job of the type `clip`, which does not reach the API. Returns the sentence."""
    submitted = len(Gateway.bodies)
    assert call(["submit", "--type", "clip", *words]) == 2
    assert len(Gateway.bodies) == submitted
    captured = printed.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("settings", "params"),
    [
        (["source=a"], {"source": "a"}),
        (["source="], {"source": ""}),
        (["source=a=b"], {"source": "a=b"}),
        (["source=-x", "language=en"], {"source": "-x", "language": "en"}),
        (["source=7"], {"source": "7"}),
        (["source=true"], {"source": "true"}),
        (["source=é\n\U0001f600"], {"source": "é\n\U0001f600"}),
        (["level=2"], {"level": 2}),
        (["level=null"], {"level": None}),
        (["box.width=3", "box.name=3"], {"box": {"width": 3, "name": "3"}}),
        (['box={"width": 3}', "box.name=x"], {"box": {"width": 3, "name": "x"}}),
        (['tags=["a","b"]'], {"tags": ["a", "b"]}),
        (["counts.a=1", "counts.b=2"], {"counts": {"a": 1, "b": 2}}),
        (["share=1e-3", "loud=true"], {"share": 0.001, "loud": True}),
        (["either=7"], {"either": "7"}),
        (["any=7"], {"any": "7"}),
        (["any.thing=7"], {"any": {"thing": "7"}}),
        (["unknown=7"], {"unknown": "7"}),
        (["a.dot=7"], {"a.dot": 7}),
    ],
    ids=str,
)
def test_param_is_text_unless_the_type_has_something_else_there(
    api: str, settings: list[str], params: dict[str, Any]
) -> None:
    assert sent(*(word for setting in settings for word in ("--param", setting))) == params


def test_the_types_are_asked_for_only_where_param_needs_them(api: str) -> None:
    assert sent() is None
    assert sent("--params", "{}") == {}
    assert sent("--params", '{"source":"a"}') == {"source": "a"}
    assert [path for _, path, _ in Gateway.asked] == ["/jobs"] * 3
    assert sent("--param", "source=a", "--param", "language=en") == {"source": "a", "language": "en"}
    assert [path for _, path, _ in Gateway.asked[3:]] == ["/job-types", "/jobs"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["level=x"], "--param level must be 1 or 2 or null, not 'x'."),
        (["box.width=a"], "--param box.width must be an integer, not 'a'."),
        (["box.width="], "--param box.width must be an integer, not ''."),
        (["box=a"], "--param box must be an object in JSON or null, not 'a'."),
        (["tags=a"], "--param tags must be an array in JSON, not 'a'."),
        (["tags=[NaN]"], "--param tags must be an array in JSON, not '[NaN]'."),
        (["share=1e999"], "--param share must be a number, not '1e999'."),
        (["loud=yes"], "--param loud must be true or false, not 'yes'."),
        (["counts.a=" + "9" * 5000], "--param counts.a must be an integer, not '" + "9" * 80 + "'."),
        (["any=" + "x", "any.y=1"], "--param any.y sets a key of any, which is not an object."),
        (["source=a", "source=b"], "--param source is given twice."),
        (["source"], "--param 'source' is not of the form name=value."),
        (["=a"], "--param '=a' is not of the form name=value."),
        (["box.=a"], "--param 'box.=a' is not of the form name=value."),
        ([".width=1"], "--param '.width=1' is not of the form name=value."),
    ],
    ids=lambda words: str(words)[:30],
)
def test_a_param_that_cannot_be_sent_is_one_sentence(
    api: str, capsys: Printed, settings: list[str], sentence: str
) -> None:
    words = [word for setting in settings for word in ("--param", setting)]
    assert refused(capsys, *words) == f"heimdex: {sentence}"


def test_params_is_json_or_a_file_or_standard_input(api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"source": "é", "tags": ["\U0001f600", None, 1.5, 10**20]}
    file = tmp_path / "params.json"
    for text in (json.dumps(params), json.dumps(params, ensure_ascii=False, indent=2)):
        for content in (text.encode(), b"\xef\xbb\xbf" + text.encode()):
            file.write_bytes(content)
            assert sent("--params", f"@{file}") == params
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
            assert sent("--params", "@-") == params
        assert sent("--params", text) == params


def test_param_overrides_params(api: str) -> None:
    params = '{"source":"a","box":{"width":1,"name":"x"},"tags":null}'
    words = ("--param", "box.width=2", "--param", 'tags=["b"]', "--param", "language=en")
    assert sent("--params", params, *words) == {
        "source": "a",
        "box": {"width": 2, "name": "x"},
        "tags": ["b"],
        "language": "en",
    }
    assert sent("--params", "null", "--param", "source=a") == {"source": "a"}


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ("{", "--params is not valid JSON: "),
        ("", "--params is not valid JSON: "),
        ("[NaN]", "--params is not valid JSON: NaN is not JSON."),
        ('{"a":1e999}', "--params is not valid JSON: the number 1e999 is too large."),
        ("9" * 5000, "--params is not valid JSON: the number " + "9" * 40 + "… is too large."),
        ("[" * 100_000, "--params is nested too deeply."),
        ("@", "--params @ cannot be read: Is a directory."),
        ("@nowhere/x.json", "--params @nowhere/x.json cannot be read: No such file or directory."),
    ],
    ids=lambda text: text[:20],
)
def test_params_that_cannot_be_sent_are_one_sentence(api: str, capsys: Printed, params: str, sentence: str) -> None:
    assert refused(capsys, "--params", params).startswith(f"heimdex: {sentence}")


def test_a_file_that_is_no_text_or_too_large_is_one_sentence(api: str, capsys: Printed, tmp_path: Path) -> None:
    file = tmp_path / "params.json"
    file.write_bytes(b'{"source":"\xff"}')
    assert refused(capsys, "--params", f"@{file}").endswith("is not valid UTF-8.")
    file.write_bytes(b" " * (1024 * 1024 + 1))
    assert refused(capsys, "--params", f"@{file}").endswith("has more than 1 MiB.")


def test_params_that_are_no_object_are_for_the_api_to_refuse_but_take_no_param(api: str, capsys: Printed) -> None:
    assert sent("--params", "[1]") == [1]
    capsys.readouterr()
    sentence = "heimdex: --param sets a key of --params, which is not an object in JSON."
    assert refused(capsys, "--params", "[1]", "--param", "source=a") == sentence


def test_half_a_character_and_a_nul_reach_the_api(api: str) -> None:
    assert sent("--params", '{"source":"\\ud800\\u0000"}') == {"source": "\ud800\x00"}


def test_a_type_that_the_api_does_not_know_is_refused_by_the_api(api: str, capsys: Printed) -> None:
    assert call(["submit", "--type", "other", "--param", "a=1"]) == 2
    assert "type: must be mock_process (422 from " in capsys.readouterr().err
    assert Gateway.bodies[-1]["params"] == {"a": "1"}


def test_types_is_a_table_with_the_parameters_as_they_are_typed_or_one_type_a_line(api: str, capsys: Printed) -> None:
    assert call(["types"]) == 0
    head, plain, clip = capsys.readouterr().out.splitlines()
    assert head.split() == ["type", "stages", "parameters"]
    assert plain.split() == ["mock_process", "extracting,", "analyzing,", "indexing", "-"]
    parameters = clip.partition("indexing")[2].split()
    assert parameters[:4] == ["source=string", "[language=auto|en]", "[level=1|2]", "[box=object]"]
    assert parameters[-2:] == ["[any=any]", "[a.dot=integer]"]
    assert call(["types", "--json"]) == 0
    assert [json.loads(line)["type"] for line in capsys.readouterr().out.splitlines()] == ["mock_process", "clip"]


def test_include_is_sent_and_printed(api: str, capsys: Printed) -> None:
    call(["submit"])
    job_id = capsys.readouterr().out.strip()
    for words in (["get", job_id], ["cancel", job_id], ["retry", job_id]):
        assert call([*words, "--include", "params,outputs"]) == 0
        assert Gateway.asked[-1][1].endswith("?include=params%2Coutputs")
        lines = capsys.readouterr().out.splitlines()
        assert lines[-2:] == ['params      {"of": "params"}', 'outputs     {"of": "outputs"}']
    assert call(["cancel", job_id, "--include", "params", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["params"] == {"of": "params"}
    assert call(["retry", job_id, "--from-start", "--include", "outputs"]) == 0
    assert Gateway.asked[-1][1].endswith("/retry?include=outputs&from=start")
    capsys.readouterr()
    assert call(["list", "--include", "params"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[-1] == "params"
    assert row.endswith('{"of": "params"}')
    assert call(["get", job_id]) == 0
    assert Gateway.asked[-1][1] == f"/jobs/{job_id}"
