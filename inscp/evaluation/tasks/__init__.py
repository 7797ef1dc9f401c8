"""One task a file. Every module here is imported before a configuration is read, so that it may name the classes."""

from importlib import import_module
from pkgutil import iter_modules


def import_all() -> None:
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
