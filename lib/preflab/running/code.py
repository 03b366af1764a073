"""Which code can reach a result: what a definition refers to, and what that refers to, within the package.

The hash of a definition covers the syntax trees, without comments, docstrings and annotations, of

- the definition itself;
- every top-level definition of the package whose name can be reached from it, through imports too;
- the loose statements (those that define no name) of every module that one of these stands in.

So a comment, a docstring, a new module or a new function changes no hash, and a changed line changes the hashes of
what can reach it and no others. It sees names. What is reached through a *value* (a method, a rule) is not named
where it is called; such values carry the hash of their own class (`preflab.running.identity`).
"""

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

Place = tuple[str, str]  # module, name in it; the name "" stands for the module's loose statements


@dataclass(frozen=True)
class Module:
    """The top level of one source file."""

    name: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)  # by name: everything that binds it
    imports: dict[str, Place] = field(default_factory=dict)  # local name: where it comes from
    loose: list[ast.stmt] = field(default_factory=list)


class Package:
    """A package's source files, read once."""

    def __init__(self, root: Path):
        self.root, self.name = Path(root), Path(root).name
        self._modules: dict[str, Module | None] = {}
        self._hashes: dict[Place, str] = {}

    def code_hash(self, module: str, name: str) -> str:
        """16 hex digits. Raises KeyError for a name that the module does not define."""
        place = module, name
        if place not in self._hashes:
            if name not in self._module(module).definitions:
                raise KeyError(f"{module} defines no {name}")
            lines = [f"{where}.{what}: {self._text(where, what)}" for where, what in sorted(self.reach(module, name))]
            self._hashes[place] = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
        return self._hashes[place]

    def whole_hash(self) -> str:
        """Of all source files, comments and docstrings left out."""
        files = sorted(self.root.rglob("*.py"))
        trees = (f"{f.relative_to(self.root)}: {ast.dump(_tree(f))}" for f in files)
        return hashlib.sha256("\n".join(trees).encode()).hexdigest()[:16]

    def reach(self, module: str, name: str) -> set[Place]:
        """Every place that the definition can reach, itself included."""
        found: set[Place] = set()
        waiting = [(module, name)]
        while waiting:
            place = waiting.pop()
            if place in found:
                continue
            found.add(place)
            waiting += [(place[0], ""), *self._mentioned(*place)]
        return found

    def _mentioned(self, module: str, name: str) -> Iterator[Place]:
        """Places that a definition's own text names."""
        known = self._module(module)
        nodes = [node for statement in self._statements(module, name) for node in ast.walk(statement)]
        through = {id(node.value): node.attr for node in nodes if isinstance(node, ast.Attribute)}
        for node in nodes:
            if not isinstance(node, ast.Name):
                continue
            if node.id in known.definitions:
                yield module, node.id
            elif node.id in known.imports:
                yield from self._resolved(*known.imports[node.id], through.get(id(node)))

    def _resolved(self, module: str, name: str, attribute: str | None) -> Iterator[Place]:
        """Where an imported name is defined; of a module what `attribute` names, or else all of it."""
        whole = f"{module}.{name}"
        if (known := self._module(whole)) is not None:
            if attribute in known.definitions:
                yield whole, attribute
            elif attribute and (attribute in known.imports or self._module(f"{whole}.{attribute}")):
                yield from self._resolved(*known.imports.get(attribute, (whole, attribute)), None)
            else:
                yield from ((whole, definition) for definition in known.definitions)
        elif (known := self._module(module)) is not None:
            if name in known.definitions:
                yield module, name
            elif name in known.imports:
                yield from self._resolved(*known.imports[name], attribute)

    def _statements(self, module: str, name: str) -> list[ast.stmt]:
        known = self._module(module)
        return known.definitions[name] if name else known.loose

    def _text(self, module: str, name: str) -> str:
        return " ".join(ast.dump(statement) for statement in self._statements(module, name))

    def _module(self, name: str) -> Module | None:
        """None for what is no module of this package."""
        if name not in self._modules:
            self._modules[name] = self._read(name)
        return self._modules[name]

    def _read(self, name: str) -> Module | None:
        package, *parts = name.split(".")
        path = self.root.joinpath(*parts)
        files = [file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()]
        if package != self.name or not files:
            return None
        module = Module(name)
        tree = _tree(files[0])
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                module.imports.update({a.asname or a.name: (node.module, a.name) for a in node.names})
        for statement in tree.body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                continue
            names = list(_bound(statement))
            for bound in names:
                module.definitions.setdefault(bound, []).append(statement)
            if not names:
                module.loose.append(statement)
        return module


def _tree(file: Path) -> ast.Module:
    return _WithoutWords().visit(ast.parse(file.read_text()))


def _bound(statement: ast.stmt) -> Iterator[str]:
    """The names that a top-level statement binds."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        yield statement.name
    for target in statement.targets if isinstance(statement, ast.Assign) else []:
        yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))


class _WithoutWords(ast.NodeTransformer):
    """Takes away what only a reader needs: texts that stand alone as statements, and annotations."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Its name and value stay: the order of fields tells which argument goes where."""
        self.generic_visit(node)
        return ast.Assign([node.target], node.value) if node.value else ast.Expr(node.target)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._not_empty(self.generic_visit(node))

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._not_empty(self.generic_visit(node))

    def _not_empty(self, node: ast.AST) -> ast.AST:
        node.body = node.body or [ast.Pass()]
        return node


@cache
def package() -> Package:
    """The package that runs."""
    return Package(Path(__file__).resolve().parents[1])
