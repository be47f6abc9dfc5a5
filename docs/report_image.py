"""Take the picture of a finished run's report for the README, with headless Chromium.

Usage: python docs/report_image.py runs/quickstart docs/images/report.png
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WINDOW = "1000,1180"  # pixels: the lead, the plots and the table


def main(workdir: str, image: str) -> None:
    """Write a PNG of the first screen of WORKDIR/report/report.html."""
    page = (Path(workdir) / "report/report.html").resolve()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not page.exists() or browser is None:
        sys.exit(f"expected {page} and Chromium on the PATH")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        options += [f"--window-size={WINDOW}", f"--screenshot={Path(image).resolve()}"]
        subprocess.run([browser, *options, page.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
