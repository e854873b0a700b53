"""The 17 data sets of the paper: classes, normal and anomalous test images, and where images and masks lie.

The protocol evaluates and trains on the test split. docs/datasets.md says what each count rests on; most could not be
confirmed.
"""

from tasks.errors import InputError
from tasks.layouts.labellers import by_hemorrhage_csv, by_mask_name, by_mask_pixels, by_split_csv
from tasks.layouts.published import DataSet, Form
from tasks.store import open_filesystem

CLASS = r"(?:(?P<class_name>[^/]+)/)?"  # one class alone is its source's name
STEM = r"(?P<stem>[^/]+)"
STATES = r"(?P<state>[^/]+)/" + STEM
MVTEC = Form(CLASS + r"(?P<split>train|test)/" + STATES, CLASS + "ground_truth/" + STATES)
LESIONS = Form(r"images/" + STEM, r"masks/" + STEM)
SKIN_MASKS = "isbi2016_isic_part1_(?P<split>test)_groundtruth/" + STEM

DATASETS: dict[str, DataSet] = {
    "mvtec": DataSet(
        "MVTec AD",
        ("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
         "toothbrush", "transistor", "wood", "zipper"),
        467, 1258,
        (MVTEC, Form(r"(?:(?P<class_name>.+)/)?(?P<split>train|test)/" + STATES,
                     r"(?:(?P<class_name>.+)/)?ground_truth/" + STATES)),
        copied=True, folder="mvtec_anomaly_detection",
    ),
    "visa": DataSet(
        "VisA",
        ("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3", "pcb4",
         "pipe_fryum"),
        962, 1200,
        (Form(r"(?P<class_name>[^/]+)/data/images/(?P<state>normal|anomaly)/" + STEM,
              r"(?P<class_name>[^/]+)/data/masks/(?P<state>anomaly)/" + STEM, by_split_csv),),
        folder="VisA_20220922",
    ),
    "mpdd": DataSet(
        "MPDD",
        ("bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"),
        176, 282, (MVTEC,),
    ),
    "btad": DataSet("BTAD", ("01", "02", "03"), 451, 290, (MVTEC,), folder="BTech_Dataset_transformed"),
    "sdd": DataSet(
        "SDD", ("electrical commutators",), 181, 74,
        (MVTEC, Form(r"(?P<item>kos\d+)/(?P<stem>part\d+)", r"(?P<item>kos\d+)/(?P<stem>part\d+_label)", by_mask_pixels)),
        folder="KolektorSDD",
    ),
    "dagm": DataSet(
        "DAGM",
        ("Class1", "Class2", "Class3", "Class4", "Class5", "Class6", "Class7", "Class8", "Class9", "Class10"),
        6996, 1054,
        (Form(CLASS + r"(?P<split>train|test)/" + STEM, CLASS + r"(?P<split>train|test)/label/" + STEM, by_mask_name),),
        folder="DAGM_KaggleUpload",
    ),
    "dtd-synthetic": DataSet(
        "DTD-Synthetic",
        ("Blotchy_099", "Fibrous_183", "Marbled_078", "Matted_069", "Mesh_114", "Perforated_037", "Stratified_154",
         "Woven_001", "Woven_068", "Woven_104", "Woven_125", "Woven_127"),
        357, 947, (MVTEC,),
    ),
    "headct": DataSet(
        "HeadCT", ("brain",), 100, 100,
        (Form(r"(?P<split>test)/" + STATES), Form(r"(?:head_ct/)?(?P<stem>\d+)", label=by_hemorrhage_csv)),
    ),
    "brainmri": DataSet("BrainMRI", ("brain",), 98, 155, (Form(r"(?P<state>no|yes)/" + STEM),)),
    "br35h": DataSet("Br35H", ("brain",), 1500, 1500, (Form(r"(?P<state>no|yes)/" + STEM),)),
    "covid-19": DataSet(
        "COVID-19", ("chest",), 1341, 219, (Form(r"(?P<state>normal|covid(?:-19)?)/(?:images/)?" + STEM),),
        folder="COVID-19 Radiography Database",
    ),
    "isic": DataSet(
        "ISIC", ("skin",), 0, 379,
        (Form(r"isbi2016_isic_part1_(?P<split>test)_data/" + STEM, SKIN_MASKS),
         Form(r"(?P<split>test)/" + STATES, SKIN_MASKS)),
    ),
    "cvc-colondb": DataSet("CVC-ColonDB", ("colon",), 0, 380, (LESIONS,)),
    "cvc-clinicdb": DataSet(
        "CVC-ClinicDB", ("colon",), 0, 612,
        (LESIONS, Form("original/" + STEM, r"ground[ _]?truth/" + STEM)),
    ),
    "kvasir": DataSet("Kvasir", ("colon",), 0, 1000, (LESIONS,), folder="Kvasir-SEG"),
    "endo": DataSet(
        "Endo", ("colon",), 0, 200, (Form(r"(?!masks/)[^/]+/" + STEM, r"masks/" + STEM),), folder="EndoTect"
    ),
    "tn3k": DataSet("TN3K", ("thyroid",), 0, 614, (Form("(?P<split>test)-image/" + STEM, "(?P<split>test)-mask/" + STEM),)),
}  # fmt: skip


def find_datasets(root: str) -> tuple[dict[str, str], list[str]]:
    """URI of each data set's folder in a folder, by layout, and the names of the folders that are no data set's.

    A folder is called after the layout, after the title or as the publisher calls it. Upper case, spaces and signs do not
    count: `mvtec`, `MVTec AD`, `mvtec_ad` and `mvtec_anomaly_detection` are MVTec AD's. Raises InputError.
    """
    filesystem, path = open_filesystem(root)
    try:
        listing = filesystem.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"the folder {root!r} does not exist") from None
    found: dict[str, str] = {}
    unknown: list[str] = []
    for folder in sorted(info["name"].rstrip("/") for info in listing):
        name, uri = folder.rpartition("/")[2], str(filesystem.unstrip_protocol(folder))
        if not filesystem.isdir(folder):
            continue
        if (layout := layout_of(name)) is None:
            unknown.append(name)
        elif found.setdefault(layout, uri) != uri:
            raise InputError(f"{root!r} has two folders of {DATASETS[layout].title}: {found[layout]} and {uri}")
    return found, unknown


def layout_of(folder: str) -> str | None:
    for layout, dataset in DATASETS.items():
        if plain(folder) in {plain(name) for name in (layout, dataset.title, dataset.folder) if name}:
            return layout
    return None


def plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
