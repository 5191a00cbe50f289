# Every target is one script under scripts/, and does what it needs first.
#
#   make run     from a fresh machine to hmm-tests on managed generic memory
#   make test    everything that CI runs
#   make help    the other targets

.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory
# The targets share the tree and the build folders.
.NOTPARALLEL:

# What is to find bugs takes the kernel that shows most of them.
ifneq ($(filter torture,$(MAKECMDGOALS)),)
KCONFIG ?= debug
endif
export KERNEL KCONFIG UPGRADE BASE

# What a target needs, as groups of scripts/deps.
needs-tree := tree
needs-kernel := kernel
needs-kernel-base := kernel
needs-debug-kernel := kernel
needs-vm := kernel vm
needs-hmm-tests := kernel vm
needs-kunit := $(if $(filter arm64,$(ARCH)),arm64,kernel vm)
needs-deps := $(filter arm64,$(ARCH))
needs-run := kernel vm program rdma
needs-selftests := kernel vm program rdma
needs-defects := kernel vm program rdma
needs-torture := kernel vm program
needs-bugs := kernel vm program rdma dax
needs-compare := kernel vm program rdma dax
needs-bench := kernel vm program
needs-bench-core := kernel vm program
needs-bench-shares := kernel vm program
needs-coverage := kernel vm program rdma coverage
needs-dax := kernel vm dax
needs-sample := kernel vm
needs-cargo-test := tree cargo-test
needs-check := check
needs-mbox := tree
needs-plots := tree plots
needs-check-drivers := sparse
needs-clippy := lint
needs-rustdoc := lint
needs-test-deps := chroots
needs-test := kernel vm program rdma dax cargo-test check sparse lint
# Everything, for the other targets.
groups := $(sort $(foreach goal,$(MAKECMDGOALS),$(needs-$(goal))))

# What the patched kernel must have for a target beyond what it always has, see
# scripts/kernel.
features-kunit := kunit
features-clippy := kunit sample
features-rustdoc := kunit
features-bugs := dax
features-compare := dax
features-dax := dax
# As test-long has it, so that there is one record.
features-bench := dax kunit sample
features-bench-core := dax kunit sample
features-bench-shares := dax kunit sample
features-sample := sample
features-test := dax kunit sample
features-test-long := dax kunit sample
FEATURES ?= $(sort $(foreach goal,$(MAKECMDGOALS),$(features-$(goal))))
# Only here, as export defines what is not defined yet.
export FEATURES

# KCONFIG=debug takes the debug kernel for what runs in the VM; torture has one more.
kconfigs := debug $(if $(filter torture,$(MAKECMDGOALS)),kcsan)
$(if $(filter-out $(kconfigs),$(KCONFIG)),$(error unknown KCONFIG=$(KCONFIG), use one of: $(kconfigs)))
kernel-target := $(if $(KCONFIG),$(KCONFIG)-kernel,kernel)
kernel-name := $(or $(KCONFIG),series)
$(if $(filter-out measure record,$(BASE)),$(error unknown BASE=$(BASE), use BASE=measure or BASE=record))
base = $(if $(BASE),--base $(BASE))
seed = $(if $(SEED),--seed '$(SEED)')
$(if $(filter command,$(origin ARCH)),$(if $(filter-out deps kunit,$(MAKECMDGOALS)), \
	$(error ARCH=$(ARCH) is for make kunit and make deps)))
kunit-arch := $(if $(ARCH),$(ARCH)-$(or $(PAGE_SIZE),4k))

# An old verdict must not outlive a failure, not even one of what a target needs first.
targets-with-results := run test test-long hmm-tests kselftest kunit selftests defects torture compare bugs dax \
	sample check check-drivers cargo-test clippy rustdoc test-deps bench bench-core bench-shares coverage
old-verdicts := $(patsubst %,build/results/%$(if $(KCONFIG),-$(KCONFIG))$(kunit-arch:%=-%)/summary.json, \
	$(filter $(targets-with-results),$(MAKECMDGOALS)))
ifeq ($(findstring n,$(firstword -$(MAKEFLAGS))),) # not for make -n
$(if $(old-verdicts),$(shell rm -f $(old-verdicts)))
endif

