"""S3 on the loopback, as a program of its own: moto behind a lock, since it looks and then writes in two steps.

python tests/s3_server.py    # prints its port, and ends when its standard input does
"""

import json
import logging
import sys
from io import BytesIO
from threading import Lock, Thread
from typing import Any

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

moto, turn = DomainDispatcherApplication(create_backend_app), Lock()


def one_at_a_time(environ: dict[str, Any], start_response: Any) -> Any:
    if environ.get("CONTENT_LENGTH"):  # the body comes first, so that a slow client holds up nobody
        environ["wsgi.input"] = BytesIO(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    with turn:
        if environ["REQUEST_METHOD"] == "SEED":  # empty objects by the thousand; as requests they would take seconds
            for key in json.loads(environ["wsgi.input"].read()):
                s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(environ["PATH_INFO"].strip("/"), key, b"")
            start_response("204 No Content", [])
            return []
        return moto(environ, start_response)


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
    print(server.port, flush=True)
    Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
