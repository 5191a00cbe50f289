"""What a chroot needs from this machine to reach the same mirrors and registries."""

import os
import re
import shutil
import subprocess
from pathlib import Path

# Folders and files that are the same in a chroot.
FILES = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/usr/local/share/ca-certificates",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pip.conf",
)
# Files of this user, which become root's in a chroot.
HOME_FILES = (".config/pip/pip.conf", ".pip/pip.conf", ".cargo/config.toml")

VARIABLES = re.compile(
    r"(?i:(http|https|ftp|all|no)_proxy)"
    r"|SSL_CERT_FILE|CURL_CA_BUNDLE|REQUESTS_CA_BUNDLE|GIT_SSL_CAINFO"
    r"|PIP_(INDEX_URL|EXTRA_INDEX_URL|CERT|PROXY|TRUSTED_HOST|DEFAULT_TIMEOUT|RETRIES)"
    r"|CARGO_(HTTP|NET|REGISTR|SOURCE)\w*"
)
APT_SETTINGS = re.compile(
    r"Acquire::(https?|ftp)::|Acquire::(Check-Valid-Until|Check-Date|Retries|ForceIPv[46]) "
)


def environment() -> dict[str, str]:
    """Proxies, certificates and registries."""
    return {name: value for name, value in os.environ.items() if VARIABLES.fullmatch(name)}


def apt_settings() -> str:
    """Proxies of apt, and whether it takes the clock for right."""
    dump = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout
    return "".join(line for line in dump.splitlines(keepends=True) if APT_SETTINGS.match(line))


def mirrors() -> tuple[str, str]:
    """Of Debian and of its security updates, as apt is configured; DEBIAN_MIRROR instead of the first."""
    output = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    uris = [line.split()[1] for line in output.splitlines() if line.startswith("Debian ")]
    main = [uri for uri in uris if "security" not in uri]
    security = [uri for uri in uris if "security" in uri]
    mirror = os.environ.get("DEBIAN_MIRROR") or (main[0] if main else "")
    if not mirror:
        raise LookupError(
            "apt has no Debian mirror (no package lists?): run 'apt-get update' or set DEBIAN_MIRROR="
        )
    mirror = mirror.rstrip("/")
    return mirror, security[0].rstrip("/") if security else f"{mirror}-security"


def copy_to(root: Path) -> None:
    """Into the extracted chroot."""
    named = [value for value in environment().values() if value.startswith("/")]
    for name in (*FILES, *named):
        copy(Path(name), root / name.lstrip("/"))
    for name in HOME_FILES:
        copy(Path.home() / name, root / "root" / name)
    (root / "etc/apt/apt.conf.d/99this-machine").write_text(apt_settings(), encoding="utf-8")


def copy(source: Path, target: Path) -> None:
    """A file or folder, if it is there; links become what they name."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copy(source, target)
