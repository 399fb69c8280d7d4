"""Subjects, streams and durables by name, because operators' scripts rely on them."""

from heimdex_contracts import streams, subjects

STAGES = ("extracting", "analyzing", "indexing")
STREAMS = {stream.name: stream for stream in streams.for_stages(STAGES, 10)}


def test_subjects_are_spelled_as_documented() -> None:
    assert subjects.job_subject("analyzing", "some-id") == "heimdex.jobs.analyzing.some-id"
    assert subjects.attempt_subject("analyzing", "some-id") == "heimdex.attempts.analyzing.some-id"
    assert subjects.progress_subject("analyzing", "some-id") == "heimdex.progress.analyzing.some-id"
    assert subjects.unusable_subject("heimdex.jobs.analyzing.some-id") == "heimdex.unusable.jobs.analyzing.some-id"
    assert subjects.callback_subject("given-up", "some-id") == "heimdex.callbacks.given-up.some-id"
    assert subjects.job_filter("some-id") == "heimdex.jobs.*.some-id"
    assert (subjects.COMPLETED, subjects.FAILED, subjects.CANCELED, subjects.LATER) == (
        "completed",
        "failed",
        "canceled",
        "later",
    )


def test_the_streams_are_the_documented_ones() -> None:
    of_jobs = {"HEIMDEX_JOBS", "HEIMDEX_ATTEMPTS", "HEIMDEX_PROGRESS", "HEIMDEX_CALLBACKS", "HEIMDEX_UNUSABLE"}
    assert set(STREAMS) == {*of_jobs, "HEIMDEX_CHECKPOINTS", "KV_HEIMDEX_IDEMPOTENCY"}
    # Neither a limit nor a full stream may remove the claim of a job that still runs.
    assert STREAMS["HEIMDEX_CHECKPOINTS"].config(1)["discard"] == "new"
    assert STREAMS["HEIMDEX_JOBS"].config(3)["retention"] == "interest"
    assert STREAMS["HEIMDEX_JOBS"].config(3)["num_replicas"] == 3
    assert STREAMS["HEIMDEX_ATTEMPTS"].config(1)["storage"] == "file"
    assert STREAMS["HEIMDEX_PROGRESS"].config(1)["storage"] == "memory"


def test_stages_the_status_store_and_scheduled_jobs_each_have_a_durable() -> None:
    durables = {consumer.name: consumer.filter_subject for consumer in STREAMS["HEIMDEX_JOBS"].consumers}
    stages = {stage: f"heimdex.jobs.{stage}.*" for stage in STAGES}
    assert durables == {"status-store": "heimdex.jobs.*.*", "later": "heimdex.jobs.later.*", **stages}


def test_a_failed_callback_goes_to_the_status_store_and_to_the_gateways() -> None:
    filters = {
        consumer.name: consumer.config()["filter_subjects"] for consumer in STREAMS["HEIMDEX_CALLBACKS"].consumers
    }
    assert {name: {subject.split(".")[2] for subject in filtered} for name, filtered in filters.items()} == {
        "gateway": {"due", "failed"},
        "status-store": {"failed", "delivered", "given-up"},
    }


def test_no_durable_limits_deliveries_or_pending_acknowledgements() -> None:
    for stream in STREAMS.values():
        for consumer in stream.consumers:
            config = consumer.config()
            assert config["max_deliver"] == -1
            assert config["max_ack_pending"] == -1
            assert config["ack_policy"] == "explicit"


def test_a_stages_lease_is_the_ack_wait_and_the_stores_is_at_least_30_seconds() -> None:
    waits = {consumer.name: consumer.config()["ack_wait"] for consumer in STREAMS["HEIMDEX_JOBS"].consumers}
    assert waits["analyzing"] == 10 * 10**9
    assert waits["status-store"] == 30 * 10**9


def test_nobody_publishes_on_the_waiting_subject_of_a_stream() -> None:
    for stream in STREAMS.values():
        assert not stream.waiting_subject().startswith("heimdex.")
        assert stream.config(1, (stream.waiting_subject(),))["subjects"] == [stream.waiting_subject()]
        assert stream.config(1)["subjects"] == list(stream.subjects)
