"""One file over HTTP: goes on after a break, waits when asked to, and believes only the checksum.

`requests` alone, since no downloader that was looked at does this. pooch, which knows the
Dataverse, downloads a broken file of 1.4 GB from its first byte again, gives up on a record at the
first 429 or 503 without waiting as asked, and checks a table that the Dataverse has converted
against the checksum of its upload, which never fits. What would be left of it is a hash, and the
standard library has that.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import requests
from tqdm import tqdm
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from dermalyze.data.manifest import Checksum
from dermalyze.errors import DataError

logger = logging.getLogger(__name__)

# The Harvard Dataverse answers 403 to the names that programming languages give themselves.
USER_AGENT = "dermalyze (for education and research)"
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers that may be others in a while
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_CHUNK = 1 << 16  # bytes; what has come of one is lost when a connection breaks

Result = TypeVar("Result")


class _BadAnswerError(Exception):
    """An answer that cannot be used and may be better when asked again."""


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Attributes:
        attempts: requests for one thing, the first one included.
        backoff: seconds before the second attempt, doubled before each further one.
        longest_wait: seconds; a server that asks for more is left alone, with an error.
        timeout: seconds without a connection or without a byte, after which an attempt is over.
    """

    attempts: int
    backoff: float
    longest_wait: float
    timeout: float


class Client:
    """Asks a server again until it has answered or patience is over."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._session = requests.Session()
        # Ranges and sizes count bytes as they are stored, so nothing may be packed on the way.
        self._session.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})

    def close(self) -> None:
        """Give the connections back."""
        self._session.close()

    def get(self, url: str) -> bytes:
        """Return a small document.

        Raises:
            DataError: the server cannot be reached, refuses, or goes on failing.
        """

        def once() -> bytes:
            response = self._session.get(url, timeout=self._patience.timeout)
            response.raise_for_status()
            return response.content

        return self._patiently(once, url)

    def fetch(self, url: str, path: Path, *, size: int | None, checksum: Checksum) -> None:
        """Download a file, or the rest of it, and give it its name once its checksum is right.

        Until then it is called `<name>.part`; that stays when the download breaks off.

        Args:
            url: of the file.
            path: where to; must not exist.
            size: in bytes, if known.
            checksum: of the whole file.

        Raises:
            DataError: as `get`; or the file that came has another checksum and was removed.
        """
        part = path.with_name(f"{path.name}.part")
        with tqdm(desc=path.name, total=size, unit="B", unit_scale=True, disable=None) as bar:
            self._patiently(lambda: self._receive(url, part, size, bar), url)
        found = checksum.of(part)
        if found != checksum.value.lower():
            length = part.stat().st_size
            part.unlink()
            raise DataError(
                f"{path}: what came is another file: {checksum.type} {found} of {length} bytes, "
                f"expected {checksum.value} of {size or 'unknown'} bytes. It was removed: try "
                f"again. Should it happen twice, the file at {url} is not the one of the record."
            )
        part.replace(path)

    def _receive(self, url: str, part: Path, size: int | None, bar: tqdm[Any]) -> None:
        """Ask once for what is missing of the file, and append it."""
        have = part.stat().st_size if part.exists() else 0
        if size is not None and have >= size > 0:  # killed before the check, which comes now
            return
        headers = {"Range": f"bytes={have}-"} if have else {}
        timeout = self._patience.timeout
        with self._session.get(url, headers=headers, timeout=timeout, stream=True) as response:
            start = _first_byte(response, part, have, size)
            bar.n = start
            bar.refresh()
            with part.open("ab" if start else "wb") as file:
                for chunk in response.iter_content(_CHUNK):
                    start += file.write(chunk)
                    bar.update(len(chunk))
                    if size is not None and start > size:
                        break
                file.flush()
                os.fsync(file.fileno())
        if size is not None and start > size:
            part.unlink()
            raise _BadAnswerError(f"sends more than the {size} bytes of the record")
        if size is not None and start < size:
            raise _BadAnswerError(f"stopped after {start} of {size} bytes")

    def _patiently(self, action: Callable[[], Result], url: str) -> Result:
        patience = self._patience
        for attempt in count(1):
            try:
                return action()
            except (_BadAnswerError, requests.RequestException) as error:
                reason, asked = _judged(error, url)
            wait = min(patience.backoff * 2 ** (attempt - 1), patience.longest_wait)
            if asked is not None and asked > patience.longest_wait:
                raise DataError(
                    f"{url}: {reason} and asks to be left alone for {asked:.0f} s. Run this again "
                    "then: what has arrived is kept."
                )
            if attempt >= patience.attempts:
                raise DataError(
                    f"{url}: {reason}; given up after {attempt} attempts. Run this again later: "
                    "what has arrived is kept, and it goes on there."
                )
            wait = wait if asked is None else asked
            logger.info(
                "%s: %s; attempt %d of %d follows in %.1f s",
                *(url, reason, attempt + 1, patience.attempts, wait),
            )
            time.sleep(wait)
        raise AssertionError("count() does not end")


def _first_byte(response: requests.Response, part: Path, have: int, size: int | None) -> int:
    """Return the position in the file at which the answer's body starts: `have`, or 0.

    A server may leave a range unheeded (200: the whole file), or heed it wrongly. A body of a
    length that the file cannot have is most likely a page for people, sent in place of the file.
    """
    status = response.status_code
    if status in (HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
        told = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(told)
        if not match or int(match[1]) != have or match[2] not in ("*", str(size or match[2])):
            part.unlink(missing_ok=True)  # so that the next attempt asks for no range
            raise _BadAnswerError(
                f"was asked for the bytes from {have} of {size or 'unknown'} and answers {status} "
                f"with Content-Range {told!r}; starting again"
            )
    response.raise_for_status()
    if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise _BadAnswerError(f"answers {status} without the file")
    start = have if status == HTTPStatus.PARTIAL_CONTENT else 0
    length = response.headers.get("Content-Length", "")
    if size is not None and length.isdecimal() and int(length) != size - start:
        kind = response.headers.get("Content-Type", "unknown type")
        raise _BadAnswerError(f"sends {length} bytes ({kind}) in place of {size - start}")
    return start


def _judged(
    error: _BadAnswerError | requests.RequestException, url: str
) -> tuple[str, float | None]:
    """Return why an attempt failed and the seconds that the server asks to wait, if it does.

    Raises:
        DataError: another attempt would fail like this one.
    """
    if isinstance(error, requests.HTTPError) and error.response is not None:
        reason = f"answers {error.response.status_code} {error.response.reason}"
        if error.response.status_code not in PASSING:
            raise DataError(
                f"{url}: the server {reason}. Should a browser be let in where this program is "
                "not: archives that it saves into data.root are checked and taken when this is run "
                "again; or unzip them there and leave data.download out."
            ) from error
        return reason, _retry_after(error.response)
    if isinstance(
        error,
        _BadAnswerError
        | requests.ConnectionError
        | requests.Timeout
        | requests.exceptions.ChunkedEncodingError,
    ):
        return str(error), None
    raise DataError(f"{url}: cannot be asked for ({error}). Check the address.") from error


def _retry_after(response: requests.Response) -> float | None:
    """Return the seconds of Retry-After, which may be given as a number or as a date."""
    value = response.headers.get("Retry-After")
    if value is None:
        return None
    try:
        return Retry().parse_retry_after(value)
    except InvalidHeader:
        return None
