"""Settings: the error of an invalid value names its variable; an empty value counts as unset."""

import base64
import re
from pathlib import Path

import msgspec
import pytest

from heimdex_contracts.errors import SettingsError
from heimdex_contracts.runtime import settings
from heimdex_contracts.runtime.settings import Settings

DIGEST = "0123456789abcdef" * 4

BAD = [
    ("HEIMDEX_PORT", "http"),
    ("HEIMDEX_PORT", "0"),
    ("HEIMDEX_PORT", "65536"),
    ("HEIMDEX_PORT", "-1"),
    ("HEIMDEX_PORT", "80.5"),
    ("HEIMDEX_MOCK_TIME_SCALE", "fast"),
    ("HEIMDEX_MOCK_TIME_SCALE", "-0.1"),
    ("HEIMDEX_MOCK_TIME_SCALE", "nan"),
    ("HEIMDEX_MOCK_TIME_SCALE", "inf"),
    ("HEIMDEX_RETRY_BACKOFF_SECONDS", "1,two"),
    ("HEIMDEX_RETRY_BACKOFF_SECONDS", "1,-2"),
    ("HEIMDEX_RETRY_BACKOFF_SECONDS", "1;2"),
    ("HEIMDEX_RETRY_BACKOFF_SECONDS", "nan"),
    ("HEIMDEX_RETRY_BACKOFF_SECONDS", "99999999"),
    ("HEIMDEX_RETRY_BACKOFF_SECONDS", "31536001"),
    ("HEIMDEX_RETRY_BACKOFF_SECONDS", "1,1e300"),
    ("HEIMDEX_RETRY_BACKOFF_SECONDS", "inf"),
    ("HEIMDEX_RETRY_BACKOFF_SECONDS", "true"),
    ("HEIMDEX_RETRY_BACKOFF_SECONDS", "(5)"),
    ("HEIMDEX_ACK_WAIT_SECONDS", "0"),
    ("HEIMDEX_ACK_WAIT_SECONDS", "soon"),
    ("HEIMDEX_ACK_WAIT_SECONDS", "nan"),
    ("HEIMDEX_STAGE_CONCURRENCY", "0"),
    ("HEIMDEX_STAGE_CONCURRENCY", "1.5"),
    ("HEIMDEX_STAGE_CONCURRENCY", "many"),
    ("HEIMDEX_STREAM_REPLICAS", "2"),
    ("HEIMDEX_STREAM_REPLICAS", "0"),
    ("HEIMDEX_SHUTDOWN_GRACE_SECONDS", "-1"),
    ("HEIMDEX_SHUTDOWN_GRACE_SECONDS", "1 minute"),
    ("HEIMDEX_SHUTDOWN_GRACE_SECONDS", "inf"),
    ("HEIMDEX_LOG_LEVEL", "verbose"),
    ("HEIMDEX_LOG_LEVEL", "INFO "[:4] + "R"),
    ("HEIMDEX_NATS_URL", "http://localhost:4222"),
    ("HEIMDEX_NATS_URL", "nats://"),
    ("HEIMDEX_NATS_URL", "nats://localhost:port"),
    ("HEIMDEX_NATS_URL", "nats://localhost:99999"),
    ("HEIMDEX_NATS_URL", "nats://a:4222,ftp://b:4222"),
    ("HEIMDEX_NATS_URL", ","),
    ("HEIMDEX_DATABASE_URL", "localhost"),
    ("HEIMDEX_DATABASE_URL", "mysql://localhost/heimdex"),
    ("HEIMDEX_DATABASE_URL", "postgresql://localhost:port/heimdex"),
    *(
        ("HEIMDEX_API_KEYS", value)
        for value in (
            "s3cret",
            "acme:s3cret",
            f":{DIGEST}",
            f"acme:{DIGEST[1:]}",
            f"acme:{DIGEST}0",
            f"{'a' * 65}:{DIGEST}",
            f"a b:{DIGEST}",
            f"a:b:{DIGEST}",
            f"-a:{DIGEST}",
            f"\u00e4:{DIGEST}",
            f"acme:{DIGEST},s3cret",
            f"acme:{DIGEST},other:{DIGEST.upper()}",
        )
    ),
    *(("HEIMDEX_RATE_LIMIT", value) for value in ("0", "-1", "many", "nan", "inf", "50,0", "50,0.5", "1,2,3", "50/s")),
    *(
        ("HEIMDEX_CORS_ORIGINS", value)
        for value in (
            "app.example.com",
            "https://app.example.com/",
            "https://app.example.com/path",
            "https://*.example.com",
            "https://app.example.com:port",
            "https://app.example.com https://b",
            "null",
            "ftp://a",
            "https://a,b",
        )
    ),
    ("HEIMDEX_CALLBACK_SECRET", "dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgYWxvbmU="),
    ("HEIMDEX_CALLBACK_SECRET", "whsec_"),
    ("HEIMDEX_CALLBACK_SECRET", "whsec_c2hvcnQ="),
    ("HEIMDEX_CALLBACK_SECRET", "whsec_" + "QUFB" * 22),
    ("HEIMDEX_CALLBACK_SECRET", "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgYWxvbmU"),
    ("HEIMDEX_CALLBACK_SECRET", "whsec_dGhlIHNlY3JldCBvZiB0aGU gdGVzdHMgYWxvbmU="),
    ("HEIMDEX_CALLBACK_SECRET", "whsec_\u00fcber"),
    ("HEIMDEX_CALLBACK_SECRET", "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgYWxvbmU=,whsec_c2hvcnQ="),
    *(
        (f"HEIMDEX_{name}", " , ,")
        for name in (
            *("API_KEYS", "CALLBACK_ALLOW", "CALLBACK_SECRET", "CORS_ORIGINS", "PIPELINES", "RATE_LIMIT"),
            "RETRY_BACKOFF_SECONDS",
        )
    ),
    ("HEIMDEX_CALLBACK_ALLOW", "10.0.0.0/33"),
    ("HEIMDEX_CALLBACK_ALLOW", "10.0.0.1/8"),
    ("HEIMDEX_CALLBACK_ALLOW", "localhost,10.0.0"),
    ("HEIMDEX_CALLBACK_ALLOW", "*"),
    ("HEIMDEX_CALLBACK_ALLOW", "*.corp"),
    ("HEIMDEX_CALLBACK_ALLOW", "http://localhost"),
    ("HEIMDEX_CALLBACK_ALLOW", "localhost:8080"),
    ("HEIMDEX_CALLBACK_ALLOW", "localhost 10.0.0.0/8"),
]


