"""The machines that have broken scripts/deps and scripts/tree, each with what must come of it."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from test_deps.chroot import PROJECT, PROJECT_CACHE, CaseError, Chroot


def deps(target: str) -> str:
    """The command that installs what a target of the Makefile needs."""
    return f"scripts/deps $(make --eval 'needs: ; @echo $(needs-{target})' needs)"


DEPS = deps("run")
ALL = ("bookworm", "trixie", "sid")
# What `make run` does without.
NOT_FOR_RUN = ("daxctl", "fio", "ndctl", "rust-clippy", "rust-web-clippy", "shellcheck", "sparse", "xfsprogs")

# Each tool of the kernel's build does something.
TOOLS_WORK = r"""
set -e
. scripts/lib.sh
cd "$(mktemp -d)"
llvm=$(find_llvm) && rustc=$(find_rustc) && have_bindgen
echo 'int main(void) { return 0; }' >main.c
echo 'struct pair { int first; };' >pair.h
echo 'pub fn first() -> i32 { 1 }' >first.rs
clang$llvm -c main.c -o main.o
ld.lld$llvm -r main.o -o linked.o
llvm-nm$llvm linked.o | grep -w main
"$rustc" --edition 2021 --crate-type lib --emit obj first.rs
bindgen pair.h | grep -w first
gcc main.c -lelf -lcrypto -o main && ./main
make --version && flex --version && bison --version && bc --version && ccache --version
"""

# Firmware, and the devices that the VM needs.
QEMU_WORKS = r"""
set -e
. scripts/lib.sh
qemu-system-x86_64 --version
echo quit | timeout 60 qemu-system-x86_64 -machine q35,accel=tcg -S -nodefaults -display none -monitor stdio \
	-m 256M -fsdev local,id=share,path=/tmp,security_model=none,readonly=on,multidevs=remap \
	-device virtio-9p-pci,fsdev=share,mount_tag=share -device virtio-serial-pci
