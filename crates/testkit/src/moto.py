"""Serves moto for one test process, and ends with it.

Arguments: the process's id, a folder to remove at the end or nothing, a bucket to make with a prefix and a number of
objects or nothing, then moto's own.
"""

import os
import shutil
import sys
import threading
import time

from moto.s3.models import s3_backends
from moto.server import main

owner, scratch, bucket, prefix, objects = sys.argv[1:6]


def end_with_owner():
    while os.path.exists(f"/proc/{owner}"):
        time.sleep(0.5)
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0)


threading.Thread(target=end_with_owner, daemon=True).start()
if bucket:
    backend = s3_backends["123456789012"]["aws"]
    backend.create_bucket(bucket, "us-east-1")
    for number in range(int(objects)):
        backend.put_object(bucket, f"{prefix}{number:016x}", b"abc")
main(sys.argv[6:])
