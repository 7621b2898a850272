"""Commands about models."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from terafleet.cli.connection import Asking, admin_client
from terafleet.cli.failure import CommandFailed, extra_needed, files_mapped
from terafleet.cli.options import add_command, noun
from terafleet.cli.output import NONE, moment, note, print_facts, print_json, print_table, size
from terafleet.cli.words import ADVICE, MODEL_FILE_ADVICE

if TYPE_CHECKING:
    from terafleet.cli.model_source import ModelPlan, Wishes
    from terafleet.protocol.admin import ModelView
    from terafleet.protocol.manifest import Manifest
    from terafleet.protocol.shard import WarmView
    from terafleet.sdk import AdminClient

_ID_SHOWN = 12


class Add(Asking, frozen=True, kw_only=True):
    """The options of `model add`."""

    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What requests call it, such as org/encoder.")
    ]
    path: Annotated[
        Path,
        typer.Argument(
            exists=True,
            metavar="PATH",
            help="A GGUF file, the folder of a published BERT encoder, or a folder with "
            "model.onnx, tokenizer.json and terafleet.json.",
        ),
    ]
    tokens_max: Annotated[
        int | None,
        typer.Option(metavar="N", min=8, help="Encoders: read at most so many tokens of a text."),
    ] = None
    context_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", min=64, help="GGUF: tokens of prompt and answer together."),
    ] = None
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="GGUF: let a model that writes also embed.")
    ] = False
    memory_mb: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="What a car must lend for it.", show_default="an estimate"
        ),
    ] = None


class Remove(Asking, frozen=True, kw_only=True):
    """The options of `model remove`."""

    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name, or its id.")]


class Warm(Asking, frozen=True, kw_only=True):
    """The options of `model warm`."""

    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name, or its id.")]
    slots: Annotated[
        int, typer.Option(metavar="N", min=0, help="In how many slots of the fleet; 0 ends it.")
    ]


def register(app: typer.Typer) -> None:
    """Add the commands below `model`."""
    models = noun("model", "Add, list and remove the models that the fleet can run.")
    add_command(models, "add", Add, add_model, "terafleet model add org/encoder ./all-MiniLM-L6-v2")
    add_command(models, "list", Asking, list_models, "terafleet model list")
    add_command(models, "warm", Warm, warm_model, "terafleet model warm org/encoder --slots 4")
    add_command(models, "remove", Remove, remove_model, "terafleet model remove org/encoder")
    app.add_typer(models)


def add_model(options: Add) -> None:
    """Check a model, send its files, and publish it to the fleet.

    Every file is checked before anything is sent. Pickles, files that reach outside themselves
    or bring code, and damaged ones are refused.
    """
    from terafleet.cli.model_source import Wishes

    wishes = Wishes(
        tokens_max=options.tokens_max or 0,
        context_tokens=options.context_tokens or 0,
        memory_mb=options.memory_mb or 0,
        embeddings=options.embeddings,
    )
    with files_mapped(), tempfile.TemporaryDirectory(prefix="terafleet-model-") as made:
        plan = plan_of(options.path, wishes, Path(made))
        manifest = manifest_of(plan, options.name)
        with admin_client(options) as client:
            view = publish(client, manifest, plan)
    if options.is_json:
        print_json(view)
    else:
        print_facts([*facts_of(view), *plan.facts])


def list_models(options: Asking) -> None:
    """List the models of the fleet, oldest first."""
    with admin_client(options) as client:
        found = client.models()
    if options.is_json:
        print_json(found)
        return
    warm = {str(one.model_id): one for one in found.warm or ()}
    columns = ["NAME", "RUNTIME", "ENDPOINTS", "MEMORY", "SIZE", "ADDED", "ID"]
    columns += ["WARM"] if warm else []
    rows = [
        (
            view.manifest.name,
            view.manifest.runtime,
            " ".join(view.manifest.endpoints),
            f"{view.manifest.memory_mb} MB",
            size(_bytes_of(view.manifest)),
            moment(view.created_ms),
            view.model_id[:_ID_SHOWN],
            *([_loaded_of(warm.get(view.model_id))] if warm else []),
        )
        for view in found.models
    ]
    print_table(columns, rows)
    if found.warm is None:
        note("The fleet does not answer: which models are kept loaded is not known.")


def warm_model(options: Warm) -> None:
    """Keep a model loaded in so many slots of the fleet, whichever cars come and go.

    The fleet asks the cars that it expects to stay longest.
    """
    with admin_client(options) as client:
        view = _find(client, options.name)
        warm = client.warm_model(view.model_id, options.slots)
    if options.is_json:
        print_json(warm)
        return
    typer.echo(warmth_in_words(warm))


def warmth_in_words(warm: "WarmView") -> str:
    """How far it is with a model that shall stay loaded."""
    if not warm.slots:
        return f"{warm.name} need not stay loaded any more."
    parts = [f"{_loaded_of(warm)} slots of {warm.name} are loaded now"]
    coming = min(warm.slots_chosen, warm.slots) - warm.slots_loaded
    if coming > 0:
        parts.append(f"{coming} more are on their way, terafleet model list tells how far")
    missing = warm.slots - warm.slots_chosen
    if missing > 0:
        parts.append(f"no car can take {missing} more at present, the next that can is asked")
    return "; ".join(parts) + "."


def remove_model(options: Remove) -> None:
    """Remove a model; work that was accepted goes on."""
    with admin_client(options) as client:
        view = _find(client, options.name)
        removed = client.remove_model(view.model_id)
    if options.is_json:
        print_json(removed)
        return
    count = len(removed.files_deleted)
    typer.echo(f"{view.manifest.name} is removed, {count} of its files are deleted.")
    if count < len(view.manifest.files):
        note("The others belong to other models too, or open batches may need them.")


def plan_of(path: Path, wishes: "Wishes", made: Path) -> "ModelPlan":
    """The checked plan for what lies at a path; `made` is a folder for what has to be made.

    Raises CommandFailed.
    """
    from terafleet.cli.model_source import is_encoder_folder, plan_of_encoder, plan_of_file

    if path.is_file():
        return plan_of_file(path, wishes)
    if is_encoder_folder(path):
        return plan_of_encoder(path, wishes)
    return _converted(path, wishes, made)


def manifest_of(plan: "ModelPlan", name: str) -> "Manifest":
    """The manifest of a plan, its files' digests and all. Raises CommandFailed."""
    from terafleet.protocol.manifest import ManifestFile
    from terafleet.protocol.model_rules import manifest_fault
    from terafleet.sdk.local_files import sha256_of

    files = tuple(
        ManifestFile(file_name, path.stat().st_size, sha256_of(path))
        for file_name, path in plan.paths.items()
    )
    manifest = plan.manifest(name, files)
    fault = manifest_fault(manifest)
    if fault is not None:
        raise CommandFailed("invalid_value", fault.message)
    return manifest