"$build/venv/bin/vng" --version
"""

# What makes an RDMA device, and what uses it.
RDMA_WORKS = r"""
set -e
rdma -V
python3 -c 'import ctypes; ctypes.CDLL("libibverbs.so.1")'
ls /usr/lib/*/libibverbs/librxe-*.so
"""

Body = Callable[[Chroot], None]


@dataclass(frozen=True)
class Case:
    """A test on one suite."""

    name: str
    body: Body
    needs: str
    layers: tuple[str, ...]


CASES: dict[str, Case] = {}


def case(*suites: str, on: str = "", layers: tuple[str, ...] = ()) -> Callable[[Body], Body]:
    """Makes a test of a function. It starts with a minimal Debian, or with what the test `on` has left;
    layers are files that are there as well."""

    def add(body: Body) -> Body:
        for suite in suites:
            name = f"{suite}/{body.__name__.replace('_', '-')}"
            CASES[name] = Case(name, body, f"{suite}/{on}" if on else "", layers)
        return body

    return add


def expect(condition: object, message: str) -> None:
    """Fails the case."""
    if not condition:
        raise CaseError(message)


def expect_in(text: str, output: str) -> None:
    """A message, of which only the part that is given matters."""
    expect(re.search(text, output), f"no message '{text}'")


def unchanged(before: dict[str, str], after: dict[str, str]) -> None:
    """Nothing that was installed has gone or has another version."""
    gone = sorted(before.keys() - after.keys())
    kept = sorted(before.keys() & after.keys())
    changed = [f"{name} {before[name]} to {after[name]}" for name in kept if before[name] != after[name]]
    expect(not gone, f"removed: {' '.join(gone)}")
    expect(not changed, f"changed: {', '.join(changed)}")


def deps_keep_packages(chroot: Chroot, command: str = DEPS, **options: Any) -> str:
    """Installs what make run needs, and only installs it."""
    before = chroot.packages()
    output = chroot.good(command, **options)
    unchanged(before, chroot.packages())
    return output


def everything_works(chroot: Chroot) -> None:
    """Of what make run needs."""
    chroot.good(TOOLS_WORK)
    chroot.good(QEMU_WORKS)
    chroot.good(RDMA_WORKS)


@case("bookworm")
def kernel(chroot: Chroot) -> None:
    """make kernel on a minimal Debian with git and make: needs no QEMU."""
    deps_keep_packages(chroot, deps("kernel"))
    chroot.good(TOOLS_WORK)
    expect("qemu-system-x86" not in chroot.packages(), "QEMU is installed")


@case("bookworm", layers=("bindgen",))
@case("trixie", "sid")
def plain(chroot: Chroot) -> None:
    """make run on a minimal Debian with git and make."""
    deps_keep_packages(chroot)
    everything_works(chroot)


@case(*ALL, on="plain")
def only_what_run_needs(chroot: Chroot) -> None:
    """make run has no use for file systems, lints and what they test with."""
    installed = chroot.packages().keys()
    needless = [name for name in NOT_FOR_RUN if name in installed]
    expect(not needless, f"installed: {' '.join(needless)}")
    chroot.bad(". scripts/lib.sh; command -v fsx")


@case(*ALL, on="plain")
def again(chroot: Chroot) -> None:
    """Nothing is left to do, not even to ask the mirror."""
    before = chroot.packages()
    output = chroot.good(DEPS, network=False, timeout=300)
    expect(output.strip() == "", f"says something: {output.strip()}")
    unchanged(before, chroot.packages())


@case("trixie", "sid", on="plain")
def bindgen_of_debian(chroot: Chroot) -> None:
    """It is new enough, so none is compiled."""
    chroot.good('. scripts/lib.sh; [ "$(command -v bindgen)" = /usr/bin/bindgen ]')
    chroot.bad(f"[ -e {PROJECT_CACHE}/bindgen ]")


@case("bookworm", "trixie", on="plain")
def deps_of_test(chroot: Chroot) -> None:
    """What make test needs, which is everything."""
    deps_keep_packages(chroot, "scripts/deps")
    chroot.good(". scripts/lib.sh; cargo=$(find_cargo) && $cargo clippy --version && $cargo fmt --version")
    for tool in ("fsx", "fio", "ndctl", "daxctl", "mkfs.xfs", "mkfs.ext4", "shellcheck", "sparse"):
        chroot.good(f". scripts/lib.sh; command -v {tool}")
    everything_works(chroot)


@case("bookworm", on="kernel")
def qemu_utils_of_backports(chroot: Chroot) -> None:
    """Backports are no longer configured: Debian's own QEMU would remove qemu-utils."""
    chroot.good("""
        set -e
        cd /etc/apt
        sed -n 's/ bookworm main/ bookworm-backports main/p' sources.list >sources.list.d/backports.list
        apt-get -qq update
        apt-get -qq -y --no-install-recommends -t bookworm-backports install qemu-utils
        rm sources.list.d/backports.list
        apt-get -qq update
    """)
    deps_keep_packages(chroot)
    everything_works(chroot)


@case("bookworm", on="kernel")
def qemu_not_installable(chroot: Chroot) -> None:
    """A package forbids QEMU of any suite: it is unpacked."""
    chroot.good("""
        set -e
        mkdir -p /tmp/other/DEBIAN
        printf '%s: %s\\n' Package other-qemu Version 1 Architecture all Maintainer test Description test \\
            Conflicts 'qemu-system-x86, qemu-system-common, qemu-system-data' >/tmp/other/DEBIAN/control
        dpkg-deb --build /tmp/other /tmp/other.deb
        dpkg -i /tmp/other.deb
    """)
    deps_keep_packages(chroot)
    expect("qemu-system-x86" not in chroot.packages(), "QEMU is installed")
    everything_works(chroot)


@case("bookworm", layers=("bindgen",))
def upgrade_needed(chroot: Chroot) -> None:
    """libelf-dev of any suite needs a newer libelf1: only with the user's word."""
    chroot.good("""
        set -e
        cd /tmp
        apt-get -qq update
        apt-get -qq download libelf1
        dpkg-deb -R libelf1_*.deb libelf1
        sed -i 's/^Version: .*/Version: 0.187-1~old/' libelf1/DEBIAN/control
        dpkg-deb -b libelf1 old.deb
        apt-get -qq -y --no-install-recommends install ./old.deb
    """)
    before = chroot.packages()
    output = chroot.bad(DEPS)
    expect_in(r"(?s)libelf1\b.*0\.187-1~old.*UPGRADE=yes", output)
    unchanged(before, chroot.packages())
    chroot.good(f"UPGRADE=yes {DEPS}")
    after = chroot.packages()
    expect(after["libelf1:amd64"] != before["libelf1:amd64"], "libelf1 is not upgraded")
    unchanged(before | {"libelf1:amd64": after["libelf1:amd64"]}, after)
    everything_works(chroot)


@case("bookworm", on="kernel", layers=("kernel-package",))
def translated(chroot: Chroot) -> None:
    """apt speaks German."""
    chroot.good("""
        set -e
        apt-get -qq update
        apt-get -qq -y --no-install-recommends install locales
        echo 'de_DE.UTF-8 UTF-8' >/etc/locale.gen
        locale-gen
    """)
    chroot.environment |= {"LANG": "de_DE.UTF-8", "LANGUAGE": "de"}
    expect_in("Installationskandidat|Kandidat", chroot.good("apt-cache policy bc"))
    deps_keep_packages(chroot)
    everything_works(chroot)
    chroot.good("scripts/fetch-kernel")


@case("bookworm", on="kernel", layers=("new-bindgen",))
def bindgen_does_not_run(chroot: Chroot) -> None:
    """The cache has one that was built against a newer C library."""
    expect_in("GLIBC", chroot.bad(f"{PROJECT_CACHE}/bindgen/bin/bindgen --version"))
    deps_keep_packages(chroot)
    everything_works(chroot)


@case("bookworm", on="plain")
def rustup_without_toolchain(chroot: Chroot) -> None:
    """Debian's Rust is there, but not first in PATH."""
    without_toolchain(chroot)
    deps_keep_packages(chroot)
    everything_works(chroot)


