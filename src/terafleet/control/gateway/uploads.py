"""Reads the multipart form of an upload as it comes, without holding the file."""

from typing import Any

from litestar import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from terafleet.control.gateway.errors import ApiError
from terafleet.protocol.openai import BATCH

FIELD_BYTES_MAX = 1024
FILENAME_MAX = 255
NAME_SHOWN_MAX = 64

FORM_BYTES_MAX = 16 * 1024
"""What a form may have beside the bytes of its file."""


class UploadForm:
    """Takes the pieces of a form with `purpose` and `file`, and gives the bytes of the file.

    Raises ApiError as soon as something is wrong, so that nobody waits for 200 MB in vain.
    """

    def __init__(self, boundary: bytes) -> None:
        """`boundary` is what stands between the parts; see `boundary_of`."""
        self.filename = ""
        self._purpose = ""
        self._has_file = False
        self._is_whole = False
        self._headers: dict[bytes, bytes] = {}
        self._header = (b"", b"")
        self._part = ""
        self._field = b""
        self._file_bytes: list[bytes] = []
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._headers.clear,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(error) from error

    def feed(self, piece: bytes) -> bytes:
        """The bytes of the file in this piece of the body."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _malformed(error) from error
        file_bytes = b"".join(self._file_bytes)
        self._file_bytes.clear()
        return file_bytes

    def end(self) -> None:
        """The body has ended: raises ApiError unless the form is whole."""
        if not self._is_whole:
            raise ApiError("invalid_request", "The multipart form ends too early.")
        if not self._has_file:
            raise ApiError("missing_parameter", "There is no file in the form.", "file")
        if not self._purpose:
            raise ApiError("missing_parameter", "There is no purpose in the form.", "purpose")

    def _on_header_field(self, data: bytes, begin: int, end: int) -> None:
        self._header = (self._header[0] + data[begin:end], self._header[1])

    def _on_header_value(self, data: bytes, begin: int, end: int) -> None:
        self._header = (self._header[0], self._header[1] + data[begin:end])

    def _on_header_end(self) -> None:
        name, value = self._header
        self._headers[name.lower()] = value
        self._header = (b"", b"")

    def _on_headers_finished(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        self._part = options.get(b"name", b"").decode("utf-8", "replace")
        self._field = b""
        if self._part == "file":
            self._begin_file(options.get(b"filename"))
        elif self._part != "purpose":
            shown = self._part[:NAME_SHOWN_MAX]
            raise ApiError("unsupported_parameter", f"{shown} is not supported.", shown)

    def _begin_file(self, filename: bytes | None) -> None:
        if filename is None:
            raise ApiError("invalid_value", "file must be sent as a file with a name.", "file")
        if self._has_file:
            raise ApiError("invalid_value", "There is more than one file in the form.", "file")
        self._has_file = True
        shown = filename.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
        self.filename = "".join(filter(str.isprintable, shown))[:FILENAME_MAX]

    def _on_part_data(self, data: bytes, begin: int, end: int) -> None:
        if self._part == "file":
            self._file_bytes.append(data[begin:end])
        elif len(self._field) + end - begin > FIELD_BYTES_MAX:
            raise ApiError("invalid_value", f"{self._part} is too long.", self._part)
        else:
            self._field += data[begin:end]

    def _on_part_end(self) -> None:
        if self._part == "purpose":
            self._purpose = self._field.decode("utf-8", "replace")
            check_purpose(self._purpose)

    def _on_end(self) -> None:
        self._is_whole = True


def boundary_of(request: Request[Any, Any, Any]) -> bytes:
    """What stands between the parts of a multipart request. Raises ApiError for any other one."""
    kind, options = request.content_type
    boundary = options.get("boundary", "")
    if kind != "multipart/form-data" or not boundary:
        raise ApiError("invalid_request", "Send the file as multipart/form-data.")
    return boundary.encode("latin-1", "replace")


def check_purpose(purpose: str) -> None:
    """Raise ApiError unless customers may send files for this purpose."""
    if purpose != BATCH:
        raise ApiError("unsupported_purpose", f"purpose must be {BATCH}.", "purpose")


def _malformed(error: FormParserError) -> ApiError:
    return ApiError("invalid_request", f"The multipart form is malformed: {error}.")
