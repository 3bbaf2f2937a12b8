/* SPDX-License-Identifier: MIT */
/*
 * co_switch.S: the switch between two stacks.
 *
 *	void co_ctx_switch(void **save_sp, void *load_sp);
 *
 * Pushes the registers that the ABI leaves to the callee, stores the stack pointer, loads the other
 * one, pops. Nothing else is part of a coroutine's state: the signal mask, the x87 and SSE control
 * words and FPCR belong to the thread, and no code here changes them.
 *
 * A new coroutine's stack is laid out as if it had called co_ctx_switch() from co_ctx_entry, with
 * the function to call and its argument in two of the saved registers. The frame of co_ctx_entry
 * has no caller: its return address is declared undefined and the frame pointer is 0, so that
 * unwinders end there.
 */
#if !defined(CO_UCONTEXT) && defined(__x86_64__)

	.text
	.globl	co_ctx_switch
	.hidden	co_ctx_switch
	.type	co_ctx_switch, @function
	.p2align 4
co_ctx_switch:
	.cfi_startproc
	endbr64
	pushq	%rbp
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %rbp, 0
	pushq	%rbx
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %rbx, 0
	pushq	%r12
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %r12, 0
	pushq	%r13
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %r13, 0
	pushq	%r14
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %r14, 0
	pushq	%r15
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %r15, 0
	movq	%rsp, (%rdi)
	movq	%rsi, %rsp
	popq	%r15
	.cfi_adjust_cfa_offset -8
	.cfi_restore %r15
	popq	%r14
	.cfi_adjust_cfa_offset -8
	.cfi_restore %r14
	popq	%r13
	.cfi_adjust_cfa_offset -8
	.cfi_restore %r13
	popq	%r12
	.cfi_adjust_cfa_offset -8
	.cfi_restore %r12
	popq	%rbx
	.cfi_adjust_cfa_offset -8
	.cfi_restore %rbx
	popq	%rbp
	.cfi_adjust_cfa_offset -8
	.cfi_restore %rbp
	/* Not a ret: the return predictor expects the stack that was left. */
	popq	%rcx
	.cfi_adjust_cfa_offset -8
	.cfi_register %rip, %rcx
	jmpq	*%rcx
	.cfi_endproc
	.size	co_ctx_switch, . - co_ctx_switch

	/* %r12: argument, %r13: function */
	.globl	co_ctx_entry
	.hidden	co_ctx_entry
	.type	co_ctx_entry, @function
	.p2align 4
co_ctx_entry:
	.cfi_startproc
	.cfi_undefined %rip
	endbr64
	movq	%r12, %rdi
	callq	*%r13
	ud2
	.cfi_endproc
	.size	co_ctx_entry, . - co_ctx_entry

#elif !defined(CO_UCONTEXT) && defined(__aarch64__)

	.text
	.globl	co_ctx_switch
	.hidden	co_ctx_switch
	.type	co_ctx_switch, %function
	.p2align 4
co_ctx_switch:
	.cfi_startproc
	hint	#34			/* bti c */
	stp	x29, x30, [sp, #-160]!
	.cfi_def_cfa_offset 160
	.cfi_offset x29, -160
	.cfi_offset x30, -152
	stp	x19, x20, [sp, #16]
	stp	x21, x22, [sp, #32]
	stp	x23, x24, [sp, #48]
	stp	x25, x26, [sp, #64]
	stp	x27, x28, [sp, #80]
	.cfi_offset x19, -144
	.cfi_offset x20, -136
	.cfi_offset x21, -128
	.cfi_offset x22, -120
	.cfi_offset x23, -112
	.cfi_offset x24, -104
	.cfi_offset x25, -96
	.cfi_offset x26, -88
	.cfi_offset x27, -80
	.cfi_offset x28, -72
	stp	d8, d9, [sp, #96]
	stp	d10, d11, [sp, #112]
	stp	d12, d13, [sp, #128]
	stp	d14, d15, [sp, #144]
	mov	x9, sp
	str	x9, [x0]
	mov	sp, x1
	ldp	x19, x20, [sp, #16]
	ldp	x21, x22, [sp, #32]
	ldp	x23, x24, [sp, #48]
	ldp	x25, x26, [sp, #64]
	ldp	x27, x28, [sp, #80]
	ldp	d8, d9, [sp, #96]
	ldp	d10, d11, [sp, #112]
	ldp	d12, d13, [sp, #128]
	ldp	d14, d15, [sp, #144]
	ldp	x29, x30, [sp], #160
	.cfi_def_cfa_offset 0
	ret
	.cfi_endproc
	.size	co_ctx_switch, . - co_ctx_switch

	/* x19: argument, x20: function */
	.globl	co_ctx_entry
	.hidden	co_ctx_entry
	.type	co_ctx_entry, %function
	.p2align 4
co_ctx_entry:
	.cfi_startproc
	.cfi_undefined x30
	hint	#36			/* bti j */
	mov	x0, x19
	blr	x20
	brk	#1
	.cfi_endproc
	.size	co_ctx_entry, . - co_ctx_entry

#endif

	.section .note.GNU-stack, "", %progbits
