"""Class names of the published data sets, and the common names under which they can be compared."""

from __future__ import annotations

#: MLL23 class folder -> common name (None where no other set has it)
MLL23: dict[str, str | None] = {
    "basophil": "basophil",
    "eosinophil": "eosinophil",
    "hairy_cell": None,
    "lymphocyte": "lymphocyte",
    "lymphocyte_large_granular": None,
    "lymphocyte_neoplastic": None,
    "lymphocyte_reactive": None,
    "metamyelocyte": "metamyelocyte",
    "monocyte": "monocyte",
    "myeloblast": "myeloblast",
    "myelocyte": "myelocyte",
    "neutrophil_band": "neutrophil_band",
    "neutrophil_segmented": "neutrophil_segmented",
    "normoblast": "erythroblast",
    "plasma_cell": None,
    "promyelocyte": "promyelocyte",
    "promyelocyte_atypical": None,
    "smudge_cell": None,
}

#: Acevedo file-name prefix -> published class, fine class, common name
ACEVEDO: dict[str, tuple[str, str, str | None]] = {
    "BA": ("basophil", "basophil", "basophil"),
    "EO": ("eosinophil", "eosinophil", "eosinophil"),
    "ERB": ("erythroblast", "erythroblast", "erythroblast"),
    "IG": ("ig", "immature granulocyte", None),
    "LY": ("lymphocyte", "lymphocyte", "lymphocyte"),
    "MO": ("monocyte", "monocyte", "monocyte"),
    "NEUTROPHIL": ("neutrophil", "neutrophil", None),
    "BNE": ("neutrophil", "band neutrophil", "neutrophil_band"),
    "SNE": ("neutrophil", "segmented neutrophil", "neutrophil_segmented"),
    "MMY": ("ig", "metamyelocyte", "metamyelocyte"),
    "MY": ("ig", "myelocyte", "myelocyte"),
    "PMY": ("ig", "promyelocyte", "promyelocyte"),
    "PLATELET": ("platelet", "platelet", None),
}

#: Matek 2019 code -> readable name, common name
MATEK19: dict[str, tuple[str, str | None]] = {
    "BAS": ("basophil", "basophil"),
    "EBO": ("erythroblast", "erythroblast"),
    "EOS": ("eosinophil", "eosinophil"),
    "KSC": ("smudge cell", None),
    "LYA": ("atypical lymphocyte", None),
    "LYT": ("lymphocyte", "lymphocyte"),
    "MMZ": ("metamyelocyte", "metamyelocyte"),
    "MOB": ("monoblast", None),
    "MON": ("monocyte", "monocyte"),
    "MYB": ("myelocyte", "myelocyte"),
    "MYO": ("myeloblast", "myeloblast"),
    "NGB": ("band neutrophil", "neutrophil_band"),
    "NGS": ("segmented neutrophil", "neutrophil_segmented"),
    "PMB": ("promyelocyte, bilobed", None),
    "PMO": ("promyelocyte", "promyelocyte"),
}

#: BMC code -> readable name, common name
BMC: dict[str, tuple[str, str | None]] = {
    "ABE": ("abnormal eosinophil", None),
    "ART": ("artefact", None),
    "BAS": ("basophil", "basophil"),
    "BLA": ("blast", None),
    "EBO": ("erythroblast", "erythroblast"),
    "EOS": ("eosinophil", "eosinophil"),
    "FGC": ("faggot cell", None),
    "HAC": ("hairy cell", None),
    "KSC": ("smudge cell", None),
    "LYI": ("immature lymphocyte", None),
    "LYT": ("lymphocyte", "lymphocyte"),
    "MMZ": ("metamyelocyte", "metamyelocyte"),
    "MON": ("monocyte", "monocyte"),
    "MYB": ("myelocyte", "myelocyte"),
    "NGB": ("band neutrophil", "neutrophil_band"),
    "NGS": ("segmented neutrophil", "neutrophil_segmented"),
    "NIF": ("not identifiable", None),
    "OTH": ("other", None),
    "PEB": ("proerythroblast", None),
    "PLM": ("plasma cell", None),
    "PMO": ("promyelocyte", "promyelocyte"),
}

#: Diagnoses of AML_Hehr; SCD are stem-cell donors, the controls
AML_HEHR = ("AML-CBFB-MYH11", "AML-NPM1", "AML-PML-RARA", "AML-RUNX1-RUNX1T1", "SCD")
