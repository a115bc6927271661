"""Serves moto for one test process, and ends with it.

Arguments: the process's id, a folder to remove at the end or nothing, a bucket to make with a prefix and a number of
objects or nothing, then moto's own.
"""

import os
import shutil
import sys
import threading
import time
from urllib.parse import quote, unquote

from moto.iam.access_control import S3IAMRequest
from moto.s3.models import s3_backends
from moto.s3.responses import S3Response
from moto.server import main

owner, scratch, bucket, prefix, objects = sys.argv[1:6]


def end_with_owner():
    while os.path.exists(f"/proc/{owner}"):
        time.sleep(0.5)
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0)


def with_quoted_query(sign):
    """Moto checks the signature of a query that it has unquoted, so that a slash in a prefix never matches."""

    def requoted(self):
        path, _, query = self._path.partition("?")
        pairs = [pair.partition("=") for pair in query.split("&") if pair]
        quoted = "&".join(f"{name}={quote(unquote(value), safe='-_.~')}" for name, _, value in pairs)
        self._path = f"{path}?{quoted}" if quoted else path
        return sign(self)

    return requoted


def one_at_a_time(put):
    """Moto looks whether a name is taken, and writes later: in its threads, two creates can win."""
    lock = threading.Lock()

    def locked(self):
        with lock:
            return put(self)

    return locked


S3Response.put_object = one_at_a_time(S3Response.put_object)
S3IAMRequest._create_aws_request = with_quoted_query(S3IAMRequest._create_aws_request)
threading.Thread(target=end_with_owner, daemon=True).start()
if bucket:
    backend = s3_backends["123456789012"]["aws"]
    backend.create_bucket(bucket, "us-east-1")
    for number in range(int(objects)):
        backend.put_object(bucket, f"{prefix}{number:016x}", b"abc")
main(sys.argv[6:])
