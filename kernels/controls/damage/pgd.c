// SPDX-License-Identifier: GPL-2.0-only
/*
 * what=pgd: put back what kernels before 2.6.19 did to the page directory
 *
 * When such a kernel crashed, machine_kexec() wrote an identity mapping of the
 * control page into the page directory that was live at that moment (the page
 * that CR3 points to).  The crash kernel booted, but the memory that it saved
 * was no longer the memory that had crashed.  "kexec: Avoid overwriting the
 * current pgd" (in 2.6.19) ended that.
 *
 * Here the same damage is done to a kernel that has the fix.  Overwritten is:
 *
 *   i386, 2-level  one page-directory entry, that of the 4 MiB slot in which
 *                  the control page physically lies
 *   i386, PAE      one of the four page-directory-pointer entries, that of the
 *                  1 GiB slot in which the control page physically lies
 *   x86_64         the whole low half of the table at CR3 (256 entries): the
 *                  entry of the control page's slot becomes an identity
 *                  mapping, all others become zero
 *
 * All of these lie in the user half, machine_kexec() itself uses none of them,
 * and the kernel half stays mapped: the crash kernel boots as it would have.
 * Unlike the old kernels, which mapped all of RAM on x86_64, the identity
 * mapping covers the one slot (4 MiB or 1 GiB) around the control page: nothing
 * runs on it in a kernel that has tables of its own for that.
 */

#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/pfn.h>
#include <linux/pgtable.h>

#include <asm/io.h>
#include <asm/special_insns.h>

#include "damage.h"

/*
 * How the table at CR3 is read (Intel SDM vol. 3, 4.3 to 4.5):
 *
 * TOP_SHIFT	log2 of the bytes that one entry of a 2-level or PAE table maps
 * USER_ENTRIES	the entries below the kernel half
 * TOP_FLAGS	flags of an entry that points to a table.  In a PDPT entry only
 *		the present bit may be set, the others are reserved there.
 */
#define TABLE_FLAGS (_PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY)
#define LARGE_FLAGS (TABLE_FLAGS | _PAGE_PSE)

#if defined(CONFIG_X86_64)
#define USER_ENTRIES	256
#define TOP_FLAGS	TABLE_FLAGS
#elif defined(CONFIG_X86_PAE)
#define TOP_SHIFT	30
#define USER_ENTRIES	(PAGE_OFFSET >> TOP_SHIFT)
#define TOP_FLAGS	_PAGE_PRESENT
#else
#define TOP_SHIFT	22
#define USER_ENTRIES	(PAGE_OFFSET >> TOP_SHIFT)
#define TOP_FLAGS	TABLE_FLAGS
#endif

#ifdef CONFIG_X86_64

/*
 * The value that a low-half entry gets, 4- or 5-level: the entry of the control
 * page's slot leads, one table after the other, to the 1 GiB around the page.
 */
static pgdval_t top_entry(u64 control)
{
	pgdval_t *slot = block_page(SLOT_PAGE);
	pgdval_t *pud = block_page(PUD_PAGE);
	pgdval_t *p4d = block_page(P4D_PAGE);
	u64 base = control & PUD_MASK;
	unsigned int i;

	for (i = 0; i < PTRS_PER_PMD; i++)
		slot[i] = (base + i * PMD_SIZE) | LARGE_FLAGS;
	pud[pud_index(control)] = __pa(slot) | TABLE_FLAGS;
	if (!(__read_cr4() & X86_CR4_LA57))
		return __pa(pud) | TOP_FLAGS;
	p4d[(control >> P4D_SHIFT) & (PTRS_PER_PGD - 1)] = __pa(pud) | TABLE_FLAGS;
	return __pa(p4d) | TOP_FLAGS;
}

static unsigned int top_index(u64 control)
{
	unsigned int shift = __read_cr4() & X86_CR4_LA57 ? 48 : 39;

	return (control >> shift) & (PTRS_PER_PGD - 1);
}

#else

/*
 * The value that the entry gets: PAE, 512 pages of 2 MiB; 2-level, 1024 pages
 * of 4 KiB (4 MiB pages would need CR4.PSE).
 */
static pgdval_t top_entry(u64 control)
{
	pgdval_t *slot = block_page(SLOT_PAGE);
	u64 base = control & ~((1ULL << TOP_SHIFT) - 1);
	unsigned int i;

#ifdef CONFIG_X86_PAE
	for (i = 0; i < PTRS_PER_PMD; i++)
		slot[i] = (base + i * PMD_SIZE) | LARGE_FLAGS;
#else
	for (i = 0; i < PTRS_PER_PTE; i++)
		slot[i] = (base + i * PAGE_SIZE) | TABLE_FLAGS;
#endif
	return __pa(slot) | TOP_FLAGS;
}

static unsigned int top_index(u64 control)
{
	return control >> TOP_SHIFT;
}

#endif

/*
 * An image whose slot lies in the kernel half (possible on i386 with a 1G/3G or
 * 2G/2G split) is left alone: the old kernels would have cut off the branch that
 * they sat on.
 *
 * No CR3 reload: the CPU may go on with what its TLB (PAE: its PDPTE registers)
 * holds.  What counts is the table in memory, as in the old kernels.
 */
void damage_pgd(struct kimage *image, pgd_t *pgd)
{
	u64 control = PFN_PHYS(page_to_pfn(image->control_code_page));
	unsigned int index = top_index(control);
	const pgdval_t none = 0;
	pgdval_t entry;
	unsigned int i;

	if (index >= USER_ENTRIES)
		return;
	entry = top_entry(control);
	for (i = 0; i < USER_ENTRIES; i++) {
		if (i == index)
			damage_bytes(&pgd[i], &entry, sizeof(entry));
		else if (IS_ENABLED(CONFIG_X86_64))
			damage_bytes(&pgd[i], &none, sizeof(none));
	}
}
