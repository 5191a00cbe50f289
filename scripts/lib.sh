# shellcheck shell=bash
# Sourced by the other scripts: where things are, how to report, and which
# toolchain builds the kernel. Each fact is known here only.
# shellcheck disable=SC2034

set -euo pipefail

say()  { printf '==> %s\n' "$*" >&2; }
# 2: not a failed test, but no verdict, see docs/results.md. Within a test it is one.
die()  { printf 'error: %s\n' "$*" >&2; exit "${die_status:-2}"; }

# What other programs print is read here, and must not be translated.
unset LANGUAGE
export LC_ALL=C

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$top/build
# make and the kernel's build read these characters otherwise.
awkward='[[:space:]:#$%&;"'\''\\]'
[[ ! $top =~ $awkward ]] ||
	die "make and the kernel's build cannot work in a folder with '${BASH_REMATCH[0]}' in its path: $top"
# Downloads and tools that another clone can use again; never needed.
cache=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
cache=${cache:+$cache/managed-generic}
if [ -z "$cache" ] || [[ $cache =~ $awkward ]] ||
   ! mkdir -p "$cache" 2>/dev/null || [ ! -w "$cache" ]; then
	cache=$build/cache
	export XDG_CACHE_HOME=$cache CARGO_HOME=${CARGO_HOME:-$cache/cargo}
fi
mkdir -p "$build/log" "$cache" || die "cannot write to $build"

base_version=7.3		# the series applies to this release of Linux
linux=$build/linux		# git tree: tag base, branch series
linux_base=$build/linux-base	# worktree of base, for the unpatched kernel
linux_scratch=$build/linux-scratch # worktree to apply patches and build commits in
patches=$top/patches
# Not everybody has the folders of root's programs in PATH.
export PATH=$build/venv/bin:$cache/bindgen/bin:$cache/fsx/bin:$cache/qemu/bin:$PATH:/usr/sbin:/sbin

# The user's git settings (signatures, hooks, formats) are not for our trees, but for
# those on whose trees may be read, and how to get to the network.
use_own_git_config() {
	local config=$build/gitconfig variables entry
	[ "${GIT_CONFIG_GLOBAL:-}" != "$config" ] || return 0
	mapfile -t variables < <(git rev-parse --local-env-vars)
	unset "${variables[@]}"
	: >"$config.$$"
	while IFS= read -r -d '' entry; do
		git config --file "$config.$$" --add "${entry%%$'\n'*}" "${entry#*$'\n'}"
	done < <(git config --global --includes --null --get-regexp '^(safe\.directory|https?\.|url\.)' 2>/dev/null)
	mv "$config.$$" "$config"
	export GIT_CONFIG_GLOBAL=$config
}
if command -v git >/dev/null; then
	use_own_git_config
fi

# While git makes a work tree, it has a file `locked`.
is_worktree() { # folder
	[ -d "$1" ] && [ ! -e "$linux/.git/worktrees/$(basename "$1")/locked" ]
}

# A work tree of build/linux in place of what is there, broken or not.
new_worktree() { # folder, commit
	rm -rf "$1" "$linux/.git/worktrees/$(basename "$1")"
	git -C "$linux" worktree add --quiet --detach "$1" "$2"
}

# For one script at a time: what it changes, another would find half done. Those that it
# calls are part of it, and when it is killed, they keep the lock until they end.
take_lock() {
	local lock=$build/lock
	[ "${BUILD_LOCK:-}" != "$lock" ] || return 0
	exec {lock_fd}>>"$lock"
	if ! flock --nonblock "$lock_fd"; then
		say "waiting for $(tail -n 1 "$lock"), which works in $build"
		flock "$lock_fd"
	fi
	printf '%s\n' "$(basename "$0") (process $$)" >"$lock"
	export BUILD_LOCK=$lock
}