.PHONY: help
help:
	@echo 'make run            install what is missing, build, boot, run hmm-tests and'
	@echo '                    hmm-selftests on managed generic memory'
	@echo 'make test           everything that CI runs: check, check-drivers, cargo-test, kunit,'
	@echo '                    compare, selftests, dax (one driver of each kind), sample, clippy, rustdoc'
	@echo 'make test-long      all that there is, also on the debug kernel; takes hours'
	@echo 'make test-deps      make deps on fresh machines in chroots, as root: FILTER=bookworm/*'
	@echo 'make deps           install what is missing for all targets; UPGRADE=yes may upgrade'
	@echo 'make tree           build/linux: base kernel and series, KERNEL=/path for your tree'
	@echo 'make kernel         build/kernel, the patched kernel'
	@echo 'make kernel-base    build/base, the unpatched kernel'
	@echo 'make debug-kernel   build/debug: KASAN, lockdep, ...; KCONFIG=debug uses it'
	@echo 'make hmm-tests      DRIVER=test_hmm_rs|test_hmm TYPES=private,coherent,generic'
	@echo '                    FILTER=glob SOURCE=series|base'
	@echo 'make selftests      hmm-selftests: DRIVERS=... TYPES=... SEED=n ARGS="filters, options"'
	@echo 'make defects        what is wrong with the driver in C, one boot a row'
	@echo 'make torture        all at once and at random on the debug kernel: MINUTES=2 SEED=n'
	@echo '                    DRIVERS=... TYPES=... KCONFIG=kcsan'
	@echo 'make cargo-test     unit tests of hmm-selftests, which need no VM'
	@echo 'make kunit          KUnit suites, built in and of modules; ARCH=arm64 PAGE_SIZE=4k|16k|64k'
	@echo 'make compare        unpatched and patched kernel, one table; and that of make bugs;'
	@echo '                    BASE=measure boots the unpatched one, BASE=record records it'
	@echo 'make bugs           tests of what the series fixes on both kernels: FILTER="parts of names"'
	@echo 'make dax            device-dax and fs-dax do not change: DRIVERS=... FILTER="parts of names"'
	@echo 'make bench          what operations of both drivers cost, compared with COMPARE=bench.json:'
	@echo '                    TYPES=... UNIT=instructions|nanoseconds RECORD=yes'
	@echo 'make bench-core     what the series adds to core mm: the driver of v7.3 on both kernels'
	@echo 'make bench-shares   where the instructions of an operation go, and by FUNCTIONS=yes in which'
	@echo '                    functions: TYPE=private|coherent|generic RECORD=yes'
	@echo 'make coverage       lines of the series'"'"' code that no test reaches: DRIVERS=... TYPES=...'
	@echo '                    WHAT=hmm-tests,kunit,selftests SEED=n'
	@echo 'make plots          docs/bench-*.svg and .png from scripts/bench-*record.json'
	@echo 'make sample         a driver in Rust of a PCI device of QEMU'"'"'s: samples/rust/rust_svm;'
	@echo '                    FILTER="parts of names"'
	@echo 'make kselftest      the kernel tree'"'"'s own way to run hmm-tests, on test_hmm built in as well'
	@echo 'make bisect         the commit that changes what becomes of FILTER=test:'
	@echo '                    DRIVER=test_hmm|test_hmm_rs TYPE=... RANGE=a..b ATTEMPTS=1'
	@echo 'make vm             CMD="command", or a shell'
	@echo 'make check          patches apply, each group by itself, equal the tree, pass checkpatch;'
	@echo '                    BISECT=1 builds each commit, GROUPS_BUILD=1 compiles each group'
	@echo 'make check-drivers  compiles the users of ZONE_DEVICE memory that no VM has, with sparse'
	@echo 'make clippy         lints of the Rust code; make rustdoc: its documentation'
	@echo 'make export         write branches series and group/* of build/linux to patches/'
	@echo 'make mbox           what would be sent, in build/mbox: GROUP=name, or all'

.PHONY: deps tree kernel kernel-base debug-kernel kcsan-kernel coverage-kernel
deps:
	@scripts/deps $(groups)

# Makes the tree while it compiles what is missing.
tree:
	@scripts/deps --with-tree $(groups)

kernel: tree
	@scripts/kernel series $(FEATURES)

kernel-base: tree
	@scripts/kernel base

debug-kernel kcsan-kernel coverage-kernel: tree
	@scripts/kernel $(@:-kernel=)

.PHONY: vm hmm-tests compare bugs dax sample kunit selftests defects torture cargo-test bench bench-core bench-shares coverage kselftest bisect
vm: $(kernel-target)
	@scripts/vm.py --kernel $(kernel-name) $(if $(value CMD),'$(subst ','\'',$(value CMD))')

hmm-tests: $(kernel-target)
	@scripts/hmm_tests.py --kernel $(kernel-name) \
		$(if $(DRIVER),--driver '$(DRIVER)') $(if $(SOURCE),--source '$(SOURCE)') \
		$(if $(TYPES),--types '$(TYPES)') $(if $(FILTER),--filter '$(FILTER)')

