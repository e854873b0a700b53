"""The parameters of the flows: Prefect's form shows and checks them as they are told here, and the command's help reads it.

Prefect takes a description from a docstring or, as here, from the JSON schema. A bound that stands in the schema alone is
the form's: for everybody else the code says what is wrong, in a sentence of its own.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from tasks.layout_names import Layout
from tasks.store import WITHOUT_USER


def parameter(text: str, ge: int | None = None, **schema: Any) -> Any:
    return Field(ge=ge, json_schema_extra={"description": text, **schema})


Source = Annotated[
    str,
    parameter(
        "a folder, any fsspec URI, or the file of the layouts 'labels' and 'meta'", minLength=1, pattern=WITHOUT_USER
    ),
]
CollectionName = Annotated[str, parameter("the collection's name in the store", pattern=r"^[\w-][\w.-]*$")]
CollectionNames = Annotated[list[str], parameter("labelled collections to learn from", minItems=1)]
LayoutName = Annotated[Layout, parameter("how names tell class and label")]
Probe = Annotated[bool, parameter("open every image, decode small ones: fills in sizes, finds unreadable images")]
Split = Annotated[
    str | None,
    parameter(
        "leave out images of other splits (those that were listed before count as deleted); those without a split stay"
    ),
]
Model = Annotated[
    str, parameter("models:/NAME@ALIAS, models:/NAME/VERSION (or latest), baselines:/NAME/VERSION or a bundle folder")
]
Workers = Annotated[int, parameter("shards at the same time", ge=1)]
ShardSize = Annotated[int, parameter("images a shard", ge=1)]
Precision = Annotated[Literal["fp32", "bf16", "fp16"], parameter("of the model; fp32 is the exact one")]
Runner = Annotated[
    Literal["threads", "ray"],
    parameter("threads of this process, or a Ray cluster: RAY_ADDRESS, else one of this machine"),
]
WorkerCpus = Annotated[float, parameter("cores that a Ray worker asks for", exclusiveMinimum=0)]
WorkerGpus = Annotated[
    float | None, parameter("GPUs that a Ray worker asks for, also less than one; by default its share of all")
]
Backbone = Annotated[str, parameter("<open_clip model>:<tag, path or URI>, or 'embedded'", pattern=WITHOUT_USER)]
BaselineName = Annotated[
    Literal["clip", "clip-ac", "winclip"] | None,
    parameter("training-free detector that scores and is evaluated instead of a model"),
]
BaselineBackbone = Annotated[
    str | None, parameter("of the baseline; by default the champion's, else embedded", pattern=WITHOUT_USER)
]
Epochs = Annotated[int, parameter("passes over the images; 15 as published", minimum=1)]
LearningRate = Annotated[float, parameter("step of the optimizer; 0.001 as published", exclusiveMinimum=0)]
Seed = Annotated[int, parameter("of the first prompts and the order of images", minimum=0)]
ValidationShare = Annotated[
    float, parameter("of the classes, held back for a validation curve; 0 as published", minimum=0, exclusiveMaximum=1)
]
Patience = Annotated[int, parameter("stop after so many epochs without a better validation loss; 0: never", minimum=0)]
ImageSize = Annotated[int | None, parameter("pixels; by default the backbone's, 518 for patch 14")]
FeatureLayers = Annotated[
    list[int] | None, parameter("1-based layers whose maps are summed, instead of a definition by name")
]
MapDefinition = Annotated[
    Literal["last", "multi-layer"],
    parameter("of the last layer, as published, or summed over four at quarters of the depth: 6, 12, 18, 24 of 24"),
]
DpamLayers = Annotated[int | None, parameter("last blocks with V-V attention; by default 19 of 24 in proportion")]
FalseAlarmRate = Annotated[
    float, parameter("share of normal images that may raise an alarm", exclusiveMinimum=0, exclusiveMaximum=1)
]
Nights = Annotated[
    int | None, parameter("take only the last so many days (UTC) that brought new images; by default all", minimum=1)
]
Format = Annotated[
    Literal["coco", "label-studio", "lookout"],
    parameter("COCO with regions as RLE, Label Studio tasks, or answers as Lookout for Vision gave them"),
]
Output = Annotated[
    str | None,
    parameter("file or URI to write; by default below exports/ in the collection's folder", pattern=WITHOUT_USER),
]
StoreUri = Annotated[
    str | None,
    parameter("folder or bucket with everything; by default $ANOMALYCLIP_STORE, else ./store", pattern=WITHOUT_USER),
]


def help_of(annotated: Any) -> str:
    """The description of one of these parameters."""
    return str(get_args(annotated)[1].json_schema_extra["description"])


def choices_of(annotated: Any) -> tuple[str, ...]:
    """The words that one of these parameters may be."""
    declared = get_args(annotated)[0]
    literal = get_args(declared)[0] if type(None) in get_args(declared) else declared  # `Literal[…] | None`
    return tuple(get_args(literal))
