# shellcheck shell=bash
# Sourced after lib.sh: patches/ and the git tree that it is applied to.
# shellcheck disable=SC2154

# What patches/ held, and the tip of branch series, when the one was last made
# from the other.
applied=$linux/.git/series-applied

# One committer: the commits are the same on every machine.
export GIT_COMMITTER_NAME=series GIT_COMMITTER_EMAIL=series@localhost

patches_id() { cat "$patches"/*.patch 2>/dev/null | sha256sum; }

# Applies the series in the given work tree, which is at base.
apply_series() {
	local tree=$1 patch
	compgen -G "$patches/*.patch" >/dev/null || return 0
	rm -rf "$(git -C "$tree" rev-parse --git-path rebase-apply)"
	if ! git -C "$tree" am --quiet --committer-date-is-author-date \
	     "$patches"/*.patch >"$build/log/am" 2>&1; then
		patch=$(git -C "$tree" am --show-current-patch=raw 2>/dev/null |
			sed -n '/^Subject: /{s///p;q}') || true
		git -C "$tree" am --abort || true
		cat "$build/log/am" >&2
		die "this patch does not apply to base: ${patch:-unknown}"
	fi
}

mark_applied() {
	{ patches_id; git -C "$linux" rev-parse series; } >"$applied"
}

# What a git that was killed leaves behind stops the next one. Nobody but the holder of
# our lock calls git here, or somebody by hand.
drop_stale_locks() {
	local locks process
	mapfile -t locks < <(find "$linux/.git" -name objects -prune -o -name '*.lock' -print)
	((${#locks[@]})) || return 0
	for process in /proc/[0-9]*; do
		[ "$(cat "$process/comm" 2>/dev/null)" = git ] || continue
		case $(readlink "$process/cwd") in
		"$linux"*) die "a git (process ${process#/proc/}) is at work in $(readlink "$process/cwd")" ;;
		esac
	done
	say "removing what a git that was interrupted has left: ${locks[*]}"
	rm -f "${locks[@]}"
}

clean_scratch() {
	is_worktree "$linux_scratch" &&
	{ git -C "$linux_scratch" am --abort || true; } &&
	git -C "$linux_scratch" checkout --quiet --force --detach base &&
	git -C "$linux_scratch" clean -fdxq
} 2>/dev/null

# Runs a command with the path of $linux_scratch, clean and at base.
with_base_worktree() {
	if ! clean_scratch; then
		new_worktree "$linux_scratch" base
	fi
	"$@" "$linux_scratch"
}
