"""Packages that others import wherever they are installed, and that hardly a run uses."""

import sys
from importlib.util import find_spec
from types import ModuleType


class _Deferred(ModuleType):
    """A module that is executed when somebody asks for what is in it."""

    def __getattr__(self, name: str) -> object:
        """Execute the module, and return what was asked for."""
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def defer(*names: str) -> None:
    """Let packages wait until they are used; nothing changes where one is imported, or missing.

    peft imports bitsandbytes where it is installed, and that torch's compiler: a second of every
    process that opens a network. ``importlib.util.LazyLoader`` would execute a package as soon as
    somebody looks whether it is there.

    Args:
        names: Of packages.
    """
    for name in names:
        spec = None if name in sys.modules else find_spec(name)
        if spec is None:
            continue
        module = _Deferred(name)
        module.__spec__, module.__loader__ = spec, spec.loader
        module.__file__, module.__package__ = spec.origin, name
        module.__path__ = list(spec.submodule_search_locations or [])
        sys.modules[name] = module
