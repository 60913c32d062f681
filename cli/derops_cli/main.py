"""``kubectl derops``: composition and nothing else."""

import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from derops.command_line import own_version
from derops.resources.derassets import DERAsset
from derops_cli import collecting, pages
from derops_cli.api import ask_about
from derops_cli.bundle import Seen, broken_first, make_bundle, write_bundle
from derops_cli.causes import Place
from derops_cli.collecting import Cluster, side_by_side
from derops_cli.diagnosing import diagnose as judge
from derops_cli.diagnosing import diagnose_installation, true_now
from derops_cli.diagnosis import Verdict
from derops_cli.dispatches import diagnose_dispatch
from derops_cli.errors import CannotLookError, UsageError
from derops_cli.evidence import Evidence, Missing, Stored
from derops_cli.fleet import count_fleet
from derops_cli.kubectl import Kubectl, items_of, utc_now
from derops_cli.options import Options, takes
from derops_cli.reading import canonical, read_dispatch, read_events
from derops_cli.showing import show
from derops_cli.timeline import make_timeline

PROGRAM = "kubectl derops"
FLOWS, BROKEN, USAGE, CANNOT_LOOK = 0, 1, 2, 4
_EXITS = {
    Verdict.FLOWS: FLOWS,
    Verdict.NOTHING_FOUND: FLOWS,
    Verdict.BROKEN: BROKEN,
    Verdict.NOT_LOOKED_AT: CANNOT_LOOK,
}
_SINCE = re.compile(r"(\d{1,6})(s|m|h|d)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

app = typer.Typer(
    name=PROGRAM,
    help="Says which link of an asset's data path is broken, and why a dispatch did not run. "
    "It looks with your rights, and changes nothing.",
    epilog="Exit codes: 0 flows, 1 broken, 2 usage, 4 could not look.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run a command."""
    try:
        app(prog_name=PROGRAM)
    except UsageError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)  # noqa: T201  # for a person
        raise SystemExit(USAGE) from None
    except CannotLookError as error:
        print(f"{PROGRAM}: could not look: {error}", file=sys.stderr)  # noqa: T201  # the same
        raise SystemExit(CANNOT_LOOK) from None


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kubectl-derops {own_version()}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    pass


@app.command()
@takes(api=True)
def diagnose(
    options: Options,
    name: Annotated[
        str | None, typer.Argument(metavar="[ASSET]", help="Name of a DERAsset.")
    ] = None,
    dispatch: Annotated[
        str | None, typer.Option(help="Say why this Dispatch is where it is, instead.")
    ] = None,
) -> None:
    """Say which link of the data path of an asset is broken; without a name, of all assets."""
    if name is not None and dispatch is not None:
        raise UsageError("give the name of an asset, or --dispatch, not both")
    cluster = options.cluster()
    if dispatch is not None:
        _diagnose_dispatch(cluster, options, dispatch)
    elif name is not None:
        _diagnose_asset(cluster, options, name)
    else:
        _diagnose_installation(cluster, options, dispatches=False)


@app.command()
@takes(api=False, timeout_seconds=15)
def status(options: Options) -> None:
    """Show on one screen what is wrong: for all assets, with assets and dispatches counted."""
    _diagnose_installation(options.cluster(), options, dispatches=True)


@app.command()
@takes(api=True, timeout_seconds=15)
def timeline(
    options: Options,
    name: Annotated[str, typer.Argument(metavar="ASSET", help="Name of a DERAsset.")],
    since: Annotated[str, typer.Option(help="How far back, such as 90m, 24h or 7d.")] = "24h",
) -> None:
    """Show what happened to an asset: dispatches, conditions, Events, connections, in order."""
    match = _SINCE.fullmatch(since)
    if match is None:
        raise UsageError(f"--since is {since!r}: it is a number with s, m, h or d, such as 24h")
    cluster = options.cluster()
    asset = collecting.find_asset(cluster, options.namespace, name)
    place = asset.metadata.namespace
    events, orders, stored = side_by_side(
        lambda: collecting.look_at_events(cluster, place, "DERAsset", name),
        lambda: collecting.list_all(
            cluster, place, "dispatches", fieldSelector=f"spec.assetRef.name={name}"
        ),
        lambda: _ask_api(cluster, options, asset),
    )
    read = [] if isinstance(orders, Missing) else [read_dispatch(each) for each in orders]
    known = [each for each in read if not isinstance(each, Missing)]
    begin = utc_now() - timedelta(**{_UNITS[match[2]]: int(match[1])})
    entries = make_timeline(asset, known, events, stored, begin)
    missing = [each for each in (events, orders, stored, *read) if isinstance(each, Missing)]
    if options.json:
        _print_json(pages.json_of_timeline(name, place, entries, missing))
    else:
        show(pages.page_of_timeline(f"{name} in {place}", entries, missing))


@app.command()
@takes(api=False, timeout_seconds=30)
def report(
    options: Options,
    file: Annotated[
        Path | None, typer.Option(help="Where to; default: derops-report-TIME.tar.gz here.")
    ] = None,
) -> None:
    """Write a support bundle: what is known of assets and dispatches, without secrets."""
    cluster, now = options.cluster(), utc_now()
    target = file or Path(f"derops-report-{now:%Y%m%dT%H%M%SZ}.tar.gz")
    surroundings, (assets, within), (orders, _), version = side_by_side(
        lambda: collecting.look_around(cluster),
        lambda: collecting.list_visible(cluster, options.namespace, "derassets"),
        lambda: collecting.list_visible(cluster, options.namespace, "dispatches"),
        lambda: cluster.kubectl.get("/version", "version"),
    )
    if isinstance(assets, Missing) and isinstance(surroundings.installation, Missing):
        raise CannotLookError(assets.why)
    events = _all_events(cluster.kubectl, within)
    place = Place(system=options.system, flags=options.flags.words())
    seen = Seen(
        surroundings=surroundings,
        assets=assets if isinstance(assets, Missing) else broken_first(assets),
        dispatches=orders,
        events=events,
        diagnosis=pages.json_of(diagnose_installation(surroundings, now, place)),
        kubernetes="" if isinstance(version, Missing) else str(version.get("gitVersion", "")),
    )
    files = make_bundle(seen, now)
    write_bundle(files, target, now)
    if options.json:
        _print_json({"file": str(target), "files": sorted(files)})
    else:
        typer.echo(f"{target}: {', '.join(sorted(files))}")
        typer.echo("Names of assets and namespaces are in it. Look through it before you send it.")


def _diagnose_asset(cluster: Cluster, options: Options, name: str) -> None:
    surroundings, asset = side_by_side(
        lambda: collecting.look_around(cluster),
        lambda: collecting.find_asset(cluster, options.namespace, name),
    )
    place = asset.metadata.namespace
    events, certificate, stored = side_by_side(
        lambda: collecting.look_at_events(cluster, place, "DERAsset", name),
        lambda: collecting.look_at_certificate(cluster, place, name),
        lambda: _ask_api(cluster, options, asset),
    )
    evidence = Evidence(
        asset=asset,
        surroundings=surroundings,
        events=events,
        certificate=certificate,
        stored=stored,
    )
    where = Place(asset=name, namespace=place, system=options.system, flags=options.flags.words())
    found = judge(evidence, utc_now(), where)
    if options.json:
        _print_json(pages.json_of(found))
    else:
        show(pages.page_of(found))
    raise typer.Exit(_EXITS[found.verdict])


def _diagnose_dispatch(cluster: Cluster, options: Options, name: str) -> None:
    ahead, dispatch = side_by_side(
        lambda: cluster.kubectl.clock_ahead_seconds(utc_now()),
        lambda: collecting.find_dispatch(cluster, options.namespace, name),
    )
    place, asset_name = dispatch.metadata.namespace, dispatch.spec.asset_ref.name
    asset: DERAsset | Missing
    try:
        asset = collecting.find_asset(cluster, place, asset_name)
    except UsageError as error:
        asset = Missing(f"DERAsset {asset_name}", str(error), absent=True)
    except CannotLookError as error:
        asset = Missing(f"DERAsset {asset_name}", str(error))
    where = Place(
        asset=asset_name, namespace=place, system=options.system, flags=options.flags.words()
    )
    at = true_now(ahead, utc_now())
    found = diagnose_dispatch(dispatch, asset, at, where)
    if options.json:
        _print_json(pages.json_of_dispatch(found))
    else:
        show(pages.page_of_dispatch(found))
    raise typer.Exit(_EXITS[found.verdict])


def _diagnose_installation(cluster: Cluster, options: Options, *, dispatches: bool) -> None:
    surroundings, (assets, within), orders = side_by_side(
        lambda: collecting.look_around(cluster),
        lambda: collecting.list_visible(cluster, options.namespace, "derassets"),
        lambda: (
            collecting.list_visible(cluster, options.namespace, "dispatches")[0]
            if dispatches
            else None
        ),
    )
    where = Place(system=options.system, flags=options.flags.words())
    found = diagnose_installation(surroundings, utc_now(), where)
    fleet = count_fleet(assets, orders, within)
    if options.json:
        _print_json(pages.json_of(found) | {"fleet": pages.json_of_fleet(fleet)})
    else:
        show([*pages.page_of(found), *pages.page_of_fleet(fleet)])
    raise typer.Exit(_EXITS[found.verdict])


def _ask_api(cluster: Cluster, options: Options, asset: DERAsset) -> Stored | Missing | None:
    if not options.access.login.wanted:
        return None
    metadata = asset.metadata
    return ask_about(cluster, options.access, metadata.namespace, metadata.name, options.deadline)


def _all_events(kubectl: Kubectl, namespace: str) -> Any:
    root = f"/api/v1/namespaces/{namespace}/events" if namespace else "/api/v1/events"
    selector = "reportingComponent=derops.io/operator"
    found = kubectl.get(root, "Events", fieldSelector=selector, limit="1000")
    return found if isinstance(found, Missing) else read_events(items_of(found))


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(canonical(value))
