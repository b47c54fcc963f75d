"""A request that is answered with an error: a status, one line, and what of it is written on the wire."""

from collections.abc import Mapping

from starlette.responses import JSONResponse


class Refused(Exception):
    """
    Attributes:
        status: of HTTP.
        line: what is wrong, and what to do; names no place of this machine.
    """

    def __init__(self, status: int, line: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(line)
        self.status, self.line, self.headers = status, line, headers

    @property
    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.line}, self.status, self.headers)
