"""GGUF files as they lie on a disk: whole, split into shards by llama.cpp, or cut into pieces; read as one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from selfmoe_ray.errors import UserError

_SHARD_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


class GgufSource(Protocol):
    """Files that are one GGUF together."""

    @property
    def files(self) -> Sequence[Path]:
        """In their order."""

    def whole(self, folder: Path) -> Path:
        """The one GGUF file; where it has to be put together, in this folder."""


@dataclass(frozen=True)
class Pieces:
    """Files whose bytes, one after the other, are a GGUF file."""

    files: Sequence[Path]

    def whole(self, folder: Path) -> Path:
        """See GgufSource."""
        target = folder / "joined.gguf"
        with target.open("wb") as joined:
            for part in self.files:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, joined, 1 << 20)
        return target


@dataclass(frozen=True)
class Shards:
    """GGUF files among which llama.cpp's gguf-split has spread the tensors of one; or one alone."""

    files: Sequence[Path]

    @classmethod
    def of(cls, file: Path) -> Shards:
        """The file with its siblings, by their names. Raises UserError where one of them is not there."""
        named = _SHARD_NAME.fullmatch(file.name)
        if not named:
            return cls([file])
        stem, _, count = named.groups()
        files = [file.with_name(f"{stem}-{number:05d}-of-{count}.gguf") for number in range(1, int(count) + 1)]
        if missing := [each.name for each in files if not each.is_file()]:
            raise UserError(
                f"base_model: {file} is one of {len(files)} files of a split GGUF, of which {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not in {file.parent}; put all of them there"
            )
        return cls(files)

    def whole(self, folder: Path) -> Path:
        """See GgufSource. Raises UserError where the files are not those of one GGUF."""
        from gguf import GGUFReader

        readers = [GGUFReader(file) for file in self.files]
        for number, (file, reader) in enumerate(zip(self.files, readers, strict=True)):
            _check_split(file, reader, number, len(readers))
        if len(readers) == 1:
            return self.files[0]
        tensors, wanted = sum(len(reader.tensors) for reader in readers), _split(readers[0], "tensors.count")
        if tensors != wanted:
            raise UserError(f"base_model: {self.files[0]}: its split GGUF has {tensors} tensors in all, not {wanted}")
        target = folder / "joined.gguf"
        _merge(readers, target)
        return target


def _split(reader: Any, name: str) -> int | None:
    field = reader.fields.get(f"split.{name}")
    return None if field is None else int(field.contents())


def _check_split(file: Path, reader: Any, number: int, count: int) -> None:
    """What a file says of itself is what its name says."""
    found_number, found_count = _split(reader, "no") or 0, _split(reader, "count") or 1
    if (found_number, found_count) != (number, count):
        raise UserError(
            f"base_model: {file} is part {found_number + 1} of {found_count} of a split GGUF, "
            f"read as part {number + 1} of {count}; "
            "the parts are found by their names, as llama.cpp gives them: <name>-0000N-of-0000M.gguf"
        )


def _merge(readers: Sequence[Any], target: Path) -> None:
    from gguf import GGUFValueType, GGUFWriter

    first = readers[0]
    writer = GGUFWriter(target, first.fields["general.architecture"].contents(), endianess=first.endianess)
    for name, field in first.fields.items():
        if not name.startswith(("GGUF.", "split.", "general.architecture")):
            kind = field.types[0]
            items = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=items)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data, tensor_endianess=first.endianess)
    writer.close()
