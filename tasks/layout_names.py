"""The names of the layouts, apart from their readers: the command line's help imports nothing heavy."""

from typing import Literal

Layout = Literal[
    "flat", "folders", "labels", "meta",
    "mvtec", "visa", "mpdd", "btad", "sdd", "dagm", "dtd-synthetic",
    "headct", "brainmri", "br35h", "covid-19",
    "isic", "cvc-colondb", "cvc-clinicdb", "kvasir", "endo", "tn3k",
]  # fmt: skip
