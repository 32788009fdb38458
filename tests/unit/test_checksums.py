from __future__ import annotations

import hashlib
from pathlib import Path

from minilm_cli.base.checksums import sha256


def test_checksum_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
