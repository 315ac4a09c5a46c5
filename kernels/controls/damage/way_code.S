/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The control code of what=way, see way.c.  Data here: it runs only where it is
 * copied to.
 *
 * In: DI the control page (at its physical address), DX the new image's entry,
 * on x86_64 CX the physical address of the table to load.
 */

#include <linux/linkage.h>

#include <asm/page_types.h>
#include <asm/processor-flags.h>

#define CR0_OFF	(X86_CR0_AM | X86_CR0_WP | X86_CR0_TS | X86_CR0_EM)

	.section .rodata

#ifdef CONFIG_X86_64

SYM_DATA_START(way_code)
	pushq	$0
	popfq
	leaq	PAGE_SIZE(%rdi), %rsp
	pushq	%rdx
	movq	%cr0, %rax
	andq	$~CR0_OFF, %rax
	movq	%rax, %cr0
	movq	%cr4, %rax
	andl	$(X86_CR4_PAE | X86_CR4_LA57), %eax	/* LA57 can't be changed here */
	movq	%rax, %cr4
	jmp	1f
1:	movq	%rcx, %cr3
	xorl	%eax, %eax
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%edi, %edi
	ret
SYM_DATA_END_LABEL(way_code, SYM_L_GLOBAL, way_code_end)

#else

SYM_DATA_START(way_code)
	pushl	$0
	popfl
	leal	PAGE_SIZE(%edi), %esp
	pushl	%edx
	movl	%cr0, %eax
	andl	$~(CR0_OFF | X86_CR0_PG), %eax
	movl	%eax, %cr0
	jmp	1f
1:	xorl	%eax, %eax
	movl	%eax, %cr4
	movl	%eax, %cr3
	xorl	%ebx, %ebx
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%esi, %esi
	xorl	%edi, %edi
	xorl	%ebp, %ebp
	ret
SYM_DATA_END_LABEL(way_code, SYM_L_GLOBAL, way_code_end)

#endif
