"""What all commands can be told: kubectl's own flags, where derops runs, how the API is reached."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import typer

from derops_cli.api import Access
from derops_cli.collecting import Cluster
from derops_cli.credentials import Login
from derops_cli.deadline import Deadline
from derops_cli.errors import UsageError
from derops_cli.evidence import SYSTEM_NAMESPACE
from derops_cli.kubectl import Flags, Kubectl

_KUBECTL = "kubectl's own flags"
_API = "Access to the API"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a command was told, and its end."""

    namespace: str | None
    flags: Flags
    system: str
    json: bool
    deadline: Deadline = field(repr=False)
    access: Access

    def cluster(self) -> Cluster:
        """Return where to look.

        Raises:
            CannotLookError: There is no kubectl.
        """
        return Cluster(Kubectl(self.flags, self.deadline), self.system)


def common(
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Namespace; default: the context's.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    kubeconfig: Annotated[str | None, typer.Option(help="Path of the kubeconfig.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Cluster of the kubeconfig.")] = None,
    user: Annotated[str | None, typer.Option(help="User of the kubeconfig.")] = None,
    as_: Annotated[str | None, typer.Option("--as", help="User to impersonate.")] = None,
    as_group: Annotated[
        list[str] | None, typer.Option(help="Group to impersonate; may be repeated.")
    ] = None,
    derops_namespace: Annotated[
        str, typer.Option(help="Namespace in which derops runs.")
    ] = SYSTEM_NAMESPACE,
    timeout: Annotated[
        float, typer.Option(help="Seconds that all calls together may take, 1 to 600.")
    ] = 4.5,
    output: Annotated[
        str, typer.Option("--output", "-o", help="'text', or 'json' for programs.")
    ] = "text",
) -> Options:
    """Return what a command was told.

    Raises:
        UsageError: A value is of no use.
    """
    if output not in ("text", "json"):
        raise UsageError(f"-o is {output!r}: it is text or json")
    if not 1 <= timeout <= 600:  # as the help says
        raise UsageError(f"--timeout is {timeout:g}: it is 1 to 600 seconds")
    return Options(
        namespace=namespace,
        flags=Flags(
            context=context,
            kubeconfig=kubeconfig,
            cluster=cluster,
            user=user,
            as_=as_,
            as_group=tuple(as_group or ()),
        ),
        system=derops_namespace,
        json=output == "json",
        deadline=Deadline(timeout),
        access=Access(login=Login()),
    )


def with_access(
    token: Annotated[
        str | None,
        typer.Option(metavar="TOKEN|@FILE", help="Token for the API; better in a file than typed."),
    ] = None,
    as_service_account: Annotated[
        str | None,
        typer.Option(metavar="NAMESPACE/NAME", help="Have a token made for this ServiceAccount."),
    ] = None,
    login: Annotated[
        bool, typer.Option("--login", help="Use the token with which kubectl itself logs in.")
    ] = False,
    api_url: Annotated[
        str | None, typer.Option(help="https://HOST[:PORT] of the API; default: see the docs.")
    ] = None,
    api_ca: Annotated[
        str | None, typer.Option(help="File with the authority of the API's certificate.")
    ] = None,
) -> Access:
    """Return how the API is to be reached.

    Raises:
        UsageError: A value is of no use.
    """
    access = Access(
        login=Login(token=token, service_account=as_service_account, kubectl=login),
        url=api_url,
        ca_file=api_ca,
    )
    access.check()
    if not access.login.wanted and (api_url or api_ca):
        raise UsageError(
            "--api-url and --api-ca need a token: --token, --as-service-account or --login"
        )
    return access


def takes(
    *, api: bool, timeout_seconds: float = 4.5
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command our common options, as one argument ``options`` of it.

    Args:
        api: It can ask the API as well.
        timeout_seconds: Its default of ``--timeout``.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            each
            for each in inspect.signature(command, eval_str=True).parameters.values()
            if each.name != "options"
        ]
        shared = _parameters(common, timeout=timeout_seconds)
        asked = _parameters(with_access) if api else []

        @functools.wraps(command)
        def run(**given: Any) -> None:
            options = common(**{each.name: given.pop(each.name) for each in shared})
            if api:
                access = with_access(**{each.name: given.pop(each.name) for each in asked})
                options = replace(options, access=access)
            command(options=options, **given)

        parameters = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *shared, *asked)
        ]
        del run.__wrapped__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _parameters(function: Callable[..., Any], **defaults: Any) -> list[inspect.Parameter]:
    found = inspect.signature(function, eval_str=True).parameters.values()
    return [each.replace(default=defaults.get(each.name, each.default)) for each in found]
