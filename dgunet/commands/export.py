"""dgunet export: a model as an ONNX graph or a torch.export program."""

import argparse

from dgunet.commands.arguments import MODEL_HELP, path


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its arguments."""
    export = actions.add_parser(
        "export",
        help="write a model as an ONNX graph or a torch.export program",
        description="Write a new folder with the graph, its card and, for ONNX, an example that needs only onnxruntime "
        "and numpy. The graph takes images of any number and size, and is compared with the model before it is "
        "written. It takes statistics of the whole image.",
    )
    export.add_argument("model", help=MODEL_HELP)
    export.add_argument("out", type=path, metavar="OUT", help="a new folder")
    export.add_argument("--format", choices=("onnx", "pt2"), default="onnx", help="(default: onnx)")
    export.set_defaults(action=_export)


def _export(arguments: argparse.Namespace) -> int:
    from dgunet.checkpoint import load_model, read_card
    from dgunet.console import write_line
    from dgunet.export import TIMED_SIDE, export
    from dgunet.hub import model_folder

    if arguments.out.exists():  # before some seconds of work
        raise ValueError(f"{arguments.out}: exists; give the name of a new folder")
    folder = model_folder(arguments.model)
    model = load_model(folder)
    if model.local_statistics is not None:
        write_line(f"the graph takes statistics of the whole image, not over {model.local_statistics}")
    report = export(model, arguments.out, arguments.format, source=arguments.model, card=read_card(folder))
    write_line(
        f"{arguments.out}: differs from the model by at most {report.difference:.1e}; an image of "
        f"{TIMED_SIDE}x{TIMED_SIDE} takes {report.graph_seconds:.2f} s of CPU, with PyTorch "
        f"{report.network_seconds:.2f} s"
    )
    return 0
