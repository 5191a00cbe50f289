# shellcheck shell=bash
# Sourced by the other scripts: where things are, how to report, and which
# toolchain builds the kernel. Each fact is known here only.
# shellcheck disable=SC2034

set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$top/build
# Downloads that another clone can use again; never needed.
cache=${XDG_CACHE_HOME:-${HOME:-$build}/.cache}/managed-generic

base_version=7.3		# the series applies to this release of Linux
linux=$build/linux		# git tree: tag base, branch series
linux_base=$build/linux-base	# worktree of base, for the unpatched kernel
linux_scratch=$build/linux-scratch # worktree to apply patches and build commits in
patches=$top/patches
export PATH=$build/venv/bin:$cache/bindgen/bin:$cache/fsx/bin:$PATH

# The user's git settings (signatures, hooks, formats) are not for our trees.
if command -v git >/dev/null; then
	mapfile -t git_variables < <(git rev-parse --local-env-vars)
	unset "${git_variables[@]}"
fi
export GIT_CONFIG_GLOBAL=/dev/null

say()  { printf '==> %s\n' "$*" >&2; }
die()  { printf 'error: %s\n' "$*" >&2; exit 1; }

# Runs a long command with its output in a log; shows that it is alive, and the
# end of the log when it fails.
run_logged() {
	local log=$1 what=$2 start=$SECONDS shown=0 pid
	shift 2
	mkdir -p "$(dirname "$log")"
	say "$what"
	# A process group of its own, so that all of it can be ended.
	set -m
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	set +m
	trap 'kill -- -"$pid" 2>/dev/null; wait "$pid"; exit 130' INT TERM HUP
	while kill -0 "$pid" 2>/dev/null; do
		sleep 1
		if ((SECONDS - start - shown >= 30)); then
			shown=$((SECONDS - start))
			printf '    %3d s  %s\n' "$shown" \
				"$(tail -n 1 "$log" | tr -d '\r' | cut -c1-90)" >&2
		fi
	done
	trap - INT TERM HUP
	if ! wait "$pid"; then
		grep -E 'error|Error|fatal' "$log" | head -n 10 >&2 || true
		tail -n 15 "$log" >&2
		die "$what: failed, see $log"
	fi
	printf '    done in %d s\n' $((SECONDS - start)) >&2
}

have() { command -v "$1" >/dev/null; }

version_at_least() { # HAVE WANTED
	[ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

# The kernel's Makefile takes LLVM=-19 for clang-19, ld.lld-19 and so on.
find_llvm() {
	local suffix
	for suffix in -19 -20 -21 -18 -17; do
		if have "clang$suffix" && have "ld.lld$suffix" && have "llvm-ar$suffix"; then
			printf '%s\n' "$suffix"
			return
		fi
	done
	return 1
}

# A rustc that is new enough and comes with the source of its library.
find_rustc() {
	local rustc
	for rustc in "${RUSTC:-}" rustc /usr/bin/rustc; do
		rustc=$(command -v "$rustc") || continue
		version_at_least "$("$rustc" --version 2>/dev/null | cut -d' ' -f2)" 1.85.0 &&
		[ -e "$("$rustc" --print sysroot)/lib/rustlib/src/rust/library/core/src/lib.rs" ] &&
			printf '%s\n' "$rustc" && return
	done
	return 1
}

# For selftests/: with what edition 2024 and its lock file need, clippy and rustfmt.
find_cargo() {
	local cargo
	for cargo in "${CARGO:-}" cargo /usr/bin/cargo; do
		cargo=$(command -v "$cargo") || continue
		version_at_least "$("$cargo" --version 2>/dev/null | cut -d' ' -f2)" 1.85.0 &&
		"$cargo" clippy --version >/dev/null 2>&1 &&
		"$cargo" fmt --version >/dev/null 2>&1 &&
			printf '%s\n' "$cargo" && return
	done
	return 1
}

have_bindgen() {
	local version
	version=$(bindgen --version 2>/dev/null | cut -d' ' -f2)
	[ -n "$version" ] && version_at_least "$version" 0.71.1
}

# Everything that builds a kernel: kernel_make flavour [target...]
kernel_make() {
	local flavour=$1 source=$linux arch=() cc=clang llvm rustc bin
	shift
	case $flavour in
	base|base-drivers) source=$linux_base ;;
	bisect)	source=$linux_scratch ;;
	powerpc-drivers) arch=(ARCH=powerpc) ;;
	esac
	llvm=$(find_llvm) || die "no clang 17 or later with lld, run 'make deps'"
	rustc=$(find_rustc) || die "no rustc 1.85 or later with its library source, run 'make deps'"
	bin=$(dirname "$rustc")
	cc=clang$llvm
	if command -v ccache >/dev/null; then
		cc="ccache $cc"
		export CCACHE_DIR=$cache/ccache CCACHE_MAXSIZE=5G
	fi
	make -C "$source" O="$(kernel_dir "$flavour")" "${arch[@]}" LLVM="$llvm" CC="$cc" \
		RUSTC="$rustc" HOSTRUSTC="$rustc" RUSTDOC="$bin/rustdoc" \
		RUSTFMT="$bin/rustfmt" CLIPPY_DRIVER="$bin/clippy-driver" \
		LOCALVERSION="-$flavour" -j"$(nproc)" "$@"
}

kernel_dir() {
	case $1 in
	series)	echo "$build/kernel" ;;
	base|debug|kselftest|bisect|clippy|drivers|base-drivers|powerpc-drivers) echo "$build/$1" ;;
	*)	die "unknown kernel '$1', use series, base, debug or kselftest" ;;
	esac
}
