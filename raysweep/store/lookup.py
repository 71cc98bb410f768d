"""Finding a checkpoint by the beginning of its key."""

from __future__ import annotations

from raysweep.errors import UserError
from raysweep.store.store import Store


def find_key(beginning: str, store: Store, also_freed: bool = False) -> tuple[int, str]:
    """The step and the key of the only checkpoint whose key begins with `beginning`.

    Args:
        also_freed: also search checkpoints whose files were deleted to free space.

    Raises:
        UserError: there is none, or there are several.
    """
    files = store.files
    keys = {(step, key) for step in files.names("checkpoints") for key in files.names(f"checkpoints/{step}")}
    if also_freed:
        keys |= {(step, key) for step, _, key in (name[:-5].partition("-") for name in files.names("freed"))}
    matches = sorted((int(step), key) for step, key in keys if key.startswith(beginning))
    if not matches:
        raise UserError(
            f"no checkpoint '{beginning}': no such file or folder, "
            f"and none of the {len(keys)} keys in --storage {store.uri} begins with it"
        )
    if len(matches) > 1:
        some = ", ".join(f"{key[:12]} (step {step})" for step, key in matches[:4])
        raise UserError(f"checkpoint '{beginning}' may be any of {len(matches)}: {some}…; give more of its key")
    return matches[0]
