"""`--set key=value`: changing a suite from the command line, with errors that point at the option."""

from dataclasses import dataclass

from harness._spaces import quoted, suggestion
from harness.yamlmarks import Document, KeyPath, Place, Problem, read_yaml

__all__ = ["apply_override"]


def apply_override(document: Document, override: str) -> None:
    """Apply one `key=value` to the document's data; what is wrong with it is appended to the document's problems.

    The key is a dotted path: keys of mappings (which may themselves have dots) and positions in lists. Missing
    mappings on the way are made, except in recipes, where a missing one is a typo. The value is YAML 1.2.
    """
    # An argument that is not UTF-8 reaches Python as lone surrogates, which no terminal can print.
    place = Place(f"--set {override.encode(errors='backslashreplace').decode()}")
    key, equals, text = override.partition("=")
    if not equals or not key:
        document.problems.append(Problem((), "expected key=value, such as budget.trials_per_cell=1", place=place))
        return
    value = read_yaml(text, place.source)
    if value.problems:
        document.problems += [Problem((), f"the value: {p.message}", place=place) for p in value.problems]
        return
    if problem := _Setter(document, place, value.data).put(document.data, (), key.split(".")):
        document.problems.append(problem)


@dataclass(frozen=True)
class _Setter:
    document: Document
    place: Place
    value: object

    def put(self, at: object, path: KeyPath, words: list[str]) -> Problem | None:
        if isinstance(at, dict):
            return self._in_mapping(at, path, words)
        if isinstance(at, list):
            return self._in_list(at, path, words)
        return self._problem(path, f"{quoted(at)} has no {'.'.join(words)} in it; it is no mapping")

    def _problem(self, path: KeyPath, message: str) -> Problem:
        return Problem(path, message, place=self.place)

    def _in_mapping(self, at: dict[str, object], path: KeyPath, words: list[str]) -> Problem | None:
        name, count = _longest(at, words)
        path, rest = (*path, name), words[count:]
        if not rest:
            at[name] = self.value
            self.document.graft(path, self.value, self.place)
            return None
        if name not in at:
            if path[0] == "recipes":
                return self._problem(path, f"no {name} here{suggestion(name, at)}")
            if rest[0].isdecimal():
                return self._problem(path, f"the file has no list {name}; set all of it: --set '{name}=[…]'")
            at[name] = {}
            self.document.graft(path, {}, self.place)
        return self.put(at[name], path, rest)

    def _in_list(self, at: list[object], path: KeyPath, words: list[str]) -> Problem | None:
        index = int(words[0]) if words[0].isdecimal() and len(words[0]) < 6 else -1
        if not 0 <= index < len(at):
            return self._problem(path, f"expected a position from 0 to {len(at) - 1} in this list, got {words[0]}")
        path = (*path, index)
        if words[1:]:
            return self.put(at[index], path, words[1:])
        at[index] = self.value
        self.document.graft(path, self.value, self.place)
        return None


def _longest(mapping: dict[str, object], words: list[str]) -> tuple[str, int]:
    # Names may have dots in them, so the longest key that is there is meant.
    for count in range(len(words), 0, -1):
        if ".".join(words[:count]) in mapping:
            return ".".join(words[:count]), count
    return words[0], 1
