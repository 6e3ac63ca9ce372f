"""Options that cannot hold at once, and values that their parts refuse: before data is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from dermalyze.errors import ConfigError
from dermalyze.taxonomy import HAM10000_CODES

Node = dict[str, Any]

# While the true number is not known: so many that no period of a schedule is too short.
_STEPS_PER_EPOCH = 1_000_000

# While the backbone is not made: channels of a feature map, enough for any head.
_FEATURES = 2


def contradictions(run: Node) -> list[str]:
    """Return what contradicts itself in a run's config, each with its mend.

    Args:
        run: the config of a run; checked, plain.
    """
    return [
        *_speed(run),
        *_averages(run),
        *_growing_images(run),
        *_stored_size(run),
        *_blur(run),
        *_without_effect(run),
        *_parts(run),
        *_optimizer(run),
        *_stages(run),
        *_frozen(run),
        *_tracking(run),
    ]


def _speed(run: Node) -> Iterator[str]:
    training = run["training"]
    if training["fast_mode"] and training["deterministic"]:
        yield (
            "training.fast_mode=true gives up what training.deterministic=true promises. Say "
            "training.deterministic=false too"
        )
    if training["compile"] and training["grad_checkpointing"]:
        yield (
            "training.compile=true with training.grad_checkpointing=true: the compiler decides by "
            "itself what is computed twice. Choose one"
        )


def _averages(run: Node) -> Iterator[str]:
    training = run["training"]
    last = training["average_last_epochs"]
    if last is None:
        return
    if last > training["epochs"]:
        yield (
            f"training.average_last_epochs={last}: the run has training.epochs="
            f"{training['epochs']}. Average fewer"
        )
    if training["patience"] is not None:
        yield (
            f"training.average_last_epochs={last} with training.patience={training['patience']}: "
            "which epochs are the last is not known where a run may stop early. Say "
            "training.patience=null"
        )
    if training["monitor"].startswith("train/"):
        yield (
            f"training.average_last_epochs={last} with training.monitor={training['monitor']}: no "
            "training metric is of the average, which is judged on validation alone. Choose "
            "training.monitor=val/loss, or training.average_last_epochs=null"
        )
    if run["ema"].get("decay") is not None:
        yield (
            f"training.average_last_epochs={last} with ema=on: both average the weights. Choose "
            "ema=off, or training.average_last_epochs=null"
        )


def _growing_images(run: Node) -> Iterator[str]:
    training, full = run["training"], run["data"]["image_size"]
    first, growing = training["first_image_size"], training["growing_epochs"]
    if (first is None) != (growing == 0):
        yield (
            f"training.first_image_size={first} with training.growing_epochs={growing}: growing "
            "images need both, a first size and the epochs until they have the full one"
        )
        return
    if first is None:
        return
    if first > full:
        yield (
            f"training.first_image_size={first}: larger than data.image_size={full}, which it "
            "would grow to"
        )
    if growing >= training["epochs"]:
        yield (
            f"training.growing_epochs={growing}: of training.epochs={training['epochs']}, at least "
            "the last must have the full size, by which the model is judged"
        )
    if run["augmentation"].get("geometry") is None:
        yield (
            f"training.first_image_size={first} with an augmentation without geometry: only its "
            "warp changes sizes. Choose augmentation=light or a stronger one"
        )


def _stored_size(run: Node) -> Iterator[str]:
    full, stored = run["data"]["image_size"], run["data"]["cache_size"]
    if stored is None:
        return
    smallest = run["training"]["first_image_size"] or full
    if stored < full:
        yield (
            f"data.cache_size={stored}: smaller than data.image_size={full}, which would be made "
            "up of fewer pixels. Use a larger one, or data.cache_size=null"
        )
    elif stored > 2 * smallest:
        yield (
            f"data.cache_size={stored}: training images of {smallest} pixels would leave out "
            "pixels of it, since each is made of four; that shows as jagged hairs and false dots. "
            f"Use {2 * smallest} or less"
        )
    if stored > full and run["augmentation"].get("geometry") is None:
        yield (
            f"data.cache_size={stored} with an augmentation without geometry: only its warp "
            "changes sizes. Choose augmentation=light or a stronger one, or data.cache_size=null"
        )


def _blur(run: Node) -> Iterator[str]:
    smallest = run["training"]["first_image_size"] or run["data"]["image_size"]
    kernel = (run["augmentation"].get("blur") or {}).get("kernel_size") or 1
    if kernel // 2 >= smallest:
        yield (
            f"augmentation.blur.kernel_size={kernel}: training images of {smallest} pixels cannot "
            f"be reflected so far at their borders. Use {2 * smallest - 1} or less"
        )


def _without_effect(run: Node) -> Iterator[str]:
    mix, head = run["mix"], run["model"]["head"]
    is_off = mix.get("mixup_alpha") is None and mix.get("cutmix_alpha") is None
    for key in ("probability", "cutmix_share", "unmixed_last_epochs"):
        if is_off and mix.get(key):
            yield (
                f"mix.{key}={mix[key]} without mix.mixup_alpha and mix.cutmix_alpha: nothing is "
                "mixed. Choose mix=mixup, mix=cutmix or mix=both, or else mix=none"
            )
    for kind, only in (("mixup", 0.0), ("cutmix", 1.0)):
        other = "cutmix" if kind == "mixup" else "mixup"
        is_alone = mix.get(f"{kind}_alpha") is not None and mix.get(f"{other}_alpha") is None
        if is_alone and mix.get("cutmix_share", only) != only:
            yield (
                f"mix.cutmix_share={mix['cutmix_share']} without mix.{other}_alpha: every mixed "
                f"batch gets {kind}. Choose mix=both, or leave the share at {only}"
            )
    if head.get("learnable_scale") and not head.get("normalized"):
        yield (
            "model.head.learnable_scale=true with model.head.normalized=false: only cosines have a "
            "scale. Say model.head.normalized=true too"
        )


def _parts(run: Node) -> Iterator[str]:
    """Make the parts that need no data, as the run will, to hear which values they refuse."""
    model, classes = run["model"], run["data"]["source"].get("classes", HAM10000_CODES)
    grows = run["training"]["first_image_size"] is not None
    backbone = {"name": model["backbone"], "images_grow": grows}
    of_model = {"_partial_": False, "in_features": _FEATURES}
    encoded = {column: [0.0] for column in model["metadata"]["columns"]}
    known_later: list[tuple[Node, Node]] = [
        (run["augmentation"], {}),
        (run["sampler"], {}),
        (run["mix"], {"total_epochs": run["training"]["epochs"]}),
        (run["loss"], {"class_counts": [1] * len(classes)}),
        (run["ema"], {"_partial_": False, "model": {"_target_": "torch.nn.PReLU"}}),  # one weight
        ({"_target_": "dermalyze.models.backbone.check_backbone"}, backbone),
        (model["head"], {**of_model, "num_classes": len(classes)}),
        (model["metadata"], {**of_model, "unknown_metadata": encoded}),
    ]
    for part, values in known_later:
        yield from _refusals(instantiate, part, _convert_="all", **values)


def _optimizer(run: Node) -> Iterator[str]:
    options = run["optimizer"]
    missing = [key for key in ("lr", "weight_decay") if key not in options]
    for key in missing:
        yield (
            f"optimizer.{key}: missing; schedules, stages and decay need it. Add it to the "
            "option, as conf/optimizer/adamw.yaml has it"
        )
    if missing:
        return
    # Whether the run's device can capture steps is not known; the CPU, which tries them, cannot.
    tried = options | ({"capturable": False} if "capturable" in options else {})
    check = {"_target_": "dermalyze.optim.optimizer_state.check_optimizer"}
    yield from _refusals(
        instantiate, check, make_optimizer=tried, name=options["_target_"], _convert_="all"
    )


def _stages(run: Node) -> Iterator[str]:
    if "lr" in run["optimizer"]:
        yield from _refusals(_make_schedules, run)


def _make_schedules(run: Node) -> None:
    instantiate(run["stages"], _convert_="all").schedules(
        instantiate(run["scheduler"], _convert_="all"),
        lr=run["optimizer"]["lr"],
        epochs=run["training"]["epochs"],
        steps_per_epoch=_STEPS_PER_EPOCH,
    )


def _refusals(make: Callable[..., object], *args: Any, **kwargs: Any) -> tuple[str, ...]:
    try:
        make(*args, **kwargs)
    except ConfigError as error:
        return error.problems
    except InstantiationException as error:
        if not isinstance(error.__cause__, ConfigError):
            raise
        return error.__cause__.problems
    return ()


def _frozen(run: Node) -> Iterator[str]:
    begins_from = (run["model"].get("pretrained", True), run["model"].get("weights_file"))
    if run["stages"].get("whole") is None and not any(begins_from):
        yield (
            "stages.whole=null with model.pretrained=false: the backbone would stay as random as "
            "it begins. Train it (stages=one), or start from weights: model.pretrained=true or "
            "model.weights_file=FILE"
        )


def _tracking(run: Node) -> Iterator[str]:
    name = run["tracking"].get("register_as")
    if name is None:
        return
    if not run["tracking"]["log_model"]:
        yield (
            f"tracking.register_as={name} with tracking.log_model=false: a mere file cannot be "
            "registered. Leave one of them out"
        )
    if not name or set(name) & set("/:"):
        yield (
            f"tracking.register_as={name}: MLflow takes no name that is empty or has a / or : in "
            "it. Use another one"
        )
