"""The pictures of docs/: `python -m cdkit.evals.pages.docs_pictures`, where Chromium is installed.

Each shows a page that cdkit makes for the embedded model, as a browser shows it.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

import cdkit
from cdkit.evals.pages.generated import without_arguments

FOLDER = Path("docs/pictures")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COLOURS = 128
"""Of a picture's palette: text stays sharp, and a picture has some 100 kB."""


def explanation(folder: Path) -> Path:
    """What CMAC and VCD did to the answer about the example image."""
    model, processor = cdkit.load_model("micro")
    prompt = cdkit.adapter_for(model).prompt(
        "Please describe this image in detail.", images=1, processor=processor
    )
    inputs = processor(images=[cdkit.example_image()], text=[prompt], return_tensors="pt")
    page = folder / "explanation.html"
    cdkit.explain(model, inputs, ["cmac", "vcd"], processor=processor).save(page)
    return page


def report(folder: Path) -> Path:
    """The report of the small default grid."""
    asked = ["ablate", "--quick", "--name", "quick", "--output", str(folder)]
    subprocess.run([sys.executable, "-m", "cdkit", *asked], check=True, stdout=subprocess.DEVNULL)
    return folder / "quick" / "report.html"


def shoot(browser: str, page: Path, picture: Path, size: tuple[int, int]) -> None:
    """Write what a browser window of this size shows of a page."""
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
    window = f"--window-size={size[0]},{size[1]}"
    subprocess.run(
        [browser, *options, window, f"--screenshot={picture.absolute()}", page.absolute().as_uri()],
        check=True,
        capture_output=True,
    )
    with Image.open(picture) as shown:
        shown.convert("RGB").quantize(COLOURS).save(picture, optimize=True)
    print(f"wrote {picture}")


def main(folder: Path = FOLDER) -> None:
    """Write the pictures."""
    if not folder.is_dir():
        sys.exit(f"error: {folder} is written from the root of a checkout; {Path.cwd()} is none")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"error: pictures are made by a browser: install one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as made:
        shoot(browser, explanation(Path(made)), folder / "explanation.png", (1100, 1760))
        shoot(browser, report(Path(made)), folder / "report.png", (1280, 800))


if __name__ == "__main__":
    without_arguments()
    main()
