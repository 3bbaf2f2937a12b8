# SPDX-License-Identifier: MIT
# fuzz.mk: the fuzz targets and the replay of their corpus; part of the Makefile.
#
# Each tests/fuzz/fuzz_NAME.c is a target. Replaying the corpus is a test and needs no clang: a program
# for each target with a plain main, always with sanitizers, whatever the rest is built with.
FUZZ_TARGETS := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_SRCS := $(wildcard $(patsubst %,src/%/*.c,base ring storage qcow2) src/ring/*.S)
FUZZ_COMMON := tests/fuzz/memdisk.c tests/fuzz/engine_run.c
fuzz_objs = $(patsubst %,$(BUILD)/$(1)/%.o,$(basename $(FUZZ_SRCS) $(FUZZ_COMMON)))
REPLAY_BINS := $(FUZZ_TARGETS:%=$(BUILD)/fuzz-replay/%)
FUZZ_BINS := $(FUZZ_TARGETS:%=$(BUILD)/fuzz/%)
REPLAY_FLAGS := $(filter-out -fsanitize=%,$(CFLAGS)) -fsanitize=address,undefined -fno-sanitize-recover=all
FUZZ_FLAGS := $(filter-out -fsanitize=%,$(CFLAGS)) -fsanitize=address,undefined -fno-sanitize-recover=all
FUZZ_CC ?= clang

$(BUILD)/fuzz-replay/%.o: %.c | have-libraries
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(CPPFLAGS) $(REPLAY_FLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/fuzz-replay/%.o: %.S | have-libraries
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(CPPFLAGS) $(REPLAY_FLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/fuzz-replay/engine.a: $(call fuzz_objs,fuzz-replay)
	$(call say,AR)
	$(Q)rm -f $@
	$(Q)$(AR) rcs $@ $^
$(REPLAY_BINS): $(BUILD)/fuzz-replay/%: $(BUILD)/fuzz-replay/tests/fuzz/fuzz_%.o \
		$(BUILD)/fuzz-replay/tests/fuzz/main.o $(BUILD)/fuzz-replay/engine.a
	$(call say,LINK)
	$(Q)$(CC) $(REPLAY_FLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/fuzz/%.o: %.c | have-libraries
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(FUZZ_CC) $(CPPFLAGS) $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link -MMD -MP -c -o $@ $<
$(BUILD)/fuzz/%.o: %.S | have-libraries
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(FUZZ_CC) $(CPPFLAGS) $(FUZZ_FLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/fuzz/engine.a: $(call fuzz_objs,fuzz)
	$(call say,AR)
	$(Q)rm -f $@
	$(Q)$(AR) rcs $@ $^
$(FUZZ_BINS): $(BUILD)/fuzz/%: $(BUILD)/fuzz/tests/fuzz/fuzz_%.o $(BUILD)/fuzz/tests/fuzz/mutate.o \
		$(BUILD)/fuzz/engine.a
	$(call say,LINK)
	$(Q)$(FUZZ_CC) $(FUZZ_FLAGS) -fsanitize=fuzzer $(LDFLAGS) -o $@ $^ $(LDLIBS)

.PHONY: fuzz
fuzz: ## fuzz the engine for SECONDS=60 on all targets together (clang); what crashes is in build/fuzz/crashes
fuzz: $(FUZZ_BINS) $(BUILD)/tests/badimages/make-bad
	@BUILD=$(BUILD) tests/fuzz/run $(if $(filter command%,$(origin SECONDS)),$(SECONDS),60) $(FUZZ_TARGETS)
