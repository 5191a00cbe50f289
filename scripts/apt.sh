# shellcheck shell=bash
# Sourced after lib.sh: packages of Debian. Nothing that is installed is removed, and
# nothing is upgraded unless UPGRADE=yes says so.
# shellcheck disable=SC2154

apt_dir=$build/apt
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

apt_config=()		# options: which suites, see private_apt
keep_installed=()	# options: what is installed keeps its version
as_root=()		# sudo, see is_root

candidate() { # package
	apt-cache "${apt_config[@]}" policy "$1" 2>/dev/null |
		sed -n 's/^  Candidate: //p' | grep -vxF '(none)'
}

# The mirror that this machine already uses for Debian.
debian_mirror() {
	if [ -n "${DEBIAN_MIRROR:-}" ]; then
		printf '%s\n' "$DEBIAN_MIRROR"
		return
	fi
	# shellcheck disable=SC2016
	apt-get indextargets --format '$(REPO_URI) $(ORIGIN)' 'Created-By: Packages' |
		awk '$2 == "Debian" && $1 !~ /security/ { print $1; exit }
		     $1 ~ /\/debian\/?$/ && !guess { guess = $1 }
		     END { if (guess) print guess }' | head -n 1
}

# From now on, apt knows these suites only, in lists of its own, so that the user's are
# not touched. What is installed it knows.
private_apt() { # name, suite...
	local dir=$apt_dir/$1 log=$build/log/apt-$1 mirror suite
	shift
	[ -e "$keyring" ] || return 1
	mirror=$(debian_mirror)
	[ -n "$mirror" ] || return 1
	mkdir -p "$dir/lists/partial" "$build/log"
	for suite in "$@"; do
		printf 'deb [signed-by=%s target=Packages] %s %s main\n' "$keyring" "$mirror" "$suite"
	done >"$dir/sources.list"
	apt_config=(
		-o "Dir::Etc::sourcelist=$dir/sources.list"
		-o "Dir::Etc::sourceparts=-"
		-o "Dir::State::lists=$dir/lists"
		-o "Dir::Cache::pkgcache=$dir/pkgcache.bin"
		-o "Dir::Cache::srcpkgcache=$dir/srcpkgcache.bin"
		-o "Acquire::Languages=none"
		-o "Acquire::Retries=3"
		-o "APT::Sandbox::User="
	)
	apt-get "${apt_config[@]}" --error-on=any update >"$log" 2>&1
}

# What is installed stays as it is, whatever the suites have; and what is built of the
# same source (the headers of a library) is taken in its version, where they have that.
pin_installed() {
	local preferences=$apt_dir/preferences
	mkdir -p "$apt_dir"
	{
		! cat /etc/apt/preferences 2>/dev/null || echo
		printf 'Package: *\nPin: release a=now\nPin-Priority: 1001\n\n'
		# shellcheck disable=SC2016
		dpkg-query -W -f '${db:Status-Status} ${source:Package} ${Version}\n' | sort -u |
			awk '$1 == "installed" {
				printf "Package: src:%s\nPin: version %s\nPin-Priority: 1001\n\n", $2, $3
			}'
	} >"$preferences"
	keep_installed=(-o "Dir::Etc::preferences=$preferences")
}

# What apt would do, one "install|upgrade|remove package old new" a line.
plan() { # package...
	apt-get "${apt_config[@]}" "${keep_installed[@]}" --simulate \
		--no-install-recommends install "$@" >"$apt_dir/plan" 2>&1 || return
	# An interrupted installation is done again, in the same version.
	awk '$1 == "Inst" && $3 ~ /^\[/ {
		old = substr($3, 2, length($3) - 2)
		new = substr($4, 2)
		print old == new ? "install" : "upgrade", $2, old, new
	     }
	     $1 == "Inst" && $3 ~ /^\(/ { print "install", $2, "-", substr($3, 2) }
	     $1 == "Remv" { print "remove", $2, substr($3, 2, length($3) - 2), "-" }' "$apt_dir/plan"
}

only_installs() { # package...
	local steps
	steps=$(plan "$@") && ! grep -qv '^install ' <<<"$steps"
}

# Divides packages into those that can be installed without anything else changing,
# and the others.
divide() { # package...
	local package
	good=()
	bad=()
	if only_installs "$@"; then
		good=("$@")
		return
	fi
	for package in "$@"; do
		if only_installs "${good[@]}" "$package"; then
			good+=("$package")
		else
			bad+=("$package")
		fi
	done
}

# Says what will be installed, and installs it; without root, notes the command.
apt_install() { # package...
	local command steps size
	steps=$(plan "$@")
	[ -n "$steps" ] || return 0
	mapfile -t command < <(printf '%s\n' apt-get "${apt_config[@]}" "${keep_installed[@]}" \
		--no-remove --no-install-recommends install "$@")
	if ! is_root; then
		commands+=("$(printf '%q ' "${command[@]}")")
		return
	fi
	size=$("${command[@]}" -qq --print-uris | awk '{ sum += $3 } END { printf "%.0f", sum / 1e6 }')
	printf '%s\n' "$steps" >"$build/log/apt-plan"
	say "installing $(wc -l <<<"$steps") package(s), $size MB to download: $(named "$steps" "$@"); $build/log/apt-plan has all of them"
	run_logged "$build/log/apt-install" "apt-get install" \
		"${as_root[@]}" env LC_ALL=C DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
		"${command[@]}" -y -o DPkg::Lock::Timeout=300
}

