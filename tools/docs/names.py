"""Reference pages of the Python packages: every public name, from the sources."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import griffe

__all__ = ["name_pages"]

# Modules beside the packages' own whose names are public.
MORE = (
    "bilevel_models.heads",
    "bilevel_data.files.limits",
    "bilevel_meta.methods",
    "bilevel_apps.few_shot",
    "bilevel_apps.tune",
)


def name_pages(sources: list[Path]) -> dict[str, str]:
    """Return the pages by name: one for each room of a package that public names come from.

    Args:
        sources: folders that packages lie in.
    """
    loader = griffe.GriffeLoader(search_paths=[str(path) for path in sources])
    packages = [path.name for source in sources for path in sorted(source.glob("bilevel_*"))]
    for package in packages:
        loader.load(package)
    loader.resolve_aliases()
    pages: dict[str, str] = {}
    for name in [*packages, *MORE]:
        if name.partition(".")[0] in packages and _exists(loader, name):
            pages |= _pages(loader.modules_collection[name])
    return dict(sorted(pages.items()))


def _exists(loader: griffe.GriffeLoader, name: str) -> bool:
    try:
        return bool(loader.modules_collection[name])
    except KeyError:
        return False


def _pages(module: griffe.Module) -> dict[str, str]:
    rooms: dict[str, list[str]] = defaultdict(list)
    for name in map(str, module.exports or []):
        member = module[name]
        target = member.final_target if member.is_alias else member
        if not target.is_module:
            rooms[_room(module, target)].append(name)
        elif name in target.members:  # a function whose file has its name, which hides it here
            rooms[_room(module, target[name])].append(f"{name}.{name}")
    if module.path in MORE and not module.exports:  # modules that are imported one by one
        above = module.parent.exports if module.parent else None
        rooms[""] = [
            f"{part.name}.{name}"
            for part in module.modules.values()
            for name in part.exports or []
            if name not in (above or ())
        ]
    return {_title(module, room): _page(module, room, names) for room, names in rooms.items()}


def _room(module: griffe.Module, target: griffe.Object) -> str:
    """Return the folder below a package that an object is defined in; "" for the package itself."""
    inside = target.canonical_path.removeprefix(f"{module.path}.").split(".")[:-1]
    of_its_own = len(inside) > 1 and f"{module.path}.{inside[0]}" not in MORE
    return inside[0] if of_its_own and module.is_package else ""


def _title(module: griffe.Module, room: str) -> str:
    return f"{module.path}.{room}" if room else module.path


def _page(module: griffe.Module, room: str, names: list[str]) -> str:
    lines = [f"# {_title(module, room)}", "", *_introduction(module, room), ""]
    # Functions first, then classes, then constants.
    for name in sorted(names, key=lambda name: (name.isupper(), not name.islower(), name.lower())):
        lines += [f"::: {module.path}.{name}", ""]
    return "\n".join(lines)


def _introduction(module: griffe.Module, room: str) -> Iterator[str]:
    described = module[room] if room and room in module.members else module
    if described.docstring:
        yield described.docstring.value
    yield f"\nImport these from `{module.path}`."
