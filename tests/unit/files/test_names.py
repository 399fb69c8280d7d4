import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heimdex_files import names
from heimdex_files.errors import InvalidName
from heimdex_files.names import JobFile, Upload, UploadUse

JOB = "01890a5d-ac96-774b-bcce-b302099a8057"
OTHER = "01890a5d-ac96-774b-bcce-b302099a8058"
UPLOAD = str(uuid.UUID(int=7))
TOKEN = "A" * 24

BAD_NAMES = {
    "": "1 to 200 bytes",
    "x" * 201: "1 to 200 bytes",
    "ü" * 101: "1 to 200 bytes",
    "x" * 300: "1 to 200 bytes",
    "a/b": "'/'",
    "../x": "'/'",
    "/etc/passwd": "'/'",
    ".": "must not be",
    "..": "must not be",
    "a\x00b": "control",
    "a\nb": "control",
    "a\x7f": "control",
    "a\x85": "control",
    "a\u2028b": "control",
    "film.mp4#1": "'#' and a number",
    "#0": "'#' and a number",
    "\ud800": "valid UTF-8",
}


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_name_that_breaks_a_rule_is_refused_with_that_rule(name: str) -> None:
    with pytest.raises(InvalidName, match=BAD_NAMES[name]) as refused:
        names.check_name(name)
    assert isinstance(refused.value, ValueError)
    assert str(refused.value).encode().isascii() or "ü" in str(refused.value)


@pytest.mark.parametrize(
    "name", ["a", "x" * 200, "ü" * 100, "...", ".a", "a#b", "a#1b", "#", "film 1.mp4", "影片", "%2F", "a\\b"]
)
def test_other_names_are_accepted(name: str) -> None:
    assert names.check_name(name) == name


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidName, match="not bytes"):
        names.check_name(b"film.mp4")  # type: ignore[arg-type]


_NAME = st.text(min_size=1, max_size=60).filter(lambda name: _is_valid(name))


def _is_valid(name: str) -> bool:
    try:
        names.check_name(name)
    except InvalidName:
        return False
    return True


@given(_NAME, _NAME, st.integers(1, 10**9), st.integers(0, 10**9))
def test_a_key_is_read_back_as_it_was_made(stage: str, name: str, run: int, step: int) -> None:
    key = names.file_key("acme", JOB, run, stage, step, TOKEN, name)
    assert names.parse(key) == JobFile("acme", JOB, run, stage, f"{step}.{TOKEN}", name)
    assert names.check_key_of_job(key, "acme", JOB) == names.parse(key)
    assert names.job_of(key) == ("acme", JOB)
    for tenant, job in (("acme", OTHER), ("acm", JOB), ("acme.", JOB), ("other", JOB)):
        with pytest.raises(InvalidName) as refused:
            names.check_key_of_job(key, tenant, job)
        assert key not in str(refused.value)


@pytest.mark.parametrize(
    "key",
    [
        f"acme/{JOB}",
        f"acme/{JOB}/",
        f"acme/{JOB}/1/extracting/0.{TOKEN}",
        f"acme/{JOB}/1/extracting/0.{TOKEN}/../../../../other",
        f"acme/{JOB}/../{OTHER}/1/extracting/0.{TOKEN}/x",
        f"acme/{JOB}/1/../0.{TOKEN}/x",
        f"acme/{JOB}/0/extracting/0.{TOKEN}/x",
        f"acme/{JOB}/1/extracting/0.short/x",
        f"acme/{JOB}/1/extracting/0.{TOKEN}/x/y",
        f"acme/{JOB}/1/extracting/0.{TOKEN}/x\x00",
        f"acme/{JOB}/1//0.{TOKEN}/x",
        f"ACME/{JOB}/1/extracting/0.{TOKEN}/x",
        f"uploads/acme/{UPLOAD}",
        ".installation",
        "",
        None,
        7,
    ],
    ids=ascii,
)
def test_a_forged_key_is_refused(key: object) -> None:
    with pytest.raises(InvalidName):
        names.check_key_of_job(key, "acme", JOB)  # type: ignore[arg-type]


def test_uploads_and_their_markers() -> None:
    key, use = names.upload_key("acme", UPLOAD), names.upload_use_key("acme", UPLOAD, JOB)
    assert key == f"uploads/acme/{UPLOAD}"
    assert use == f"uploads/acme/{UPLOAD}.used/{JOB}"
    assert names.parse(key) == Upload("acme", UPLOAD)
    assert names.parse(use) == UploadUse("acme", UPLOAD, JOB)
    assert names.job_of(key) is None
    for reference in ("", "x", f"../{UPLOAD}", f"{UPLOAD}.used/{JOB}", UPLOAD.upper().replace("0", "A"), f"{UPLOAD}\n"):
        with pytest.raises(InvalidName):
            names.upload_key("acme", reference)


def test_a_tenant_called_uploads_has_other_keys_than_uploads() -> None:
    key = names.file_key("uploads", JOB, 1, "extracting", 0, TOKEN, "x")
    assert isinstance(names.parse(key), JobFile)
    assert names.job_of(key) == ("uploads", JOB)
    assert isinstance(names.parse(names.upload_key(JOB, UPLOAD)), Upload)  # a tenant with a name like a job's id
    assert names.job_of(names.upload_key(JOB, UPLOAD)) is None
    assert names.job_of(names.upload_use_key(JOB, UPLOAD, JOB)) is None


def test_bad_parts_of_a_key_are_refused() -> None:
    for job_id in ("", "x", JOB.upper().replace("A", "G"), f"{JOB}/x", f"{JOB}\n"):
        with pytest.raises(InvalidName):
            names.file_key("acme", job_id, 1, "extracting", 0, TOKEN, "x")
    for run, stage, step, token in ((0, "s", 0, TOKEN), (1, "s/t", 0, TOKEN), (1, "s", -1, TOKEN), (1, "s", 0, "x/y")):
        with pytest.raises(InvalidName):
            names.file_key("acme", JOB, run, stage, step, token, "x")


def test_tokens_and_ids_are_new_each_time() -> None:
    assert len({names.new_token() for _ in range(100)}) == 100
    assert names.parse(names.file_key("a", JOB, 1, "s", 0, names.new_token(), "x"))
    assert names.parse(names.upload_key("a", names.new_upload_id()))
