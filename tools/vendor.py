"""Fetch the assets of the API's documentation pages into the package, with their licences and hashes.

Run by hand when a version changes: ``python tools/vendor.py``. Needs npm, which checks what it fetches.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

ASSETS = Path(__file__).parent.parent / "src" / "reemote" / "server" / "assets"

PACKAGES = {
    "swagger-ui-dist@5.35.0": {
        "swagger-ui-bundle.js": "swagger-ui-bundle.js",
        "swagger-ui.css": "swagger-ui.css",
        "LICENSE": "swagger-ui.LICENSE.txt",
        "NOTICE": "swagger-ui.NOTICE.txt",
    },
    "redoc@2.5.4": {
        "bundles/redoc.standalone.js": "redoc.standalone.js",
        "bundles/redoc.standalone.js.LICENSE.txt": "redoc.standalone.js.LICENSE.txt",
        "LICENSE": "redoc.LICENSE.txt",
    },
}

# ReDoc shows a logo from its maker's server; the pages must ask nobody but us.
PATCHES = {"redoc.standalone.js": (b"https://cdn.redoc.ly/redoc/logo-mini.svg", b"data:image/svg+xml,<svg/>")}


def main() -> None:
    """Fetch all packages and write the manifest."""
    ASSETS.mkdir(exist_ok=True)
    manifest: dict[str, dict[str, str]] = {}
    for package, files in PACKAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["npm", "pack", "--silent", "--pack-destination", folder, package], check=True)
            archive = next(Path(folder).glob("*.tgz"))
            with tarfile.open(archive) as tar:
                for source, name in files.items():
                    member = tar.extractfile(f"package/{source}")
                    assert member is not None, source
                    data = member.read()
                    if name in PATCHES:
                        old, new = PATCHES[name]
                        assert old in data, f"{name}: there is nothing to patch"
                        data = data.replace(old, new)
                    # A map of the source is not shipped, so nobody should ask for it.
                    data = b"\n".join(line for line in data.split(b"\n") if b"sourceMappingURL=" not in line[:40])
                    (ASSETS / name).write_bytes(data)
                    manifest[name] = {"package": package, "sha256": hashlib.sha256(data).hexdigest()}
    (ASSETS / "manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
