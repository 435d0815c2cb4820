"""What the server has: all machines by one query, properties of many by another."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from cuckoo_api.machinery import MachineNotFound
from cuckoo_machinery_vsphere.session import Login, fault_of, key_of

PAGE = 500
"""Objects in one answer."""
_PC = vmodl.query.PropertyCollector
_NAMED = 8
Properties = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """A machine of the inventory."""

    key: str
    """The server's id, which outlives a change of name."""
    name: str
    path: str
    """Folders of datacenters, datacenter, folders, name: ``DC0/prod/win10``."""
    full_path: str
    """The same as other tools write it: ``/DC0/vm/prod/win10``."""
    datacenter: str
    """The datacenter's own path."""
    datacenter_key: str
    template: bool


class Inventory:
    """All machines, to be found by name or path. A name that several have is nobody's label."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._by_name: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            self._by_name[entry.name].append(entry)

    def _called(self, label: str) -> list[Entry]:
        wanted = label.strip("/").split("/")
        return [
            entry
            for entry in self._by_name.get(wanted[-1], ())
            if any(
                path.strip("/").split("/")[-len(wanted) :] == wanted
                for path in (entry.path, entry.full_path)
            )
            and (not label.startswith("/") or label in {f"/{entry.path}", entry.full_path})
        ]

    def find(self, label: str) -> Entry:
        """The one machine of this label; MachineNotFound where there is none, or more than one."""
        found = self._called(label)
        if len(found) == 1:
            return found[0]
        if found:
            paths = sorted(entry.path for entry in found)
            raise MachineNotFound(
                f"{len(found)} machines are called {label!r}: {', '.join(paths)}; "
                f"say which with its path: label = {paths[0]}"
            )
        near = sorted(difflib.get_close_matches(label, self.labels(()), _NAMED, 0.5))
        hint = f"; near: {', '.join(near)}" if near else ""
        raise MachineNotFound(f"vSphere has no machine {label!r}{hint}")

    def labels(self, configured: Iterable[str]) -> list[str]:
        """A label for each machine: a configured one, else the name, else the path where others
        have that name too. A configured one that several have is there: :meth:`find` tells of it.
        """
        known: set[str] = set()
        labels: list[str] = []
        for label in configured:
            if found := self._called(label):
                known.update(entry.key for entry in found)
                labels.append(label)
        for name, entries in self._by_name.items():
            labels += (
                name if len(entries) == 1 else entry.path
                for entry in entries
                if entry.key not in known and not entry.template
            )
        return list(dict.fromkeys(labels))


def machines_below_root(login: Login, *properties: str) -> Any:
    """A filter for these properties of all machines, and for what their paths are made of."""

    def go(name: str, kind: Any, path: str, *then: str) -> Any:
        select = [_PC.SelectionSpec(name=one) for one in then]
        return _PC.TraversalSpec(name=name, type=kind, path=path, skip=False, selectSet=select)

    below = ("folder", "datacenter", "vapp", "vapps")
    select = [
        go("folder", vim.Folder, "childEntity", *below),
        go("datacenter", vim.Datacenter, "vmFolder", "folder"),
        go("vapp", vim.VirtualApp, "vm"),
        go("vapps", vim.VirtualApp, "resourcePool", "vapp", "vapps"),
    ]
    root = _PC.ObjectSpec(obj=login.content.rootFolder, skip=False, selectSet=select)
    paths = [(vim.VirtualMachine, [*properties])]
    if "parentVApp" in properties:
        paths += [(kind, ["name", "parent"]) for kind in (vim.Folder, vim.Datacenter)]
        paths.append((vim.VirtualApp, ["name", "parent", "parentFolder"]))
    kinds = [_PC.PropertySpec(type=kind, pathSet=path, all=False) for kind, path in paths]
    return _PC.FilterSpec(objectSet=[root], propSet=kinds)


def read_inventory(login: Login) -> Inventory:
    """All machines, one query (and one more for each further page)."""
    wanted = ("name", "parent", "parentVApp", "summary.config.template")
    found = {
        key: (kind, has) for kind, key, has in retrieve(login, machines_below_root(login, *wanted))
    }
    return Inventory(
        _entry(key, has, found)
        for key, (kind, has) in found.items()
        if kind is vim.VirtualMachine and "name" in has
    )


def _entry(key: str, has: Properties, found: dict[str, tuple[type, Properties]]) -> Entry:
    names, full, datacenter, datacenter_key = [has["name"]], [has["name"]], list[str](), ""
    at = has.get("parentVApp") or has.get("parent")
    while at is not None and key_of(at) in found:
        here = key_of(at)
        kind, above = found[here]
        name, at = above.get("name", "?"), above.get("parentFolder") or above.get("parent")
        if at is None:
            break  # the root folder is in no path
        full.append(name)
        # the folder that holds a datacenter's machines is the same in each: a path does without
        if not isinstance(at, vim.Datacenter):
            names.append(name)
        if kind is vim.Datacenter:
            datacenter_key = here
        if datacenter_key:
            datacenter.append(name)
    return Entry(
        key=key,
        name=has["name"],
        path="/".join(reversed(names)),
        full_path="/" + "/".join(reversed(full)),
        datacenter="/".join(reversed(datacenter)),
        datacenter_key=datacenter_key,
        template=bool(has.get("summary.config.template")),
    )


def read_machines(login: Login, keys: Iterable[str], paths: list[str]) -> dict[str, Properties]:
    """Properties of these machines, by key; one that is gone is left out."""
    left = dict.fromkeys(keys)
    while left:
        spec = _PC.FilterSpec(
            objectSet=[_PC.ObjectSpec(obj=login.machine(key), skip=False) for key in left],
            propSet=[_PC.PropertySpec(type=vim.VirtualMachine, pathSet=paths, all=False)],
        )
        try:
            return {key: has for _, key, has in retrieve(login, spec)}
        except vmodl.fault.ManagedObjectNotFound as exc:
            gone = key_of(exc.obj) if exc.obj is not None else ""
            if gone not in left:
                raise
            del left[gone]
    return {}


def retrieve(login: Login, spec: Any) -> Iterator[tuple[type, str, Properties]]:
    """Each object that the filter finds: its type, its id, and its properties that are set."""
    collector = login.content.propertyCollector
    page = collector.RetrievePropertiesEx([spec], _PC.RetrieveOptions(maxObjects=PAGE))
    while page is not None:
        for found in page.objects:
            fault_of(found.missingSet)
            has = {one.name: one.val for one in found.propSet}
            yield type(found.obj), key_of(found.obj), has
        if not page.token:
            return
        page = collector.ContinueRetrievePropertiesEx(page.token)
