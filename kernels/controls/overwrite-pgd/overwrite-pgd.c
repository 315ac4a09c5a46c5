// SPDX-License-Identifier: GPL-2.0-only
/*
 * overwrite-pgd - put back what kernels before 2.6.19 did to the page directory
 *
 * When such a kernel crashed, machine_kexec() wrote an identity mapping of the
 * control page into the page directory that was live at that moment (the page
 * that CR3 points to).  The crash kernel booted, but the memory that it saved
 * was no longer the memory that had crashed.  "kexec: Avoid overwriting the
 * current pgd" (in 2.6.19) ended that.
 *
 * This module does the same damage to a kernel that has the fix, so that a
 * test which claims to notice it can be shown to notice it.  A kprobe on
 * machine_kexec(), when it is called for a crash image, overwrites:
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
 *
 * What was done is left in a record in memory, for whoever reads the memory
 * afterwards; see struct rig_record.  Nothing is printed at the time of the
 * crash: that would change memory that the test has to account for.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/build_bug.h>
#include <linux/errno.h>
#include <linux/gfp.h>
#include <linux/kernel.h>
#include <linux/kexec.h>
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/pfn.h>
#include <linux/pgtable.h>
#include <linux/ptrace.h>
#include <linux/string.h>
#include <linux/types.h>

#include <asm/io.h>
#include <asm/page.h>
#include <asm/processor-flags.h>
#include <asm/special_insns.h>

/*
 * How the table at CR3 is read (Intel SDM vol. 3, 4.3 to 4.5):
 *
 * TOP_SHIFT	log2 of the bytes that one entry of a 2-level or PAE table maps
 * CR3_MASK	the bits of CR3 that hold the table's physical address
 * USER_ENTRIES	the entries below the kernel half
 * TOP_FLAGS	flags of an entry that points to a table.  In a PDPT entry only
 *		the present bit may be set, the others are reserved there.
 */
#define TABLE_FLAGS (_PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY)
#define LARGE_FLAGS (TABLE_FLAGS | _PAGE_PSE)

#if defined(CONFIG_X86_64)
#define CR3_MASK	CR3_ADDR_MASK
#define USER_ENTRIES	256
#define TOP_FLAGS	TABLE_FLAGS
#elif defined(CONFIG_X86_PAE)
#define TOP_SHIFT	30
#define CR3_MASK	(~0x1fUL)
#define USER_ENTRIES	(PAGE_OFFSET >> TOP_SHIFT)
#define TOP_FLAGS	_PAGE_PRESENT
#else
#define TOP_SHIFT	22
#define CR3_MASK	PAGE_MASK
#define USER_ENTRIES	(PAGE_OFFSET >> TOP_SHIFT)
#define TOP_FLAGS	TABLE_FLAGS
#endif

#define RECORD_VERSION	1
#define RECORD_ENTRIES	256

/*
 * Everything that this module changes at the time of the crash, the live page
 * directory apart, lies in one physically contiguous block, so that a reader
 * of memory finds it in one piece and knows whose changes these are: the record
 * in the first two pages, then the tables of the identity mapping.
 */
#define BLOCK_ORDER	3

enum block_page {
	SLOT_PAGE = 2,		/* maps the memory around the control page */
	PUD_PAGE = 3,		/* x86_64: leads to SLOT_PAGE */
	P4D_PAGE = 4,		/* x86_64 with 5 levels: leads to PUD_PAGE */
};

/*
 * One entry of the live table, as read before and as written.
 */
struct rig_entry {
	u32 index;
	u32 pad;
	u64 before;
	u64 after;
};

/*
 * The record: little-endian, without holes, the same for 32 and 64 bit.  It
 * holds the entries whose value really changed, in the order of their index.
 * pgd_phys stays 0 until the kprobe has been hit for a crash image.
 */
struct rig_record {
	u8 magic[8];
	u32 version;
	u32 count;
	u64 pgd_phys;
	struct rig_entry entry[];
};

static_assert(sizeof(struct rig_entry) == 24);
static_assert(sizeof(struct rig_record) == 24);
static_assert(sizeof(struct rig_record) + RECORD_ENTRIES * sizeof(struct rig_entry) <=
	      SLOT_PAGE * PAGE_SIZE);

/*
 * The block, which begins with the record.  Global so that a debugger finds it
 * by name, and declared here because nothing else in the kernel uses it.
 */
extern struct rig_record *rig_sabotage_record;
struct rig_record *rig_sabotage_record;