@case("bookworm", layers=("bindgen",))
def only_rustup_without_toolchain(chroot: Chroot) -> None:
    """Debian's Rust is installed beside it."""
    without_toolchain(chroot)
    deps_keep_packages(chroot)
    everything_works(chroot)


@case("bookworm", on="plain")
def rustup_without_clippy(chroot: Chroot) -> None:
    """The first cargo in PATH has neither clippy nor rustfmt, which make check needs."""
    chroot.add_program(
        "/usr/local/bin/cargo",
        """#!/bin/sh
        case $1 in
        clippy|fmt) echo "error: 'cargo-$1' is not installed for the toolchain 'stable'" >&2; exit 1 ;;
        esac
        exec /usr/bin/cargo "$@"
        """,
    )
    chroot.bad("cargo clippy --version")
    deps_keep_packages(chroot, deps("check") + " && " + deps("clippy"))
    chroot.good('. scripts/lib.sh; cargo=$(find_cargo) && "$cargo" clippy --version')


def without_toolchain(chroot: Chroot) -> None:
    """As rustup leaves it when no toolchain was chosen."""
    for name in ("rustc", "cargo"):
        chroot.add_program(
            f"/usr/local/bin/{name}",
            f"""#!/bin/sh
            echo "error: rustup could not choose a version of {name} to run" >&2
            exit 1
            """,
        )
    chroot.bad("cargo --version")


@case("bookworm", on="kernel")
def read_only_home(chroot: Chroot) -> None:
    """As of a service; caches go to build/."""
    read_only = "mkdir -p /srv/home; mount --bind /srv/home /srv/home; mount -o remount,bind,ro /srv/home; "
    chroot.environment["HOME"] = "/srv/home"
    chroot.bad(f"{read_only} touch /srv/home/file")
    deps_keep_packages(chroot, f"{read_only} {DEPS}")
    chroot.good(read_only + TOOLS_WORK)
    chroot.good(read_only + QEMU_WORKS)


@case("bookworm", on="kernel")
def no_root(chroot: Chroot) -> None:
    """Says what root has to do, and that is enough."""
    make_user(chroot)
    before = chroot.packages()
    output = chroot.bad(DEPS, user="user", folder="/home/user/project")
    unchanged(before, chroot.packages())
    commands = [line.strip() for line in output.splitlines() if re.match(r"\s+'?apt-get", line)]
    names = [name for line in commands for name in shlex.split(line.partition("install")[2])]
    expect("qemu-system-x86" in names, "no command to install the packages")
    twice = sorted({name for name in names if names.count(name) > 1})
    expect(not twice, f"named twice: {' '.join(twice)}")
    for line in commands:
        chroot.good(f"yes | {line}")
    unchanged(before, chroot.packages())
    chroot.good(DEPS, user="user", folder="/home/user/project")
    chroot.good(TOOLS_WORK, user="user", folder="/home/user/project")
    chroot.good(QEMU_WORKS, user="user", folder="/home/user/project")


@case("bookworm", on="kernel")
def sudo(chroot: Chroot) -> None:
    """A user who may do anything, as on most CI machines."""
    make_user(chroot)
    chroot.good("""
        apt-get -qq update && apt-get -qq -y install sudo &&
        echo 'user ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/user
    """)
    deps_keep_packages(chroot, user="user", folder="/home/user/project")
    chroot.good(TOOLS_WORK, user="user", folder="/home/user/project")
    chroot.good(QEMU_WORKS, user="user", folder="/home/user/project")
    foreign = chroot.good("find /home/user ! -user user")
    expect(foreign == "", f"files of root: {foreign}")


def make_user(chroot: Chroot) -> None:
    """With a checkout and a cache of its own."""
    chroot.good(f"""
        set -e
        useradd --create-home user
        cp -a {PROJECT} /home/user/project
        if [ -d {PROJECT_CACHE} ]; then
            mkdir -p /home/user/.cache
            cp -a {PROJECT_CACHE} /home/user/.cache/
        fi
        chown -R user: /home/user
    """)
    chroot.environment["HOME"] = "/home/user"


