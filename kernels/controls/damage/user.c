// SPDX-License-Identifier: GPL-2.0-only
/*
 * The crashing task's address space: its tables below the pgd, the user twin of
 * the pgd, its memory.
 *
 * Tables are damaged where they map the user stack: the kernel has no more use
 * for it, and the memory that holds the pattern lies elsewhere.
 */

#include <linux/mm.h>
#include <linux/mm_types.h>
#include <linux/page-flags.h>
#include <linux/pfn.h>
#include <linux/pgtable.h>
#include <linux/sched.h>
#include <linux/sched/task_stack.h>
#include <linux/string.h>

#include <asm/cpufeature.h>

#include "damage.h"

/* The entry of the page middle directory for an address; NULL where nothing is mapped. */
static pmd_t *find_pmd(pgd_t *pgd, unsigned long address)
{
	pgd_t *top = pgd_offset_pgd(pgd, address);
	p4d_t *p4d;
	pud_t *pud;
	pmd_t *pmd;

	if (pgd_none(*top))
		return NULL;
	p4d = p4d_offset(top, address);
	if (p4d_none(*p4d))
		return NULL;
	pud = pud_offset(p4d, address);
	if (pud_none(*pud))
		return NULL;
	pmd = pmd_offset(pud, address);
	return pmd_none(*pmd) ? NULL : pmd;
}

/* The entry that maps a 4 KiB page; NULL where none does. */
static pte_t *find_pte(pgd_t *pgd, unsigned long address)
{
	pmd_t *pmd = find_pmd(pgd, address);
	pte_t *pte;

	/* _PAGE_PSE: a 2 or 4 MiB page */
	if (!pmd || !(pmd_flags(*pmd) & _PAGE_PRESENT) || pmd_flags(*pmd) & _PAGE_PSE)
		return NULL;
	pte = pte_offset_kernel(pmd, address);
	return pte_flags(*pte) & _PAGE_PRESENT ? pte : NULL;
}

static unsigned long user_stack(void)
{
	return task_pt_regs(current)->sp;
}

/* The entry that leads to the page table of the user stack: a whole table is lost. */
void damage_table(struct kimage *image, pgd_t *pgd)
{
	pmd_t *pmd = find_pmd(pgd, user_stack());
	const pmdval_t none = 0;

	/* With 2 levels this would be an entry of the pgd itself. */
	if (pmd && CONFIG_PGTABLE_LEVELS > 2)
		damage_bytes(pmd, &none, sizeof(none));
}

/* The entry that maps the user stack: leads to the page frame beside the right one. */
void damage_pte(struct kimage *image, pgd_t *pgd)
{
	pte_t *pte = find_pte(pgd, user_stack());
	pteval_t after;

	if (!pte)
		return;
	after = pte_val(*pte) ^ PAGE_SIZE;
	damage_bytes(pte, &after, sizeof(after));
}

/* The same entry: leads to the right page frame, which can no longer be written. */
void damage_protection(struct kimage *image, pgd_t *pgd)
{
	pte_t *pte = find_pte(pgd, user_stack());
	pteval_t after;

	if (!pte)
		return;
	after = pte_val(*pte) & ~(pteval_t)_PAGE_RW;
	damage_bytes(pte, &after, sizeof(after));
}

/*
 * With page-table isolation the page after the pgd is the table that user space
 * runs on.  Its entry for the user stack is lost.
 */
void damage_user_twin(struct kimage *image, pgd_t *pgd)
{
	pgd_t *twin = (void *)pgd + PAGE_SIZE;
	const pgdval_t none = 0;

	if (IS_ENABLED(CONFIG_X86_64) && boot_cpu_has(X86_FEATURE_PTI))
		damage_bytes(pgd_offset_pgd(twin, user_stack()), &none, sizeof(none));
}

/* Where `pattern` stands twice in a row in a page; NULL when it does not. */
static void *find_pattern(void *page)
{
	size_t length = strlen(pattern);
	size_t at;

	for (at = 0; at + 2 * length <= PAGE_SIZE; at++) {
		if (!memcmp(page + at, pattern, length) &&
		    !memcmp(page + at + length, pattern, length))
			return page + at;
	}
	return NULL;
}

/* The lowest page of the task's heap that holds the pattern. */
void find_user_page(pgd_t *pgd)
{
	void **place = block_page(FOUND_PAGE);
	const unsigned long own = _PAGE_USER | _PAGE_RW;
	unsigned long address;

	if (!*pattern || !current->mm)
		return;
	for (address = current->mm->start_brk & PAGE_MASK; address < current->mm->brk;
	     address += PAGE_SIZE) {
		pte_t *pte = find_pte(pgd, address);

		/* Highmem has no direct mapping: the pattern is then not found. */
		if (!pte || (pte_flags(*pte) & own) != own ||
		    PageHighMem(pfn_to_page(pte_pfn(*pte))))
			continue;
		*place = find_pattern(__va(PFN_PHYS(pte_pfn(*pte))));
		if (*place)
			return;
	}
}

/* A byte of the pattern in that page. */
void damage_user_page(struct kimage *image, pgd_t *pgd)
{
	void **place = block_page(FOUND_PAGE);

	if (*place)
		damage_complement(*place, 1);
}
