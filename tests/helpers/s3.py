"""An S3 server on this machine, and the environment in which clients find it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

BUCKET = "round-12"
SECRET = "not-to-be-printed"


@contextmanager
def serving() -> Iterator[dict[str, str]]:
    """A server with an empty bucket; the environment is that of this process, too."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with mock.patch.dict(os.environ, environment):
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield environment
    finally:
        server.stop()


def upload(folder: Path, prefix: str) -> str:
    """Put the files below `folder` into the bucket; the URL where they are."""
    import boto3

    store = boto3.client("s3")
    for path in folder.rglob("*"):
        if path.is_file():
            store.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder).as_posix()}")
    return f"s3://{BUCKET}/{prefix}"