@case("bookworm")
def path_with_space(chroot: Chroot) -> None:
    """make cannot do with it: said before anything is installed."""
    refuses_path(chroot, "/root/my project")


@case("bookworm")
def path_with_colon(chroot: Chroot) -> None:
    """PATH cannot hold it: said before anything is installed."""
    refuses_path(chroot, "/root/my:project")


def refuses_path(chroot: Chroot, path: str) -> None:
    """make and each script name it, with nothing else done."""
    chroot.good(f"cp -a {PROJECT} '{path}'")
    before = chroot.packages()
    for command in ("make run", "make test", DEPS):
        output = chroot.bad(command, folder=path, timeout=300)
        first = output.splitlines()[0]
        expect(path in first and "error" in first, f"the first line does not name the path: {first}")
        unchanged(before, chroot.packages())
    chroot.bad(f"[ -e '{path}/build/log/apt-update' ]")


@case("bookworm", on="kernel", layers=("kernel-package",))
def killed(chroot: Chroot) -> None:
    """Whatever is interrupted, the next make goes on."""
    chroot.run_and_kill("scripts/tree", "importing it into git", 5)
    chroot.run_and_kill("scripts/tree", "applying the series", 3)
    # Where git is interrupted most of the time.
    chroot.good("touch build/linux/.git/worktrees/linux-scratch/index.lock")
    chroot.good("make tree")
    chroot.good("""
        set -e
        . scripts/lib.sh
        [ "$(git -C "$linux" rev-list --count base..series)" = "$(find patches -name '*.patch' | wc -l)" ]
        [ "$(git -C "$linux" for-each-ref refs/heads/group/ | wc -l)" = "$(ls -d patches/*/ | wc -l)" ]
        [ -z "$(git -C "$linux" status --porcelain --untracked-files=no)" ]
    """)
    # The same for a change of the series.
    chroot.good('echo >>patches/README.md; rm "$(ls patches/*/*.patch | tail -n 1)"')
    chroot.run_and_kill("scripts/tree", "applying the series", 2)
    chroot.good("touch build/linux/.git/worktrees/linux-scratch/index.lock build/linux/.git/index.lock")
    chroot.good("make tree")


@case("bookworm", on="kernel")
def safe_directory(chroot: Chroot) -> None:
    """The kernel tree is another user's, and the user's git settings say that it may be used."""
    chroot.good("""
        set -e
        useradd --create-home other
        mkdir /srv/linux
        cd /srv/linux
        printf '%s\\n' 'VERSION = 7' 'PATCHLEVEL = 3' 'SUBLEVEL = 0' >Makefile
        git init -q
        git add .
        git -c user.name=other -c user.email=other@localhost commit -qm linux
        chown -R other: /srv/linux
    """)
    expect_in("dubious ownership", chroot.bad("git -C /srv/linux log --oneline"))
    # Some versions of git want the second to clone it.
    for path in ("/srv/linux", "/srv/linux/.git"):
        chroot.good(f"git config --global --add safe.directory {path}")
    # The series does not apply to this tree, but before that comes what is tested.
    output = chroot.bad("KERNEL=/srv/linux scripts/tree", timeout=300)
    expect_in("this patch does not apply to base", output)
    expect("mrproper" not in output and "dubious" not in output, "not taken as a git tree")
    chroot.good('[ "$(git -C build/linux log -1 --format=%s base)" = linux ]')


@case("bookworm", on="plain")
def no_network(chroot: Chroot) -> None:
    """What is there is enough for make run; what is not there is named."""
    before = chroot.packages()
    chroot.good(DEPS, network=False, timeout=300)
    output = chroot.bad(deps("dax"), network=False, timeout=600)
    expect_in("error: ", output)
    expect_in("(?i)network|resolving", output)
    expect_in(r"\bfio\b", output)
    output = chroot.bad("scripts/fetch-kernel", network=False, timeout=600)
    expect_in("error: .*network", output)
    unchanged(before, chroot.packages())


@case("bookworm")
def no_network_at_all(chroot: Chroot) -> None:
    """A fresh machine without it ends soon, and says why."""
    output = chroot.bad("make run", network=False, timeout=600)
    expect_in("error: .*network", output)


@case("bookworm", on="kernel")
def two_at_once(chroot: Chroot) -> None:
    """Of the same checkout."""
    before = chroot.packages()
    chroot.good(f"""
        {DEPS} >first 2>&1 &
        {DEPS} >second 2>&1
        second=$?
        wait $!
        first=$?
        cat first second
        exit $((first | second))
    """)
    unchanged(before, chroot.packages())
    everything_works(chroot)
