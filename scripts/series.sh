# shellcheck shell=bash
# Sourced after lib.sh: patches/ and the git tree that it is applied to, where each folder
# of patches/ is a branch group/FOLDER at its last commit.
# shellcheck disable=SC2154

# What patches/ held, and the state of the branches, when the one was last made from the
# other.
applied=$linux/.git/series-applied

# One committer: the commits are the same on every machine.
export GIT_COMMITTER_NAME=series GIT_COMMITTER_EMAIL=series@localhost

patches_id() { (cd "$patches" && sha256sum -- */*.patch 2>/dev/null) | sha256sum | cut -d' ' -f1; }

# The tip of branch series, and the branches of the groups.
branches() {
	git -C "$linux" rev-parse series
	git -C "$linux" for-each-ref --format='%(objectname) %(refname:lstrip=3)' refs/heads/group/
}

# The same for patches/, in a work tree to which they have just been applied.
branches_of_patches() { # tree
	local commits folder count=0
	git -C "$1" rev-parse HEAD
	mapfile -t commits < <(git -C "$1" rev-list --reverse base..HEAD)
	for folder in "$patches"/*/; do
		compgen -G "$folder*.patch" >/dev/null || continue
		((count += $(compgen -G "$folder*.patch" | wc -l)))
		printf '%s %s\n' "${commits[count - 1]}" "$(basename "$folder")"
	done
}

# Makes the branches of the groups, and no others, of what branches_of_patches says.
set_groups() { # file
	git -C "$linux" for-each-ref --format='delete %(refname)' refs/heads/group/ |
		git -C "$linux" update-ref --stdin
	sed -n 's,^\([0-9a-f]*\) \([^ ]*\)$,create refs/heads/group/\2 \1,p' "$1" |
		git -C "$linux" update-ref --stdin
}

# The file in patches/ that is a commit.
patch_of() { # commit
	local group before=base
	while read -r group; do
		if git -C "$linux" merge-base --is-ancestor "$1" "group/$group"; then
			printf 'patches/%s/%04d-*.patch\n' "$group" \
				"$(git -C "$linux" rev-list --count "$before..$1")"
			return
		fi
		before=group/$group
	done < <(git -C "$linux" for-each-ref --format='%(refname:lstrip=3)' refs/heads/group/)
	echo 'in no group'
}

# Applies the series in the given work tree, which is at base.
apply_series() {
	local tree=$1 patch
	compgen -G "$patches/*/*.patch" >/dev/null || return 0
	rm -rf "$(git -C "$tree" rev-parse --git-path rebase-apply)"
	if ! git -C "$tree" am --quiet --committer-date-is-author-date \
	     "$patches"/*/*.patch >"$build/log/am" 2>&1; then
		patch=$(git -C "$tree" am --show-current-patch=raw 2>/dev/null |
			sed -n '/^Subject: /{s///p;q}') || true
		git -C "$tree" am --abort || true
		cat "$build/log/am" >&2
		die "this patch does not apply to base: ${patch:-unknown}"
	fi
}

mark_applied() {
	{ patches_id; branches; } >"$applied"
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