@pytest.mark.parametrize(("variable", "value"), BAD)
def test_a_value_that_cannot_be_used_is_refused_in_one_line_that_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.read({variable: value})
    assert variable in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert DIGEST[1:] not in str(caught.value)


@pytest.mark.parametrize("variable", [f"HEIMDEX_{name.upper()}" for name in Settings.__struct_fields__])
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_counts_as_unset(variable: str, empty: str) -> None:
    assert settings.read({variable: empty}) == settings.read({})


def test_the_defaults_are_the_documented_ones() -> None:
    read = settings.read({})
    assert read == Settings(
        env="local",
        nats_url="nats://localhost:4222",
        database_url="postgresql://heimdex:heimdex@localhost:5432/heimdex",
        host="127.0.0.1",
        port=8000,
        mock_time_scale=1,
        retry_backoff_seconds=None,
        ack_wait_seconds=10,
        stage_concurrency=100,
        stream_replicas=1,
        shutdown_grace_seconds=10,
        log_level="info",
    )


def test_valid_values_are_read() -> None:
    read = settings.read(
        {
            "HEIMDEX_ENV": "production",
            "HEIMDEX_NATS_URL": "nats://user:secret@a:4222, nats://b:4222",
            "HEIMDEX_DATABASE_URL": "postgresql://heimdex@/heimdex?host=/run/postgres",
            "HEIMDEX_PORT": "9000",
            "HEIMDEX_MOCK_TIME_SCALE": "0",
            "HEIMDEX_RETRY_BACKOFF_SECONDS": "0.5, 1,2",
            "HEIMDEX_ACK_WAIT_SECONDS": "1.5",
            "HEIMDEX_STREAM_REPLICAS": "3",
            "HEIMDEX_SHUTDOWN_GRACE_SECONDS": "0",
            "HEIMDEX_LOG_LEVEL": "debug",
            "HEIMDEX_API_KEYS": f"acme:{DIGEST}, b.e-t_a:{DIGEST[::-1]},acme:{'AB' * 32}",
            "HEIMDEX_RATE_LIMIT": "0.5, 20",
            "HEIMDEX_CORS_ORIGINS": "https://app.example.com,http://localhost:3000, http://[::1]:3000",
            "HEIMDEX_CALLBACK_SECRET": "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgYWxvbmU=",
        }
    )
    assert read.api_keys == (f"acme:{DIGEST}", f"b.e-t_a:{DIGEST[::-1]}", f"acme:{'AB' * 32}")
    assert read.rate_limit == (0.5, 20)
    assert read.cors_origins == ("https://app.example.com", "http://localhost:3000", "http://[::1]:3000")
    assert read.callback_secret == ("whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgYWxvbmU=",)
    assert read.nats_servers == ["nats://user:secret@a:4222", "nats://b:4222"]
    assert read.retry_backoff_seconds == (0.5, 1.0, 2.0)
    assert (read.port, read.mock_time_scale, read.ack_wait_seconds) == (9000, 0, 1.5)
    assert (read.stream_replicas, read.shutdown_grace_seconds, read.log_level) == (3, 0, "debug")


