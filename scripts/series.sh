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

# Runs a command with the path of $linux_scratch, clean and at base.
with_base_worktree() {
	git -C "$linux" worktree prune
	if [ -d "$linux_scratch" ]; then
		git -C "$linux_scratch" am --abort 2>/dev/null || true
		git -C "$linux_scratch" checkout --quiet --force --detach base
		git -C "$linux_scratch" clean -fdxq
	else
		git -C "$linux" worktree add --quiet --detach "$linux_scratch" base
	fi
	"$@" "$linux_scratch"
}
