"""The files that travel with a student, made known to every release of transformers."""

import json
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

TOLD = '''

# Some releases of transformers take from a folder no files but those that this one names; so here are all it needs.
"""
{lines}
"""
'''


def name_companions(folder: Path) -> None:
    """Adds to each file that config.json says a class is in the names of all that it comes to need.

    Before 5.11, transformers copies the files of a local folder to where it imports them from, and of those that the
    first one imports, it does not look what they import in turn. It looks for lines, and not for what is executed.
    """
    named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["auto_map"].values()
    for file in sorted({folder / f"{each.partition('.')[0]}.py" for each in named}):
        needed = sorted({Path(each).stem for each in get_relative_import_files(file)})
        if needed:
            lines = "\n".join(f"from .{name} import" for name in needed)
            file.write_text(file.read_text(encoding="utf-8") + TOLD.format(lines=lines), encoding="utf-8")