def test_a_refused_url_does_not_show_its_password() -> None:
    with pytest.raises(SettingsError) as caught:
        settings.read({"HEIMDEX_DATABASE_URL": "mysql://heimdex:s3cret@localhost/heimdex"})
    assert "s3cret" not in str(caught.value)


def test_a_refused_secret_is_not_shown() -> None:
    with pytest.raises(SettingsError) as caught:
        settings.read({"HEIMDEX_CALLBACK_SECRET": "whsec_c2hvcnQ="})
    assert "c2hvcnQ" not in str(caught.value)


def test_a_second_secret_signs_too_during_a_rotation() -> None:
    old, new = "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgYWxvbmU=", "whsec_YW5vdGhlciBzZWNyZXQgb2YgdGhlIHRlc3Rz"
    assert settings.read({"HEIMDEX_CALLBACK_SECRET": f"{new}, {old}"}).callback_secret == (new, old)


def test_allowed_receivers_are_a_list_of_names_addresses_and_networks() -> None:
    read = settings.read({"HEIMDEX_CALLBACK_ALLOW": "10.0.0.0/8, LocalHost,::1 ,192.168.1.7,hooks.corp"})
    assert read.callback_allow == ("10.0.0.0/8", "LocalHost", "::1", "192.168.1.7", "hooks.corp")


def test_a_relative_path_counts_from_where_the_process_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = settings.read({"HEIMDEX_HEALTH_FILE": "health"})
    monkeypatch.chdir("/")
    assert config.health_file == str(tmp_path / "health")


def test_variables_of_other_programs_are_ignored() -> None:
    assert settings.read({"PORT": "http", "HEIMDEX_SOMETHING_ELSE": "x"}) == settings.read({})


README = Path(__file__).resolve().parents[3] / "README.md"
SECRETS = {
    "HEIMDEX_API_KEYS": "acme:" + "0" * 64,
    "HEIMDEX_CALLBACK_SECRET": "whsec_" + base64.b64encode(bytes(32)).decode(),
    "HEIMDEX_CALLBACK_ALLOW": "10.0.0.0/8",
    "HEIMDEX_RATE_LIMIT": "50",
    "HEIMDEX_CORS_ORIGINS": "*",
}


@pytest.mark.parametrize("service", ["stage-worker", "status-store"])
def test_only_the_gateway_reads_the_settings_for_its_callers(service: settings.Service) -> None:
    assert settings.read(SECRETS) != settings.read({})
    assert settings.read(SECRETS, service) == settings.read({}, service)
    assert settings.read(dict.fromkeys(SECRETS, ","), service) == settings.read({})


@pytest.mark.parametrize("value", ["0", "soon", "nan", "inf", "-1", "90000"])
def test_only_a_worker_reads_how_long_its_loop_may_be_blocked(value: str) -> None:
    assert settings.read({"HEIMDEX_BLOCKED_SECONDS": "2.5"}, "stage-worker").blocked_seconds == 2.5
    assert settings.read({"HEIMDEX_BLOCKED_SECONDS": value}, "gateway") == settings.read({})
    with pytest.raises(SettingsError, match="HEIMDEX_BLOCKED_SECONDS"):
        settings.read({"HEIMDEX_BLOCKED_SECONDS": value}, "stage-worker")


def test_a_worker_does_not_read_the_address_of_the_database() -> None:
    url = {"HEIMDEX_DATABASE_URL": "postgresql://me:s3cret@db/heimdex"}
    assert settings.read(url, "stage-worker") == settings.read({})
    assert settings.read(url, "status-store").database_url == url["HEIMDEX_DATABASE_URL"]


def test_the_readmes_table_has_every_setting_with_its_default() -> None:
    rows = re.findall(r"^\| (`HEIMDEX_[^|]*) \| ([^|]*) \|", README.read_text(), re.MULTILINE)
    documented: dict[str, str] = {}
    for names, defaults in rows:
        variables = re.findall(r"`HEIMDEX_(\w+)`", names)
        values = re.findall(r"`([^`]+)`", defaults) or ["unset"] * len(variables)
        assert len(variables) == len(values), names
        documented |= zip((variable.lower() for variable in variables), values, strict=True)
    assert documented == {field.name: _shown(field.default) for field in msgspec.structs.fields(Settings)}


def _shown(default: object) -> str:
    if default in (None, ()):
        return "unset"
    if isinstance(default, tuple):
        return ",".join(default)
    return f"{default:g}" if isinstance(default, float) else str(default)
