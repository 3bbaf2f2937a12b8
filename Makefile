# SPDX-License-Identifier: MIT
# ublk-qcow2: `make help` lists the targets.
#
# Objects go to $(BUILD); a sanitizer or another compiler gets a folder of its own, so that switching
# does not rebuild everything. Targets that need Debian packages install them first (packaging/
# install-deps.sh) and then run make again, so that what pkg-config says is read afterwards.

comma := ,
ifeq ($(origin CC),default)
CC := gcc
endif
SAN ?=
TSAN ?=
UCONTEXT ?=
VARIANT := $(if $(SAN),-san)$(if $(TSAN),-tsan)$(if $(UCONTEXT),-ucontext)$(if $(filter clang%,$(notdir $(CC))),-clang)
BUILD ?= build$(VARIANT:-%=/%)

OBJCOPY ?= objcopy
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
UNITDIR ?= $(PREFIX)/lib/systemd/system
VERSION = $(shell sed -n 's/.*define CLI_VERSION "\(.*\)"/\1/p' src/cli/cli.h)

# V=1 shows the commands
Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-4s %s\n' $(1) $@)

PKGS := liburing fuse3 jansson libdeflate zlib libzstd libgcrypt libseccomp
CPPFLAGS += -D_GNU_SOURCE -Isrc -Iinclude -I$(BUILD)/gen $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
CFLAGS += -std=gnu17 -O2 -g -fno-strict-aliasing -fno-omit-frame-pointer -fstack-clash-protection \
	-Wall -Wextra -Werror -Wmissing-prototypes -Wstrict-prototypes -Wshadow -Wvla \
	-Wno-unused-parameter -pthread
# the portable switch between coroutines in place of the assembly
ifneq ($(UCONTEXT),)
CPPFLAGS += -DCO_UCONTEXT
endif
ifneq ($(SAN),)
CFLAGS += -fsanitize=address,undefined -fno-sanitize-recover=all
endif
ifneq ($(TSAN),)
CFLAGS += -fsanitize=thread
endif
LDLIBS += $(shell pkg-config --libs $(PKGS) 2>/dev/null) -pthread