# Those of the packages that the plan has, and what it upgrades, with their versions.
named() { # plan, package...
	local steps=$1
	shift
	awk 'NR == FNR { asked[$1]; next }
	     $1 == "upgrade" { printf "%s%s (%s instead of %s)", comma, $2, $4, $3; comma = ", " }
	     $1 == "install" && $2 in asked { printf "%s%s (%s)", comma, $2, $4; comma = ", " }' \
		<(printf '%s\n' "$@") - <<<"$steps"
}

# Sets as_root.
is_root() {
	as_root=()
	[ "$(id -u)" != 0 ] || return 0
	as_root=(sudo -n)
	sudo -n true 2>/dev/null
}

# Old lists may do as well.
apt_update() {
	if compgen -G '/var/lib/dpkg/updates/[0-9]*' >/dev/null; then
		run_logged "$build/log/dpkg" "dpkg was interrupted: dpkg --configure -a" \
			"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive dpkg --configure -a
	fi
	say "apt-get update"
	"${as_root[@]}" env LC_ALL=C apt-get --error-on=any update \
		>"$build/log/apt-update" 2>&1 ||
		say "apt-get could not get all package lists, going on with those that are there: $(grep -m 1 '^[EW]:' "$build/log/apt-update")"
}

# Gets as far as the first instruction, with firmware.
qemu_starts() { # program
	timeout 60 "$1" -machine q35 -nodefaults -display none -S -monitor stdio \
		<<<quit >"$build/log/qemu-start" 2>&1
}

# QEMU and what it depends on, unpacked into the cache folder.
unpack_qemu() {
	local dir=$cache/qemu.tmp deb
	rm -rf "$dir"
	mkdir -p "$dir/debs/partial" "$dir/bin"
	run_logged "$build/log/qemu" "QEMU cannot be installed beside what is there: unpacking it into $cache/qemu" \
		apt-get "${apt_config[@]}" -y --download-only --no-install-recommends \
		-o "Dir::Cache::archives=$dir/debs" -o Debug::NoLocking=true -o APT::Sandbox::User= \
		install qemu-system-x86
	for deb in "$dir"/debs/*.deb; do
		dpkg-deb --extract "$deb" "$dir"
	done
	rm -rf "$dir/debs"
	cat >"$dir/bin/qemu-system-x86_64" <<-'END'
		#!/bin/sh
		# QEMU with the libraries and the firmware that were unpacked beside it.
		root=$(dirname "$(dirname "$(readlink -f "$0")")")
		lib=$root/usr/lib/x86_64-linux-gnu
		export LD_LIBRARY_PATH="$lib:$root/lib/x86_64-linux-gnu:$lib/pulseaudio"
		export QEMU_MODULE_DIR="$lib/qemu"
		exec "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" \
			-L "$root/usr/share/seabios" -L "$root/usr/lib/ipxe/qemu" "$@"
	END
	chmod +x "$dir/bin/qemu-system-x86_64"
	qemu_starts "$dir/bin/qemu-system-x86_64" ||
		die "QEMU does not start from $dir, see $build/log/qemu-start: install Debian's qemu-system-x86"
	rm -rf "$cache/qemu"
	mv "$dir" "$cache/qemu"
}

# Stops with what would have to be upgraded or removed.
refuse() { # package...
	local steps removed
	keep_installed=()
	steps=$(plan "$@") ||
		die "apt cannot install $*: $(sed -n '/unmet dependencies\|^E:/,$p' "$apt_dir/plan")"
	removed=$(awk '$1 == "remove" { print $2 }' <<<"$steps" | xargs)
	[ -z "$removed" ] || die "apt cannot install $* without removing $removed"
	die "apt cannot install $* without upgrading what is installed:
$(awk '$1 == "upgrade" { printf "    %s from %s to %s\n", $2, $3, $4 }' <<<"$steps")
If that is all right, say so by UPGRADE=yes: make deps UPGRADE=yes"
}

# Sets bad to those packages that are still to be installed.
install_good() { # package...
	divide "$@"
	((${#good[@]} == 0)) || apt_install "${good[@]}"
}

# Installs packages from the suites that are configured; what these do not have for
# this machine, from backports, where what is installed may be from.
install_packages() { # package...
	local good bad commands=() release steps package unknown
	release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
	pin_installed
	install_good "$@"
	if ((${#bad[@]})) && private_apt backports "$release" "$release-backports"; then
		apt_config+=(-o "APT::Default-Release=$release-backports")
		install_good "${bad[@]}"
	fi
	apt_config=()
	unknown=$(for package in "${bad[@]}"; do
			[ -n "$(candidate "$package")" ] || printf '%s\n' "$package"
		done | xargs)
	[ -z "$unknown" ] ||
		die "apt has no package $unknown: no package lists, or no network (see $build/log/apt-update)"
	if ((${#bad[@]})) && [ "${UPGRADE:-}" = yes ]; then
		keep_installed=()
		if steps=$(plan "${bad[@]}") && ! grep -q '^remove ' <<<"$steps"; then
			apt_install "${bad[@]}"
			bad=()
		fi
	fi
	if [[ " ${bad[*]} " = *" qemu-system-x86 "* ]]; then
		keep_installed=()
		unpack_qemu
		mapfile -t bad < <(printf '%s\n' "${bad[@]}" | grep -vxF qemu-system-x86)
	fi
	((${#commands[@]} == 0)) || die "packages are missing, and there is no sudo without a password. As root, run:
$(printf '    %s\n' "apt-get update" "${commands[@]}")"
	((${#bad[@]} == 0)) || refuse "${bad[@]}"
}
