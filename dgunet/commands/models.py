"""dgunet models: lists the models of a registry."""

import argparse
import json
from dataclasses import asdict


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its arguments."""
    models = actions.add_parser(
        "models",
        help="list the models of a registry",
        description="List the registered models of the MLflow registry at MLFLOW_TRACKING_URI, or of mlflow.db in this "
        "folder. dB is the mean PSNR on the test split of the version's own task.",
    )
    models.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    models.set_defaults(action=_models)


def _models(arguments: argparse.Namespace) -> int:
    from dgunet.console import write_line
    from dgunet.hub.registry import registered_versions

    versions = registered_versions()
    if arguments.json:
        rows = [{**asdict(version), "registered": version.registered.isoformat()} for version in versions]
        write_line(json.dumps(rows, indent=2))
        return 0
    table = [("model", "version", "alias", "dB", "registered")] + [
        (
            version.model,
            str(version.number),
            ", ".join(version.aliases),
            "" if version.psnr is None else f"{version.psnr:.2f}",
            version.registered.astimezone().strftime("%Y-%m-%d %H:%M"),
        )
        for version in versions
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for model, number, alias, psnr, registered in table:
        write_line(
            f"{model:{widths[0]}}  {number:>{widths[1]}}  {alias:{widths[2]}}  {psnr:>{widths[3]}}  {registered}"
        )
    return 0