def publish(client: "AdminClient", manifest: "Manifest", plan: "ModelPlan") -> "ModelView":
    """Send the files that are not there yet and publish the model. Raises CommandFailed."""
    from terafleet.cli.batch_progress import files_shown
    from terafleet.protocol.manifest import manifest_bytes, model_id_of

    model_id = model_id_of(manifest_bytes(manifest))
    for view in client.models().models:
        # Looked at before gigabytes are sent; the control plane looks again.
        if view.manifest.name == manifest.name and view.model_id != model_id:
            message = f"The name {manifest.name} belongs to another model."
            raise CommandFailed("model_name_taken", message, ADVICE["model_name_taken"])
    with files_shown() as progress:
        return client.add_model(manifest, plan.paths, progress)


def facts_of(view: "ModelView") -> list[tuple[str, str]]:
    """What a person wants to know of a model, by name."""
    manifest = view.manifest
    return [
        ("model", manifest.name),
        ("id", view.model_id),
        ("runtime", manifest.runtime),
        ("endpoints", ", ".join(manifest.endpoints)),
        ("needs", f"{manifest.memory_mb} MB of a car's memory"),
        ("files", f"{len(manifest.files)}, {size(_bytes_of(manifest))}"),
    ]


def _converted(folder: Path, wishes: "Wishes", made: Path) -> "ModelPlan":
    """The plan for a published encoder: an ONNX graph is made of its weights."""
    from terafleet.cli.model_source import WEIGHTS_FILE, check_published_folder, plan_of_encoder
    from terafleet.sdk.local_files import sha256_of

    check_published_folder(folder)
    with extra_needed("onnx"):
        from terafleet.control.model_import.bert import ImportRefused, import_bert
    found = import_bert(folder, made)
    if isinstance(found, ImportRefused):
        message = f"The model can't be converted: {found.detail}."
        raise CommandFailed(found.reason, message, MODEL_FILE_ADVICE.get(found.reason, ""))
    # The digest, and not the folder's name: the same weights make the same model everywhere.
    source = f"{WEIGHTS_FILE} sha256:{sha256_of(folder / WEIGHTS_FILE)}"
    return plan_of_encoder(made, wishes, source)


def _find(client: "AdminClient", name: str) -> "ModelView":
    """The model of a name, an id, or the beginning of an id that no other shares."""
    models = client.models().models
    found = [view for view in models if name in (view.manifest.name, view.model_id)]
    if not found and len(name) >= _ID_SHOWN:
        found = [view for view in models if view.model_id.startswith(name)]
    if len(found) != 1:
        message = f"There is no model {name}."
        raise CommandFailed("model_not_found", message, ADVICE["model_not_found"])
    return found[0]


def _loaded_of(warm: "WarmView | None") -> str:
    """How many of the wanted slots have a model in memory; cars may give some more."""
    return f"{min(warm.slots_loaded, warm.slots)} of {warm.slots}" if warm else NONE


def _bytes_of(manifest: "Manifest") -> int:
    return sum(file.size_bytes for file in manifest.files)
