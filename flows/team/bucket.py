"""Makes a bucket; run as ``python -m flows.team.bucket NAME`` with the server's ``AWS_...``."""

import os
import sys

from flows.team.storage import create_bucket

if __name__ == "__main__":
    create_bucket(sys.argv[1], os.environ)
