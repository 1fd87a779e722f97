"""A real S3 server on a local port for tests: moto's, as a process of its own that can be killed."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import boto3

from tests.waiting import wait_until

REGION = "eu-central-1"
# The first requests need no credentials: those that make the user, its rights, its key and the bucket.
FREE_REQUESTS = 4
POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


@dataclass(frozen=True, slots=True)
class S3Server:
    """A server with one bucket, and the credentials of the one user that may use it."""

    process: subprocess.Popen[bytes]
    endpoint: str
    bucket: str
    access_key_id: str
    secret_access_key: str

    def url(self, prefix: str = "files", *, bucket: str | None = None) -> str:
        """For EMBEDMILL_OBJECTS_URL."""
        return f"s3://{bucket or self.bucket}/{prefix}?endpoint={self.endpoint}&region={REGION}"

    @property
    def environment(self) -> dict[str, str]:
        """The credentials as every S3 client reads them."""
        return {"AWS_ACCESS_KEY_ID": self.access_key_id, "AWS_SECRET_ACCESS_KEY": self.secret_access_key}

    def client(self) -> Any:
        """A client of somebody else's making."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
        )

    def all_keys(self) -> list[str]:
        """The keys of all objects, and of uploads in parts that were begun and not completed."""
        client = self.client()
        objects = client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        begun = client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return sorted(each["Key"] for each in [*objects, *begun])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A fresh server, killed at the end."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env=os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": str(FREE_REQUESTS)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        endpoint = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(endpoint), 60.0, what="the S3 server")
        yield _prepared(process, endpoint)
    finally:
        process.kill()
        process.wait()


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"{endpoint}/moto-api/data.json", timeout=2.0) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _prepared(process: subprocess.Popen[bytes], endpoint: str) -> S3Server:
    options = {
        "endpoint_url": endpoint,
        "region_name": REGION,
        "aws_access_key_id": "nobody",
        "aws_secret_access_key": "nothing",
    }
    iam, bucket = boto3.client("iam", **options), f"test-{secrets.token_hex(4)}"
    iam.create_user(UserName="embedmill")
    iam.put_user_policy(UserName="embedmill", PolicyName="all", PolicyDocument=json.dumps(POLICY))
    key = iam.create_access_key(UserName="embedmill")["AccessKey"]
    boto3.client("s3", **options).create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    return S3Server(process, endpoint, bucket, key["AccessKeyId"], key["SecretAccessKey"])