kunit: $(if $(ARCH),tree,$(kernel-target))
	@$(if $(ARCH),scripts/kunit-kernel $(ARCH) $(PAGE_SIZE))
	@scripts/kunit_suites.py $(if $(ARCH),--arch '$(ARCH)' $(PAGE_SIZE:%=--page-size '%'),--kernel $(kernel-name))

selftests: $(kernel-target)
	@scripts/selftests.py --kernel $(kernel-name) $(seed) $(if $(DRIVERS),--drivers '$(DRIVERS)') \
		$(if $(TYPES),--types '$(TYPES)') -- $(value ARGS)

defects: $(kernel-target)
	@scripts/defects.py --kernel $(kernel-name) $(seed) $(if $(filter test_hmm_rs,$(DRIVER)),--driver $(DRIVER))

torture: $(kernel-target)
	@scripts/torture.py --kernel $(kernel-name) $(seed) $(if $(MINUTES),--minutes '$(MINUTES)') \
		$(if $(DRIVERS),--drivers '$(DRIVERS)') $(if $(TYPES),--types '$(TYPES)') -- $(value ARGS)

cargo-test: tree
	@scripts/cargo test

# Results of the unpatched kernel are from scripts/base-record.json, or it is built and
# booted: BASE=measure compares it with the record, BASE=record makes the record.
compare: $(kernel-target) $(if $(BASE),kernel-base)
	@scripts/compare.py --kernel $(kernel-name) $(base) $(seed)

bugs: $(kernel-target) $(if $(BASE),kernel-base)
	@scripts/bugs.py --kernel $(kernel-name) $(base) $(seed) $(FILTER)

dax: kernel $(if $(BASE),kernel-base)
	@scripts/dax.py $(base) $(if $(DRIVERS),--drivers '$(DRIVERS)') $(FILTER)

sample: $(kernel-target)
	@scripts/sample.py --kernel $(kernel-name) $(if $(WAYS),--ways '$(WAYS)') $(FILTER)

# Compares with scripts/bench-record.json, which RECORD=yes writes.
bench: kernel
	@scripts/bench.py $(if $(TYPES),--types '$(TYPES)') $(if $(UNIT),--unit '$(UNIT)') \
		$(if $(COMPARE),--compare '$(COMPARE)') $(if $(RECORD),--record)

bench-core: kernel kernel-base
	@scripts/bench_core.py

# RECORD=yes writes scripts/bench-shares-record.json.
bench-shares: kernel
	@scripts/bench_shares.py $(if $(TYPE),--type '$(TYPE)') \
		$(if $(PAGE_SIZE),--page-size '$(PAGE_SIZE)') $(if $(FUNCTIONS),--functions) \
		$(if $(RECORD),--record)

# By the Python that has what reads line tables.
coverage: coverage-kernel
	@build/venv/bin/python3 scripts/coverage.py $(seed) $(if $(DRIVERS),--drivers '$(DRIVERS)') \
		$(if $(TYPES),--types '$(TYPES)') $(if $(WHAT),--what '$(WHAT)')

# test_hmm as a module, and built into a kernel of its own.
kselftest: kernel
	@scripts/kernel kselftest
	@scripts/kselftest.py

bisect: tree
	@scripts/bisect $(if $(DRIVER),--driver '$(DRIVER)') $(if $(TYPE),--type '$(TYPE)') \
		$(if $(RANGE),--range '$(RANGE)') $(if $(ATTEMPTS),--attempts '$(ATTEMPTS)') \
		$(if $(FILTER),'$(FILTER)')

.PHONY: check check-drivers clippy rustdoc export mbox plots
check: tree
	@scripts/check

check-drivers: tree
	@scripts/check-drivers

clippy rustdoc: kernel
	@scripts/check $@

export:
	@scripts/export

mbox: tree
	@scripts/groups.py mbox $(if $(GROUP),'$(GROUP)')

# Of what RECORD=yes of bench and bench-shares wrote.
plots: tree
	@build/venv/bin/python3 scripts/plots.py

.PHONY: estimate-run estimate-test
estimate-run estimate-test:
	@scripts/estimate $(@:estimate-%=%)

# A script ends with 1 if a test failed and with 2 if there is no verdict; make with 2 for
# both, and scripts/verdict.py says which, see docs/results.md.
.PHONY: run test test-long
run: estimate-run kernel
	@scripts/run.py $(if $(DRIVER),--driver '$(DRIVER)') $(seed)

# Everything that is missing at once.
test: estimate-test tree
	@scripts/test.py $(seed)

test-long: tree
	@scripts/test.py $(seed) long

.PHONY: test-deps
test-deps: deps
	@scripts/test-deps $(if $(FILTER),'$(FILTER)')
