# shellcheck shell=bash
# Sourced after lib.sh: directories of this repository that are the one source of
# a directory in the kernel tree. `tree` lays them into build/linux, `export` puts
# them into the series, `check` finds what differs.
# shellcheck disable=SC2154

# Directory here, path in the kernel tree.
declare -A overlays=(
	[kunit]=mm/tests/zone_device
	[rust_test_hmm]=lib/test_hmm_rs
)

# Those that this repository has.
active_overlays() {
	local name
	for name in "${!overlays[@]}"; do
		! compgen -G "$top/$name/*" >/dev/null || printf '%s\n' "$name"
	done
}

overlay_git() {
	GIT_INDEX_FILE=$linux/.git/overlay-index git --git-dir="$linux/.git" "$@"
}

# A directory's content as a git tree in build/linux; without the directory, the
# empty tree. What this repository ignores and what editors leave is not content.
# (The .gitignore in Debian's kernel tree is of no use here, it names everything.)
directory_tree() {
	rm -f "$linux/.git/overlay-index"
	{ [ ! -d "$1" ] || overlay_git -C "$1" --work-tree="$1" \
		-c core.excludesFile="$top/.gitignore" \
		add --all -- . ':(exclude,glob)**/.*.sw?' ':(exclude,glob)**/*~'; } &&
	overlay_git write-tree
}

commit_tree() { # commit, path
	overlay_git rev-parse --quiet --verify "$1:$2" || overlay_git mktree </dev/null
}

files_that_differ() { # tree, tree
	overlay_git diff-tree -r --no-renames --name-only "$1" "$2" | xargs
}

# A note of what was laid into the kernel tree last, and of what branch series had
# then.
note_overlay() { # name, tree
	{ printf '%s\n' "$2"; commit_tree series "${overlays[$1]}"; } >"$linux/.git/overlay-$1"
}

# Stops when files of the copy in build/linux are neither this repository's, nor as
# noted, nor in one of the given trees: somebody's work, which must not get lost.
refuse_edits() { # name, tree...
	local name=$1 path=${overlays[$1]} copy known tree edits
	shift
	copy=$(directory_tree "$linux/$path")
	known=$(directory_tree "$top/$name"
		cat "$linux/.git/overlay-$name" 2>/dev/null || commit_tree series "$path"
		printf '%s\n' "$@")
	edits=$(for tree in $known; do
			overlay_git ls-tree -r "$tree"
		done | sort -u |
			comm -13 - <(overlay_git ls-tree -r "$copy" | sort) | cut -f2 | xargs)
	[ -z "$edits" ] ||
		die "$path in $linux has changes that are not in $top/$name, the source of it: $edits. Copy these files there to keep the changes, delete them here to lose them"
}

# The changes in build/linux that are in no commit, but for the overlays'.
uncommitted() {
	local name outside=()
	for name in $(active_overlays); do
		outside+=(":(exclude)${overlays[$name]}")
	done
	git -C "$linux" status --porcelain --untracked-files=no -- . "${outside[@]}" |
		cut -c4- | xargs
}

series_checked_out() {
	[ "$(git -C "$linux" symbolic-ref --quiet HEAD)" = refs/heads/series ]
}

# Gives the path in build/linux the content of the tree. Files that stay the same are
# not touched, and not compiled again.
lay_tree() { # path, tree
	local path=$1 tree=$2 copy file
	copy=$(directory_tree "$linux/$path")
	[ "$copy" != "$tree" ] || return 0
	while IFS= read -r -d '' file; do
		rm "$linux/$path/$file"
	done < <(overlay_git diff-tree -r -z --no-renames --name-only --diff-filter=D "$copy" "$tree")
	mkdir -p "$linux/$path"
	overlay_git read-tree "$tree"
	overlay_git diff-tree -r -z --no-renames --name-only --diff-filter=d "$copy" "$tree" |
		overlay_git -C "$linux/$path" --work-tree="$linux/$path" \
			checkout-index --force -z --stdin
	find "$linux/$path" -type d -empty -delete
}

