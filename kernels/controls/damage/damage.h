/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * damage - one thing that must survive a crash, damaged on purpose
 *
 * What was done is left in a record in memory, for whoever reads the memory
 * afterwards.  Nothing is printed at the time of the crash: that would change
 * memory that the test has to account for.
 */
#ifndef RIG_DAMAGE_H
#define RIG_DAMAGE_H

#include <linux/build_bug.h>
#include <linux/kexec.h>
#include <linux/types.h>

#include <asm/page.h>
#include <asm/pgtable.h>
#include <asm/processor-flags.h>

#define RECORD_VERSION	2
#define RECORD_WORDS	256

/*
 * Everything that this module changes at the time of the crash, the damage
 * apart, lies in one physically contiguous block, so that a reader of memory
 * finds it in one piece and knows whose changes these are: the record in the
 * first two pages, then the tables that pgd.c makes.
 */
#define BLOCK_ORDER	3

enum block_page {
	SLOT_PAGE = 2,		/* maps the memory around the control page */
	PUD_PAGE = 3,		/* x86_64: leads to SLOT_PAGE */
	P4D_PAGE = 4,		/* x86_64 with 5 levels: leads to PUD_PAGE */
	FOUND_PAGE = 5,		/* begins with a pointer to what find_user_page() found */
};

/*
 * One damaged word: 8 bytes at a physical address that is a multiple of 8, as
 * read before and as written.  Two entries of a 2-level table are one word.
 */
struct rig_word {
	u64 address;
	u64 before;
	u64 after;
};

/*
 * The record: little-endian, without holes, the same for 32 and 64 bit.  It
 * holds the words whose value really changed, in the order of their address.
 * pgd_phys, the page directory that was live, stays 0 until the kprobe has been
 * hit for a crash image.
 */
struct rig_record {
	u8 magic[8];
	u32 version;
	u32 count;
	u64 pgd_phys;
	struct rig_word word[];
};

static_assert(sizeof(struct rig_word) == 24);
static_assert(sizeof(struct rig_record) == 24);
static_assert(sizeof(struct rig_record) + RECORD_WORDS * sizeof(struct rig_word) <=
	      SLOT_PAGE * PAGE_SIZE);

/* The bits of CR3 that hold the table's physical address (Intel SDM vol. 3, 4.3 to 4.5). */
#if defined(CONFIG_X86_64)
#define CR3_MASK	CR3_ADDR_MASK
#elif defined(CONFIG_X86_PAE)
#define CR3_MASK	(~0x1fUL)
#else
#define CR3_MASK	PAGE_MASK
#endif

/* The block, which begins with the record.  All of it is zero when loaded. */
extern struct rig_record *rig_sabotage_record;

/* A page of the block. */
static inline void *block_page(enum block_page page)
{
	return (void *)rig_sabotage_record + page * PAGE_SIZE;
}

/* Module parameters, see main.c */
extern char *pattern;
extern unsigned long long note;

/*
 * Overwrite up to 8 bytes in the direct mapping that lie in one aligned word,
 * whether or not they are mapped writable, and put the word into the record.
 * Nothing happens when they have that value already.
 */
void damage_bytes(void *at, const void *bytes, size_t size);

/* The same with the bytes' own complement: certain to be a change. */
void damage_complement(void *at, size_t size);

/*
 * One kind of damage each, called at the first instruction of machine_kexec(),
 * interrupts off, other CPUs stopped.  pgd: the page directory that CR3 points
 * to.  What can't be done leaves no word in the record.
 */
void damage_pgd(struct kimage *image, pgd_t *pgd);
void damage_table(struct kimage *image, pgd_t *pgd);
void damage_pte(struct kimage *image, pgd_t *pgd);
void damage_protection(struct kimage *image, pgd_t *pgd);
void damage_user_twin(struct kimage *image, pgd_t *pgd);
void damage_user_page(struct kimage *image, pgd_t *pgd);
void find_user_page(pgd_t *pgd);
void damage_crash_note(struct kimage *image, pgd_t *pgd);
void damage_crash_region(struct kimage *image, pgd_t *pgd);
void damage_segment(struct kimage *image, pgd_t *pgd);
void damage_entry_point(struct kimage *image, pgd_t *pgd);
void damage_unowned_page(struct kimage *image, pgd_t *pgd);

/* Called in place of machine_kexec() when damage_pgd() has made its entry. */
void take_old_way(struct kimage *image);

/* What damage_unowned_page() needs: false when there is no memory. */
bool take_unowned_page(void);
void free_unowned_page(void);

#endif
