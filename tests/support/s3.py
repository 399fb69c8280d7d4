"""An S3 server of the tests: that of moto, in a process of its own."""

import os
import signal
import subprocess
import sys
from typing import Any, Final

import boto3

ACCESS: Final = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
BUCKET: Final = "heimdex-files"

_PROGRAM: Final = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the process that started this one is gone
"""


class S3Server:
    """A server that keeps what it stores in memory: after `kill` and `start` it is empty, at the same address."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ACCESS},
        )
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "moto's server did not start"
        self.port = int(line)
        self.client = client(self.endpoint)
        self.client.create_bucket(Bucket=BUCKET)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, prefix: str, bucket: str = BUCKET) -> str:
        """Return the HEIMDEX_FILES_URL of a prefix."""
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}&region=us-east-1"

    def keys(self, prefix: str) -> list[str]:
        """Return the keys of the objects below a prefix, without it."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        return [each["Key"].removeprefix(f"{prefix}/") for page in pages for each in page.get("Contents", ())]

    def unfinished(self) -> list[str]:
        """Return the keys of multipart uploads that are neither completed nor aborted."""
        return [each["Key"] for each in self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())]


def client(endpoint: str) -> Any:
    """Return a client of the AWS library, to look at a bucket with other code than ours."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=ACCESS["AWS_SECRET_ACCESS_KEY"],
    )
