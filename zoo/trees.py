"""What other libraries know as trees of arrays: `Output` and `Params` are, in each library once it is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Output", "register_trees"]


class Output(dict):
    """A model's outputs by name, in the model's order; `out.logits` is `out["logits"]`.

    Values are the backend's own arrays; `np.asarray` takes each of them (on torch not bfloat16, which NumPy lacks). It
    is a pytree of JAX, torch and optree, and a mapping for `tf.nest`.
    """

    def __init__(self, *items: Any, **named: Any) -> None:
        super().__init__(*items, **named)
        register_trees()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no output {name!r}; this model has {', '.join(self)}") from None

    def copy(self) -> Output:
        """The same outputs in a new `Output`."""
        return Output(self)

    def __reduce__(self) -> Any:
        return Output, (dict(self),)


_done: set[str] = set()


def register_trees() -> None:
    """Tell JAX, torch and optree, those of them that are imported, what is in an `Output` and in `Params`.

    Called whenever an `Output` is made and when a backend is imported; each library is told once.
    """
    for module, register in _LIBRARIES.items():
        if module not in _done and _imported(module):
            _done.add(module)
            register()


def _imported(module: str) -> bool:
    """Whether a module is there, and not just being imported."""
    found = sys.modules.get(module)
    spec = getattr(found, "__spec__", None)
    return found is not None and not getattr(spec, "_initializing", False)


def _kinds() -> list[tuple[type, Callable[[Any], Any]]]:
    """Each type, and what a tree of its structure becomes."""
    from zoo.params import Params

    return [(Output, Output), (Params, dict)]


def _flat(tree: Any) -> tuple[list[Any], tuple[str, ...]]:
    items = dict(tree.items())
    return list(items.values()), tuple(items)


def _whole(make: Callable[[Any], Any]) -> Callable[[Any, Iterable[Any]], Any]:
    return lambda names, leaves: make(zip(names, leaves, strict=True))


def _jax() -> None:
    import jax

    key = jax.tree_util.DictKey
    for kind, make in _kinds():
        jax.tree_util.register_pytree_with_keys(
            kind, lambda tree: ([(key(n), v) for n, v in tree.items()], tuple(tree)), _whole(make), _flat
        )


def _torch() -> None:
    from torch.utils import _pytree as pytree

    for kind, make in _kinds():
        pytree.register_pytree_node(
            kind,
            _flat,
            lambda leaves, names, make=make: make(zip(names, leaves, strict=True)),
            serialized_type_name=f"zoo.{kind.__name__}",
            flatten_with_keys_fn=lambda tree: ([(pytree.MappingKey(n), v) for n, v in tree.items()], tuple(tree)),
        )


def _optree() -> None:
    import optree

    everywhere: Any = optree.registry.__GLOBAL_NAMESPACE
    for kind, make in _kinds():
        optree.register_pytree_node(kind, lambda tree: (*_flat(tree), tuple(tree)), _whole(make), namespace=everywhere)


_LIBRARIES: dict[str, Callable[[], None]] = {"jax": _jax, "torch": _torch, "optree": _optree}