/*
 * The record's physical address.  /proc/kallsyms has the data symbols of
 * modules only with CONFIG_KALLSYMS_ALL, hence
 * /sys/module/overwrite_pgd/parameters/record.
 */
static char record[sizeof("0x0123456789abcdef")];
module_param_string(record, record, sizeof(record), 0444);
MODULE_PARM_DESC(record, "physical address of the record of what was overwritten (read-only)");

static pgdval_t *block_table(enum block_page page)
{
	return (void *)rig_sabotage_record + page * PAGE_SIZE;
}

#ifdef CONFIG_X86_64

/*
 * The value that a low-half entry gets, 4- or 5-level: the entry of the control
 * page's slot leads, one table after the other, to the 1 GiB around the page.
 */
static pgdval_t top_entry(u64 control)
{
	pgdval_t *slot = block_table(SLOT_PAGE);
	pgdval_t *pud = block_table(PUD_PAGE);
	pgdval_t *p4d = block_table(P4D_PAGE);
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
	pgdval_t *slot = block_table(SLOT_PAGE);
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

static void overwrite(pgdval_t *pgd, unsigned int index, pgdval_t after)
{
	struct rig_record *rec = rig_sabotage_record;
	pgdval_t before = READ_ONCE(pgd[index]);

	if (before == after)
		return;
	WRITE_ONCE(pgd[index], after);
	rec->entry[rec->count++] = (struct rig_entry) {
		.index = index,
		.before = before,
		.after = after,
	};
}

/*
 * First instruction of machine_kexec(image), interrupts off, other CPUs
 * stopped.  A plain kexec is left alone, and so is an image whose slot lies in
 * the kernel half (possible on i386 with a 1G/3G or 2G/2G split): the old
 * kernels would have cut off the branch that they sat on.
 *
 * No CR3 reload: the CPU may go on with what its TLB (PAE: its PDPTE registers)
 * holds.  What counts is the table in memory, as in the old kernels.
 */
static int at_machine_kexec(struct kprobe *probe, struct pt_regs *regs)
{
	struct kimage *image = (struct kimage *)regs_get_kernel_argument(regs, 0);
	unsigned long pgd_phys = __read_cr3() & CR3_MASK;
	pgdval_t *pgd = __va(pgd_phys);
	u64 control;
	unsigned int index;
	pgdval_t entry;

	if (image->type != KEXEC_TYPE_CRASH)
		return 0;

	control = PFN_PHYS(page_to_pfn(image->control_code_page));
	index = top_index(control);
	if (index >= USER_ENTRIES)
		return 0;

	rig_sabotage_record->pgd_phys = pgd_phys;
	entry = top_entry(control);
	if (IS_ENABLED(CONFIG_X86_64)) {
		unsigned int i;

		for (i = 0; i < USER_ENTRIES; i++)
			overwrite(pgd, i, i == index ? entry : 0);
	} else {
		overwrite(pgd, index, entry);
	}
	return 0;
}

static struct kprobe probe = {
	.symbol_name = "machine_kexec",
	.pre_handler = at_machine_kexec,
};

static int __init overwrite_pgd_init(void)
{
	int err;

	/* __va() and __pa() hold for it: GFP_KERNEL memory is never highmem. */
	rig_sabotage_record = (void *)__get_free_pages(GFP_KERNEL | __GFP_ZERO, BLOCK_ORDER);
	if (!rig_sabotage_record)
		return -ENOMEM;
	memcpy(rig_sabotage_record->magic, "RIGSABOT", sizeof(rig_sabotage_record->magic));
	rig_sabotage_record->version = RECORD_VERSION;
	scnprintf(record, sizeof(record), "0x%llx",
		  (unsigned long long)__pa(rig_sabotage_record));

	err = register_kprobe(&probe);
	if (err) {
		pr_err("no kprobe on %s: %d\n", probe.symbol_name, err);
		free_pages((unsigned long)rig_sabotage_record, BLOCK_ORDER);
		return err;
	}
	pr_info("will overwrite the live pgd in %s, record at physical %s, virtual 0x%lx\n",
		probe.symbol_name, record, (unsigned long)rig_sabotage_record);
	return 0;
}

static void __exit overwrite_pgd_exit(void)
{
	unregister_kprobe(&probe);
	free_pages((unsigned long)rig_sabotage_record, BLOCK_ORDER);
}

module_init(overwrite_pgd_init);
module_exit(overwrite_pgd_exit);

MODULE_DESCRIPTION("overwrites the live page directory on a crash, as kernels before 2.6.19 did");
MODULE_LICENSE("GPL");
