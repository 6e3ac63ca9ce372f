"""Results that are kept part by part, so that a killed command goes on where it was.

Beside the file that is asked for lies a folder `FILE.parts` until all is done: the list of the
images as it was at the start, how they are predicted, and a file for each part that is done. Every
file there is whole or not there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dermalyze.errors import ConfigError, DataError
from dermalyze.files import whole_file, write_json, write_whole
from dermalyze.prediction.pictures import Given

Node = dict[str, Any]

_ABOUT, _IMAGES = "about.json", "images.jsonl"


class Parts:
    """The parts of one output.

    Args:
        output: the file that they are to become.
        size: images in a part, the last one excepted.
    """

    def __init__(self, output: Path, size: int) -> None:
        self.folder = output.with_name(f"{output.name}.parts")
        self.size = size
        self.images = 0

    def begin(self, about: Node, listing: Iterable[Given]) -> None:
        """List the images, or find the list of a command that was stopped.

        Args:
            about: plain values that say how the images are predicted.
            listing: the images, looked at where none was stopped.

        Raises:
            ConfigError: the one that was stopped predicts in another way; shows the differences.
            DataError: the folder cannot be read, or as `listing` raises.
        """
        about_file = self.folder / _ABOUT
        if not about_file.is_file():
            try:
                self._list(listing)
            except DataError:  # there is nothing to go on with
                self.remove()
                raise
            write_json(about_file, {"images": self.images, "part_size": self.size, **about})
            return
        try:
            begun: Node = json.loads(about_file.read_text(encoding="utf-8"))
            self.images = begun.pop("images")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise DataError(
                f"{about_file}: cannot be read ({error}). Remove {self.folder} to start anew."
            ) from error
        now = json.loads(json.dumps({"part_size": self.size, **about}))
        differences = [
            f"{name}: {begun.get(name, '(absent)')} -> {now.get(name, '(absent)')}"
            for name in sorted(begun.keys() | now.keys())
            if begun.get(name) != now.get(name)
        ]
        if differences:
            raise ConfigError(
                f"{self.folder}: holds parts that were predicted in another way:\n  - "
                + "\n  - ".join(differences)
                + "\nGive the command as it was, remove the folder to start anew, or name another "
                "output."
            )

    def _list(self, listing: Iterable[Given]) -> None:
        with whole_file(self.folder / _IMAGES) as file:
            for given in listing:
                self.images += 1
                # Whoever goes on may do so from another folder.
                path = str(Path(str(given.picture)).absolute())
                line = {"name": given.name, "path": path, "metadata": given.metadata}
                file.write(json.dumps(line).encode() + b"\n")

    def __len__(self) -> int:
        return -(-self.images // self.size)

    def done(self) -> set[int]:
        """Return the numbers of the parts that are there."""
        return {number for number in range(len(self)) if self._part(number).is_file()}

    def missing(self) -> Iterator[tuple[int, list[Given]]]:
        """Yield number and images of each part that is not there."""
        done = self.done()
        with (self.folder / _IMAGES).open("rb") as file:
            for number in range(len(self)):
                lines = list(islice(file, self.size))
                if number not in done:
                    yield number, [_given(line) for line in lines]

    def keep(self, number: int, records: Sequence[Node]) -> None:
        """Write a part, whole."""
        lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
        write_whole(self._part(number), "".join(lines))

    def records(self) -> Iterator[list[Node]]:
        """Yield the records of each part, in the order of the images; all are there."""
        for number in range(len(self)):
            with self._part(number).open("rb") as file:
                yield [json.loads(line) for line in file]

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:07d}.jsonl"


def _given(line: bytes) -> Given:
    values = json.loads(line)
    return Given(values["name"], values["path"], values["metadata"])