# Runs a long command with its output in a log; shows that it is alive, and the
# end of the log when it fails.
run_logged() { # log, what it is, command...
	local log=$1 what=$2
	shift 2
	say "$what"
	jobs_begin
	job_begin "$(basename "$log")" "$log" "$@"
	jobs_end
}

# Several of them at the same time: jobs_begin, job_begin for each, jobs_end.
jobs_begin() {
	declare -gA job_pids=() job_logs=()
	trap 'end_jobs; exit 130' INT TERM HUP
}

job_begin() { # name, log, command...
	local name=$1 log=$2
	shift 2
	mkdir -p "$(dirname "$log")"
	# A process group of its own, so that all of it can be ended.
	set -m
	"$@" >"$log" 2>&1 </dev/null &
	job_pids[$name]=$!
	job_logs[$name]=$log
	set +m
}

jobs_end() {
	local start=$SECONDS shown=0 name log
	while ((${#job_pids[@]})); do
		sleep 0.2
		for name in "${!job_pids[@]}"; do
			! kill -0 "${job_pids[$name]}" 2>/dev/null || continue
			if ! wait "${job_pids[$name]}"; then
				log=${job_logs[$name]}
				unset "job_pids[$name]"
				end_jobs
				grep -E 'error|Error|fatal' "$log" | head -n 10 >&2 || true
				tail -n 15 "$log" >&2
				die "$name failed, see $log"
			fi
			unset "job_pids[$name]"
			printf '    %3d s  %s: done\n' $((SECONDS - start)) "$name" >&2
		done
		if ((SECONDS - start - shown >= 30)); then
			shown=$((SECONDS - start))
			for name in "${!job_pids[@]}"; do
				printf '    %3d s  %s: %s\n' "$shown" "$name" \
					"$(tail -n 1 "${job_logs[$name]}" | tr -d '\r' | cut -c1-90)" >&2
			done
		fi
	done
	trap - INT TERM HUP
}

end_jobs() {
	local pid
	for pid in "${job_pids[@]}"; do
		kill -- -"$pid" 2>/dev/null || true
	done
	wait
}

have() { command -v "$1" >/dev/null; }

version_at_least() { # HAVE WANTED
	[ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

works() { "$@" >/dev/null 2>&1 </dev/null; }

# The first version number that a program prints of itself.
version_of() { # program
	"$1" --version 2>/dev/null </dev/null | grep -oE -m 1 '[0-9]+\.[0-9]+(\.[0-9]+)?' | head -n 1
}

program_at_least() { # program, version
	local version
	version=$(version_of "$1") && version_at_least "$version" "$2"
}

# Suffix of clang, ld.lld and so on: what is plainly in PATH if that is new enough.
find_llvm() {
	local suffix tool
	for suffix in '' -19 -20 -21 -22 -18 -17; do
		for tool in ld.lld llvm-ar llvm-nm llvm-objcopy llvm-strip llvm-readelf; do
			have "$tool$suffix" || continue 2
		done
		program_at_least "clang$suffix" 17.0.1 || continue
		printf '%s\n' "$suffix"
		return
	done
	return 1
}

# The folder of the libclang that belongs to a clang, for bindgen.
libclang_folder() { # suffix
	local folder
	folder=$(dirname "$(dirname "$(readlink -f "$(command -v "clang$1")")")")/lib
	compgen -G "$folder/libclang*.so*" | grep -qv 'libclang-cpp' && printf '%s\n' "$folder"
}

# A rustc that is new enough and comes with the source of its library. Asked for more
# tools, one that has them beside it.
find_rustc() { # tool...
	local rustc tool
	for rustc in "${RUSTC:-}" rustc /usr/bin/rustc; do
		rustc=$(command -v "$rustc") || continue
		program_at_least "$rustc" 1.85.0 || continue
		[ -e "$("$rustc" --print sysroot)/lib/rustlib/src/rust/library/core/src/lib.rs" ] || continue
		for tool in "$@"; do
			works "$(dirname "$rustc")/$tool" --version || continue 2
		done
		printf '%s\n' "$rustc"
		return
	done
	return 1
}

# For selftests/, with what edition 2024 and its lock file need, and with the subcommands.
find_cargo() { # subcommand...
	local cargo command
	for cargo in "${CARGO:-}" cargo /usr/bin/cargo; do
		cargo=$(command -v "$cargo") || continue
		program_at_least "$cargo" 1.85.0 || continue
		program_at_least "$(dirname "$cargo")/rustc" 1.85.0 || continue
		for command in "$@"; do
			works run_cargo "$cargo" "$command" -h || continue 2
		done
		printf '%s\n' "$cargo"
		return
	done
	return 1
}

# With the rustc that belongs to it.
run_cargo() { # cargo, argument...
	PATH=$(dirname "$1"):$PATH "$@"
}

have_bindgen() { program_at_least bindgen 0.71.1; }
have_qemu() { # x86_64|arm64
	local name=x86_64
	[ "$1" != arm64 ] || name=aarch64
	program_at_least "qemu-system-$name" 7.2
}

# Everything that builds a kernel: kernel_make flavour [target...]
kernel_make() {
	local flavour=$1 source=$linux arch=() lines=() toolchain file
	shift
	case $flavour in
	base|base-drivers) source=$linux_base ;;
	bisect|groups-c|groups-rust) source=$linux_scratch ;;
	powerpc-drivers) arch=(ARCH=powerpc) ;;
	# Which line an instruction is of, for little else than what is looked at: all other
	# objects are those of the series kernel, which ccache has.
	coverage)
		lines=(KRUSTFLAGS=-Cdebuginfo=line-tables-only)
		for file in hmm memremap migrate_device test_hmm; do
			lines+=("CFLAGS_$file.o=-gline-tables-only")
		done ;;
	esac
	find_toolchain "$flavour"
	make -C "$source" O="$(kernel_dir "$flavour")" "${arch[@]}" "${lines[@]}" "${toolchain[@]}" \
		LOCALVERSION="-$flavour" -j"$(nproc)" "$@"
}

# Sets toolchain to variables of the kernel's make, and what ccache and bindgen go by.
find_toolchain() { # flavour
	local suffix cc rustc='' bin libclang
	suffix=$(find_llvm) || die "no clang 17 or later with lld and LLVM's tools, run 'make deps'"
	[ "$1" != clippy ] || rustc=$(find_rustc clippy-driver rustfmt) || true
	[ -n "$rustc" ] || rustc=$(find_rustc) ||
		die "no rustc 1.85 or later with its library source, run 'make deps'"
	bin=$(dirname "$rustc")
	cc=clang$suffix
	libclang=$(libclang_folder "$suffix") && export LIBCLANG_PATH=$libclang
	if command -v ccache >/dev/null; then
		cc="ccache $cc"
		export CCACHE_DIR=$cache/ccache CCACHE_MAXSIZE=5G
		# What make knows of a file's headers is enough: no preprocessor in between.
		export CCACHE_DEPEND=true
		# The same file of another clone is the same.
		export CCACHE_BASEDIR=$top
	fi
	toolchain=(LLVM="${suffix:-1}" CC="$cc" RUSTC="$rustc" HOSTRUSTC="$rustc"
		RUSTDOC="$bin/rustdoc" RUSTFMT="$bin/rustfmt" CLIPPY_DRIVER="$bin/clippy-driver")
}

kernel_dir() {
	case $1 in
	series)	echo "$build/kernel" ;;
	base|debug|kcsan|coverage|kselftest|bisect|groups-c|groups-rust|clippy|drivers|base-drivers|powerpc-drivers)
		echo "$build/$1" ;;
	*)	die "unknown kernel '$1', use series, base, debug, kcsan, coverage or kselftest" ;;
	esac
}