lay_overlay() { # name
	local name=$1 path=${overlays[$1]} here copy
	here=$(directory_tree "$top/$name")
	copy=$(directory_tree "$linux/$path")
	if [ "$here" != "$copy" ]; then
		refuse_edits "$name"
		say "$name to $path of build/linux: $(files_that_differ "$copy" "$here")"
		lay_tree "$path" "$here"
	fi
	note_overlay "$name" "$here"
}

lay_overlays() {
	local name
	for name in $(active_overlays); do
		if series_checked_out; then
			lay_overlay "$name"
		else
			say "branch series of $linux is not checked out: $name stays out of it"
		fi
	done
}

# Makes the copies those of the commit that is checked out, so that another can be.
drop_overlays() {
	local name path
	for name in $(active_overlays); do
		path=${overlays[$name]}
		lay_tree "$path" "$(commit_tree HEAD "$path")"
		git -C "$linux" reset --quiet -- "$path"
	done
}

# The same commit with another parent, and with these files of the tree at the path, or
# without those that the tree does not have.
rewrite_commit() { # commit, parent, path, tree, file...
	local root commit=$1 parent=$2 path=$3 tree=$4 file
	shift 4
	rm -f "$linux/.git/overlay-index"
	overlay_git read-tree "$commit" &&
	for file in "$@"; do
		overlay_git ls-tree -r "$tree" -- "$file" | sed "s,\t,&$path/," |
			{ grep . || printf '0 %040d\t%s/%s\n' 0 "$path" "$file"; }
	done | overlay_git update-index --index-info &&
	root=$(overlay_git write-tree) &&
	overlay_git cat-file commit "$commit" |
		sed -e "1s/^tree .*/tree $root/" -e "2s/^parent .*/parent $parent/" |
		overlay_git hash-object -t commit -w --stdin
}

# Puts what branch series does not have yet of each file into its last commit that touches
# this file, a new file into the last that touches the path. The later ones leave the file
# alone, so there can be no conflict, and no file in build/linux is touched.
fold_overlay() { # name
	local name=$1 path=${overlays[$1]} here there file last parent='' commit new group
	local -A files=() rewritten=()
	local folded=()
	here=$(directory_tree "$top/$name")
	there=$(commit_tree series "$path")
	[ "$here" != "$there" ] || return 0
	series_checked_out || die "branch series of $linux is not checked out"
	for file in $(files_that_differ "$there" "$here"); do
		last=$(git -C "$linux" log -1 --format=%H base..series -- "$path/$file")
		[ -n "$last" ] || last=$(git -C "$linux" log -1 --format=%H base..series -- "$path")
		[ -n "$last" ] ||
			die "no commit of branch series has $path yet: commit it in $linux first (git add --force $path)"
		files[$last]+="$file "
	done
	for commit in $(git -C "$linux" rev-list --reverse base..series); do
		if [ -n "${files[$commit]:-}" ]; then
			say "$name goes into '$(git -C "$linux" log -1 --format=%s "$commit")': ${files[$commit]}"
			# shellcheck disable=SC2206
			folded+=(${files[$commit]})
		fi
		[ -n "$parent" ] || ((${#folded[@]})) || continue
		[ -n "$parent" ] || parent=$(git -C "$linux" rev-parse "$commit^")
		new=$(rewrite_commit "$commit" "$parent" "$path" "$here" "${folded[@]}")
		if git -C "$linux" diff --quiet "$parent" "$new"; then
			say "that commit has no change left and is dropped"
		else
			parent=$new
		fi
		rewritten[$commit]=$parent
	done
	git -C "$linux" reset --quiet "$parent"
	while read -r commit group; do
		[ -z "${rewritten[$commit]:-}" ] ||
			git -C "$linux" update-ref "$group" "${rewritten[$commit]}"
	done < <(git -C "$linux" for-each-ref --format='%(objectname) %(refname)' refs/heads/group/)
	note_overlay "$name" "$here"
}
