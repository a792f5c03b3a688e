"""`module:attribute` becomes an ASGI 3 callable, or one line that says what to mend."""

import functools
import sys
import textwrap
import uuid

import pytest

from asgiri.config import AppConfig
from asgiri.worker.asgi.loader import LoadError, is_asgi3, load
from asgiri.worker.asgi.wsgi import WsgiApplication


@pytest.fixture
def write_module(tmp_path):
    """Write a module with a name of its own; what it makes importable is taken back."""
    path = sys.path.copy()
    names = []

    def write(source, name=None):
        name = name or f"app_{uuid.uuid4().hex}"
        file = tmp_path / f"{name.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))
        names.append(name)
        return name

    yield write
    sys.path[:] = path
    for name in names:
        sys.modules.pop(name, None)
        sys.modules.pop(name.partition(".")[0], None)


@pytest.fixture
def load_from(tmp_path):
    def load_target(target, **options):
        return load(AppConfig(target=target, app_dir=str(tmp_path), **options))

    return load_target


def refusal(load_from, target, **options):
    with pytest.raises(LoadError) as caught:
        load_from(target, **options)
    assert "\n" not in caught.value.summary
    return caught.value


# Finding it


def test_attribute_of_a_module_is_found(write_module, load_from):
    name = write_module("async def app(scope, receive, send): return 42")
    loaded = load_from(f"{name}:app")
    assert loaded.call is sys.modules[name].app
    assert loaded.asgi_version == "3.0"


def test_attribute_of_an_attribute_is_found(write_module, load_from):
    name = write_module(
        """
        class Holder:
            class inner:
                @staticmethod
                async def app(scope, receive, send): ...
        """
    )
    assert load_from(f"{name}:Holder.inner.app").call is sys.modules[name].Holder.inner.app


def test_module_in_a_package_is_found(write_module, load_from):
    name = f"package_{uuid.uuid4().hex}.inner.web"
    write_module("async def app(scope, receive, send): ...", name)
    assert load_from(f"{name}:app").asgi_version == "3.0"


def test_current_folder_is_searched_without_app_dir(write_module, monkeypatch, tmp_path):
    name = write_module("async def app(scope, receive, send): ...")
    monkeypatch.chdir(tmp_path)
    assert load(AppConfig(target=f"{name}:app")).asgi_version == "3.0"
    assert sys.path[0] == str(tmp_path)


def test_folder_of_the_application_comes_before_installed_packages(write_module, load_from):
    name = write_module("async def app(scope, receive, send): ...", name=f"x{uuid.uuid4().hex}")
    load_from(f"{name}:app")
    length = len(sys.path)
    load_from(f"{name}:app")
    assert len(sys.path) == length


def test_missing_module_is_told_without_a_traceback(load_from, tmp_path):
    error = refusal(load_from, "no_such_module_anywhere:app")
    assert "no module named 'no_such_module_anywhere'" in error.summary
    assert str(tmp_path) in error.summary
    assert "--app-dir" in error.summary
    assert error.traceback == ""


def test_missing_package_of_a_dotted_module_is_told_by_its_name(load_from):
    error = refusal(load_from, "no_such_package_anywhere.web:app")
    assert "no module named 'no_such_package_anywhere'" in error.summary
    assert error.traceback == ""


def test_missing_module_inside_a_package_is_told_by_its_full_name(write_module, load_from):
    package = write_module("", f"package_{uuid.uuid4().hex}.other").partition(".")[0]
    error = refusal(load_from, f"{package}.web:app")
    assert f"no module named '{package}.web'" in error.summary
    assert error.traceback == ""


def test_missing_dependency_of_their_module_is_their_fault_with_a_traceback(
    write_module, load_from
):
    name = write_module("import no_such_dependency_anywhere")
    error = refusal(load_from, f"{name}:app")
    assert "ModuleNotFoundError: No module named 'no_such_dependency_anywhere'" in error.summary
    assert "import no_such_dependency_anywhere" in error.traceback


def test_missing_attribute_is_told_with_the_place_where_it_was_looked_for(write_module, load_from):
    name = write_module("class Holder: pass")
    assert f"{name} has no attribute 'app'" in refusal(load_from, f"{name}:app").summary
    error = refusal(load_from, f"{name}:Holder.app")
    assert f"{name}.Holder has no attribute 'app'; name the application" in error.summary
    assert error.traceback == ""


def test_missing_attribute_is_told_with_the_one_that_is_like_it(write_module, load_from):
    name = write_module("async def application(scope, receive, send): ...")
    assert "did you mean application?" in refusal(load_from, f"{name}:aplication").summary


@pytest.mark.parametrize("path", ["shop/web.py", "./shop/web.py", "shop/web", "shop.web.py"])
def test_file_instead_of_a_module_is_told_with_the_module(load_from, path):
    error = refusal(load_from, f"{path}:app")
    assert error.summary == f"{path}:app: name the module as an import does: shop.web:app"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two"),
        ("raise RuntimeError", "RuntimeError"),
        ("x = = 1", "SyntaxError: "),
        ("import sys; sys.exit('out of here')", "SystemExit: out of here"),
    ],
)
def test_error_inside_their_module_is_told_with_their_frames_only(
    write_module, load_from, source, expected
):
    name = write_module(source)
    error = refusal(load_from, f"{name}:app")
    assert f"importing {name} failed" in error.summary
    assert expected in error.summary
    assert f"{name}.py" in error.traceback
    assert "loader.py" not in error.traceback
    assert "importlib" not in error.traceback


