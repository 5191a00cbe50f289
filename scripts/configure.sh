# shellcheck shell=bash
# Sourced by kernel, check and check-drivers: configures a kernel from the fragments in
# config/ and fails when an option asked for is not set. The unpatched kernel's tree is
# made here, as it is needed by few.
# shellcheck disable=SC2034,SC2154

# The users of ZONE_DEVICE memory that are compiled with drivers.config.
users=(
	drivers/dax/{bus,device}.o
	drivers/gpu/drm/amd/amdgpu/../amdkfd/kfd_{device,migrate,svm}.o
	drivers/gpu/drm/amd/amdgpu/amdgpu_{drv,ttm}.o
	drivers/gpu/drm/{drm_gpusvm,drm_pagemap}.o
	drivers/gpu/drm/nouveau/nouveau_{dmem,svm}.o
	drivers/hv/mshv_vtl_main.o
	drivers/nvdimm/pmem.o
	drivers/pci/p2pdma.o
	drivers/vfio/vfio_iommu_type1.o
	drivers/xen/unpopulated-alloc.o
	fs/dax.o
	kernel/dma/mapping.o
	lib/test_hmm.o
	mm/{gup,hmm,huge_memory,memory-failure,memremap,migrate_device,mlock,mm_init,rmap}.o
)

# The options that the fragments ask for and that .config does not have.
unset_options() { # .config, fragment...
	local config=$1 line
	shift
	# Of an option that is in several fragments, the last one counts.
	cat "$@" | tac | sort -su -t= -k1,1 | while IFS= read -r line; do
		case $line in
		CONFIG_*=n)
			! grep -q "^${line%=n}=" "$config" || printf '%s\n' "$line" ;;
		CONFIG_*)
			grep -qxF "$line" "$config" || printf '%s\n' "$line" ;;
		esac
	done
}

configure() { # flavour, fragment...
	local flavour=$1 dir log missing
	shift
	case $flavour in
	base|base-drivers)
		is_worktree "$linux_base" || new_worktree "$linux_base" base ;;
	esac
	dir=$(kernel_dir "$flavour")
	log=$build/log/config-$flavour
	mkdir -p "$dir"
	cat "$@" >"$dir/fragments.new"
	if [ -f "$dir/.config" ] && cmp -s "$dir/fragments.new" "$dir/fragments"; then
		kernel_make "$flavour" olddefconfig >"$log" 2>&1 || die "olddefconfig failed, see $log"
	else
		! grep -qx CONFIG_RUST=y "$dir/fragments.new" ||
			kernel_make "$flavour" rustavailable >"$log" 2>&1 ||
			die "the kernel cannot be built with this Rust: $(tail -n 5 "$log")"
		kernel_make "$flavour" KCONFIG_ALLCONFIG="$dir/fragments.new" allnoconfig >"$log" 2>&1 ||
			die "cannot configure the kernel, see $log"
	fi
	missing=$(unset_options "$dir/.config" "$@")
	[ -z "$missing" ] ||
		die "these options were asked for, but the kernel's Kconfig refused them: $(xargs <<<"$missing")"
	mv "$dir/fragments.new" "$dir/fragments"
}
