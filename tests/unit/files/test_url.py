import os
from pathlib import Path
from urllib.parse import quote

import pytest

from heimdex_contracts.errors import SettingsError
from heimdex_files.backends.local import LocalFolder
from heimdex_files.url import backend_of


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("file:///srv/files", "/srv/files"),
        ("file:///srv/files/", "/srv/files"),
        ("file://localhost/srv/files", "/srv/files"),
        (f"file:///srv/{quote('my files %')}", "/srv/my files %"),
    ],
)
def test_a_folder(url: str, folder: str) -> None:
    backend = backend_of(url)
    assert isinstance(backend, LocalFolder)
    assert backend._root == Path(folder)
    assert backend.name == f"the folder {folder}"


@pytest.mark.parametrize(
    ("url", "environ", "endpoint", "region"),
    [
        ("s3://bucket", {}, None, "us-east-1"),
        ("s3://bucket/a/b/?region=eu-central-1", {}, None, "eu-central-1"),
        ("s3://bucket?endpoint=http://minio:9000", {}, "http://minio:9000", "us-east-1"),
        ("s3://bucket", {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "x"}, None, "eu-west-1"),
        ("s3://bucket", {"AWS_DEFAULT_REGION": "eu-west-2"}, None, "eu-west-2"),
        ("s3://bucket?region=eu-west-3", {"AWS_REGION": "eu-west-1"}, None, "eu-west-3"),
        ("s3://bucket", {"AWS_ENDPOINT_URL": "http://ceph"}, "http://ceph", "us-east-1"),
        ("s3://bucket?endpoint=https://minio", {"AWS_ENDPOINT_URL": "http://ceph"}, "https://minio", "us-east-1"),
    ],
)
def test_a_bucket(
    monkeypatch: pytest.MonkeyPatch, url: str, environ: dict[str, str], endpoint: str | None, region: str
) -> None:
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    config = backend_of(url)._store.config  # type: ignore[attr-defined]
    assert (config["bucket"], config["region"], config.get("endpoint")) == ("bucket", region, endpoint)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "no scheme"),
        ("/srv/files", "no scheme"),
        ("http://host/files", "'http'"),
        ("gs://bucket", "'gs'"),
        ("file://srv/files", "the host 'srv'"),
        ("file:srv/files", "names no folder"),
        ("file:///", "root folder"),
        ("file:///srv/..", "root folder"),
        ("file:///srv?x=1", "query"),
        ("file:///srv%00", "names no folder"),
        ("s3://", "no valid bucket"),
        ("s3:///prefix", "no valid bucket"),
        ("s3://Bucket", "no valid bucket"),
        ("s3://bucket:9000", "port"),
        ("s3://bucket:x", "invalid host or port"),
        ("s3://bucket/a//b", "prefix"),
        ("s3://bucket/a/../b", "prefix"),
        ("s3://bucket?endpont=http://x", "'endpont'"),
        ("s3://bucket?endpoint=minio:9000", "endpoint"),
        ("s3://bucket?endpoint=", "endpoint"),
        ("s3://bucket?endpoint=http://user:pass@minio", "endpoint"),
        ("s3://bucket?region=a b", "region"),
    ],
)
def test_a_url_that_names_no_store_is_refused_in_one_sentence(url: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        backend_of(url)
    text = str(refused.value)
    assert text.startswith("HEIMDEX_FILES_URL ")
    assert text.count("\n") == 0
    assert "file:///path or s3://bucket" in text


def test_credentials_are_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match="AWS_ACCESS_KEY_ID") as refused:
        backend_of("s3://AKIA:geheim@bucket/prefix")
    assert "geheim" not in str(refused.value)
    assert "AKIA" not in str(refused.value)
