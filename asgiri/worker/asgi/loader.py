"""Find the application that `module:attribute` names, and make an ASGI 3 callable of it."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from asgiri.config import AppConfig
from asgiri.worker.asgi import types
from asgiri.worker.asgi.wsgi import WsgiApplication


class LoadError(Exception):
    """The application cannot be used. `traceback` is "" unless the fault is in its own code."""

    def __init__(self, summary: str, traceback: str = "") -> None:
        super().__init__(summary)
        self.summary = summary
        self.traceback = traceback


@dataclass(frozen=True, slots=True)
class LoadedApplication:
    """An ASGI 3 callable and the version that its scopes shall name."""

    call: types.Application
    asgi_version: str


def load(config: AppConfig) -> LoadedApplication:
    """Import the target, call it if it is a factory, adapt its interface. Raises LoadError."""
    return adapt(config, _find(config.target, add_folder(config)))


def adapt(config: AppConfig, found: Any) -> LoadedApplication:
    """Call what was found if it is a factory, adapt its interface. Raises LoadError."""
    if config.factory:
        found = _call_factory(config.target, found)
    elif not callable(found):
        raise _not_callable(config.target, found)
    return _adapt(config, found)


def add_folder(config: AppConfig) -> str:
    """Let modules be imported from the application's folder before all others; its path."""
    folder = os.path.abspath(config.app_dir or os.curdir)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return folder


def _find(target: str, folder: str) -> Any:
    module_name, _, attributes = target.partition(":")
    found: Any = _import(module_name, target, folder)
    place = module_name
    for name in attributes.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            near = difflib.get_close_matches(name, dir(found), 1)
            remedy = f"did you mean {near[0]}?" if near else "name the application in it"
            raise LoadError(f"{target}: {place} has no attribute {name!r}; {remedy}") from None
        place = f"{place}.{name}"
    return found


def _import(module_name: str, target: str, folder: str) -> ModuleType:
    if module_name.startswith(".") or "/" in module_name:
        raise _is_a_file(target)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Their module imports something that is missing: a fault in their code, its traceback
        # helps.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _fault_inside(f"{target}: importing {module_name} failed", error) from None
        if module_name.endswith(".py"):
            raise _is_a_file(target) from None
        raise LoadError(
            f"{target}: no module named {error.name!r} in {folder} or on sys.path (see --app-dir)"
        ) from None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _fault_inside(f"{target}: importing {module_name} failed", error) from None


def _is_a_file(target: str) -> LoadError:
    path, _, attributes = target.partition(":")
    name = path.removesuffix(".py").strip("./").replace("/", ".")
    return LoadError(f"{target}: name the module as an import does: {name}:{attributes}")


def _call_factory(target: str, factory: Any) -> Any:
    if not callable(factory):
        raise _not_callable(target, factory)
    if count := _count_parameters(factory):
        raise LoadError(
            f"{target}: takes {count} argument{'s' * (count > 1)}, a factory none; an application "
            "goes without --factory"
        )
    try:
        application = factory()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _fault_inside(f"{target}: the factory failed", error) from None
    if inspect.iscoroutine(application):
        application.close()
        raise LoadError(f"{target}: is an async function; a factory returns the application itself")
    if not callable(application):
        raise LoadError(
            f"{target}: the factory returned {_name_type(application)}, which cannot be called"
        )
    return application


def _adapt(config: AppConfig, application: Any) -> LoadedApplication:
    interface = config.interface
    if interface == "auto":
        interface = "asgi3" if is_asgi3(application) else "asgi2"
        if interface == "asgi2" and _count_parameters(application) == 2:
            interface = "wsgi"
        if interface == "asgi2" and _count_parameters(application) == 0:
            raise LoadError(
                f"{config.target}: takes no arguments, an application those of a request; "
                "what makes an application needs --factory"
            )
    if interface == "wsgi":
        return LoadedApplication(WsgiApplication(application, threads=config.wsgi_threads), "3.0")
    if interface == "asgi2":
        return LoadedApplication(functools.partial(call_asgi2, application), "2.0")
    return LoadedApplication(application, "3.0")


def is_asgi3(application: Any) -> bool:
    """Tell application(scope, receive, send) from application(scope)(receive, send)."""
    # asgiref's marks, for wrappers whose signature says nothing.
    if getattr(application, "_asgi_single_callable", False):
        return True
    if getattr(application, "_asgi_double_callable", False):
        return False
    if inspect.isclass(application):
        # A class called with (scope, receive, send) makes an object to await (Starlette's
        # endpoints).
        return hasattr(application, "__await__")
    if _is_coroutine_function(application):
        return True
    # A plain function may return the awaitable: one parameter is ASGI 2, three are ASGI 3.
    return _count_parameters(application) in {None, 3}


def _is_coroutine_function(application: Any) -> bool:
    return inspect.iscoroutinefunction(application) or inspect.iscoroutinefunction(
        getattr(application, "__call__", None)  # noqa: B004  (its kind matters, not its being there)
    )


def _count_parameters(application: Callable[..., Any]) -> int | None:
    """Positional parameters without a default; None when unknown or any number."""
    try:
        parameters = inspect.signature(application).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    return sum(
        parameter.kind in positional and parameter.default is inspect.Parameter.empty
        for parameter in parameters
    )


async def call_asgi2(
    application: Callable[[types.Scope], Callable[[types.Receive, types.Send], Any]],
    scope: types.Scope,
    receive: types.Receive,
    send: types.Send,
) -> None:
    """Call an ASGI 2 application as if it were ASGI 3."""
    await application(scope)(receive, send)


def _fault_inside(summary: str, error: BaseException) -> LoadError:
    """Report an error of their code, without our own frames and those of importlib."""
    frames = error.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    text = "".join(traceback.format_exception(type(error), error, frames))
    reason = str(error).strip().partition("\n")[0]
    name = type(error).__name__
    return LoadError(f"{summary}: {name}: {reason}" if reason else f"{summary}: {name}", text)


def _is_ours(filename: str) -> bool:
    return filename in {__file__, importlib.__file__} or filename.startswith("<frozen importlib")


def _not_callable(target: str, found: object) -> LoadError:
    return LoadError(
        f"{target}: is {_name_type(found)}, which cannot be called; name an ASGI application"
    )


def _name_type(found: object) -> str:
    kind = type(found).__name__
    if found is None or isinstance(found, str | int | float):
        return repr(found)
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
