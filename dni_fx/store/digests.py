"""The entry "digests" of a saved `plan.json`: a SHA-256 of every file, and of the plan itself."""

import hashlib
import json
from pathlib import Path
from typing import Any

from dni_fx.errors import DniFxError
from dni_fx.store.destination import FILES

__all__ = ["check_digests", "has_saved_files", "with_digests"]

_PLAN = "plan.json"

_WAY_OUT = f'save again; or, to load the files as they are, delete the entry "digests" of {_PLAN}'


def with_digests(plan: str, folder: Path) -> str:
    """The text of a plan, with the digests of the files that are in the folder beside it."""
    data = json.loads(plan)
    files = {path.name: _digest_of(path) for path in sorted(folder.iterdir())}
    return json.dumps(data | {"digests": {_PLAN: _digest_of_plan(data)} | files}, indent=2) + "\n"


def check_digests(folder: Path, required: tuple[str, ...]) -> bool:
    """Compare the files of a saved folder with their digests.

    Args:
        required: Names of files that must have a digest, if there is any.

    Returns:
        Whether there are digests: dni-fx 0.1.0 wrote none.

    Raises:
        DniFxError: If a file was changed or damaged, or cannot be read.
    """
    path = folder / _PLAN
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if "digests" not in data:
            return False
        digests = data["digests"]
        named = isinstance(digests, dict) and digests.keys() >= {_PLAN, *required}
        if not named or any(Path(name).name != name for name in digests):
            raise DniFxError(f'{path} is damaged: its entry "digests" does not name the files: {_WAY_OUT}')
        for name, digest in digests.items():
            found = _digest_of_plan(data) if name == _PLAN else _digest_of(folder / name)
            if found != digest:
                raise DniFxError(f"{folder / name} was changed or damaged after it was saved: {_WAY_OUT}")
    except OSError as error:
        raise DniFxError(f"cannot read {error.filename or folder} ({error.strerror or error}): {_WAY_OUT}") from None
    return True


def has_saved_files(folder: Path) -> bool:
    """Whether the files of a saved folder are those that were saved; also false if they have no digests.

    Raises:
        DniFxError: If a file was changed or damaged, or cannot be read.
    """
    return check_digests(folder, FILES)


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_plan(data: dict[str, Any]) -> str:
    """The digest of all other entries, whatever their order and spaces."""
    rest = {name: value for name, value in data.items() if name != "digests"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