def test_interrupt_while_importing_is_not_swallowed(write_module, load_from):
    name = write_module("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_from(f"{name}:app")


# Calling it


@pytest.mark.parametrize(
    ("value", "told"),
    [("42", "is 42"), ("None", "is None"), ("[]", "is a list"), ("object()", "is an object")],
)
def test_what_cannot_be_called_is_refused(write_module, load_from, value, told):
    name = write_module(f"app = {value}")
    assert told in refusal(load_from, f"{name}:app").summary
    assert told in refusal(load_from, f"{name}:app", factory=True).summary


def test_factory_is_called_for_the_application(write_module, load_from):
    name = write_module(
        """
        async def app(scope, receive, send): ...
        def make(): return app
        """
    )
    assert load_from(f"{name}:make", factory=True).call is sys.modules[name].app


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise ValueError('no database')", "the factory failed: ValueError: no database"),
        ("return 42", "the factory returned 42"),
        ("return []", "the factory returned a list"),
    ],
)
def test_factory_that_makes_no_application_is_refused(write_module, load_from, body, told):
    name = write_module(f"def make(): {body}")
    assert told in refusal(load_from, f"{name}:make", factory=True).summary


def test_async_factory_is_refused_with_the_reason(write_module, load_from):
    name = write_module("async def make(): ...")
    assert "is an async function" in refusal(load_from, f"{name}:make", factory=True).summary


def test_factory_that_needs_an_argument_is_refused(write_module, load_from):
    name = write_module("def make(x): ...\nasync def app(scope, receive, send): ...")
    assert "takes 1 argument," in refusal(load_from, f"{name}:make", factory=True).summary
    error = refusal(load_from, f"{name}:app", factory=True)
    assert "takes 3 arguments" in error.summary
    assert "without --factory" in error.summary


@pytest.mark.parametrize("source", ["def make(): ...", "class make: ...", "make = lambda x=1: 2"])
def test_factory_that_is_not_told_to_be_one_is_refused_with_the_remedy(
    write_module, load_from, source
):
    name = write_module(source)
    assert "needs --factory" in refusal(load_from, f"{name}:make").summary


# Interfaces


async def coroutine_function(scope, receive, send): ...


def returns_an_awaitable(scope, receive, send): ...


def double_callable(scope): ...


class CallableObject:
    async def __call__(self, scope, receive, send): ...


class DoubleCallableObject:
    def __call__(self, scope): ...


class AwaitableClass:
    def __init__(self, scope, receive, send): ...

    def __await__(self): ...


class DoubleCallableClass:
    def __init__(self, scope): ...

    async def __call__(self, receive, send): ...


def anything(*arguments): ...


def marked_single(scope): ...


def marked_double(scope, receive, send): ...


marked_single._asgi_single_callable = True
marked_double._asgi_double_callable = True


@pytest.mark.parametrize(
    ("application", "expected"),
    [
        (coroutine_function, True),
        (functools.partial(coroutine_function), True),
        (returns_an_awaitable, True),
        (CallableObject(), True),
        (AwaitableClass, True),
        (anything, True),
        (marked_single, True),
        (double_callable, False),
        (DoubleCallableObject(), False),
        (DoubleCallableClass, False),
        (marked_double, False),
    ],
)
def test_interface_is_told_from_the_signature(application, expected):
    assert is_asgi3(application) is expected


def test_interface_of_a_builtin_without_a_signature_is_taken_for_asgi3():
    assert is_asgi3(type.__call__)


async def test_asgi2_application_is_called_in_two_steps(write_module, load_from):
    name = write_module(
        """
        calls = []
        def app(scope):
            async def instance(receive, send):
                calls.append((scope, receive, send))
            return instance
        """
    )
    loaded = load_from(f"{name}:app")
    assert loaded.asgi_version == "2.0"
    await loaded.call("scope", "receive", "send")
    assert sys.modules[name].calls == [("scope", "receive", "send")]


def test_interface_option_overrides_the_signature(write_module, load_from):
    name = write_module("def app(scope): ...")
    assert load_from(f"{name}:app", interface="asgi3").call is sys.modules[name].app
    name = write_module("async def app(scope, receive, send): ...")
    assert load_from(f"{name}:app", interface="asgi2").asgi_version == "2.0"


@pytest.mark.parametrize(
    "source",
    [
        "def app(environ, start_response): ...",
        "def app(environ, start_response, more=None): ...",
        "class app:\n    def __init__(self, environ, start_response): ...",
        "class Flask:\n    def __call__(self, environ, start_response): ...\napp = Flask()",
    ],
)
@pytest.mark.parametrize("interface", ["auto", "wsgi"])
def test_wsgi_application_is_adapted(write_module, load_from, source, interface):
    loaded = load_from(f"{write_module(source)}:app", interface=interface)
    assert isinstance(loaded.call, WsgiApplication)
    assert loaded.asgi_version == "3.0"


def test_any_callable_can_be_called_wsgi(write_module, load_from):
    name = write_module("def app(*arguments): ...")
    assert isinstance(load_from(f"{name}:app", interface="wsgi").call, WsgiApplication)
