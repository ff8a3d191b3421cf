"""dgunet push: a model as a folder or a Hugging Face repository that others can load."""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from dgunet.commands.arguments import MODEL_HELP, not_empty

_FRONT_MATTER = """---
library_name: dgunet
pipeline_tag: image-to-image
tags:
- image-restoration
- dgunet
---
"""


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its arguments."""
    push = actions.add_parser(
        "push",
        help="write a model where others can load it",
        description="Write model.safetensors, config.json and a model card (README.md) into a new folder, or as one "
        "commit into a repository of the Hugging Face Hub, which is created if it does not exist.",
    )
    push.add_argument("model", help=MODEL_HELP)
    push.add_argument("target", type=not_empty, help="a new folder, or hf://OWNER/NAME[@BRANCH]")
    push.set_defaults(action=_push)


def _push(arguments: argparse.Namespace) -> int:
    from dgunet.console import write_line
    from dgunet.hub import model_folder
    from dgunet.hub.huggingface import PREFIX, parts, push_folder

    target = arguments.target
    is_repository = target.startswith(PREFIX)
    if is_repository:
        parts(target)  # refused before anything is loaded
    elif "://" in target:
        raise ValueError(f"{target}: write to a folder or to hf://OWNER/NAME")
    elif Path(target).exists():
        raise ValueError(f"{target}: exists; give the name of a new folder")
    source = model_folder(arguments.model)
    name = target.removeprefix(PREFIX) if is_repository else Path(target).absolute().name
    with tempfile.TemporaryDirectory(prefix="dgunet-push-") as temporary:
        folder = Path(temporary) / "model"
        _write(source, folder, name)
        if is_repository:
            write_line(f"{arguments.model} is at {push_folder(folder, target)}")
        else:
            _copy_whole(folder, Path(target))
            write_line(f"{arguments.model} is in {target}")
    return 0


def _write(source: Path, folder: Path, name: str) -> None:
    from dgunet.checkpoint import WRITTEN_KEYS, load_model, read_card, save_model

    card = read_card(source)
    save_model(load_model(source), folder, {key: card[key] for key in card.keys() - set(WRITTEN_KEYS)})
    own = source / "README.md"
    text = own.read_text(encoding="utf-8") if own.is_file() else _card(name, read_card(folder))
    front = "" if text.startswith("---\n") else _FRONT_MATTER
    (folder / "README.md").write_text(front + text, encoding="utf-8")


def _card(name: str, card: dict[str, Any]) -> str:
    """Return a short model card from config.json."""
    provenance = card.get("provenance") or {}
    facts = {"task": card.get("task"), **(provenance if isinstance(provenance, dict) else {})}
    rows = "".join(f"| {key} | {value} |\n" for key, value in facts.items() if not isinstance(value, dict | list))
    sizes = "".join(f"| {key} | {value} |\n" for key, value in card["config"].items())
    address = f"hf://{name}" if "/" in name else name
    return (
        f"# {name}\n\nA DGUNet (Mou, Wang, Zhang: Deep Generalized Unfolding Networks for Image Restoration, "
        "CVPR 2022).\n\n"
        f"    dgunet restore PHOTOS OUT --model {address}\n\n"
        f"| | |\n|---|---|\n{rows}\n## Sizes of the network\n\n| | |\n|---|---|\n{sizes}\n"
        f"sha256 of model.safetensors: {card['weights_sha256']}\n"
    )


def _copy_whole(folder: Path, target: Path) -> None:
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}."))
    try:
        model = staging / "model"  # with the permissions that the user's folders have
        model.mkdir()
        for file in folder.iterdir():
            shutil.copyfile(file, model / file.name)
        model.rename(target)
    except OSError as error:
        raise ValueError(f"{target}: the model could not be written ({error.strerror})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