LAYERS := base ring storage qcow2 target ublk fuse daemon cli
LIB_SRCS := $(filter-out src/cli/main.c,$(wildcard $(LAYERS:%=src/%/*.c) $(LAYERS:%=src/%/*.S)))
LIB_OBJS := $(patsubst %,$(BUILD)/%.o,$(basename $(LIB_SRCS)))
MAIN_OBJ := $(BUILD)/src/cli/main.o
LIB := $(BUILD)/libublk-qcow2.a

EXAMPLES := $(patsubst %.c,$(BUILD)/%,$(wildcard examples/*.c))

.PHONY: all
all: ## build the program, build/ublk-qcow2 (SAN=1: address and undefined sanitizers; TSAN=1; CC=clang; UCONTEXT=1)
all: $(LIB) $(EXAMPLES) $(if $(wildcard src/cli/main.c),$(BUILD)/ublk-qcow2)

$(BUILD)/ublk-qcow2: $(MAIN_OBJ) $(LIB)
	$(call say,LINK)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(LIB): $(LIB_OBJS)
	$(call say,AR)
	$(Q)rm -f $@
	$(Q)$(AR) rcs $@ $^

$(BUILD)/%.o: %.c | have-libraries
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/%.o: %.S | have-libraries
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

.PHONY: have-libraries
have-libraries:
	@pkg-config --exists $(PKGS) || { \
		echo "the libraries $(PKGS) or pkg-config are missing: run 'make deps'" >&2; exit 1; }

# ---- the ublk library and its examples, which see the public header alone ----
UBLKDEV_OBJS := $(filter $(BUILD)/src/base/% $(BUILD)/src/ring/% $(BUILD)/src/ublk/% \
	$(patsubst %,$(BUILD)/src/target/%.o,frontend child helper hold),$(LIB_OBJS))
UBLKDEV := $(BUILD)/libublkdev.a

# One object with no other global names than the header's: a program's own never meet ours.
$(UBLKDEV): $(UBLKDEV_OBJS)
	$(call say,AR)
	$(Q)rm -f $@
	$(Q)$(CC) -r -nostdlib -o $(@:.a=.o) $^
	$(Q)$(OBJCOPY) --wildcard --keep-global-symbol='ublkdev_*' $(@:.a=.o)
	$(Q)$(AR) rcs $@ $(@:.a=.o)

$(EXAMPLES): $(BUILD)/%: %.c include/ublkdev.h $(UBLKDEV)
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) -Iinclude $(CFLAGS) $(LDFLAGS) -o $@ $< $(UBLKDEV) $(shell pkg-config --libs liburing) -pthread

include tests/fuzz/fuzz.mk

# ---- tests ----
# TEST_BINS: every program the tests need. tests/unit/test_*.c is one cmocka program each,
# tests/tools/*.c a helper of the end-to-end tests each; the programs in LINKED_BINS have more sources,
# or need the library.
UNIT_SRCS := $(wildcard tests/unit/test_*.c)
UNIT_BINS := $(patsubst %.c,$(BUILD)/%,$(UNIT_SRCS))
TOOL_BINS := $(patsubst %.c,$(BUILD)/%,$(filter-out tests/tools/qcow2-io.c tests/tools/fsx.c,$(wildcard tests/tools/*.c)))
LINKED_BINS := $(addprefix $(BUILD)/tests/,tools/qcow2-io tools/fsx diff/make-script badimages/make-bad budget/budget)
TEST_BINS := $(UNIT_BINS) $(TOOL_BINS) $(LINKED_BINS) $(REPLAY_BINS)

$(UNIT_BINS): $(BUILD)/%: $(BUILD)/%.o $(LIB)
	$(call say,LINK)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka

$(TOOL_BINS): $(BUILD)/%: $(BUILD)/%.o $(LIB)
	$(call say,LINK)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# ---- the simulation: see tests/sim/ and docs/crash-safety.md ----
SIM_DISK_OBJS := $(patsubst %,$(BUILD)/tests/sim/%.o,util memfault simdisk simview crash)
SIM_LDFLAGS := $(patsubst %,-Wl$(comma)--wrap=%,malloc calloc realloc posix_memalign aligned_alloc mmap)

$(BUILD)/tests/sim/test_simdisk: $(BUILD)/tests/sim/test_simdisk.o $(SIM_DISK_OBJS) $(LIB)
	$(call say,LINK)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(SIM_LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka

SIM_SRCS := $(filter-out tests/sim/test_%,$(wildcard tests/sim/*.c))
SIM_OBJS := $(SIM_SRCS:%.c=$(BUILD)/%.o)
SIM_ALL_LDFLAGS := $(SIM_LDFLAGS) -Wl$(comma)--wrap=luks_format -Wl$(comma)--wrap=luks_unlock

$(BUILD)/tests/sim/sim: $(SIM_OBJS) $(LIB)
	$(call say,LINK)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(SIM_ALL_LDFLAGS) -o $@ $^ $(LDLIBS)

# the engine once more, with the rules that can be broken
MUTANT_OBJS := $(patsubst %.c,$(BUILD)/mutants/%.o,$(wildcard src/qcow2/*.c) $(SIM_SRCS))

$(BUILD)/mutants/%.o: %.c | have-libraries
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(CPPFLAGS) -DQCOW2_MUTANTS $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/tests/sim/sim-mutants: $(MUTANT_OBJS) $(LIB)
	$(call say,LINK)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(SIM_ALL_LDFLAGS) -o $@ $^ $(LDLIBS)

# loaded into the program, to show that a test notices what it breaks
PRELOADS := $(patsubst tests/tools/preload/%.c,$(BUILD)/tests/tools/%.so,$(wildcard tests/tools/preload/*.c))

$(PRELOADS): $(BUILD)/tests/tools/%.so: tests/tools/preload/%.c
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) $(CPPFLAGS) $(filter-out -fsanitize%,$(CFLAGS)) -fPIC -shared $(LDFLAGS) -o $@ $< -ldl

TEST_BINS += $(PRELOADS)

SIM_BINS := $(patsubst %,$(BUILD)/tests/sim/%,test_simdisk sim sim-mutants)
TEST_BINS += $(SIM_BINS)

.PHONY: sim
sim: ## explore crash states for SECONDS=n (default 60), from SEED=n on
sim: $(SIM_BINS)
	BUILD=$(BUILD) $(BUILD)/tests/sim/sim explore --seconds $(or $(SECONDS),60) --seed $(or $(SEED),$$(date +%s))

objs = $(patsubst %.c,$(BUILD)/%.o,$(wildcard $(1)))
$(BUILD)/tests/tools/qcow2-io: $(call objs,tests/tools/qcow2-io.c tests/tools/io/*.c) $(LIB)
$(BUILD)/tests/tools/fsx: $(call objs,tests/tools/fsx.c tests/tools/io/shadow.c)
$(BUILD)/tests/diff/make-script: $(call objs,tests/diff/*.c)
$(BUILD)/tests/badimages/make-bad: $(call objs,tests/badimages/*.c)
$(BUILD)/tests/budget/budget: $(call objs,tests/budget/*.c) $(LIB)
$(LINKED_BINS):
	$(call say,LINK)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# T: a test (T=qcow2/040) or a group (T=qcow2); several are separated by spaces
T ?=
RUN_TESTS = BUILD=$(BUILD) tests/run

.PHONY: test-programs
test-programs: ## build the program and all test programs, run nothing
test-programs: all $(TEST_BINS)

.PHONY: test
test: ## run the tests (T=qcow2/040 one, T=qcow2 a group); installs missing packages as root
	@packaging/install-deps.sh build test
	@+$(MAKE) --no-print-directory -j$$(nproc) test-programs
	@$(RUN_TESTS) $(T)

.PHONY: test-all
test-all: ## as test, with the counts that need longer; then test-612, unless that kernel was the first
	@packaging/install-deps.sh build test
	@+$(MAKE) --no-print-directory -j$$(nproc) test-programs
	@status=0; $(RUN_TESTS) --all $(T) || status=1; \
		if [ -e /dev/ublk-control ] || [ "$$UML_RUN" ]; then $(RUN_TESTS) --vm $(T) || status=1; fi; exit $$status

.PHONY: test-612
test-612: ## the tests that need ublk, on Debian's stock kernel 6.12 in a virtual machine (hours without KVM)
	@packaging/install-deps.sh build test
	@+$(MAKE) --no-print-directory -j$$(nproc) test-programs
	@$(RUN_TESTS) --vm $(T)

.PHONY: workloads
workloads: ## the real workloads at full length (kernel, PostgreSQL, git, ...): see tests/workloads/README.md
	@packaging/install-deps.sh build test workloads
	@+$(MAKE) --no-print-directory -j$$(nproc) test-programs
	@$(RUN_TESTS) --all $(or $(T),workloads)

.PHONY: unit
unit: ## build and run the unit tests alone
unit: $(UNIT_BINS)
	@$(RUN_TESTS) unit

.PHONY: check-layers
check-layers: ## fail if a file includes a header of a layer above its own
	@tests/style/layers

# ---- the benchmark: see bench/run and docs/performance.md ----
# T: rows or levels (T=1-randread-4k); BENCH=full: all rows and contenders, more rounds; ROUNDS=n;
# DOCS=1: the table goes into docs/performance.md as well
.PHONY: bench
bench: ## measure this program and others side by side (BENCH=full: for an hour); table and chart in build/bench
	@packaging/install-deps.sh build bench
	@+$(MAKE) --no-print-directory -j$$(nproc) all $(BUILD)/tests/budget/budget
	@BUILD=$(BUILD) bench/run $(if $(filter full,$(BENCH)),--full) $(ROUNDS:%=--rounds %) \
		$(if $(DOCS),--docs docs/performance.md) $(T)

# ---- the rest ----
.PHONY: demo
demo: ## the main job in front of you, in under a minute; installs missing packages as root
	@packaging/install-deps.sh build demo
	@+$(MAKE) --no-print-directory -j$$(nproc) all
	@BUILD=$(BUILD) tests/demo

.PHONY: deps
deps: ## install the Debian packages that are missing (not root: say which)
	@packaging/install-deps.sh build demo test bench

.PHONY: install
install: ## install program, library, headers, manual pages and systemd units (DESTDIR, PREFIX)
install: all
	install -D -m 755 $(BUILD)/ublk-qcow2 $(DESTDIR)$(PREFIX)/sbin/ublk-qcow2
	install -D -m 644 $(LIB) $(DESTDIR)$(LIBDIR)/libublk-qcow2.a
	install -D -m 644 $(UBLKDEV) $(DESTDIR)$(LIBDIR)/libublkdev.a
	for header in $(wildcard include/*.h); do \
		install -D -m 644 $$header $(DESTDIR)$(PREFIX)/include/ublk-qcow2/$${header#include/} || exit; done
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig
	sed 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|; s|@VERSION@|$(VERSION)|' packaging/ublkdev.pc.in \
		>$(DESTDIR)$(LIBDIR)/pkgconfig/ublkdev.pc
	for page in $(wildcard man/*.[1-8]); do \
		install -D -m 644 $$page $(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$${page#man/} || exit; done
	for unit in $(wildcard packaging/*.service packaging/*.socket); do \
		install -D -m 644 $$unit $(DESTDIR)$(UNITDIR)/$${unit#packaging/} || exit; done
	install -d $(DESTDIR)$(PREFIX)/share/doc/ublk-qcow2
	sed 's|/usr/local/sbin|$(PREFIX)/sbin|' packaging/60-ublk-unprivileged.rules \
		>$(DESTDIR)$(PREFIX)/share/doc/ublk-qcow2/60-ublk-unprivileged.rules
	install -D -m 644 packaging/ublk-qcow2.bash-completion \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/ublk-qcow2

.PHONY: format
format: ## lay out the C sources by .clang-format
	clang-format -i $$(git ls-files '*.c' '*.h')

.PHONY: clean
clean: ## remove build/
	rm -rf build

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
