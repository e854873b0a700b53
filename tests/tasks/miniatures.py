"""A miniature of each published data set whose folders and names tell all, as its publisher ships it."""

from pathlib import Path

from PIL import Image

from tasks.layouts import Entry

Fact = tuple[str, str | None, int, str | None, str | None]  # class, split, label, kind, name of the mask


def write(root: Path, *names: str, marked: bool = True) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_text = path.suffix.lower() in (".txt", ".csv", ".db", ".json")
        if is_text:
            path.write_text("left alone")
        else:
            Image.new("L", (8, 6), 255 if marked else 0).save(path)


def facts(root: Path, entries: list[Entry]) -> dict[str, Fact]:
    prefix = f"file://{root}/"
    return {
        e.object.name: (e.class_name, e.split, e.label, e.defect_type, e.mask_uri and e.mask_uri.removeprefix(prefix))
        for e in entries
    }


MINIATURES: dict[str, tuple[list[str], dict[str, Fact]]] = {
    "mvtec": (
        ["metal_nut/train/good/000.png", "metal_nut/test/good/000.png", "metal_nut/test/bent/000.png",
         "metal_nut/ground_truth/bent/000_mask.png", "metal_nut/readme.txt", "metal_nut/test/scratch/000.PNG",
         "metal_nut/ground_truth/scratch/000_mask.png"],
        {
            "metal_nut/train/good/000.png": ("metal_nut", "train", 0, None, None),
            "metal_nut/test/good/000.png": ("metal_nut", "test", 0, None, None),
            "metal_nut/test/bent/000.png":
                ("metal_nut", "test", 1, "bent", "metal_nut/ground_truth/bent/000_mask.png"),
            "metal_nut/test/scratch/000.PNG":
                ("metal_nut", "test", 1, "scratch", "metal_nut/ground_truth/scratch/000_mask.png"),
        },
    ),
    "mpdd": (
        ["MPDD/tubes/test/good/000.png", "MPDD/tubes/test/anomalous/001.png",
         "MPDD/tubes/ground_truth/anomalous/001_mask.png"],
        {
            "MPDD/tubes/test/good/000.png": ("tubes", "test", 0, None, None),
            "MPDD/tubes/test/anomalous/001.png":
                ("tubes", "test", 1, "anomalous", "MPDD/tubes/ground_truth/anomalous/001_mask.png"),
        },
    ),
    "btad": (
        ["BTech_Dataset_transformed/01/train/ok/0000.bmp", "BTech_Dataset_transformed/01/test/ok/0000.bmp",
         "BTech_Dataset_transformed/01/test/ko/0000.bmp", "BTech_Dataset_transformed/01/ground_truth/ko/0000.png",
         "BTech_Dataset_transformed/03/test/ko/0001.bmp", "BTech_Dataset_transformed/03/ground_truth/ko/0001.bmp",
         "BTech_Dataset_transformed/03/ground_truth/ok/0002.bmp", "BTech_Dataset_transformed/03/test/ok/0002.bmp"],
        {
            "BTech_Dataset_transformed/01/train/ok/0000.bmp": ("01", "train", 0, None, None),
            "BTech_Dataset_transformed/01/test/ok/0000.bmp": ("01", "test", 0, None, None),
            "BTech_Dataset_transformed/01/test/ko/0000.bmp":
                ("01", "test", 1, "ko", "BTech_Dataset_transformed/01/ground_truth/ko/0000.png"),
            "BTech_Dataset_transformed/03/test/ko/0001.bmp":
                ("03", "test", 1, "ko", "BTech_Dataset_transformed/03/ground_truth/ko/0001.bmp"),
            "BTech_Dataset_transformed/03/test/ok/0002.bmp": ("03", "test", 0, None, None),
        },
    ),
    "sdd": (
        ["electrical commutators/test/good/kos01 Part0.jpg", "electrical commutators/test/bad/kos01 Part5.jpg",
         "electrical commutators/ground_truth/bad/kos01 Part5_label.bmp"],
        {
            "electrical commutators/test/good/kos01 Part0.jpg": ("electrical commutators", "test", 0, None, None),
            "electrical commutators/test/bad/kos01 Part5.jpg":
                ("electrical commutators", "test", 1, "bad",
                 "electrical commutators/ground_truth/bad/kos01 Part5_label.bmp"),
        },
    ),
    "dagm": (
        ["DAGM_KaggleUpload/Class1/Train/0576.PNG", "DAGM_KaggleUpload/Class1/Train/Label/0576_label.PNG",
         "DAGM_KaggleUpload/Class1/Test/0576.PNG", "DAGM_KaggleUpload/Class10/Test/0001.PNG",
         "DAGM_KaggleUpload/Class10/Test/Label/0001_label.PNG", "DAGM_KaggleUpload/Class10/Test/Thumbs.db"],
        {
            "DAGM_KaggleUpload/Class1/Train/0576.PNG":
                ("Class1", "train", 1, None, "DAGM_KaggleUpload/Class1/Train/Label/0576_label.PNG"),
            "DAGM_KaggleUpload/Class1/Test/0576.PNG": ("Class1", "test", 0, None, None),
            "DAGM_KaggleUpload/Class10/Test/0001.PNG":
                ("Class10", "test", 1, None, "DAGM_KaggleUpload/Class10/Test/Label/0001_label.PNG"),
        },
    ),
    "dtd-synthetic": (
        ["Woven_001/train/good/000.png", "Woven_001/test/good/000.png", "Woven_001/test/bad/001.png",
         "Woven_001/ground_truth/bad/001_mask.png"],
        {
            "Woven_001/train/good/000.png": ("Woven_001", "train", 0, None, None),
            "Woven_001/test/good/000.png": ("Woven_001", "test", 0, None, None),
            "Woven_001/test/bad/001.png": ("Woven_001", "test", 1, "bad", "Woven_001/ground_truth/bad/001_mask.png"),
        },
    ),
    "headct": (
        ["brain/test/good/100.png", "brain/test/hemorrhage/000.png"],
        {
            "brain/test/good/100.png": ("brain", "test", 0, None, None),
            "brain/test/hemorrhage/000.png": ("brain", "test", 1, "hemorrhage", None),
        },
    ),
    "brainmri": (
        ["no/1 no.jpeg", "no/No11.JPG", "yes/Y1.jpg", "brain_tumor_dataset/no/1 no.jpeg",
         "brain_tumor_dataset/yes/Y1.jpg"],
        {
            "no/1 no.jpeg": ("brain", None, 0, None, None),
            "no/No11.JPG": ("brain", None, 0, None, None),
            "yes/Y1.jpg": ("brain", None, 1, "yes", None),
        },
    ),
    "br35h": (
        ["no/no0.jpg", "yes/y0.jpg", "pred/pred0.jpg", "Br35H-Mask-RCNN/TRAIN/y1.jpg"],
        {"no/no0.jpg": ("brain", None, 0, None, None), "yes/y0.jpg": ("brain", None, 1, "yes", None)},
    ),
    "covid-19": (
        ["COVID-19 Radiography Database/NORMAL/NORMAL (1).png", "COVID-19 Radiography Database/COVID-19/COVID-19 (1).png",
         "COVID-19 Radiography Database/Viral Pneumonia/Viral Pneumonia (1).png"],
        {
            "COVID-19 Radiography Database/NORMAL/NORMAL (1).png": ("chest", None, 0, None, None),
            "COVID-19 Radiography Database/COVID-19/COVID-19 (1).png": ("chest", None, 1, "COVID-19", None),
        },
    ),
    "isic": (
        ["ISBI2016_ISIC_Part1_Test_Data/ISIC_0000003.jpg",
         "ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_0000003_Segmentation.png",
         "ISBI2016_ISIC_Part1_Training_Data/ISIC_0000000.jpg",
         "ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000000_Segmentation.png"],
        {
            "ISBI2016_ISIC_Part1_Test_Data/ISIC_0000003.jpg":
                ("skin", "test", 1, None, "ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_0000003_Segmentation.png"),
        },
    ),
    "cvc-colondb": (
        ["CVC-ColonDB/images/1.png", "CVC-ColonDB/masks/1.png"],
        {"CVC-ColonDB/images/1.png": ("colon", None, 1, None, "CVC-ColonDB/masks/1.png")},
    ),
    "cvc-clinicdb": (
        ["CVC-ClinicDB/Original/1.tif", "CVC-ClinicDB/Ground Truth/1.tif"],
        {"CVC-ClinicDB/Original/1.tif": ("colon", None, 1, None, "CVC-ClinicDB/Ground Truth/1.tif")},
    ),
    "kvasir": (
        ["Kvasir-SEG/images/cju0 qkwl.jpg", "Kvasir-SEG/masks/cju0 qkwl.jpg", "Kvasir-SEG/kavsir_bboxes.json"],
        {"Kvasir-SEG/images/cju0 qkwl.jpg": ("colon", None, 1, None, "Kvasir-SEG/masks/cju0 qkwl.jpg")},
    ),
    "endo": (
        ["EndoTect/test images/a.JPG", "EndoTect/masks/a_GT.bmp"],
        {"EndoTect/test images/a.JPG": ("colon", None, 1, None, "EndoTect/masks/a_GT.bmp")},
    ),
    "tn3k": (
        ["tn3k/test-image/0000.jpg", "tn3k/test-mask/0000.jpg", "tn3k/trainval-image/0000.jpg",
         "tn3k/trainval-mask/0000.jpg"],
        {"tn3k/test-image/0000.jpg": ("thyroid", "test", 1, None, "tn3k/test-mask/0000.jpg")},
    ),
}  # fmt: skip
