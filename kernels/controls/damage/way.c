// SPDX-License-Identifier: GPL-2.0-only
/*
 * what=way: hand over to the crash kernel as kernels before 2.6.19 did
 *
 * They needed the identity mapping of the control page that what=pgd writes
 * into the live page directory, for they ran on it: machine_kexec() loaded CR3
 * with what was in it (to flush the TLB), copied the control code through that
 * mapping (x86_64: when the image was loaded), filled the segments, made GDT
 * and IDT invalid, and jumped to the control page's physical address with the
 * crashed task's tables still live.  The code there took its stack on the same
 * page, turned paging off (i386) or loaded the image's identity map (x86_64),
 * and returned to the new image's entry.
 *
 * Of the image's two pages on x86_64 the control page is the second one, after
 * the root of the identity map, then as now.
 */

#include <linux/mm.h>
#include <linux/pfn.h>
#include <linux/string.h>

#include <asm/desc_defs.h>
#include <asm/nospec-branch.h>
#include <asm/segment.h>
#include <asm/special_insns.h>

#include "damage.h"

#define CODE_PAGE (IS_ENABLED(CONFIG_X86_64) ? 1 : 0)

extern const u8 way_code[], way_code_end[];

/* Nothing is compiled between the first segment that is loaded and the jump: the kernel's own per-CPU one is gone. */
static void __noreturn leave(unsigned long control, unsigned long start, unsigned long table)
{
	static const struct desc_ptr invalid;

	asm volatile("movl	%k[ds], %%ds\n\t"
		     "movl	%k[ds], %%es\n\t"
		     "movl	%k[ds], %%fs\n\t"
		     "movl	%k[ds], %%gs\n\t"
		     "movl	%k[ds], %%ss\n\t"
		     "lgdt	%[invalid]\n\t"
		     "lidt	%[invalid]\n\t"
		     ANNOTATE_RETPOLINE_SAFE
		     "jmp	*%[control]"
		     : : [ds] "a" (__KERNEL_DS), [invalid] "m" (invalid), [control] "D" (control),
			 "d" (start), "c" (table) : "memory");
	__builtin_unreachable();
}

void take_old_way(struct kimage *image)
{
	unsigned long table = PFN_PHYS(page_to_pfn(image->control_code_page));
	unsigned long control = table + CODE_PAGE * PAGE_SIZE;

	asm volatile("mov %0, %%cr3" : : "r" (__read_cr3()) : "memory");
	memcpy((void *)control, way_code, way_code_end - way_code);
	leave(control, image->start, table);
}
