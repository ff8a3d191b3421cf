"""dgunet demo: a page in the browser to try models."""

import argparse

from dgunet.commands.arguments import MODEL_HELP, add_device, chosen_device
from dgunet.jobs import UsageError


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its arguments."""
    demo = actions.add_parser(
        "demo",
        help="try models in a browser",
        description="Serve a page on this machine: drop a photo, compare before and after, see what each stage does, "
        "download. Nothing leaves the machine. Ctrl-C ends it.",
    )
    demo.add_argument("--model", required=True, action="append", help=f"{MODEL_HELP}; may be given several times")
    demo.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; any other than 127.0.0.1 can be reached from outside"
    )
    demo.add_argument("--port", type=int, default=7860, help="(default: 7860; 0: a free one)")
    demo.add_argument("--max-megapixels", type=float, default=12.0, help="limit for a photo (default: 12)")
    demo.add_argument("--max-seconds", type=float, default=120.0, help="limit for restoring a photo (default: 120)")
    add_device(demo)
    demo.set_defaults(action=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from dgunet.checkpoint import load_model
    from dgunet.console import write_line
    from dgunet.demo import Demo, Limits, server

    device = chosen_device(arguments.device)
    models = {name: load_model(name).to(device) for name in arguments.model}
    demo = Demo(models, Limits(arguments.max_megapixels, arguments.max_seconds))
    try:
        serving = server(demo, arguments.host, arguments.port)
    except (OSError, OverflowError) as error:
        raise UsageError(f"--host {arguments.host} --port {arguments.port}: {error}; give another --port") from error
    with serving:
        write_line(f"http://{arguments.host}:{serving.server_port}  (Ctrl-C ends it)")
        serving.serve_forever()
    return 0
