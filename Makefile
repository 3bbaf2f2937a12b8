# SPDX-License-Identifier: MIT
# ublk-qcow2: `make help` lists the targets.
#
# Objects go to $(BUILD); a sanitizer or another compiler gets a folder of its own, so that switching
# does not rebuild everything.

CC ?= gcc
ifeq ($(origin CC),default)
CC := gcc
endif
SAN ?=
TSAN ?=
VARIANT := $(if $(SAN),-san)$(if $(TSAN),-tsan)$(if $(filter clang%,$(notdir $(CC))),-clang)
BUILD ?= build$(VARIANT:%=/%)

PKGS := liburing fuse3 jansson
CPPFLAGS += -D_GNU_SOURCE -Isrc -Iinclude -I$(BUILD)/gen $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
CFLAGS += -std=gnu17 -O2 -g -fno-strict-aliasing -fno-omit-frame-pointer \
	-Wall -Wextra -Werror -Wmissing-prototypes -Wstrict-prototypes -Wshadow -Wvla \
	-Wno-unused-parameter -pthread
ifdef SAN
CFLAGS += -fsanitize=address,undefined -fno-sanitize-recover=all
endif
ifdef TSAN
CFLAGS += -fsanitize=thread
endif
LDLIBS += $(shell pkg-config --libs $(PKGS) 2>/dev/null) -pthread

LAYERS := base ring storage qcow2 target ublk fuse daemon cli
LIB_SRCS := $(filter-out src/cli/main.c,$(wildcard $(LAYERS:%=src/%/*.c) $(LAYERS:%=src/%/*.S)))
LIB_OBJS := $(patsubst %,$(BUILD)/%.o,$(basename $(LIB_SRCS)))
MAIN_OBJ := $(BUILD)/src/cli/main.o
LIB := $(BUILD)/libublk-qcow2.a

.PHONY: all
all: $(BUILD)/ublk-qcow2

$(BUILD)/ublk-qcow2: $(MAIN_OBJ) $(LIB)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(LIB): $(LIB_OBJS)
	@rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/%.o: %.S
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# ---- unit tests: one program for each tests/unit/test_*.c ----
UNIT_SRCS := $(wildcard tests/unit/test_*.c)
UNIT_BINS := $(patsubst %.c,$(BUILD)/%,$(UNIT_SRCS))

$(UNIT_BINS): $(BUILD)/%: $(BUILD)/%.o $(LIB)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka

.PHONY: unit
unit: $(UNIT_BINS)

.PHONY: clean
clean:
	rm -rf build

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
